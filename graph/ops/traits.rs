//! Properties of operators that passes ask for; they follow from an operator's [`Kind`].
//!
//! Unknown operators have none of the convenient properties: they count as neither elementwise nor commutative, and as
//! not deterministic, since nothing is known of them. What a node's attributes or nested graphs change is answered for
//! the node, not for the operator.

use super::kind::{Kind, kind};
use super::{BatchNormalization, Dropout};
use crate::{Graph, NodeId, Op};

const COMMUTATIVE: &[&str] = &[
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Equal",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Or",
    "Sum",
    "Xor",
];

/// Whether the result at an element depends only on the operands at that element, after broadcasting: one result, of the
/// broadcast shape.
///
/// `Where` and `CastLike` are not among these: passes that move elementwise operators must look at their operands' roles.
pub fn is_elementwise(op: Op) -> bool {
    matches!(kind(op), Kind::Unary | Kind::Binary | Kind::Variadic)
}

/// Whether it is elementwise over its first operand alone; any further ones are scalars.
pub fn is_unary_elementwise(op: Op) -> bool {
    kind(op) == Kind::Unary
}

/// Whether it is elementwise over exactly two operands that broadcast.
pub fn is_binary_elementwise(op: Op) -> bool {
    kind(op) == Kind::Binary
}

/// Whether exchanging any two operands leaves the result as it is.
pub fn is_commutative(op: Op) -> bool {
    op.is_any(COMMUTATIVE)
}

/// Whether only the operand's shape matters, not its elements.
pub fn is_shape_only(op: Op) -> bool {
    kind(op) == Kind::Shape
}

/// Whether it runs nested graphs.
pub fn is_control_flow(op: Op) -> bool {
    kind(op) == Kind::Control
}

/// Whether the same operands always give the same results, as far as the operator says; internal operators do. See
/// [`node_is_deterministic`].
pub fn is_deterministic(op: Op) -> bool {
    !matches!(kind(op), Kind::Random | Kind::Unknown)
}

/// Whether the node gives the same results for the same operands: no operator that draws random numbers, no dropout in
/// training, none of another domain, neither the node nor anything nested in it.
pub fn node_is_deterministic(graph: &Graph, id: NodeId) -> bool {
    let Some(node) = graph.get(id) else {
        return false;
    };
    let op = node.op();
    if !is_deterministic(op) {
        return false;
    }
    if op.is("Dropout") && !Dropout::of(graph, id).is_some_and(|d| d.is_inference()) {
        return false;
    }
    let nested = node.attrs().iter().flat_map(|(_, a)| a.graphs());
    let mut nested = nested.map(|g| g.nodes().all(|(inner, _)| node_is_deterministic(g, inner)));
    nested.all(|calm| calm)
}

/// Whether running the node does more than compute its results from its operands, so that it may be neither removed,
/// merged with an equal one nor run at compile time: random draws (which advance a generator), training-mode batch
/// normalization (which is expected to update statistics).
///
/// Unused operators of unknown domains may be removed all the same: ONNX gives no operator effects beyond its outputs.
pub fn has_side_effects(graph: &Graph, id: NodeId) -> bool {
    let Some(node) = graph.get(id) else {
        return false;
    };
    let op = node.op();
    if kind(op) == Kind::Random {
        return true;
    }
    if op.is("Dropout") && !Dropout::of(graph, id).is_some_and(|d| d.is_inference()) {
        return true;
    }
    if BatchNormalization::of(graph, id).is_some_and(|b| b.is_training()) {
        return true;
    }
    let mut nested = node.attrs().iter().flat_map(|(_, a)| a.graphs());
    nested.any(|g| g.nodes().any(|(inner, _)| has_side_effects(g, inner)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attr, Attrs, Tensor};

    #[test]
    fn only_elementwise_operators_commute() {
        for op in COMMUTATIVE {
            assert!(is_elementwise(Op::onnx(op)), "{op}");
        }
    }

    #[test]
    fn unknown_operators_have_no_convenient_property() {
        for op in [Op::new("com.microsoft", "Add"), Op::onnx("Whatever")] {
            assert!(!is_elementwise(op) && !is_commutative(op) && !is_deterministic(op));
        }
        assert!(is_commutative(Op::onnx("Mul")) && !is_commutative(Op::onnx("Sub")));
        assert!(is_shape_only(Op::onnx("Shape")) && is_control_flow(Op::onnx("Loop")));
    }

    #[test]
    fn randomness_is_found_where_it_hides() {
        let training = [Some(Tensor::scalar(0.5f32)), Some(Tensor::scalar(true))];
        let (g, n) = node(13, "Dropout", Attrs::new(), &training);
        assert!(!node_is_deterministic(&g, n) && has_side_effects(&g, n));
        let (inner, _) = node(13, "RandomNormalLike", Attrs::new(), &[]);
        let body = Attr::Graph(Box::new(inner));
        let (g, n) = node(13, "If", Attrs::new().with("then_branch", body), &[]);
        assert!(!node_is_deterministic(&g, n) && has_side_effects(&g, n));
        let (g, n) = node(13, "Relu", Attrs::new(), &[]);
        assert!(node_is_deterministic(&g, n) && !has_side_effects(&g, n));
    }
}
