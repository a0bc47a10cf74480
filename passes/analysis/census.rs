//! What a graph holds of the blocks that fusions look for: fused, and left as they were.
//!
//! Counted between fusion and lowering. What is left is found by its most telling node, not by a pattern: a census that
//! shared the fusions' patterns would find nothing left wherever they find nothing.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attr, Graph, Model, Node, NodeId, ValueId, ops};

use super::attention::projections;

/// How many blocks of a kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub fused: usize,
    pub left: usize,
}

impl Count {
    pub fn found(self) -> usize {
        self.fused + self.left
    }
}

/// One attention.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct AttentionBlock {
    /// The node's label.
    #[cfg_attr(feature = "serde", serde(rename = "node"))]
    pub name: String,
    /// 0 where unknown, as for the other sizes.
    pub heads: usize,
    pub kv_heads: usize,
    pub head_size: usize,
    pub scale: f32,
    pub softcap: f32,
    /// What is added to the scores: `none`, `bias`, or what a mask hides, as in `causal+padding`.
    pub mask: String,
    /// Rows whose keys are all hidden must give zeros.
    pub guarded: bool,
}

/// The blocks of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    pub attention: Count,
    /// Of those left, attentions whose probabilities become integers.
    pub quantized: usize,
    /// LayerNormalization, RMSNormalization, GroupNormalization, InstanceNormalization.
    pub norms: Count,
    /// Gelu, Swish and their kin.
    pub activations: Count,
    pub rotary: Count,
    /// Attentions whose projections of one input are one product, and those with separate ones.
    pub projections: Count,
    pub blocks: Vec<AttentionBlock>,
}

/// Counts the blocks of all graphs of a model.
pub fn census(model: &Model) -> Census {
    let mut census = Census::default();
    model.graph.for_each_graph(&mut |g| {
        for (id, node) in g.nodes() {
            count(&mut census, g, id, node);
        }
    });
    census
}

/// How many attentions project their one input themselves, from packed weights. Lowering makes such ones, after the blocks
/// are counted.
pub fn packed_attentions(model: &Model) -> usize {
    let mut count = 0;
    model.graph.for_each_graph(&mut |g| {
        let packs = |(id, _): &(NodeId, &Node)| packs_projections(g, *id);
        count += g.nodes().filter(packs).count();
    });
    count
}

/// Whether a node is ONNX Runtime's Attention, whose weights are the three projections' side by side.
fn packs_projections(g: &Graph, id: NodeId) -> bool {
    let attention = ops::MicrosoftAttention::of(g, id);
    attention.is_some_and(|a| a.is_packed())
}

fn count(census: &mut Census, g: &Graph, id: NodeId, node: &Node) {
    match node.op().name() {
        "Attention" | "MultiHeadAttention" | "GroupQueryAttention" => {
            census.attention.fused += 1;
            census.blocks.push(block(g, id, node));
            // It came with its three projections as one weight.
            if packs_projections(g, id) {
                census.projections.fused += 1;
            }
            match InternalAttention::of(g, id) {
                Some(attention) if projections::separate(g, &attention).is_ok() => {
                    census.projections.left += 1
                }
                Some(attention) if shares_product(g, &attention) => census.projections.fused += 1,
                _ => {}
            }
        }
        "Softmax" if feeds_product(g, node) => {
            census.attention.left += 1;
            census.quantized += usize::from(is_quantized(g, node));
        }
        "LayerNormalization"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "SkipLayerNormalization" => census.norms.fused += 1,
        "Sqrt" | "Pow" if is_deviation(g, node) => census.norms.left += 1,
        "Gelu" | "FastGelu" | "QuickGelu" | "BiasGelu" | "Swish" => census.activations.fused += 1,
        "Erf" => census.activations.left += 1,
        "Sigmoid" | "Tanh" if gates_itself(g, node) => census.activations.left += 1,
        "RotaryEmbedding" => census.rotary.fused += 1,
        "Concat" if rotates(g, node) => census.rotary.left += 1,
        _ => {}
    }
}

/// What the census says of one attention.
pub fn block(g: &Graph, id: NodeId, node: &Node) -> AttentionBlock {
    let size = |k: usize, axis: usize| {
        let shape = node.input(k).and_then(|v| g.value(v).ty().shape());
        let dim = shape.filter(|s| s.len() == 4).and_then(|s| s.get(axis));
        dim.and_then(|d| d.known()).unwrap_or(0)
    };
    let attention = InternalAttention::of(g, id);
    let mask = match node.attrs().get("mask") {
        Some(Attr::Str(kind)) => String::from_utf8_lossy(kind).into_owned(),
        _ if node.input(3).is_some() => "bias".into(),
        _ if attention.is_some_and(|a| a.is_causal()) => "causal".into(),
        _ => "none".into(),
    };
    AttentionBlock {
        name: g.label(id),
        heads: size(0, 1),
        kv_heads: size(1, 1),
        head_size: size(0, 3),
        scale: attention.map_or(0.0, |a| a.scale()),
        softcap: attention.map_or(0.0, |a| a.softcap()),
        mask,
        guarded: attention.is_some_and(|a| a.is_guarded()),
    }
}

