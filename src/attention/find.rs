//! The attentions of a model, with their probabilities as outputs.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_graph::ops::{self, InternalAttention};
use kiln_graph::{Attrs, DType, Graph, Model, Node, Op, ValueId};
use kiln_passes::{Context, PassError, Step, Target, census, registry};
use rustc_hash::FxHashSet;

use crate::runtime::{self, OrtEvaluator};

/// One attention.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The node's label.
    pub name: String,
    /// What is hidden, as in `causal+padding`.
    pub mask: String,
    /// Whether queries and keys are made of different values; `None` where that is not known.
    pub cross: Option<bool>,
    /// The model's inputs that queries and keys are made of.
    pub queries: Vec<String>,
    pub keys: Vec<String>,
}

/// A model that gives the probabilities of its attentions, each FP32 [batch, heads, queries, keys], in order, and nothing
/// else.
#[derive(Debug)]
pub(super) struct Found {
    pub model: Model,
    pub blocks: Vec<Block>,
    /// Attentions that are not among them, and why.
    pub left: Vec<String>,
}

const UNUSED: &str = "fuse-qkv";

/// Finds the attentions as compiling does and makes their probabilities outputs.
pub(super) fn find(mut model: Model, library: Option<&Path>) -> Result<Found, PassError> {
    let target = Target::standard();
    let choices = kiln_passes::Options::default();
    let evaluator = OrtEvaluator::new(library);
    let mut cx = Context::new(&target, &choices);
    cx.explain = true;
    if runtime::locate(library).is_ok() {
        cx.evaluator = Some(&evaluator);
    }
    let mut steps = registry::DEFAULT.to_vec();
    // Joining projections saves time in many runs; here there is one.
    steps.retain(|s| !matches!(s, Step::Run(p) if p.name() == UNUSED));
    steps.extend_from_slice(registry::ATTENTION);
    kiln_passes::run(&mut model, &steps, &mut cx, &mut |_, _| {})?;
    let missed = cx.misses.iter().filter(|m| m.pass == "adopt-attention");
    let mut left: Vec<String> = missed.map(|m| format!("{}: {}", m.at, m.why)).collect();
    let mut nested = 0;
    model.graph.for_each_graph(&mut |g| nested += softmaxes(g));
    nested -= softmaxes(&model.graph);
    if nested > 0 {
        left.push(format!("{nested} in the body of an If, Loop or Scan"));
    }
    let (blocks, values) = blocks(&mut model.graph, &mut left);
    give(&mut model.graph, &values);
    kiln_passes::run(&mut model, registry::LOWER, &mut cx, &mut |_, _| {})?;
    Ok(Found {
        model,
        blocks,
        left,
    })
}

/// Attentions of a graph, fused or not.
fn softmaxes(g: &Graph) -> usize {
    let attention = |(id, n): &(_, &Node)| InternalAttention::of(g, *id).is_some() || apart(g, n);
    g.nodes().filter(attention).count()
}

/// Whether a node is the softmax of an attention that was not fused.
fn apart(g: &Graph, node: &Node) -> bool {
    node.op().is("Softmax") && census::feeds_product(g, node)
}

/// The attentions in the order in which they are computed, and their probabilities.
fn blocks(g: &mut Graph, left: &mut Vec<String>) -> (Vec<Block>, Vec<ValueId>) {
    let (mut blocks, mut values) = (Vec::new(), Vec::new());
    // The passes have checked that there is no cycle.
    for id in g.topo_order().unwrap_or_default() {
        let node = g.node(id);
        let (operands, mask, probabilities) = match InternalAttention::of(g, id) {
            Some(attention) => {
                let operands = [attention.input(0), attention.input(1)];
                (operands, census::block(g, id, node).mask, None)
            }
            None if apart(g, node) => {
                let whole = ops::Softmax::of(g, id).is_some_and(|softmax| {
                    let last = softmax.rank(0).filter(|&r| r == 4);
                    last.is_some_and(|r| ops::resolve_axis(softmax.axis(), r) == Some(3))
                });
                if !whole {
                    let name = g.label(id);
                    left.push(format!("{name}: it is not [batch, heads, queries, keys]"));
                    continue;
                }
                let operands = node.input(0).map_or([None; 2], |x| product(g, x));
                (operands, "not known".to_string(), node.output(0))
            }
            None => continue,
        };
        let name = match node.name() {
            "" => g.label(id),
            name => name.to_string(),
        };
        let sources = operands.map(|v| v.map_or(BTreeSet::new(), |v| sources(g, v)));
        let [q, k] = &sources;
        let known = !q.is_empty() && !k.is_empty();
        let reached = |k: usize| {
            let from: Vec<ValueId> = match sources[k].is_empty() {
                true => operands[k].into_iter().collect(),
                false => sources[k].iter().copied().collect(),
            };
            inputs(g, from)
        };
        blocks.push(Block {
            cross: known.then(|| q.is_disjoint(k)),
            queries: reached(0),
            keys: reached(1),
            name,
            mask,
        });
        values.push(probabilities.unwrap_or_else(|| g.push_output(id, "")));
    }
    (blocks, values)
}

