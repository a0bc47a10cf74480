//! Which kernel each attention of a model got: one made for it, or products with a softmax between them.

use std::collections::BTreeSet;

use kiln_graph::{Graph, Model, NodeId, ValueId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::multiplied::parsed_name;
use super::{Kernel, Kernels};

/// An attention of the model, and what the engine made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attended {
    /// The label of the operator, or of the softmax between two products.
    pub node: String,
    pub kernel: AttentionKernel,
}

/// What computes an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKernel {
    /// One kernel made for attention.
    Dedicated,
    /// Products and a softmax, each with a kernel of its own.
    Products,
    /// No kernel says that it comes from it.
    Unnamed,
}

/// Operators that are a whole attention.
const WHOLE: &[&str] = &[
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "TRT_Attention",
];

const PRODUCTS: &[&str] = &["MatMul", "Gemm", "Einsum"];

/// What may stand between the products and the softmax: scales, masks, guards, types and layouts.
const BETWEEN: &[&str] = &[
    "Add",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Identity",
    "Max",
    "Min",
    "Mul",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// The attentions of a model as it was handed to the builder, in order.
pub fn attended(model: &Model, kernels: &Kernels) -> Vec<Attended> {
    let (own, others): (Vec<&Kernel>, _) = kernels.launched().partition(|k| k.is_attention());
    let names = |kernels: Vec<&'_ Kernel>| -> BTreeSet<String> {
        let all = kernels.into_iter().flat_map(|k| k.nodes.iter().cloned());
        all.collect()
    };
    let (own, others) = (names(own), names(others));
    let mut found = Vec::new();
    model.graph.for_each_graph(&mut |g| {
        for (id, _) in g.nodes().filter(|&(id, _)| is_attention(g, id)) {
            let name = parsed_name(g, id);
            let kernel = match (own.contains(&name), others.contains(&name)) {
                (true, _) => AttentionKernel::Dedicated,
                (_, true) => AttentionKernel::Products,
                _ => AttentionKernel::Unnamed,
            };
            found.push(Attended {
                node: g.label(id),
                kernel,
            });
        }
    });
    found
}

fn is_attention(g: &Graph, id: NodeId) -> bool {
    let op = g.node(id).op();
    if WHOLE.contains(&op.name()) {
        return true;
    }
    let node = g.node(id);
    let (scores, weights) = (node.input(0), node.output(0));
    op.is("Softmax")
        && scores.is_some_and(|v| before(g, v))
        && weights.is_some_and(|v| behind(g, v))
}

/// Whether a value comes from a product of two computed matrices.
fn before(g: &Graph, v: ValueId) -> bool {
    walk(v, |v| {
        let Some(node) = g.producer(v).map(|id| g.node(id)) else {
            return Step::End;
        };
        if is_product(g, node) {
            return Step::Found;
        }
        match node.op().is_any(BETWEEN) {
            true => Step::On(node.inputs().iter().copied().flatten().collect()),
            false => Step::End,
        }
    })
}

/// Whether a value is multiplied with a computed matrix.
fn behind(g: &Graph, v: ValueId) -> bool {
    walk(v, |v| {
        let users = || g.value(v).uses().iter().map(|u| g.node(u.node));
        if users().any(|node| is_product(g, node)) {
            return Step::Found;
        }
        let on = users().filter(|node| node.op().is_any(BETWEEN));
        Step::On(on.filter_map(|node| node.output(0)).collect())
    })
}

enum Step {
    Found,
    On(Vec<ValueId>),
    End,
}

fn walk(from: ValueId, step: impl Fn(ValueId) -> Step) -> bool {
    let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
    while let Some(v) = next.pop() {
        match step(v) {
            Step::Found => return true,
            Step::On(more) => next.extend(more.into_iter().filter(|&v| seen.insert(v))),
            Step::End => {}
        }
    }
    false
}

fn is_product(g: &Graph, node: &kiln_graph::Node) -> bool {
    let computed = |k| node.input(k).is_some_and(|v| !is_weight(g, v));
    node.op().is_any(PRODUCTS) && computed(0) && computed(1)
}