/// How many nodes apart a block's telling nodes may be.
const NEAR: usize = 4;

/// Whether a MatMul reads the node's result, directly or through selections and casts.
pub fn feeds_product(g: &Graph, node: &Node) -> bool {
    let mut at: Vec<ValueId> = node.output(0).into_iter().collect();
    for _ in 0..NEAR {
        let readers = at
            .iter()
            .flat_map(|&v| g.value(v).uses())
            .map(|u| g.node(u.node));
        let mut next = Vec::new();
        for reader in readers {
            if reader.op().is("MatMul") {
                return true;
            }
            next.extend(reader.output(0));
        }
        at = next;
    }
    false
}

/// Whether the node's result becomes integers, perhaps of another zero point: it is rounded between softmax and the values,
/// which no attention of one operator does.
fn is_quantized(g: &Graph, node: &Node) -> bool {
    let quantizes = |v: ValueId| {
        let mut readers = g.value(v).uses().iter().map(|u| g.node(u.node));
        readers.any(|n| n.op().is("QuantizeLinear"))
    };
    let offset = |v: ValueId| {
        let mut readers = g.value(v).uses().iter().map(|u| g.node(u.node));
        readers.any(|n| n.op().is("Add") && n.output(0).is_some_and(quantizes))
    };
    node.output(0).is_some_and(|p| quantizes(p) || offset(p))
}

/// A square root of a mean: the deviation that a norm divides by.
fn is_deviation(g: &Graph, node: &Node) -> bool {
    let half = |v: ValueId| {
        g.constant(v)
            .and_then(|t| t.as_f64())
            .is_some_and(|e| e.abs() == 0.5)
    };
    if node.op().is("Pow") && !node.input(1).is_some_and(half) {
        return false;
    }
    let mut at = node.input(0);
    for _ in 0..NEAR {
        let Some(producer) = at.and_then(|v| g.producer(v)).map(|id| g.node(id)) else {
            return false;
        };
        if producer.op().is("ReduceMean") {
            return true;
        }
        at = producer
            .inputs()
            .iter()
            .flatten()
            .copied()
            .find(|&v| g.producer(v).is_some());
    }
    false
}

/// `x · sigmoid(c · x)`, or `x · (1 + tanh(…))`.
fn gates_itself(g: &Graph, node: &Node) -> bool {
    let Some(x) = node.input(0) else { return false };
    let factors = |v: ValueId| -> Vec<ValueId> {
        let scaled = g
            .producer(v)
            .map(|id| g.node(id))
            .filter(|n| n.op().is("Mul"));
        scaled.map_or(Vec::new(), |n| {
            n.inputs().iter().flatten().copied().collect()
        })
    };
    let readers = || {
        node.output(0)
            .into_iter()
            .flat_map(|v| g.value(v).uses())
            .map(|u| g.node(u.node))
    };
    if node.op().is("Sigmoid") {
        let own = |n: &Node| {
            n.inputs()
                .iter()
                .flatten()
                .any(|v| *v == x || factors(x).contains(v))
        };
        return readers().any(|n| n.op().is("Mul") && own(n));
    }
    let one = |n: &Node| {
        n.inputs()
            .iter()
            .flatten()
            .any(|&v| g.constant(v).and_then(|t| t.as_f64()) == Some(1.0))
    };
    readers().any(|n| n.op().is("Add") && one(n))
}

/// `Concat(-x[half..], x[..half])`.
fn rotates(g: &Graph, node: &Node) -> bool {
    let first = node.input(0).and_then(|v| g.producer_if(v, "Neg"));
    let turned = first
        .and_then(|id| g.node(id).input(0))
        .and_then(|v| g.producer(v));
    turned.is_some_and(|id| g.node(id).op().is_any(&["Slice", "Split"]))
}

/// Whether two operands of an attention are parts of one product.
fn shares_product(g: &Graph, attention: &InternalAttention<'_>) -> bool {
    let products: Vec<NodeId> = (0..3)
        .filter_map(|k| attention.input(k))
        .filter_map(|v| product(g, v))
        .collect();
    products
        .iter()
        .enumerate()
        .any(|(k, p)| products.iter().skip(k + 1).any(|q| p == q))
}

/// The product that an operand of attention is made of.
fn product(g: &Graph, operand: ValueId) -> Option<NodeId> {
    let mut at = operand;
    for _ in 0..16 {
        let id = g.producer(at)?;
        let node = g.node(id);
        if node.op().is("MatMul") || node.op().is("Gemm") {
            return Some(id);
        }
        let mut computed = node
            .inputs()
            .iter()
            .flatten()
            .copied()
            .filter(|&v| g.constant(v).is_none());
        at = computed.next()?;
    }
    None
}
