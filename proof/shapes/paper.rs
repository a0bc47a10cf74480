//! What a size would do, by inference alone: whether the graph contradicts it, and how much memory a run would take.

use kiln_graph::infer::{self, Facts};
use kiln_graph::{DType, Dim, Graph, NodeId, ValueId};
use kiln_runtime::work;
use rustc_hash::FxHashMap;

use super::{Point, Shapes};

/// A size that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// What cannot be true there.
    pub conflict: Option<String>,
    /// Bytes that values and working space take at once, at most; constants are not in it.
    pub bytes: u64,
    /// Operations of a run, of the outermost graph.
    pub work: u64,
}

/// Operations that cost as much as a byte of a result: elementwise operators wait for memory.
const OPERATIONS_OF_A_BYTE: u64 = 8;

/// Copies of the outputs beside the one that a run makes: those of the other model, and both as numbers that are compared.
const COPIES: u64 = 3;

pub(super) fn look(graph: &Graph, shapes: &Shapes, point: &Point) -> Look {
    let at = shapes.at(point);
    let sizes = |name: &str| at.iter().find(|(n, _)| n == name);
    let inputs: Vec<_> = (graph.inputs().iter())
        .filter_map(|&v| {
            let (_, shape) = sizes(graph.value(v).name())?;
            Some((v, shape.iter().map(|&n| Dim::Known(n)).collect()))
        })
        .collect();
    let facts = infer::with_inputs(graph, &inputs);
    let longest = at.iter().flat_map(|(_, s)| s).copied().max();
    let outputs: u64 = (graph.outputs().iter())
        .filter_map(|o| bytes_of(graph, &facts, o.value))
        .sum();
    let peak = peak(graph, &facts, longest.unwrap_or(1) as u64);
    Look {
        conflict: conflict(graph, &facts),
        bytes: peak.saturating_add(outputs.saturating_mul(COPIES)),
        work: operations(graph, &facts),
    }
}

/// What products multiply and add, and what all results weigh.
fn operations(graph: &Graph, facts: &Facts) -> u64 {
    let of = |node: &kiln_graph::Node| {
        let products = work::products(graph, node, facts).flatten().unwrap_or(0);
        let results = node.outputs().iter().flatten();
        let bytes: u64 = results.filter_map(|&v| bytes_of(graph, facts, v)).sum();
        let moved = bytes.saturating_mul(OPERATIONS_OF_A_BYTE);
        products.saturating_mul(2).saturating_add(moved)
    };
    let all = graph.nodes().map(|(_, node)| of(node));
    all.fold(0, u64::saturating_add)
}

/// The first contradiction, in nested graphs too.
fn conflict(graph: &Graph, facts: &Facts) -> Option<String> {
    if let Some(found) = facts.conflicts().first() {
        return Some(found.describe(graph));
    }
    graph.nodes().find_map(|(id, node)| {
        let graphs = node.attrs().iter().flat_map(|(_, a)| a.graphs());
        graphs
            .zip(facts.nested(id))
            .find_map(|(inner, facts)| conflict(inner, facts))
    })
}

fn elements(facts: &Facts, v: ValueId) -> Option<u64> {
    let dims = facts.ty(v).shape()?;
    dims.iter()
        .try_fold(1u64, |n, d| Some(n.saturating_mul(d.known()? as u64)))
}

fn bytes_of(graph: &Graph, facts: &Facts, v: ValueId) -> Option<u64> {
    if graph.value(v).constant().is_some() {
        return Some(0);
    }
    let bits = facts.ty(v).dtype().map_or(32, DType::bits) as u64;
    Some(elements(facts, v)?.saturating_mul(bits).div_ceil(8))
}

