//! Nodes with nested graphs: `If`, `Loop`, `Scan`.

use smallvec::SmallVec;

use super::call::{Call, Outs};
use super::demand::Demands;
use super::expr::Expr;
use super::fact::{Dims, Fact};
use super::{Env, Facts, Sizes, run};
use crate::{DType, Graph};

/// Facts of the node's outputs and of its nested graphs, in the order of the attributes.
pub(super) fn infer(call: &Call<'_>, sizes: Option<&Sizes>) -> (Outs, Vec<Facts>) {
    let graphs = call.node.attrs().iter().flat_map(|(_, a)| a.graphs());
    let graphs: Vec<&Graph> = graphs.collect();
    let captures = call.node.captures().iter();
    let captures: Vec<Fact> = captures
        .map(|v| call.facts.get(v.index()).cloned().unwrap_or_default())
        .collect();
    let inputs = match call.node.op().name() {
        "Loop" => loop_inputs(call),
        "Scan" => scan_inputs(call).unwrap_or_default(),
        _ => Vec::new(),
    };
    let condition = call.values(0).and_then(|v| v.first()?.as_i64());
    let unheard = Demands::default();
    let nested: Vec<Facts> = graphs
        .iter()
        .enumerate()
        .map(|(k, graph)| {
            let never = call.node.op().is("If") && condition.is_some_and(|c| (c != 0) != (k == 1));
            let facts = run(
                graph,
                &Env {
                    demands: if never { &unheard } else { call.demands },
                    fresh: call.fresh,
                    inputs: &inputs,
                    captures: &captures,
                    sizes,
                },
            );
            if never { unopposed(facts) } else { facts }
        })
        .collect();
    let results: Vec<Vec<Fact>> = (graphs.iter().zip(&nested))
        .map(|(graph, facts)| {
            let outputs = graph.outputs().iter();
            outputs
                .map(|o| {
                    facts
                        .facts
                        .get(o.value.index())
                        .cloned()
                        .unwrap_or_default()
                })
                .collect()
        })
        .collect();
    let outs = match (call.node.op().name(), results.as_slice()) {
        // Attributes are sorted: `else_branch`, then `then_branch`.
        ("If", [no, yes]) if condition.is_some() => {
            let taken = if condition == Some(0) { no } else { yes };
            taken.iter().cloned().collect()
        }
        ("If", [a, b]) => a.iter().zip(b).map(|(a, b)| merge(call, a, b)).collect(),
        ("Loop", [body]) => loop_outputs(call, body),
        ("Scan", [body]) => scan_outputs(call, body).unwrap_or_default(),
        _ => Outs::new(),
    };
    (outs, nested)
}

/// Facts of a branch that is never taken, which contradicts nothing.
fn unopposed(mut facts: Facts) -> Facts {
    facts.conflicts.clear();
    let nested = facts.nested.into_iter();
    let unopposed_all = |all: Vec<Facts>| all.into_iter().map(unopposed).collect();
    Facts {
        nested: nested.map(|(id, all)| (id, unopposed_all(all))).collect(),
        ..facts
    }
}

/// What holds of both.
fn merge(call: &Call<'_>, a: &Fact, b: &Fact) -> Fact {
    let dims = match (&a.dims, &b.dims) {
        (Some(x), Some(y)) if x.len() == y.len() => Some(
            x.iter()
                .zip(y)
                .map(|(x, y)| if x == y { x.clone() } else { call.fresh.size() })
                .collect(),
        ),
        _ => None,
    };
    Fact {
        dtype: a.dtype.filter(|_| a.dtype == b.dtype),
        values: a.values.clone().filter(|_| a.values == b.values),
        dims,
        end: a.end.clone().filter(|_| a.end == b.end),
    }
}

/// Element type and rank, which alone stay the same from one iteration to the next.
fn varying(call: &Call<'_>, fact: &Fact) -> Fact {
    Fact {
        dtype: fact.dtype,
        dims: fact.dims.as_ref().map(|d| call.fresh.shape(d.len())),
        values: None,
        end: None,
    }
}

