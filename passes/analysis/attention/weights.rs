//! From attention's Softmax forward to its product with the values.

use kiln_graph::infer::Facts;
use kiln_graph::{Graph, NodeId, ValueId};

use super::scores::regroups_batches;
use crate::core::pass::Miss;

/// `softmax(…) v`.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    pub v: ValueId,
    pub output: ValueId,
    /// Rows that are NaN, because all their keys are hidden, become 0 before the product.
    pub guarded: bool,
    /// Probabilities that become 0 before the product.
    pub zeroed: Option<Zeroed>,
}

/// `Where(condition, 0, p)`, or with the branches exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeroed {
    pub condition: ValueId,
    pub keeps_where: bool,
    /// Of the probabilities: 4, or 3 where batch and heads are one dimension.
    pub rank: usize,
}

/// Finds the product that reads the probabilities of `softmax`, and nothing else that does.
///
/// # Errors
/// The reader that stops the match.
pub fn weighted(g: &Graph, facts: &Facts, softmax: NodeId) -> Result<Weighted, Miss> {
    let mut at = g.node(softmax).output(0).ok_or_else(Miss::none)?;
    let mut guarded = false;
    let mut zeroed = None;
    // Casts, the guard, zeros for hidden keys, and batches and heads told apart or joined are the most that stand between.
    for _ in 0..7 {
        if g.value(at).is_output() {
            return Err(Miss::at(
                at,
                1,
                "its probabilities are an output of the model",
            ));
        }
        let readers: Vec<NodeId> = g.value(at).uses().iter().map(|u| u.node).collect();
        if let Some(selected) = guard(g, at, &readers) {
            guarded = true;
            at = selected;
            continue;
        }
        let [reader] = readers.as_slice() else {
            return Err(Miss::at(
                at,
                1,
                format!("its probabilities have {} readers", readers.len()),
            ));
        };
        let node = g.node(*reader);
        if zeroed.is_none()
            && let Some((found, selected)) = zeroes(g, at, *reader)
        {
            zeroed = Some(found);
            at = selected;
            continue;
        }
        match (node.input(0), node.input(1), node.output(0)) {
            (Some(p), Some(v), Some(output)) if node.op().is("MatMul") && p == at => {
                return Ok(Weighted {
                    v,
                    output,
                    guarded,
                    zeroed,
                });
            }
            (Some(_), None, Some(output)) if node.op().is("Cast") => at = output,
            (Some(p), Some(_), Some(output))
                if node.op().is("Reshape") && p == at && regroups_batches(facts, p, output) =>
            {
                at = output;
            }
            _ => {
                return Err(Miss::at(
                    at,
                    1,
                    format!("{} reads its probabilities", node.op()),
                ));
            }
        }
    }
    Err(Miss::at(
        at,
        1,
        "no product with values reads its probabilities",
    ))
}

/// Probabilities of hidden keys become 0, as in DeBERTa's and NeMo's attention.
fn zeroes(g: &Graph, p: ValueId, reader: NodeId) -> Option<(Zeroed, ValueId)> {
    let node = g.node(reader);
    node.op().is("Where").then_some(())?;
    let zero = |k: usize| {
        let constant = node.input(k).and_then(|v| g.constant(v));
        constant.is_some_and(|t| t.len() == 1 && t.as_f64() == Some(0.0))
    };
    let keeps_where = match (node.input(1)? == p, node.input(2)? == p) {
        (true, false) if zero(2) => true,
        (false, true) if zero(1) => false,
        _ => return None,
    };
    let found = Zeroed {
        condition: node.input(0)?,
        keeps_where,
        rank: g.value(p).ty().rank()?,
    };
    Some((found, node.output(0)?))
}

/// `Where(IsNaN(p), 0, p)`, which torch writes behind the softmax of `scaled_dot_product_attention`.
fn guard(g: &Graph, p: ValueId, readers: &[NodeId]) -> Option<ValueId> {
    let &[a, b] = readers else { return None };
    let (is_nan, select) = match g.node(a).op().is("IsNaN") {
        true => (a, b),
        false => (b, a),
    };
    let (test, chosen) = (g.node(is_nan), g.node(select));
    let zero = g.constant(chosen.input(1)?)?;
    let matches = test.op().is("IsNaN")
        && chosen.op().is("Where")
        && chosen.input(0) == test.output(0)
        && chosen.input(2) == Some(p)
        && g.value(test.output(0)?).uses().len() == 1
        && zero.len() == 1
        && zero.as_f64() == Some(0.0);
    if matches { chosen.output(0) } else { None }
}
