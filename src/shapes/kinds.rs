//! What numbers an input wants, read off the graph.

use kiln_graph::{DType, Graph, ValueId};

use crate::parity::InputKind;

/// Operators that pass indices through on their way to a table.
const RELAYS: &[&str] = &[
    "Cast",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Identity",
    "Slice",
    "Concat",
    "Expand",
    "Flatten",
    "Transpose",
    "Split",
];

/// How to make numbers for an input: an integer that reaches a Gather is drawn inside the table, other integers are a
/// mask unless their name says position; floats are normal.
pub fn input_kind(graph: &Graph, input: ValueId) -> InputKind {
    let value = graph.value(input);
    let name = value.name().to_ascii_lowercase();
    let dtype = value.ty().dtype();
    if dtype.is_some_and(DType::is_float) {
        return match name.contains("mask") {
            true => InputKind::Mask,
            false => InputKind::Normal { std: 1.0 },
        };
    }
    if dtype == Some(DType::Bool) {
        return InputKind::Mask;
    }
    if name.contains("position") {
        return InputKind::Positions;
    }
    match smallest_table(graph, input) {
        Some(upper) => InputKind::TokenIds {
            upper: upper as i64,
        },
        None => InputKind::Mask,
    }
}

/// Rows of the smallest table that the value indexes.
fn smallest_table(graph: &Graph, input: ValueId) -> Option<usize> {
    let mut todo = vec![input];
    let mut seen = Vec::new();
    let mut smallest = None;
    while let Some(v) = todo.pop() {
        if seen.contains(&v) {
            continue;
        }
        seen.push(v);
        for u in graph.value(v).uses() {
            let node = graph.node(u.node);
            let reads = |k: usize| node.input(k) == Some(v);
            if node.op().is("Gather") && reads(1) {
                let table = node.input(0).and_then(|t| graph.value(t).ty().shape());
                let axis = node.attrs().int("axis").unwrap_or(0);
                let rank = table.map_or(0, <[_]>::len) as i64;
                let axis = if axis < 0 { axis + rank } else { axis };
                let rows = table
                    .and_then(|t| t.get(axis as usize))
                    .and_then(|d| d.known());
                smallest = smallest.into_iter().chain(rows).min();
            } else if node.op().is_any(RELAYS) && reads(0) {
                todo.extend(node.outputs().iter().flatten());
            }
        }
    }
    smallest
}