fn loop_inputs(call: &Call<'_>) -> Vec<Option<Fact>> {
    let scalar = |dtype| {
        Some(Fact {
            dtype: Some(dtype),
            ..Fact::of_dims(Dims::new())
        })
    };
    let state = (2..call.node.inputs().len()).map(|k| Some(varying(call, call.input(k)?)));
    [scalar(DType::I64), scalar(DType::Bool)]
        .into_iter()
        .chain(state)
        .collect()
}

fn loop_outputs(call: &Call<'_>, body: &[Fact]) -> Outs {
    let state = call.node.inputs().len().saturating_sub(2);
    let results = body.iter().skip(1).enumerate().map(|(k, fact)| {
        if k < state {
            let start = call
                .input(k + 2)
                .map_or(Fact::default(), |f| varying(call, f));
            return merge(call, &varying(call, fact), &start);
        }
        stacked(call, fact, call.fresh.size(), 0)
    });
    results.collect()
}

/// A result of each iteration, stacked along a new axis. Sizes that only one iteration knows are forgotten.
fn stacked(call: &Call<'_>, fact: &Fact, count: Expr, axis: usize) -> Fact {
    let dims = fact.dims.as_ref().filter(|d| axis <= d.len()).map(|dims| {
        let outside = |d: &Expr| {
            if d.is_named() {
                d.clone()
            } else {
                call.fresh.size()
            }
        };
        let mut dims: Dims = dims.iter().map(outside).collect();
        dims.insert(axis, count);
        dims
    });
    Fact {
        dtype: fact.dtype,
        dims,
        values: None,
        end: None,
    }
}

/// `(state variables, scanned inputs)`; `None` for forms that are not followed.
fn scan_counts(call: &Call<'_>) -> Option<(usize, usize)> {
    // Before operator set 9 there was a batch dimension and an input in front.
    if call.opset < 9 {
        return None;
    }
    let scanned = usize::try_from(call.int("num_scan_inputs")?).ok()?;
    Some((call.node.inputs().len().checked_sub(scanned)?, scanned))
}

fn scan_axis(call: &Call<'_>, attr: &str, at: usize, rank: usize) -> Option<usize> {
    let axis = call
        .list(attr)?
        .and_then(|axes| axes.get(at).copied())
        .unwrap_or(0);
    call.axis(axis, rank)
}

fn scan_inputs(call: &Call<'_>) -> Option<Vec<Option<Fact>>> {
    let (state, scanned) = scan_counts(call)?;
    let varying_state = (0..state).map(|k| Some(varying(call, call.input(k)?)));
    let slices = (0..scanned).map(|k| {
        let fact = call.input(state + k)?;
        let dims = fact.dims.as_ref().and_then(|dims| {
            let mut dims = dims.clone();
            dims.remove(scan_axis(call, "scan_input_axes", k, dims.len())?);
            Some(dims)
        });
        Some(Fact {
            dtype: fact.dtype,
            dims,
            values: None,
            end: None,
        })
    });
    Some(varying_state.chain(slices).collect())
}

fn scan_outputs(call: &Call<'_>, body: &[Fact]) -> Option<Outs> {
    let (state, _) = scan_counts(call)?;
    let count = call.dims(state).and_then(|dims| {
        dims.get(scan_axis(call, "scan_input_axes", 0, dims.len())?)
            .cloned()
    });
    let count = call.size(count);
    let results = body.iter().enumerate().map(|(k, fact)| {
        if k < state {
            let start = call.input(k).map_or(Fact::default(), |f| varying(call, f));
            return merge(call, &varying(call, fact), &start);
        }
        let rank = fact.dims.as_ref().map_or(0, SmallVec::len) + 1;
        match scan_axis(call, "scan_output_axes", k - state, rank) {
            Some(axis) => stacked(call, fact, count.clone(), axis),
            None => Fact::default(),
        }
    });
    Some(results.collect())
}
