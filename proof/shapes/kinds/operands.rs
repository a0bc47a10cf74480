//! What operators take their operands for, where these are no numbers to compute on.

use kiln_graph::{Graph, Node, ValueId};

use super::worlds::uniform;

/// What an argument is, as an operator takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// A shape that copies where it is 0: Reshape's.
    Reshape,
    /// Sizes or factors that may all be 1.
    Ones,
    /// The number of things: steps, repetitions, the k of a TopK.
    Count,
    /// A place, an axis, a distance that may be 0.
    Zero,
    /// Where a slice ends.
    End,
    /// How many places of each sample are no padding.
    Length,
    /// Factors of Resize.
    Scales,
    /// Each part of an axis that is split into equal ones.
    Part(usize),
    /// Between 0 and 1.
    Share,
}

/// Whether an operator gives the elements of this operand on as they are.
pub(super) fn passes(name: &str, k: usize) -> bool {
    match name {
        "Concat" => true,
        "Where" => k > 0,
        "Cast" | "CastLike" | "Reshape" | "Unsqueeze" | "Squeeze" | "Identity" | "Slice"
        | "Expand" | "Flatten" | "Transpose" | "Split" | "Tile" | "Gather" | "GatherND"
        | "GatherElements" | "Dropout" => k == 0,
        _ => false,
    }
}

/// What an operator indexes with this operand, the axis, and how long that is, where it is known.
pub(super) type Table = (Option<ValueId>, i64, Option<i64>);

pub(super) fn table(g: &Graph, node: &Node, k: usize) -> Option<Table> {
    let op = node.op();
    let axis = || node.attrs().int("axis").unwrap_or(0);
    let (of, axis) = match (op.domain(), op.name(), k) {
        ("", "Gather" | "GatherElements" | "ScatterElements", 1) => (0, axis()),
        ("", "GatherND" | "ScatterND", 1) => (0, 0),
        ("", "OneHot", 0) => {
            let depth = node.input(1).and_then(|v| g.constant(v)).and_then(uniform);
            return Some((None, 0, depth.map(|d| d as i64)));
        }
        ("com.microsoft", "EmbedLayerNormalization", 0) => (2, 0),
        ("com.microsoft", "EmbedLayerNormalization", 1) => (4, 0),
        ("com.microsoft", "EmbedLayerNormalization", 8) => (3, 0),
        ("com.microsoft", "GatherBlockQuantized", 1) => (0, 0),
        _ => return None,
    };
    let shape = node.input(of).and_then(|t| g.value(t).ty().shape());
    let rank = shape.map_or(0, <[_]>::len) as i64;
    let place = if axis < 0 { axis + rank } else { axis };
    let rows = shape.and_then(|s| s.get(usize::try_from(place).ok()?)?.known());
    Some((node.input(of), axis, rows.map(|n| n as i64)))
}

/// What an operator takes this operand for, where that is no tensor to compute on.
pub(super) fn argument(g: &Graph, node: &Node, k: usize) -> Option<Argument> {
    use Argument::{Count, End, Length, Ones, Reshape, Scales, Share, Zero};
    let op = node.op();
    Some(match (op.domain(), op.name(), k) {
        ("", "Reshape", 1) => Reshape,
        ("", "Expand" | "Tile", 1) => Ones,
        ("", "ConstantOfShape", 0) | ("", "TopK" | "OneHot", 1) => Count,
        ("", "Range", 1) | ("", "Loop", 0) | ("", "NonMaxSuppression", 2) => Count,
        ("", "Range", 2) | ("", "Slice", 4) => Ones,
        ("", "Range", 0) | ("", "Slice", 1 | 3) => Zero,
        ("", "Slice", 2) => End,
        ("", "Pad", 1 | 3) | ("", "Trilu" | "CumSum" | "Unsqueeze" | "Squeeze", 1) => Zero,
        ("", name, 1) if name.starts_with("Reduce") => Zero,
        ("", "Resize", 2) => Scales,
        ("", "Resize" | "Upsample", 1) if g.opset() < 11 => Scales,
        ("", "NonMaxSuppression", 3 | 4) | ("", "Dropout", 1) => Share,
        ("", "LSTM" | "GRU" | "RNN", 4) | ("", "ReverseSequence", 1) => Length,
        ("", "Attention", 6) => Length,
        ("", "Split", 1) => {
            let shape = node.input(0).and_then(|v| g.value(v).ty().shape())?;
            let axis = node.attrs().int("axis").unwrap_or(0);
            let axis = usize::try_from(if axis < 0 {
                axis + shape.len() as i64
            } else {
                axis
            });
            let size = shape.get(axis.ok()?)?.known()?;
            Argument::Part(size.checked_div(node.outputs().len())?)
        }
        _ => return None,
    })
}
