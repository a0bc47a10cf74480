//! The arena graph: nodes and values by stable ids, with def-use edges.
//!
//! Ids stay valid for the whole compilation: removing leaves a tombstone, and compaction happens only when a model is
//! written. Names are data on a value, never keys; the public names of a graph's outputs belong to the output slots, so
//! that any value may stand behind them. A nested graph (the body of an `If`, `Loop` or `Scan`) has an arena of its own;
//! what it reads from outside is a [`Def::Capture`] inside and a use by the owning node outside.

mod edit;

use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::{Attrs, Op, Tensor, Type};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(u32);

        impl $name {
            pub fn index(self) -> usize {
                self.0 as usize
            }

            fn new(index: usize) -> $name {
                // Arenas hold far fewer than 2^32 entries: a file of that many nodes is refused by the reader.
                $name(u32::try_from(index).unwrap_or(u32::MAX))
            }
        }
    };
}

id!(
    /// A node of one graph.
    NodeId
);
id!(
    /// A value (an edge) of one graph.
    ValueId
);

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Def {
    /// The graph's input of this position.
    Input(u32),
    /// An initializer, a `Constant` node or a folded result.
    Constant(Tensor),
    /// The output of this position of a node.
    Node(NodeId, u32),
    /// In a nested graph: the owning node's captured value of this position.
    Capture(u32),
    /// Nothing defines it any more (its node was removed).
    Removed,
}

/// Which operand of a node reads a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Slot {
    Input(u32),
    /// The node's nested graphs read it.
    Capture(u32),
}

/// One use of a value by a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Use {
    pub node: NodeId,
    pub slot: Slot,
}

/// A value: what a node computes, an input, or a constant.
#[derive(Clone, Debug)]
pub struct Value {
    name: Arc<str>,
    ty: Type,
    def: Def,
    uses: SmallVec<[Use; 2]>,
    /// How many of the graph's outputs it stands behind.
    outputs: u32,
}

impl Value {
    /// The name it was read with or given; may be empty and need not be unique until written.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ty(&self) -> &Type {
        &self.ty
    }

    pub fn def(&self) -> &Def {
        &self.def
    }

    /// Uses by nodes, in no particular order.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }

    pub fn is_output(&self) -> bool {
        self.outputs > 0
    }

    /// Neither a node nor an output reads it.
    pub fn is_unused(&self) -> bool {
        self.uses.is_empty() && self.outputs == 0
    }

    pub fn constant(&self) -> Option<&Tensor> {
        match &self.def {
            Def::Constant(t) => Some(t),
            _ => None,
        }
    }
}

pub type Inputs = SmallVec<[Option<ValueId>; 4]>;
pub type Outputs = SmallVec<[Option<ValueId>; 1]>;

/// An application of an operator.
#[derive(Clone, Debug)]
pub struct Node {
    op: Op,
    name: Arc<str>,
    inputs: Inputs,
    outputs: Outputs,
    captures: SmallVec<[ValueId; 0]>,
    attrs: Attrs,
    /// Documentation and metadata as they came, and where a rewritten node comes from.
    notes: Notes,
}

/// What a node carries besides its meaning.
#[derive(Clone, Debug, Default)]
pub struct Notes(Option<Box<NotesInner>>);

#[derive(Clone, Debug, Default)]
struct NotesInner {
    doc: String,
    metadata: Vec<(String, String)>,
}

impl Notes {
    pub fn new(doc: String, metadata: Vec<(String, String)>) -> Notes {
        if doc.is_empty() && metadata.is_empty() {
            return Notes(None);
        }
        Notes(Some(Box::new(NotesInner { doc, metadata })))
    }

    pub fn doc(&self) -> &str {
        self.0.as_ref().map_or("", |n| &n.doc)
    }

    pub fn metadata(&self) -> &[(String, String)] {
        self.0.as_ref().map_or(&[], |n| &n.metadata)
    }

    /// Sets one `metadata_props` entry.
    pub fn set(&mut self, key: &str, value: String) {
        let inner = self.0.get_or_insert_default();
        match inner.metadata.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => inner.metadata.push((key.to_string(), value)),
        }
    }
}

impl Node {
    pub fn op(&self) -> Op {
        self.op
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Operands; `None` is an optional input left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// The operand at `k`, if there is one.
    pub fn input(&self, k: usize) -> Option<ValueId> {
        self.inputs.get(k).copied().flatten()
    }

    /// Results; `None` is an optional output left out.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    pub fn output(&self, k: usize) -> Option<ValueId> {
        self.outputs.get(k).copied().flatten()
    }

