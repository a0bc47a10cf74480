//! Integers that are moved before they become floats.

use std::ops::Range;

use kiln_graph::{Dim, Graph, Node, NodeId, ValueId, ops};

/// Operators whose result is elements of their first operand, whatever these are.
const MOVEMENT: &[&str] = &[
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// MaxPool is among them because it commutes with a positive scale.
pub(super) fn is_movement(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    node.op().is_any(MOVEMENT) && node.sole_output().is_some()
}

/// Whether its result is elements of several operands.
pub(super) fn is_join(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    node.op().is_any(&["Concat", "Where"]) && node.sole_output().is_some()
}

/// The operands whose elements such a node takes.
pub(super) fn taken(node: &Node) -> Range<usize> {
    match node.op().name() {
        "Concat" => 0..node.inputs().len(),
        "Where" => 1..3,
        _ => 0..1,
    }
}

/// Nodes between a constant and what reads it that are followed.
const DEPTH: usize = 16;

/// Whether a node that moves or joins elements takes some of a constant.
pub(super) fn takes_constant(g: &Graph, id: NodeId) -> bool {
    let mut at = vec![(id, DEPTH)];
    while let Some((id, depth)) = at.pop() {
        let node = g.node(id);
        for v in taken(node).filter_map(|k| node.input(k)) {
            if g.constant(v).is_some() {
                return true;
            }
            let next = g.producer(v).filter(|_| depth > 0);
            let next = next.filter(|&id| is_movement(g, id) || is_join(g, id));
            at.extend(next.map(|id| (id, depth - 1)));
        }
    }
    false
}

/// The nodes that move a value's elements, the one nearest to it first.
pub(super) fn movers(g: &Graph, mut v: ValueId) -> Vec<NodeId> {
    let mut found = Vec::new();
    while let Some(id) = g.producer(v).filter(|&id| is_movement(g, id)) {
        let Some(x) = g.node(id).input(0) else { break };
        found.push(id);
        v = x;
    }
    found
}

/// Where a value's elements come from.
pub(super) fn moved(g: &Graph, v: ValueId) -> ValueId {
    let last = movers(g, v).last().copied();
    last.and_then(|id| g.node(id).input(0)).unwrap_or(v)
}

/// The axis of the first operand along which the elements of a node's result lie as they do along `axis` of the result;
/// `None` where they are moved along it, or where the sizes do not tell.
pub(super) fn axis_before(g: &Graph, mover: NodeId, axis: usize) -> Option<usize> {
    let node = g.node(mover);
    let (x, y) = (node.input(0)?, node.sole_output()?);
    let (from, to) = (g.value(x).ty().shape()?, g.value(y).ty().shape()?);
    let size = to.get(axis)?.known()?;
    let before = match node.op().name() {
        "Identity" => axis,
        "Transpose" => match ops::Transpose::of(g, mover)?.perm() {
            Some(perm) => *perm.get(axis)?,
            None => to.len().checked_sub(1 + axis)?,
        },
        "Gather" => {
            let along = ops::resolve_axis(ops::Gather::of(g, mover)?.axis(), from.len())?;
            let indices = g.value(node.input(1)?).ty().rank()?;
            match axis {
                _ if axis < along => axis,
                _ if axis >= along + indices => axis + 1 - indices,
                _ => return None,
            }
        }
        "GatherElements" => {
            let along = ops::resolve_axis(ops::Gather::of(g, mover)?.axis(), from.len())?;
            (axis != along).then_some(axis)?
        }
        "Slice" => {
            let slice = ops::Slice::of(g, mover)?;
            let forward = slice.steps()?.iter().all(|&step| step > 0);
            forward.then_some(axis)?
        }
        "Tile" | "Expand" => (axis + from.len()).checked_sub(to.len())?,
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => behind(from, size, inner(to, axis)?)?,
        _ => return None,
    };
    // A part of an axis and a repeated one are of other sizes.
    (from.get(before)?.known()? == size).then_some(before)
}

/// The elements behind an axis.
fn inner(dims: &[Dim], axis: usize) -> Option<usize> {
    dims.get(axis + 1..)?.iter().map(Dim::known).product()
}

/// The axis of this size with so many elements behind it.
fn behind(dims: &[Dim], size: usize, count: usize) -> Option<usize> {
    let fits = |&k: &usize| dims[k].known() == Some(size) && inner(dims, k) == Some(count);
    (0..dims.len()).rev().find(fits)
}
