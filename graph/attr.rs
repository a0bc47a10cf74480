//! Attributes of nodes.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Graph, Tensor};

/// The value of an attribute: a closed set, as ONNX has it.
#[derive(Clone, Debug)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    /// Inside a function body: the value of the function's attribute `name`.
    Ref {
        name: Arc<str>,
        /// ONNX's `AttributeProto.AttributeType` number.
        kind: i32,
    },
    /// A kind that kiln does not model (sparse tensors, types): the encoded `AttributeProto`.
    Opaque(Bytes),
}

impl From<i64> for Attr {
    fn from(v: i64) -> Attr {
        Attr::Int(v)
    }
}
impl From<f32> for Attr {
    fn from(v: f32) -> Attr {
        Attr::Float(v)
    }
}
impl From<&str> for Attr {
    fn from(v: &str) -> Attr {
        Attr::Str(Bytes::copy_from_slice(v.as_bytes()))
    }
}
impl From<Vec<i64>> for Attr {
    fn from(v: Vec<i64>) -> Attr {
        Attr::Ints(v)
    }
}
impl From<Tensor> for Attr {
    fn from(v: Tensor) -> Attr {
        Attr::Tensor(v)
    }
}

impl Attr {
    /// The graphs held by this attribute.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            Attr::Graph(g) => std::slice::from_ref(g),
            Attr::Graphs(gs) => gs,
            _ => &[],
        }
    }

    /// The graphs held by this attribute.
    pub fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            Attr::Graph(g) => std::slice::from_mut(g),
            Attr::Graphs(gs) => gs,
            _ => &mut [],
        }
    }

    /// Whether two attributes are the same, floats and tensors by their bits. Graphs and opaque ones never are.
    pub fn same(&self, other: &Attr) -> bool {
        let bits = |v: &[f32]| v.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        match (self, other) {
            (Attr::Int(a), Attr::Int(b)) => a == b,
            (Attr::Float(a), Attr::Float(b)) => a.to_bits() == b.to_bits(),
            (Attr::Str(a), Attr::Str(b)) => a == b,
            (Attr::Tensor(a), Attr::Tensor(b)) => a.same_bits(b),
            (Attr::Ints(a), Attr::Ints(b)) => a == b,
            (Attr::Floats(a), Attr::Floats(b)) => bits(a) == bits(b),
            (Attr::Strs(a), Attr::Strs(b)) => a == b,
            (Attr::Ref { name: a, .. }, Attr::Ref { name: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// A node's attributes, sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Attrs(SmallVec<[(Arc<str>, Attr); 2]>);

impl Attrs {
    pub fn new() -> Attrs {
        Attrs::default()
    }

    /// This set with one attribute more (or replaced).
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Attrs {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: impl Into<Attr>) {
        match self.position(name) {
            Ok(k) => self.0[k].1 = value.into(),
            Err(k) => self.0.insert(k, (name.into(), value.into())),
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<Attr> {
        self.position(name).ok().map(|k| self.0.remove(k).1)
    }

    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(n, _)| (**n).cmp(name))
    }

    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.position(name).ok().map(|k| &self.0[k].1)
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Attr::Int(v) => Some(*v),
            _ => None,
        }
    }

    pub fn float(&self, name: &str) -> Option<f32> {
        match self.get(name)? {
            Attr::Float(v) => Some(*v),
            _ => None,
        }
    }

    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Attr::Str(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name)? {
            Attr::Ints(v) => Some(v),
            _ => None,
        }
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.get(name)? {
            Attr::Tensor(v) => Some(v),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Attr)> {
        self.0.iter().map(|(n, a)| (n, a))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Attr> {
        self.0.iter_mut().map(|(_, a)| a)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Same names with the same values ([`Attr::same`]).
    pub fn same(&self, other: &Attrs) -> bool {
        self.len() == other.len()
            && (self.0.iter().zip(&other.0)).all(|(a, b)| a.0 == b.0 && a.1.same(&b.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_replaced() {
        let attrs = Attrs::new().with("to", 10).with("axis", -1).with("axis", 2);
        assert_eq!(
            attrs.iter().map(|(n, _)| &**n).collect::<Vec<_>>(),
            ["axis", "to"]
        );
        assert_eq!(attrs.int("axis"), Some(2));
        assert_eq!(attrs.float("axis"), None);
        assert!(attrs.same(&Attrs::new().with("axis", 2).with("to", 10)));
    }
}
