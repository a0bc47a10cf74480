//! Operators: what ONNX says of them ([`schema`]), and typed views over nodes, the one place where attribute names and the
//! differences between operator set versions live.
//!
//! A view is a node known to be a certain operator, with its attributes well-formed; the operator is one of the default
//! domain, or in [`internal`] one that exists inside the compiler only:
//!
//! ```ignore
//! let axis = ops::Softmax::of(graph, node)?.axis();
//! ```
//!
//! `of` gives `None` for another operator, for a node that was removed, and for one whose attributes are of the wrong
//! kind (references to a function's attributes included), so that no accessor has to guess. Every view also offers what
//! [`View`] does: operands, and operands that are constants. Only operators whose attributes or defaults matter to a
//! pass have one.
//!
//! What kind of computation an operator is says [`kind`]; what follows from that (elementwise, commutative, deterministic, …)
//! is in [`traits`].
//!
//! Facts are those of ONNX's `docs/Operators.md` and `docs/Changelog.md`, quoted as `Op-version`.

mod attention;
mod grouped;
pub mod internal;
pub mod kind;
mod math;
mod nn;
mod norm;
mod quant;
mod reduce;
mod resize;
pub mod schema;
mod shape;
mod slice;
pub mod traits;

pub use attention::{
    Attention, InternalAttention, Keyless, MicrosoftAttention, MicrosoftRotaryEmbedding,
    RotaryEmbedding,
};
pub use grouped::GroupQueryAttention;
pub use math::{Cast, Clip, Dropout, Einsum, Gelu, Gemm, LeakyRelu};
pub use nn::{AutoPad, Conv, Pool};
pub use norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization,
    LpNormalization, RmsNormalization, Softmax,
};
pub use quant::{DequantizeLinear, QuantizeLinear};
pub use reduce::{ArgReduce, Axes, REDUCTIONS, REDUCTIONS_OF_18, Reduce, ReduceKind, TopK};
pub use resize::Resize;
pub use shape::{
    Concat, ConstantOfShape, Expand, EyeLike, Flatten, Gather, GatherND, OneHot, Reshape, Shape,
    Squeeze, Transpose, Trilu, Unsqueeze,
};
pub use slice::{Pad, Range, Slice, Split, Where};

use crate::{Attr, DType, Graph, Node, NodeId, Tensor, ValueId};

/// A node of a graph, with what every typed view offers.
#[derive(Clone, Copy, Debug)]
pub struct View<'g> {
    graph: &'g Graph,
    node: &'g Node,
    id: NodeId,
}

/// The kind of an attribute as far as views care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Int,
    Float,
    Str,
    Ints,
    Tensor,
}

impl Kind {
    fn fits(self, attr: &Attr) -> bool {
        match (self, attr) {
            (Kind::Int, Attr::Int(_))
            | (Kind::Float, Attr::Float(_))
            | (Kind::Ints, Attr::Ints(_))
            | (Kind::Tensor, Attr::Tensor(_)) => true,
            (Kind::Str, Attr::Str(s)) => std::str::from_utf8(s).is_ok(),
            _ => false,
        }
    }
}

impl<'g> View<'g> {
    fn of(
        graph: &'g Graph,
        id: NodeId,
        domain: &str,
        names: &[&str],
        attrs: &[(&str, Kind)],
    ) -> Option<View<'g>> {
        let node = graph.get(id)?;
        let well_formed = |(name, kind): &(&str, Kind)| {
            let attr = node.attrs().get(name);
            attr.is_none_or(|a| kind.fits(a))
        };
        let op = node.op();
        let named = op.domain() == domain && names.contains(&op.name());
        (named && attrs.iter().all(well_formed)).then_some(View { graph, node, id })
    }

    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    pub fn node(&self) -> &'g Node {
        self.node
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn input(&self, k: usize) -> Option<ValueId> {
        self.node.input(k)
    }

    pub fn output(&self, k: usize) -> Option<ValueId> {
        self.node.output(k)
    }

    /// The operand at `k`, if it is a constant of this graph.
    pub fn constant(&self, k: usize) -> Option<&'g Tensor> {
        self.graph.constant(self.input(k)?)
    }

    /// The operand at `k` as integers, if it is a constant.
    pub fn ints(&self, k: usize) -> Option<Vec<i64>> {
        self.constant(k)?.to_i64s()
    }

    /// The rank of the operand at `k`, if known.
    pub fn rank(&self, k: usize) -> Option<usize> {
        self.graph.value(self.input(k)?).ty().rank()
    }

    /// The dtype of the operand at `k`, if known.
    pub fn dtype(&self, k: usize) -> Option<DType> {
        self.graph.value(self.input(k)?).ty().dtype()
    }

    fn opset(&self) -> i64 {
        self.graph.opset()
    }

    /// An integer attribute, or its default by the schema; 0 where there is none.
    fn int(&self, name: &str) -> i64 {
        match self.node.attrs().get(name).or_else(|| self.default(name)) {
            Some(Attr::Int(v)) => *v,
            _ => 0,
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.int(name) != 0
    }

    /// A float attribute, or its default by the schema; 0 where there is none.
    fn float(&self, name: &str) -> f32 {
        match self.node.attrs().get(name).or_else(|| self.default(name)) {
            Some(Attr::Float(v)) => *v,
            _ => 0.0,
        }
    }

    /// A text attribute, or its default by the schema; empty where there is none.
    fn str(&self, name: &str) -> &'g str {
        match self.node.attrs().get(name).or_else(|| self.default(name)) {
            Some(Attr::Str(text)) => std::str::from_utf8(text).unwrap_or_default(),
            _ => "",
        }
    }

    fn default(&self, name: &str) -> Option<&'g Attr> {
        schema::default_attr(self.node.op(), name, self.opset())
    }

    fn int_list(&self, name: &str) -> Option<&'g [i64]> {
        self.node.attrs().ints(name)
    }
}