    /// The only output of a node that has exactly one.
    pub fn sole_output(&self) -> Option<ValueId> {
        match self.outputs.as_slice() {
            [Some(v)] => Some(*v),
            _ => None,
        }
    }

    pub fn attrs(&self) -> &Attrs {
        &self.attrs
    }

    /// Outer values that the node's nested graphs read, by the positions their [`Def::Capture`]s name.
    pub fn captures(&self) -> &[ValueId] {
        &self.captures
    }

    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    pub fn has_subgraphs(&self) -> bool {
        self.attrs.iter().any(|(_, a)| !a.graphs().is_empty())
    }

    fn operands(&self) -> impl Iterator<Item = (Slot, ValueId)> + '_ {
        let inputs = self.inputs.iter().enumerate();
        let inputs = inputs.filter_map(|(k, v)| Some((Slot::Input(k as u32), (*v)?)));
        let captures = self.captures.iter().enumerate();
        inputs.chain(captures.map(|(k, v)| (Slot::Capture(k as u32), *v)))
    }
}

/// A graph's output: a public name and the value behind it.
#[derive(Clone, Debug)]
pub struct Output {
    pub name: Arc<str>,
    pub value: ValueId,
}

/// Versions of operator sets by domain; the default domain is `""`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opsets(Vec<(Arc<str>, i64)>);

impl Opsets {
    pub fn get(&self, domain: &str) -> Option<i64> {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        self.0.iter().find(|(d, _)| &**d == domain).map(|(_, v)| *v)
    }

    pub fn set(&mut self, domain: &str, version: i64) {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        match self.0.iter_mut().find(|(d, _)| &**d == domain) {
            Some(entry) => entry.1 = version,
            None => self.0.push((domain.into(), version)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(d, v)| (&**d, *v))
    }
}

/// The edges contain a cycle through this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the graph has a cycle through node {node}")]
pub struct Cycle {
    pub node: String,
    pub id: NodeId,
}

/// An arena of nodes and values. All edits keep def-use edges true.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    pub doc: String,
    nodes: Vec<Option<Node>>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    outputs: Vec<Output>,
    /// Initializers that may be overridden by feeding the input of the same name (IR version 4 and later).
    defaults: Vec<(ValueId, Tensor)>,
    opsets: Opsets,
    /// What [`Graph::topo_order`] found; every change of edges empties it.
    order: OnceLock<Box<[NodeId]>>,
    /// `metadata_props` and encoded fields that kiln does not model.
    pub(crate) carried: Carried,
}

/// Parts of a graph that are carried through unread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried {
    pub metadata: Vec<(String, String)>,
    pub quantization: Vec<crate::onnx::proto::TensorAnnotation>,
    /// Documentation, denotation and metadata of values.
    pub infos: rustc_hash::FxHashMap<ValueId, crate::onnx::proto::ValueInfoProto>,
    pub devices: Vec<(
        NodeId,
        Vec<crate::onnx::proto::NodeDeviceConfigurationProto>,
    )>,
}

impl Graph {
    pub fn new(opsets: Opsets) -> Graph {
        Graph {
            opsets,
            ..Graph::default()
        }
    }

    // Reading.

    pub fn node(&self, id: NodeId) -> &Node {
        match &self.nodes[id.index()] {
            Some(node) => node,
            None => panic!("node {id:?} was removed"),
        }
    }

