//! What hides nothing: zeros spread over a computed shape, conditions that always hold.

use kiln_graph::infer;
use kiln_graph::{Graph, NodeId, Tensor, ValueId, ops};

use super::step::{NAME, SPLAT, apply};
use crate::analysis::broadcast::Shapes;
use crate::core::pass::{Context, Miss, PassFailure};
use crate::core::patch::{Patch, Ref};

/// Adds between an Add of 0 and the Softmax.
const MAX_ADDS: usize = 8;

/// A value that something smaller can stand in for.
enum Instead {
    Constant(Tensor),
    Value(ValueId),
}

/// Makes one scalar of each number that is repeated into a computed shape only to be broadcast.
pub(super) fn shrink_splats(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    replace(g, cx, &|g, id| {
        let (value, one) = splat(g, id)?;
        Some((value, Instead::Constant(one)))
    })
}

/// Removes choices that are none, and then sums with 0.
pub(super) fn remove(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    let chosen = replace(g, cx, &|g, id| {
        let (value, branch) = only_branch(g, id)?;
        Some((value, Instead::Value(branch)))
    })?;
    let summed = replace(g, cx, &|g, id| {
        let (value, operand) = sum_with_zero(g, id)?;
        Some((value, Instead::Value(operand)))
    })?;
    Ok(chosen + summed)
}

/// What stands in for the result of a node, if anything does.
type Find = dyn Fn(&Graph, NodeId) -> Option<(ValueId, Instead)>;

fn replace(g: &mut Graph, cx: &mut Context<'_>, find: &Find) -> Result<usize, PassFailure> {
    let found = |g: &Graph, id: NodeId| {
        g.get(id)?;
        find(g, id).filter(|(value, _)| !g.value(*value).is_unused())
    };
    let mut roots = g.topo_order()?;
    roots.retain(|&id| found(g, id).is_some());
    if roots.is_empty() {
        return Ok(0);
    }
    let facts = infer::infer(g);
    let mut shapes = Shapes::new(&facts);
    let mut applied = 0;
    for id in roots {
        let Some((value, instead)) = found(g, id) else {
            continue;
        };
        let dims = match &instead {
            Instead::Constant(_) => Some(Vec::new()),
            Instead::Value(v) => shapes.dims(*v).map(<[_]>::to_vec),
        };
        let Some(dims) = dims else { continue };
        if cx.limit.is_some_and(|limit| cx.applied >= limit) {
            return Ok(applied);
        }
        if let Err(why) = shapes.absorb(g, value, &dims) {
            cx.record(NAME, g, id, Miss::at(value, SPLAT, why));
            continue;
        }
        cx.admit(NAME, || g.label(id));
        let mut patch = Patch::new();
        let new = match instead {
            Instead::Constant(one) => patch.constant(one),
            Instead::Value(v) => Ref::Old(v),
        };
        patch.replace(value, new);
        apply(g, id, patch)?;
        applied += 1;
    }
    Ok(applied)
}

/// The result of a node that repeats one number into a computed shape, and that number as a scalar.
fn splat(g: &Graph, id: NodeId) -> Option<(ValueId, Tensor)> {
    let node = g.get(id)?;
    let one = match ops::ConstantOfShape::of(g, id) {
        Some(view) => view.value(),
        None => ops::Expand::of(g, id)?.constant(0)?.clone(),
    };
    let scalar = (one.len() == 1).then(|| one.reshaped([].as_slice()).ok())??;
    Some((node.sole_output()?, scalar))
}

/// The result of a Where whose condition is one constant, and the branch that it takes.
fn only_branch(g: &Graph, id: NodeId) -> Option<(ValueId, ValueId)> {
    let view = ops::Where::of(g, id)?;
    let branch = match view.constant(0)?.as_i64()? {
        0 => view.y()?,
        _ => view.x()?,
    };
    Some((view.node().sole_output()?, branch))
}

/// The sum of a value and 0, and that value. Exact up to the sign of a zero, which no Softmax tells: what it computes
/// are differences to the largest, and both zeros have the same.
fn sum_with_zero(g: &Graph, id: NodeId) -> Option<(ValueId, ValueId)> {
    let node = g.get(id).filter(|n| n.op().is("Add"))?;
    let (a, b, sum) = (node.input(0)?, node.input(1)?, node.sole_output()?);
    let zero = |v: ValueId| g.constant(v).and_then(Tensor::as_f64) == Some(0.0);
    let operand = match (zero(a), zero(b)) {
        (_, true) => a,
        (true, _) => b,
        _ => return None,
    };
    only_into_softmax(g, sum, MAX_ADDS).then_some((sum, operand))
}

fn only_into_softmax(g: &Graph, value: ValueId, room: usize) -> bool {
    let read = g.value(value);
    let leads = |u: &kiln_graph::Use| {
        let node = g.node(u.node);
        let further = |room: usize| {
            let sum = node.sole_output();
            sum.is_some_and(|sum| only_into_softmax(g, sum, room))
        };
        node.op().is("Softmax") || node.op().is("Add") && room.checked_sub(1).is_some_and(further)
    };
    !read.is_output() && read.uses().iter().all(leads)
}
