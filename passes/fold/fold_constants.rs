//! Nodes whose inputs are all constants are computed once, in one batch, by the evaluator.

use kiln_graph::graph::Inputs;
use kiln_graph::{Graph, Model, NodeId, Type, ValueId, infer, ops};
use rustc_hash::FxHashMap;

use crate::core::pass::{
    Context, Evaluator, EvaluatorError, Exactness, Pass, PassFailure, Remark, in_each_graph,
};

#[derive(Debug)]
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn about(&self) -> &'static str {
        "compute nodes whose inputs are all constants"
    }

    fn details(&self) -> String {
        "All such nodes run in one batch, and what the rest of the graph reads of them becomes constants. A node stays \
         if its result would be larger than the constants it replaces by more than the budget (Expand, \
         ConstantOfShape, Tile and Range can blow a model up), if it draws random numbers, holds a graph, or is a \
         DequantizeLinear, whose small input is the point of it."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        in_each_graph(model, &mut |g| fold(g, cx))
    }
}

fn fold(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    let mut batch = foldable(g, cx)?;
    if batch.is_empty() {
        return Ok(0);
    }
    let Some(evaluator) = cx.evaluator else {
        cx.remarks.push(Remark::Skipped {
            why: format!(
                "{} constant nodes were not folded: there is no runtime to compute them",
                batch.len()
            ),
        });
        return Ok(0);
    };
    // Any beginning of the batch can be computed, as a node stands after what it reads.
    let admitted = batch
        .iter()
        .take_while(|&&id| cx.admit("fold-constants", || g.label(id)));
    batch.truncate(admitted.count());
    if batch.is_empty() {
        return Ok(0);
    }
    let inside: FxHashMap<NodeId, ()> = batch.iter().map(|&id| (id, ())).collect();
    let wanted: Vec<ValueId> = (batch.iter())
        .flat_map(|&id| g.node(id).outputs().iter().flatten().copied())
        .filter(|&v| {
            let value = g.value(v);
            value.is_output() || value.uses().iter().any(|u| !inside.contains_key(&u.node))
        })
        .collect();
    let tensors = match compute(g, &batch, &wanted, evaluator) {
        Ok(tensors) => tensors,
        // A runtime older than the model, or a node that fails whenever it runs: the model says the same without folding.
        Err(e) => {
            let why = format!("{} constant nodes were not folded: {e}", batch.len());
            cx.remarks.push(Remark::Skipped { why });
            return Ok(0);
        }
    };
    for (v, tensor) in wanted.iter().zip(tensors) {
        g.make_constant(*v, tensor);
    }
    for &id in batch.iter().rev() {
        crate::core::patch::remove_dead(g, vec![id]);
    }
    Ok(batch.len())
}

/// Nodes to fold, each after what it reads.
fn foldable(g: &Graph, cx: &mut Context<'_>) -> Result<Vec<NodeId>, PassFailure> {
    let candidates = candidates(g)?;
    if candidates.is_empty() {
        return Ok(candidates);
    }
    // The types that a file writes may promise less than a node makes, so sizes are inferred from the constants alone.
    let part = Part::new(g, &candidates);
    let facts = infer::infer(&part.graph);
    let size = |v: ValueId| bytes(facts.ty(*part.copies.get(&v)?));

    let mut folded = vec![false; g.value_bound()];
    let mut batch = Vec::new();
    let mut total = 0usize;
    for id in candidates {
        let node = g.node(id);
        let ready = |v: ValueId| g.constant(v).is_some() || folded[v.index()];
        if !node.inputs().iter().flatten().all(|&v| ready(v)) {
            continue;
        }
        let Some(bytes) = growth(g, id, &size) else {
            continue;
        };
        if bytes > cx.options.fold_budget || bytes > cx.options.fold_total - total {
            cx.remarks.push(Remark::OverBudget {
                node: g.label(id),
                bytes,
            });
            continue;
        }
        total += bytes;
        for &v in node.outputs().iter().flatten() {
            folded[v.index()] = true;
        }
        batch.push(id);
    }
    Ok(batch)
}