    /// The node, unless it was removed.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())?.as_ref()
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Live nodes in the order of their ids.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(k, n)| Some((NodeId::new(k), n.as_ref()?)))
    }

    pub fn node_count(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    /// One more than the largest node index ever given: the size of a side table.
    pub fn node_bound(&self) -> usize {
        self.nodes.len()
    }

    /// One more than the largest value index ever given: the size of a side table.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// Values that something defines, in the order of their ids.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        let values = self.values.iter().enumerate();
        values
            .filter(|(_, v)| !matches!(v.def, Def::Removed))
            .map(|(k, v)| (ValueId::new(k), v))
    }

    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Inputs with a default value that a caller may leave out.
    pub fn defaults(&self) -> &[(ValueId, Tensor)] {
        &self.defaults
    }

    pub fn opsets(&self) -> &Opsets {
        &self.opsets
    }

    /// The version of the default ONNX operator set; 1 if the model names none.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").unwrap_or(1)
    }

    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        self.value(id).constant()
    }

    /// The node that computes a value.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.value(id).def {
            Def::Node(node, _) => Some(node),
            _ => None,
        }
    }

    /// The node that computes a value, if it is the default domain's operator `op`.
    pub fn producer_if(&self, id: ValueId, op: &str) -> Option<NodeId> {
        self.producer(id).filter(|&n| self.node(n).op.is(op))
    }

    /// The single node that reads a value which is not an output of the graph.
    pub fn single_use(&self, id: ValueId) -> Option<Use> {
        match self.value(id) {
            Value {
                uses, outputs: 0, ..
            } if uses.len() == 1 => Some(uses[0]),
            _ => None,
        }
    }

    /// The node's name, or its operator and first output where it has none: what messages call it.
    pub fn label(&self, id: NodeId) -> String {
        let node = self.node(id);
        if !node.name.is_empty() {
            return format!("{} ({})", node.name, node.op);
        }
        let output = node.outputs.iter().flatten().next();
        format!(
            "{} → {}",
            node.op,
            output.map_or("nothing", |&v| self.value(v).name())
        )
    }

    /// Nodes so that each comes after what it reads; ties go by id, so the order is the same each time.
    ///
    /// # Errors
    /// When the edges contain a cycle.
    pub fn topo_order(&self) -> Result<Vec<NodeId>, Cycle> {
        if let Some(order) = self.order.get() {
            debug_assert_eq!(self.sorted().as_deref().ok(), Some(&**order));
            return Ok(order.to_vec());
        }
        let order = self.sorted()?;
        // Another thread may have been faster, with the same order.
        let _ = self.order.set(order.as_slice().into());
        Ok(order)
    }

    fn sorted(&self) -> Result<Vec<NodeId>, Cycle> {
        let mut waiting: Vec<u32> = vec![0; self.nodes.len()];
        let mut ready = std::collections::BinaryHeap::new();
        for (id, node) in self.nodes() {
            let edges = node.operands().filter(|(_, v)| self.producer(*v).is_some());
            let n = edges.count() as u32;
            waiting[id.index()] = n;
            if n == 0 {
                ready.push(std::cmp::Reverse(id));
            }
        }
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(std::cmp::Reverse(id)) = ready.pop() {
            order.push(id);
            for v in self.node(id).outputs.iter().flatten() {
                for u in &self.value(*v).uses {
                    let n = &mut waiting[u.node.index()];
                    *n -= 1;
                    if *n == 0 {
                        ready.push(std::cmp::Reverse(u.node));
                    }
                }
            }
        }
        match self.nodes().find(|(id, _)| waiting[id.index()] > 0) {
            None => Ok(order),
            Some((id, _)) => Err(Cycle {
                node: self.label(id),
                id,
            }),
        }
    }

    /// Calls `f` on this graph and on every graph nested in it.
    pub fn for_each_graph<'a>(&'a self, f: &mut dyn FnMut(&'a Graph)) {
        f(self);
        for node in self.nodes.iter().flatten() {
            for (_, attr) in node.attrs.iter() {
                for graph in attr.graphs() {
                    graph.for_each_graph(f);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> (Graph, ValueId, NodeId, NodeId) {
        let mut g = Graph::new(Opsets::default());
        let x = g.add_input("x", Type::Unknown);
        let a = g.add_node(Op::onnx("Relu"), "a", [Some(x)], 1, Attrs::new());
        let av = g.node(a).sole_output().unwrap();
        let b = g.add_node(Op::onnx("Add"), "b", [Some(av), Some(av)], 1, Attrs::new());
        let bv = g.node(b).sole_output().unwrap();
        g.add_output("y", bv);
        (g, x, a, b)
    }

    #[test]
    fn uses_follow_edits() {
        let (mut g, x, a, b) = chain();
        let av = g.node(a).sole_output().unwrap();
        assert_eq!(g.value(av).uses().len(), 2);
        assert!(!g.remove_node(a) && !g.remove_node(b));
        g.replace_uses(av, x);
        assert!(g.value(av).is_unused() && g.value(x).uses().len() == 3);
        assert!(g.remove_node(a));
        assert_eq!(g.value(x).uses().len(), 2);
        g.set_input(b, 1, None);
        assert_eq!(g.node(b).inputs(), [Some(x)]);
        assert_eq!(g.value(x).uses().len(), 1);
        let bv = g.node(b).sole_output().unwrap();
        g.replace_uses(bv, x);
        assert!(g.value(x).is_output() && g.outputs()[0].value == x);
        assert_eq!(&*g.outputs()[0].name, "y");
    }

    #[test]
    fn order_is_topological_and_cycles_are_named() {
        let (mut g, _, a, b) = chain();
        assert_eq!(g.topo_order().unwrap(), [a, b]);
        let bv = g.node(b).sole_output().unwrap();
        g.set_input(a, 0, Some(bv));
        assert!(g.topo_order().unwrap_err().node.contains("a (Relu)"));
    }
}