/// Makes these values the only outputs, as FP32.
fn give(g: &mut Graph, values: &[ValueId]) {
    g.take_outputs();
    let taken = |g: &Graph, prefix: &str| {
        let mut inputs = g.inputs().iter();
        inputs.any(|&v| g.value(v).name().starts_with(prefix))
    };
    let mut prefix = "probabilities".to_string();
    while taken(g, &prefix) {
        prefix.push('_');
    }
    for (k, &v) in values.iter().enumerate() {
        let to = Attrs::new().with("to", i64::from(DType::F32.to_onnx()));
        let cast = g.add_node(Op::onnx("Cast"), "", [Some(v)], 1, to);
        if let Some(output) = g.node(cast).output(0) {
            g.add_output(&format!("{prefix}.{k}"), output);
        }
    }
}

/// The queries and keys behind scores: the operands of the nearest product of two computed values.
fn product(g: &Graph, scores: ValueId) -> [Option<ValueId>; 2] {
    let mut todo = vec![scores];
    let mut seen = FxHashSet::default();
    while let Some(v) = todo.pop() {
        let Some(node) = g.producer(v).map(|id| g.node(id)) else {
            continue;
        };
        if !seen.insert(v) {
            continue;
        }
        if node.op().is("MatMul") {
            return [node.input(0), node.input(1)];
        }
        todo.extend(node.inputs().iter().rev().flatten());
    }
    [None; 2]
}

/// What is projected to an operand of attention: the other operands of products with weights, behind changes of layout and
/// of number format.
fn sources(g: &Graph, operand: ValueId) -> BTreeSet<ValueId> {
    let mut found = BTreeSet::new();
    let mut todo = vec![operand];
    let mut seen = FxHashSet::default();
    while let Some(v) = todo.pop() {
        let Some(node) = g.producer(v).map(|id| g.node(id)) else {
            continue;
        };
        if !seen.insert(v) {
            continue;
        }
        let op = node.op().name();
        if ["MatMul", "Gemm", "Conv"].iter().any(|p| op.contains(p)) {
            let mut sides = node.inputs().iter().flatten().copied();
            let computed = sides.find(|&v| !inputs(g, vec![v]).is_empty());
            found.extend(computed.map(|v| stripped(g, v)));
            continue;
        }
        // The angles of a rotation are made of positions.
        let operands = if op == "RotaryEmbedding" {
            1
        } else {
            node.inputs().len()
        };
        todo.extend(node.inputs().iter().take(operands).flatten());
    }
    found
}

const MOVES: &[&str] = &[
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
];

/// The value before changes of layout and number format.
fn stripped(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(node) = g.producer(v).map(|id| g.node(id)) {
        match node.input(0) {
            Some(before) if MOVES.contains(&node.op().name()) => v = before,
            _ => break,
        }
    }
    v
}

/// The names of the graph's inputs that these values are made of.
fn inputs(g: &Graph, mut todo: Vec<ValueId>) -> Vec<String> {
    let mut seen = FxHashSet::default();
    while let Some(v) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        if let Some(node) = g.producer(v).map(|id| g.node(id)) {
            todo.extend(node.inputs().iter().flatten());
            todo.extend(node.captures());
        }
    }
    let reached = g.inputs().iter().filter(|v| seen.contains(v));
    reached.map(|&v| g.value(v).name().to_string()).collect()
}