/// Nodes that could be computed, whatever their size.
fn candidates(g: &Graph) -> Result<Vec<NodeId>, PassFailure> {
    let mut known = vec![false; g.value_bound()];
    let mut all = Vec::new();
    for id in g.topo_order()? {
        let node = g.node(id);
        let constant = |v: ValueId| g.constant(v).is_some() || known[v.index()];
        let ready = node.inputs().iter().flatten().all(|&v| constant(v));
        let plain = node.captures().is_empty()
            && !node.has_subgraphs()
            && node.op().domain().is_empty()
            && !node.op().is_any(&["DequantizeLinear", "Constant"])
            && ops::traits::node_is_deterministic(g, id);
        if ready && plain {
            for &v in node.outputs().iter().flatten() {
                known[v.index()] = true;
            }
            all.push(id);
        }
    }
    Ok(all)
}

fn bytes(ty: &Type) -> Option<usize> {
    let dims = ty.shape()?.iter().map(|d| d.known());
    let count = dims
        .into_iter()
        .try_fold(1usize, |n, d| n.checked_mul(d?))?;
    ty.dtype()?.packed_len(count)
}

/// Operators whose results depend on what their operand holds, but have at most so many times its bytes: eight for an index of
/// a byte, by rank.
const BOUNDED: &[&str] = &["NonZero", "Compress", "Unique"];
const MOST_TIMES: usize = 8 * 4;

/// Bytes by which a node's results exceed the constants they replace, if that is known.
fn growth(g: &Graph, id: NodeId, size: &dyn Fn(ValueId) -> Option<usize>) -> Option<usize> {
    let node = g.node(id);
    let mut made = 0usize;
    for &v in node.outputs().iter().flatten() {
        let unknown = || {
            let operand = node.input(0).filter(|_| node.op().is_any(BOUNDED))?;
            let rank = g.value(operand).ty().shape().map_or(1, |s| s.len().max(1));
            size(operand)?.checked_mul(MOST_TIMES)?.checked_mul(rank)
        };
        made = made.saturating_add(size(v).or_else(unknown)?);
    }
    // A constant that something else reads too stays, so only sole uses are replaced.
    let read = node.inputs().iter().flatten();
    let freed = read
        .filter(|&&v| g.single_use(v).is_some())
        .filter_map(|&v| size(v))
        .fold(0usize, usize::saturating_add);
    Some(made.saturating_sub(freed))
}

/// Nodes as a graph of their own, with the constants they read and without types.
struct Part {
    graph: Graph,
    copies: FxHashMap<ValueId, ValueId>,
}

impl Part {
    fn new(g: &Graph, batch: &[NodeId]) -> Part {
        let mut part = Graph::new(g.opsets().clone());
        let mut copies: FxHashMap<ValueId, ValueId> = FxHashMap::default();
        for &id in batch {
            let node = g.node(id);
            let mut inputs = Inputs::new();
            for v in node.inputs() {
                let copied = v.map(|v| {
                    *copies.entry(v).or_insert_with(|| match g.constant(v) {
                        Some(tensor) => part.add_constant("", tensor.clone()),
                        // Every operand is a constant or the result of an earlier node of the batch.
                        None => part.add_input("", g.value(v).ty().clone()),
                    })
                });
                inputs.push(copied);
            }
            let copy = part.add_node(
                node.op(),
                "",
                inputs,
                node.outputs().len(),
                node.attrs().clone(),
            );
            for (old, new) in node
                .outputs()
                .iter()
                .zip(part.node(copy).outputs().to_vec())
            {
                if let (Some(old), Some(new)) = (old, new) {
                    copies.insert(*old, new);
                }
            }
        }
        Part {
            graph: part,
            copies,
        }
    }
}

/// What these nodes make of constants, each node behind what it reads.
pub(crate) fn compute(
    g: &Graph,
    batch: &[NodeId],
    wanted: &[ValueId],
    evaluator: &dyn Evaluator,
) -> Result<Vec<kiln_graph::Tensor>, EvaluatorError> {
    let Part { mut graph, copies } = Part::new(g, batch);
    for &id in batch {
        for old in g.node(id).outputs().iter().flatten() {
            if let Some(&new) = copies.get(old) {
                graph.set_type(new, g.value(*old).ty().clone());
            }
        }
    }
    for (k, v) in wanted.iter().enumerate() {
        if let Some(&v) = copies.get(v) {
            graph.add_output(&format!("folded_{k}"), v);
        }
    }
    let tensors = evaluator.evaluate(&Model::new(graph))?;
    if tensors.len() != wanted.len() {
        return Err(EvaluatorError(format!(
            "{} results came back for {}",
            tensors.len(),
            wanted.len()
        )));
    }
    Ok(tensors)
}
