//! Operands that are sizes: what was as long as past and new tokens is as long as the cache.

use kiln_graph::infer::Expr;
use kiln_graph::{Attrs, DType, NodeId, Tensor, ValueId};

use super::rows::Rows;
use super::stays::{Stays, because};

/// Numbers the places of a cache, and makes operands that say sizes say those of the cache. Gives `true` where nothing is left
/// to do for the node.
pub(super) fn sizes_of(rows: &mut Rows<'_>, id: NodeId) -> Result<bool, Stays> {
    let node = rows.g.node(id);
    let input = |k: usize| node.input(k);
    match node.op().name() {
        "Range" => range(rows, id),
        "Slice" => slice(rows, id),
        "Expand" | "Reshape" | "Tile" => match input(1) {
            Some(shape) => sized(rows, id, 1, shape),
            None => Ok(false),
        },
        "ConstantOfShape" => match input(0) {
            Some(shape) => sized(rows, id, 0, shape),
            None => Ok(false),
        },
        _ => Ok(false),
    }
}

fn lost(rows: &Rows<'_>, id: NodeId) -> Result<bool, Stays> {
    because(format!(
        "{} makes something as long as the past in a way that is not known",
        rows.g.label(id)
    ))
}

fn range(rows: &mut Rows<'_>, id: NodeId) -> Result<bool, Stays> {
    let node = rows.g.node(id);
    let one = |v: Option<ValueId>| match rows.facts.values(v?)? {
        [e] => Some(e.clone()),
        _ => None,
    };
    let (from, to, step) = (one(node.input(0)), one(node.input(1)), one(node.input(2)));
    let (Some(from), Some(to), Some(step)) = (from, to, step) else {
        return Ok(false);
    };
    let past = [&from, &to].into_iter().any(|e| rows.sizes.has_past(e));
    let Some(out) = node.output(0).filter(|_| past) else {
        return Ok(false);
    };
    let dtype = rows.facts.ty(out).dtype();
    if step.as_i64() != Some(1) || dtype != Some(DType::I64) {
        return lost(rows, id);
    }
    let length = to.sub(&from);
    if from.as_i64() == Some(0) && to == rows.sizes.total {
        let all: Vec<i64> = (0..rows.sizes.capacity as i64).collect();
        let all = rows.constant(Tensor::vector(&all));
        rows.g.replace_uses(out, all);
        return Ok(true);
    }
    if length.as_ref() == Some(&rows.sizes.new)
        && let Some((_, counted)) = rows.new_tokens()
        && let Some(first) = rows.number(&from)
    {
        // [rows, 1] and [new]
        let first = rows.unsqueezed(first, &[1]);
        let places = rows.make("Add", &[first, counted], Attrs::new());
        rows.stand_for(out, places);
        return Ok(true);
    }
    lost(rows, id)
}

/// An operand that says a shape, with the cache's length for that of past and new tokens.
fn sized(rows: &mut Rows<'_>, id: NodeId, k: usize, shape: ValueId) -> Result<bool, Stays> {
    let Some(values) = rows.facts.values(shape) else {
        return Ok(false);
    };
    let values: Vec<Expr> = values.to_vec();
    let data = rows.g.node(id).input(0).filter(|_| k == 1);
    let settled = data.is_some_and(|v| rows.is_settled(v));
    let op = rows.g.node(id).op();
    // What has rows in front already is not repeated for them, and keeps its first axis.
    let first = match (settled, op.name(), values.first()) {
        (true, "Tile", Some(e)) if *e == rows.sizes.rows => Some(1),
        (true, "Reshape", Some(e)) if e.as_i64() == Some(1) => Some(0),
        _ => None,
    };
    let counts = values.iter().any(|e| rows.sizes.has_past(e));
    if !counts && first.is_none() {
        return Ok(false);
    }
    let mut parts = Vec::with_capacity(values.len());
    for (axis, e) in values.iter().enumerate() {
        let known = match (axis, first) {
            (0, Some(n)) => Some(n),
            _ if rows.sizes.has_past(e) => {
                let fixed = rows.sizes.fixed(e).and_then(|e| e.as_i64());
                match fixed {
                    Some(n) => Some(n),
                    None => return lost(rows, id),
                }
            }
            _ => e.as_i64(),
        };
        parts.push(match known {
            Some(n) => rows.constant(Tensor::vector(&[n])),
            None => {
                let at = rows.constant(Tensor::vector(&[axis as i64]));
                rows.make("Gather", &[shape, at], Attrs::new())
            }
        });
    }
    let shape = match parts[..] {
        [one] => one,
        _ => rows.make("Concat", &parts, Attrs::new().with("axis", 0i64)),
    };
    rows.g.set_input(id, k, Some(shape));
    Ok(false)
}

