//! What operators do to integers, statistics and small numbers, as far as `flow.rs` follows them.

use kiln_graph::Op;
use kiln_graph::ops::kind::{Kind, kind};

/// Sums over many elements.
pub(super) const REDUCTIONS: &[&str] = &[
    "ReduceMean",
    "ReduceSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "CumSum",
];

/// What is done to statistics before they meet the data again.
pub(super) const STATISTICS: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sqrt",
    "Reciprocal",
    "Clip",
    "Max",
    "Min",
    "Pow",
    "Expand",
    "Neg",
    "Exp",
    "Log",
    "Sum",
    "Tile",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Cast",
    "Where",
    "Abs",
    "ReduceMax",
    "ReduceMin",
];

/// Operators that a small number keeps from giving zero.
pub(super) const GUARDED: &[&str] = &[
    "Add",
    "Clip",
    "Concat",
    "Max",
    "Mean",
    "Min",
    "ScatterElements",
    "ScatterND",
    "Sub",
    "Sum",
    "Where",
];

/// Comparisons; with a number that the format has not, they are comparisons with zero.
pub(super) const COMPARISONS: &[&str] =
    &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"];

/// The rounding of a softmax's operands at which they are not half: it multiplies the probabilities by up to e to the
/// power of this, 13 %. FP16 reaches it at scores of 256, BF16 at scores of 32.
pub(super) const SOFTMAX_ERROR: f64 = 0.125;

/// Operators that write the numbers of their first operand elsewhere: all of them, and no others.
pub(super) const MOVES: &[&str] = &[
    "Flatten",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

pub(super) const SOFTMAX: &[&str] = &["Softmax", "LogSoftmax"];

/// What is between the product of queries and keys and the softmax.
pub(super) const SCORES: &[&str] = &["Add", "Div", "Mul", "Neg", "Sub", "Where"];

/// The operands that arithmetic works on; `None` where the result is made in another way.
pub(super) fn arithmetic_operands(op: Op, count: usize) -> Option<Vec<usize>> {
    const FIRST: &[&str] = &[
        "AveragePool",
        "Cast",
        "CastLike",
        "CumSum",
        "Dropout",
        "Identity",
        "MaxPool",
        "TopK",
        "Trilu",
    ];
    const ALL: &[&str] = &[
        "Abs",
        "Add",
        "BitShift",
        "Ceil",
        "Clip",
        "Concat",
        "Div",
        "Einsum",
        "Elu",
        "Exp",
        "Floor",
        "LeakyRelu",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "Range",
        "Reciprocal",
        "Relu",
        "Round",
        "Sign",
        "Softplus",
        "Sqrt",
        "Sub",
        "Sum",
    ];
    if matches!(kind(op), Kind::Move | Kind::Reduce) || op.is_any(FIRST) {
        Some(vec![0])
    } else if op.is_any(ALL) {
        Some((0..count).collect())
    } else if op.is("Where") {
        Some(vec![1, 2])
    } else if op.is_any(&["Pad", "ScatterElements", "ScatterND"]) {
        Some(vec![0, 2])
    } else {
        None
    }
}
