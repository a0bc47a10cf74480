//! What a model holds, counted.

use std::collections::BTreeMap;

use kiln_graph::{Graph, Model, infer};
use serde::Serialize;

/// Counts of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub producer: String,
    pub ir_version: i64,
    /// `(domain, version)`.
    pub opsets: Vec<(String, i64)>,
    pub nodes: usize,
    /// Elements of float constants.
    pub parameters: usize,
    pub constant_bytes: usize,
    /// `(name, type)`.
    pub inputs: Vec<(String, String)>,
    pub outputs: Vec<(String, String)>,
    /// `(operator, nodes)`, most frequent first.
    pub ops: Vec<(String, usize)>,
    pub blocks: Blocks,
    /// Names of local functions.
    pub functions: Vec<String>,
}

/// Parts of a Transformer, in whatever form: fused or spelled out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// Softmaxes between two matrix products, and attention operators.
    pub attention: usize,
    /// LayerNormalization and RMSNormalization, and the square roots of a mean that spell them out.
    pub norms: usize,
    /// Gelu and the Erf, Tanh and Sigmoid of gated or smooth activations.
    pub activations: usize,
}

/// Counts everything, nested graphs included.
pub fn of(model: &Model) -> Summary {
    let mut graph = model.graph.clone();
    infer::annotate(&mut graph);
    let typed = |name: &str, v| (name.to_string(), graph.value(v).ty().to_string());
    let mut ops: Vec<(String, usize)> = op_counts(&graph).into_iter().collect();
    ops.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut parameters = 0;
    let mut nodes = 0;
    let mut found = Blocks::default();
    graph.for_each_graph(&mut |g| {
        let constants = g.values().filter_map(|(_, v)| v.constant());
        let floats = constants.filter(|t| t.dtype().is_float());
        parameters += floats.map(|t| t.len()).sum::<usize>();
        nodes += g.node_count();
        let here = blocks(g);
        found.attention += here.attention;
        found.norms += here.norms;
        found.activations += here.activations;
    });
    Summary {
        producer: model.producer(),
        ir_version: model.ir_version(),
        opsets: graph
            .opsets()
            .iter()
            .map(|(d, v)| (d.to_string(), v))
            .collect(),
        nodes,
        parameters,
        constant_bytes: model.constant_bytes(),
        inputs: graph
            .inputs()
            .iter()
            .map(|&v| typed(graph.value(v).name(), v))
            .collect(),
        outputs: graph
            .outputs()
            .iter()
            .map(|o| typed(&o.name, o.value))
            .collect(),
        ops,
        blocks: found,
        functions: model.functions().map(|(d, n)| format!("{d}.{n}")).collect(),
    }
}

/// Nodes by operator, nested graphs included.
pub fn op_counts(graph: &Graph) -> BTreeMap<String, usize> {
    let mut ops = BTreeMap::new();
    graph.for_each_graph(&mut |g| {
        for (_, node) in g.nodes() {
            *ops.entry(node.op().to_string()).or_default() += 1;
        }
    });
    ops
}

fn blocks(g: &Graph) -> Blocks {
    let mut found = Blocks::default();
    for (_, node) in g.nodes() {
        match node.op().name() {
            "Attention" | "MultiHeadAttention" | "GroupQueryAttention" => found.attention += 1,
            "Softmax" if feeds_product(g, node) => found.attention += 1,
            "LayerNormalization"
            | "RMSNormalization"
            | "SimplifiedLayerNormalization"
            | "SkipLayerNormalization"
            | "SkipSimplifiedLayerNormalization" => found.norms += 1,
            "Sqrt" if of_mean(g, node) => found.norms += 1,
            "Gelu" | "FastGelu" | "BiasGelu" | "QuickGelu" | "Erf" | "Relu" | "Swish" => {
                found.activations += 1
            }
            // A pooler's Tanh has no factor beside it; that of an activation is added to and multiplied.
            "Tanh" if read_by(g, node, "Add") => found.activations += 1,
            "Sigmoid" if read_by(g, node, "Mul") => found.activations += 1,
            _ => {}
        }
    }
    found
}

fn readers<'a>(
    g: &'a Graph,
    node: &'a kiln_graph::Node,
) -> impl Iterator<Item = &'a kiln_graph::Node> {
    let outputs = node.outputs().iter().flatten();
    outputs
        .flat_map(|&v| g.value(v).uses())
        .map(|u| g.node(u.node))
}

fn read_by(g: &Graph, node: &kiln_graph::Node, op: &str) -> bool {
    readers(g, node).any(|n| n.op().is(op))
}

/// Whether a Softmax reaches a MatMul through what exporters put between.
fn feeds_product(g: &Graph, node: &kiln_graph::Node) -> bool {
    let mut layer: Vec<&kiln_graph::Node> = readers(g, node).collect();
    for _ in 0..6 {
        if layer.iter().any(|n| n.op().is_any(&["MatMul", "Einsum"])) {
            return true;
        }
        let relays = [
            "Where", "Cast", "Reshape", "Dropout", "IsNaN", "Mul", "Identity",
        ];
        layer = (layer.iter())
            .filter(|n| n.op().is_any(&relays))
            .flat_map(|n| readers(g, n))
            .collect();
    }
    false
}

/// Whether a Sqrt is that of a mean plus epsilon.
fn of_mean(g: &Graph, node: &kiln_graph::Node) -> bool {
    let sum = node.input(0).and_then(|v| g.producer_if(v, "Add"));
    let Some(sum) = sum else { return false };
    let mut operands = g.node(sum).inputs().iter().flatten();
    operands.any(|&v| g.producer_if(v, "ReduceMean").is_some())
}

/// `33.4 M`
pub fn count(n: usize) -> String {
    scaled(n as f64, 1000.0, &["", " K", " M", " G", " T"])
}

/// `133.5 MB`, in powers of 1000.
pub fn bytes(n: usize) -> String {
    scaled(n as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

fn scaled(mut n: f64, base: f64, units: &[&str]) -> String {
    let mut k = 0;
    while n >= base && k + 1 < units.len() {
        n /= base;
        k += 1;
    }
    match k {
        0 => format!("{n}{}", units[0]),
        _ => format!("{n:.1}{}", units[k]),
    }
}