/// Declares a view: its operators and the attributes that must be of the right kind.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident: $($op:literal)|+ { $($attr:literal: $kind:ident),* $(,)? }) => {
        $crate::ops::view! { in "", $(#[$doc])* $name: $($op)|+ { $($attr: $kind),* } }
    };
    ($(#[$doc:meta])* $name:ident: $ops:ident { $($attr:literal: $kind:ident),* $(,)? }) => {
        $crate::ops::view! { @ "", $ops, $(#[$doc])* $name { $($attr: $kind),* } }
    };
    (in $domain:expr, $(#[$doc:meta])* $name:ident: $($op:literal)|+ { $($attr:literal: $kind:ident),* $(,)? }) => {
        $crate::ops::view! { @ $domain, &[$($op),+], $(#[$doc])* $name { $($attr: $kind),* } }
    };
    (@ $domain:expr, $ops:expr, $(#[$doc:meta])* $name:ident { $($attr:literal: $kind:ident),* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'g>($crate::ops::View<'g>);

        impl<'g> $name<'g> {
            /// The node as this operator; `None` if it is another one or malformed.
            pub fn of(graph: &'g $crate::Graph, node: $crate::NodeId) -> Option<$name<'g>> {
                let attrs = &[$(($attr, $crate::ops::Kind::$kind)),*];
                $crate::ops::View::of(graph, node, $domain, $ops, attrs).map($name)
            }
        }

        impl<'g> std::ops::Deref for $name<'g> {
            type Target = $crate::ops::View<'g>;

            fn deref(&self) -> &$crate::ops::View<'g> {
                &self.0
            }
        }
    };
}
use view;

/// An axis counted from the front; negative ones count from the back. `None` where there is no such axis.
pub fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    (0..rank).contains(&axis).then_some(axis as usize)
}

/// Axes counted from the front, in the order given. `None` where one is out of range or named twice.
pub fn resolve_axes(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    let mut out = Vec::with_capacity(axes.len());
    for &axis in axes {
        let axis = resolve_axis(axis, rank)?;
        if out.contains(&axis) {
            return None;
        }
        out.push(axis);
    }
    Some(out)
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::graph::Opsets;
    use crate::{Attrs, DType, Dim, Graph, NodeId, Op, Tensor, Type};

    pub fn graph(opset: i64) -> Graph {
        let mut opsets = Opsets::default();
        opsets.set("", opset);
        Graph::new(opsets)
    }

    pub fn f32(dims: &[usize]) -> Type {
        let dims = dims.iter().map(|&d| Dim::Known(d));
        Type::tensor(DType::F32, Some(dims.collect()))
    }

    /// One node over an FP32 input of rank 3 and then `constants`; `None` leaves an operand out.
    pub fn node(
        opset: i64,
        op: &str,
        attrs: Attrs,
        constants: &[Option<Tensor>],
    ) -> (Graph, NodeId) {
        let mut g = graph(opset);
        let x = g.add_input("x", f32(&[2, 3, 4]));
        let mut inputs = vec![Some(x)];
        for t in constants {
            inputs.push(t.clone().map(|t| g.add_constant("c", t)));
        }
        let n = g.add_node(Op::onnx(op), "n", inputs, 1, attrs);
        (g, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attrs, Op};

    #[test]
    fn axes_resolve_from_both_ends() {
        assert_eq!(resolve_axis(-1, 3), Some(2));
        assert_eq!(resolve_axis(0, 3), Some(0));
        assert_eq!(resolve_axis(3, 3), None);
        assert_eq!(resolve_axis(-4, 3), None);
        assert_eq!(resolve_axis(0, 0), None);
        assert_eq!(resolve_axis(i64::MIN, 3), None);
        assert_eq!(resolve_axes(&[-1, 0], 3), Some(vec![2, 0]));
        assert_eq!(resolve_axes(&[-1, 2], 3), None);
    }

    #[test]
    fn malformed_foreign_and_removed_nodes_have_no_view() {
        let (mut g, n) = testing::node(13, "Softmax", Attrs::new().with("axis", 1.0f32), &[]);
        assert!(Softmax::of(&g, n).is_none());
        g.attrs_mut(n).set("axis", 1);
        assert!(Softmax::of(&g, n).is_some());
        let axis = Attr::Ref {
            name: "axis".into(),
            kind: 2,
        };
        g.attrs_mut(n).set("axis", axis);
        assert!(Softmax::of(&g, n).is_none());
        g.attrs_mut(n).remove("axis");
        g.set_op(n, Op::new("com.microsoft", "Softmax"));
        assert!(Softmax::of(&g, n).is_none());
        g.set_op(n, Op::onnx("Softmax"));
        assert!(g.remove_node(n));
        assert!(Softmax::of(&g, n).is_none());
    }
}