/// The largest sum of values that are alive at once, in the order of the nodes: a value lives from the node that makes it
/// to the last that reads it. `longest` is what a loop is taken to count to where nothing says more.
fn peak(graph: &Graph, facts: &Facts, longest: u64) -> u64 {
    let order = graph.topo_order().unwrap_or_default();
    let mut last: FxHashMap<ValueId, usize> = FxHashMap::default();
    for (at, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        for &v in node.inputs().iter().flatten().chain(node.captures()) {
            last.insert(v, at);
        }
    }
    for output in graph.outputs() {
        last.insert(output.value, usize::MAX);
    }
    let mut sizes: FxHashMap<ValueId, u64> = FxHashMap::default();
    let mut alive = 0u64;
    for &v in graph.inputs() {
        let size = bytes_of(graph, facts, v).unwrap_or(0);
        sizes.insert(v, size);
        alive = alive.saturating_add(size);
    }
    let mut most = alive;
    for (at, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        let inputs: Vec<ValueId> = node.inputs().iter().flatten().copied().collect();
        // What nothing is known of is taken to be as large as what it is made from.
        let widest = inputs.iter().filter_map(|v| sizes.get(v)).max().copied();
        for &v in node.outputs().iter().flatten() {
            let known = match turns(graph, facts, id, longest) {
                Some(turns) => stacked(graph, facts, id, v, turns),
                None => bytes_of(graph, facts, v),
            };
            let size = known.or(widest).unwrap_or(0);
            sizes.insert(v, size);
            alive = alive.saturating_add(size);
        }
        let inner = node.attrs().iter().flat_map(|(_, a)| a.graphs());
        let inner = inner
            .zip(facts.nested(id))
            .map(|(g, facts)| peak(g, facts, longest))
            .max();
        let scratch = inner
            .unwrap_or(0)
            .max(scratch(graph, facts, id).unwrap_or(0));
        most = most.max(alive.saturating_add(scratch));
        let mut read = inputs;
        read.extend(node.captures());
        read.extend(node.outputs().iter().flatten());
        read.sort();
        read.dedup();
        for v in read {
            if last.get(&v).is_none_or(|&end| end == at) {
                alive = alive.saturating_sub(sizes.remove(&v).unwrap_or(0));
            }
        }
    }
    most
}

/// How often a Loop runs, where it says so or can be taken to.
fn turns(graph: &Graph, facts: &Facts, id: NodeId, longest: u64) -> Option<u64> {
    let node = graph.node(id);
    if !node.op().is("Loop") {
        return None;
    }
    let count = node
        .input(0)
        .and_then(|v| facts.values(v)?.first()?.as_i64());
    Some(count.and_then(|n| u64::try_from(n).ok()).unwrap_or(longest))
}

/// Bytes of a Loop's output: a state as the body leaves it, what each turn gives as often as it turns.
fn stacked(graph: &Graph, facts: &Facts, id: NodeId, v: ValueId, turns: u64) -> Option<u64> {
    let node = graph.node(id);
    let place = node.outputs().iter().position(|o| *o == Some(v))?;
    let (_, attr) = node.attrs().iter().find(|(_, a)| !a.graphs().is_empty())?;
    let body = attr.graphs().first()?;
    let inner = facts.nested(id).first()?;
    let output = body.outputs().get(place + 1)?.value;
    let each = bytes_of(body, inner, output)?;
    let states = node.inputs().len().saturating_sub(2);
    Some(if place < states {
        each
    } else {
        each.saturating_mul(turns)
    })
}

/// Working space of operators that hold more than their operands.
fn scratch(graph: &Graph, facts: &Facts, id: NodeId) -> Option<u64> {
    let node = graph.node(id);
    let dims = |k: usize| {
        let dims = facts.ty(node.input(k)?).shape()?.iter();
        dims.map(|d| d.known().map(|n| n as u64))
            .collect::<Option<Vec<_>>>()
    };
    let product = |sizes: &[u64]| sizes.iter().fold(4u64, |n, &s| n.saturating_mul(s));
    match node.op().name() {
        // Gates of all steps, and a copy of input and output for the way back.
        "LSTM" | "GRU" | "RNN" => {
            let (x, w) = (dims(0)?, dims(1)?);
            let [steps, batch, size] = x[..] else {
                return None;
            };
            let [directions, gates, _] = w[..] else {
                return None;
            };
            Some(product(&[
                steps,
                batch,
                directions,
                gates.saturating_add(size),
            ]))
        }
        "Attention" | "MultiHeadAttention" | "GroupQueryAttention" => {
            let (q, k) = (dims(0)?, dims(1)?);
            let heads = (node.attrs().int("q_num_heads")).or(node.attrs().int("num_heads"));
            let (batch, heads, queries) = match (&q[..], heads) {
                ([b, h, q, _], _) => (*b, *h, *q),
                ([b, q, _], Some(h)) => (*b, u64::try_from(h).ok()?, *q),
                _ => return None,
            };
            let keys = if k.len() < 3 { queries } else { k[k.len() - 2] };
            let past = dims(4).filter(|d| d.len() == 4).map_or(0, |d| d[2]);
            Some(product(&[
                batch,
                heads,
                queries,
                keys.saturating_add(past),
                2,
            ]))
        }
        _ => None,
    }
}
