//! Nodes whose inputs are all constants are computed once, in one batch, by the evaluator.

use kiln_graph::graph::Inputs;
use kiln_graph::{Graph, Model, NodeId, ValueId, ops};
use rustc_hash::FxHashMap;

use crate::pass::{Context, Evaluator, Exactness, Pass, PassFailure, Remark};

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
        let mut folded = 0;
        let mut failure = None;
        model.graph.for_each_graph_mut(&mut |g| {
            if failure.is_none() {
                match fold(g, cx) {
                    Ok(n) => folded += n,
                    Err(e) => failure = Some(e),
                }
            }
        });
        match failure {
            Some(e) => Err(e),
            None => Ok(folded),
        }
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
    let tensors = compute(g, &batch, &wanted, evaluator)?;
    for (v, tensor) in wanted.iter().zip(tensors) {
        g.make_constant(*v, tensor);
    }
    for &id in batch.iter().rev() {
        crate::patch::remove_dead(g, vec![id]);
    }
    Ok(batch.len())
}

/// Nodes to fold, each after what it reads.
fn foldable(g: &Graph, cx: &mut Context<'_>) -> Result<Vec<NodeId>, PassFailure> {
    let mut folded = vec![false; g.value_bound()];
    let mut batch = Vec::new();
    for id in g.topo_order()? {
        let node = g.node(id);
        let constant = |v: ValueId| g.constant(v).is_some() || folded[v.index()];
        let ready = node.inputs().iter().flatten().all(|&v| constant(v));
        let plain = node.captures().is_empty()
            && !node.has_subgraphs()
            && node.op().domain().is_empty()
            && !node.op().is_any(&["DequantizeLinear", "Constant"])
            && ops::traits::node_is_deterministic(g, id);
        if !ready || !plain {
            continue;
        }
        match growth(g, id) {
            Growth::Within(bytes) if bytes <= cx.options.fold_budget => {}
            Growth::Within(bytes) => {
                cx.remarks.push(Remark::OverBudget {
                    node: g.label(id),
                    bytes,
                });
                continue;
            }
            Growth::Unknown => continue,
        }
        for &v in node.outputs().iter().flatten() {
            folded[v.index()] = true;
        }
        batch.push(id);
    }
    Ok(batch)
}

enum Growth {
    /// Bytes by which the results exceed the constants they replace.
    Within(usize),
    Unknown,
}

fn growth(g: &Graph, id: NodeId) -> Growth {
    let size = |v: ValueId| {
        let ty = g.value(v).ty();
        let dims = ty.shape()?.iter().map(|d| d.known());
        let count = dims
            .into_iter()
            .try_fold(1usize, |n, d| n.checked_mul(d?))?;
        ty.dtype()?.packed_len(count)
    };
    let mut made = 0usize;
    for &v in g.node(id).outputs().iter().flatten() {
        match size(v) {
            Some(bytes) => made = made.saturating_add(bytes),
            None => return Growth::Unknown,
        }
    }
    // A constant that something else reads too stays, so only sole uses are replaced.
    let read = g.node(id).inputs().iter().flatten();
    let freed: usize = read
        .filter(|&&v| g.single_use(v).is_some())
        .filter_map(|&v| size(v))
        .sum();
    Growth::Within(made.saturating_sub(freed))
}

fn compute(
    g: &Graph,
    batch: &[NodeId],
    wanted: &[ValueId],
    evaluator: &dyn Evaluator,
) -> Result<Vec<kiln_graph::Tensor>, PassFailure> {
    let mut sub = Graph::new(g.opsets().clone());
    let mut map: FxHashMap<ValueId, ValueId> = FxHashMap::default();
    for &id in batch {
        let node = g.node(id);
        let mut inputs = Inputs::new();
        for v in node.inputs() {
            let copied = v.map(|v| {
                *map.entry(v).or_insert_with(|| match g.constant(v) {
                    Some(tensor) => sub.add_constant("", tensor.clone()),
                    // Every operand is a constant or the result of an earlier node of the batch.
                    None => sub.add_input("", g.value(v).ty().clone()),
                })
            });
            inputs.push(copied);
        }
        let copy = sub.add_node(
            node.op(),
            "",
            inputs,
            node.outputs().len(),
            node.attrs().clone(),
        );
        for (old, new) in node.outputs().iter().zip(sub.node(copy).outputs().to_vec()) {
            if let (Some(old), Some(new)) = (old, new) {
                sub.set_type(new, g.value(*old).ty().clone());
                map.insert(*old, new);
            }
        }
    }
    for (k, v) in wanted.iter().enumerate() {
        if let Some(&v) = map.get(v) {
            sub.add_output(&format!("folded_{k}"), v);
        }
    }
    let tensors = evaluator.evaluate(&Model::new(sub))?;
    if tensors.len() != wanted.len() {
        return Err(PassFailure::Evaluator(crate::EvaluatorError(format!(
            "{} results came back for {}",
            tensors.len(),
            wanted.len()
        ))));
    }
    Ok(tensors)
}