/// A constant, maybe quantized or moved.
fn is_weight(g: &Graph, mut v: ValueId) -> bool {
    loop {
        if g.constant(v).is_some() {
            return true;
        }
        let Some(node) = g.producer(v).map(|id| g.node(id)) else {
            return false;
        };
        match node.input(0).filter(|_| node.op().is_any(BETWEEN)) {
            // With a computed operand beside a constant one it is no weight.
            Some(first) if node.inputs().len() == 1 || !is_elementwise(node) => v = first,
            _ => return false,
        }
    }
}

fn is_elementwise(node: &kiln_graph::Node) -> bool {
    node.op()
        .is_any(&["Add", "Div", "Max", "Min", "Mul", "Sub", "Where"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::onnx;

    fn kernel(name: &str, nodes: &[&str]) -> Kernel {
        Kernel {
            name: name.into(),
            kind: "kgen".into(),
            inputs: Vec::new(),
            constants: Vec::new(),
            outputs: Vec::new(),
            tactic: String::new(),
            nodes: nodes.iter().map(|n| n.to_string()).collect(),
        }
    }

    fn found(nodes: &str, kernels: &[Kernel]) -> Vec<(String, AttentionKernel)> {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 23]>\n\
             g (float[2, 3, 4] x, float[2, 4, 3] k, float[2, 3, 4] v, bool c) => (y) \
             <float half = {{0.5}}, float[4, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}>\n\
             {{ {nodes} }}"
        );
        let model = onnx::read_text(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let all = attended(&model, &Kernels(kernels.to_vec())).into_iter();
        all.map(|a| (a.node, a.kernel)).collect()
    }

    const WRITTEN: &str = "[p] s = MatMul(x, k) t = Mul(s, half) [soft] a = Softmax<axis = -1>(t) [q] y = MatMul(a, v)";

    #[test]
    fn each_attention_is_told_by_the_kernels_that_name_it() {
        let node = "soft (Softmax)".to_string();
        for (name, nodes, kernel_of) in [
            (
                "_gemm_mha_v2",
                &["p", "soft", "q"][..],
                AttentionKernel::Dedicated,
            ),
            ("__myl_Soft", &["soft"], AttentionKernel::Products),
            ("__myl_Move", &["other"], AttentionKernel::Unnamed),
        ] {
            let got = found(WRITTEN, &[kernel(name, nodes)]);
            assert_eq!(got, [(node.clone(), kernel_of)]);
        }
        let whole = found(
            "[att] y = Attention<q_num_heads = 1, kv_num_heads = 1>(x, v, v)",
            &[kernel("_gemm_mha_v2", &["att"])],
        );
        assert_eq!(
            whole,
            [("att (Attention)".to_string(), AttentionKernel::Dedicated)]
        );
    }

    #[test]
    fn attention_is_found_in_every_spelling() {
        for nodes in [
            "s = MatMul(x, k) h = Cast<to = 10>(s) b = Softmax(h) f = Cast<to = 1>(b) y = MatMul(f, v)",
            "s = MatMul(x, k) m = Where(c, s, half) b = Softmax(m) z = Where(c, b, half) y = MatMul(z, v)",
            "s = Einsum<equation = \"bij,bjk->bik\">(x, k) b = Softmax(s) y = Einsum<equation = \"bij,bjk->bik\">(b, v)",
            // In a body, of what is outside.
            "y = If(c) <then_branch = t () => (float[2, 3, 4] o) { s = MatMul(x, k) b = Softmax(s) o = MatMul(b, v) }, \
             else_branch = e () => (float[2, 3, 4] n) { n = Neg(x) }>",
        ] {
            assert_eq!(found(nodes, &[]).len(), 1, "{nodes}");
        }
    }

    #[test]
    fn another_softmax_is_none() {
        for nodes in [
            // Classes.
            "s = MatMul(x, k) y = Softmax(s)",
            // Pooling by a learned score.
            "s = MatMul(x, w) b = Softmax(s) y = MatMul(b, v)",
            "t = Transpose<perm = [1, 0]>(w) u = Transpose<perm = [1, 0]>(t) s = MatMul(x, u) b = Softmax(s) y = MatMul(b, v)",
            // A gate in front of a layer.
            "s = MatMul(x, k) b = Softmax<axis = 1>(s) d = Transpose<perm = [0, 2, 1]>(b) e = Identity(d) y = Gemm(e, w)",
        ] {
            assert_eq!(found(nodes, &[]), [], "{nodes}");
        }
    }
}