/// A part that begins where the past ends is one of each row; one that ends with the new tokens is as long as the cache.
fn slice(rows: &mut Rows<'_>, id: NodeId) -> Result<bool, Stays> {
    let node = rows.g.node(id).clone();
    let (Some(data), Some(out)) = (node.input(0), node.output(0)) else {
        return Ok(false);
    };
    let Some(dims) = rows.facts.dims(data).map(<[Expr]>::to_vec) else {
        return Ok(false);
    };
    let values = |k: usize| {
        let v = node.input(k)?;
        Some(rows.facts.values(v)?.to_vec())
    };
    let (Some(starts), Some(ends)) = (values(1), values(2)) else {
        return Ok(false);
    };
    let axes = match node.input(3) {
        Some(_) => values(3).unwrap_or_default(),
        None => (0..starts.len() as i64).map(Expr::from).collect(),
    };
    let axis = |e: &Expr| Some(e.as_i64()?.rem_euclid(dims.len().max(1) as i64) as usize);
    let axes: Option<Vec<usize>> = axes.iter().map(axis).collect();
    let past = [&starts, &ends];
    let counts = past.into_iter().flatten().any(|e| rows.sizes.has_past(e));
    let long = |axis: &usize| dims.get(*axis).is_some_and(|d| rows.sizes.has_past(d));
    let Some(axes) = axes else {
        return match counts {
            true => lost(rows, id),
            false => Ok(false),
        };
    };
    let negative = |e: &Expr| e.as_i64().is_some_and(|n| n < 0);
    let ends_back = axes.iter().zip(starts.iter().zip(&ends));
    let mut back = ends_back.filter(|(axis, (a, b))| long(axis) && (negative(a) || negative(b)));
    if back.next().is_some() {
        // The end of the cache is not the end of the tokens.
        return lost(rows, id);
    }
    if !counts {
        return Ok(false);
    }
    let steps = values(4).unwrap_or_default();
    if steps.iter().any(|s| s.as_i64() != Some(1)) {
        return lost(rows, id);
    }
    let [axis] = axes[..] else {
        return lost(rows, id);
    };
    let (from, to) = (&starts[0], &ends[0]);
    let length = &dims[axis];
    let reaches = *to == rows.sizes.total || to.as_i64().is_some_and(|n| n >= i32::MAX.into());
    let tail = from.lone_symbol() == Some(&rows.sizes.past)
        && (*to == rows.sizes.total || reaches && *length == rows.sizes.total);
    if from.as_i64() == Some(0) && *to == rows.sizes.total {
        let end = rows.constant(Tensor::vector(&[rows.sizes.capacity as i64]));
        rows.g.set_input(id, 2, Some(end));
        return Ok(true);
    }
    let places = tail.then(|| rows.new_tokens()).flatten();
    match (places, dims.len(), axis) {
        // [rows, length]: the element of each row at each place.
        (Some((_, counted)), 2, 1) if dims[0] == rows.sizes.rows => {
            let first = rows.unsqueezed(rows.indices, &[1]);
            let at = rows.make("Add", &[first, counted], Attrs::new());
            let part = rows.make(
                "GatherElements",
                &[data, at],
                Attrs::new().with("axis", 1i64),
            );
            rows.settle(out, part);
            Ok(true)
        }
        // One row or a table for all.
        (Some((_, counted)), 2, 1) if dims[0].as_i64() == Some(1) => {
            let first = rows.unsqueezed(rows.indices, &[1]);
            let at = rows.make("Add", &[first, counted], Attrs::new());
            let flat = rows.constant(Tensor::vector(&[-1i64]));
            let flat = rows.make("Reshape", &[data, flat], Attrs::new());
            let part = rows.make("Gather", &[flat, at], Attrs::new().with("axis", 0i64));
            rows.settle(out, part);
            Ok(true)
        }
        _ => lost(rows, id),
    }
}
