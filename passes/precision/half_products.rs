//! Quantized products in half precision: operands that belong together, and offsets in front of a quantization.

use kiln_graph::{Graph, NodeId, ValueId, ops};

use super::half_format::HalfFormat;
use super::half_ranges::MOVES;
use super::quantized::one_scale;

/// Of a step, what a rounding of an offset may move all numbers by. A product adds that up over all its terms, where what
/// quantization itself rounds is up as often as down.
const OFFSET_ERROR: f64 = 1.0 / 64.0;

const PRODUCTS: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// Keeps a quantization with an offset that the format rounds by much of a step: where it is added, and where it is
/// taken away again, or the products and biases that have taken it up.
///
/// `symmetrize-qdq` writes `x + c`, Q, DQ, `- c` for zero points, with offsets of up to 128 steps.
pub(super) fn keep_offsets(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    why: &mut [Option<String>],
) {
    for &id in order {
        let Some(quantize) = ops::QuantizeLinear::of(g, id) else {
            continue;
        };
        let added = quantize.input(0).and_then(|v| g.producer_if(v, "Add"));
        let offset = added.and_then(|add| offset(g, add));
        let (Some(add), Some(offset), Some(scale)) =
            (added, offset, one_scale(g, quantize.scale()))
        else {
            continue;
        };
        let steps = offset.abs() / scale;
        if steps * format.unit() <= OFFSET_ERROR {
            continue;
        }
        let mut group = vec![add, id];
        for dequantize in readers(g, quantize.output(0)) {
            if ops::DequantizeLinear::of(g, dequantize).is_none() {
                continue;
            }
            group.push(dequantize);
            for reader in readers(g, g.node(dequantize).output(0)) {
                match self::offset(g, reader) {
                    Some(_) => group.push(reader),
                    None => absorbed(g, reader, &mut group),
                }
            }
        }
        for id in group {
            why[id.index()].get_or_insert_with(|| {
                format!(
                    "its offset is {steps:.0} steps, of which {} rounds {:.2}",
                    format.name(),
                    steps * format.unit()
                )
            });
        }
    }
}

/// What `absorb-offsets` made of an offset: a product that is large by it, and the bias that makes it small again.
fn absorbed(g: &Graph, id: NodeId, group: &mut Vec<NodeId>) {
    let op = g.node(id).op();
    if !op.is_any(PRODUCTS) && !op.is_any(MOVES) {
        return;
    }
    group.push(id);
    for reader in readers(g, g.node(id).output(0)) {
        let mut inputs = g.node(reader).inputs().iter().flatten();
        let adds = g.node(reader).op().is_any(&["Add", "Sub"]);
        let biased = adds && inputs.any(|&v| g.constant(v).is_some());
        match op.is_any(PRODUCTS) {
            true if biased => group.push(reader),
            true => {}
            false => absorbed(g, reader, group),
        }
    }
}

fn readers(g: &Graph, v: Option<ValueId>) -> impl Iterator<Item = NodeId> {
    let uses = v.map(|v| g.value(v).uses()).unwrap_or_default();
    uses.iter().map(|u| u.node)
}

/// The constant of an Add or Sub of one number.
fn offset(g: &Graph, id: NodeId) -> Option<f64> {
    let node = g.node(id);
    let mut inputs = node.inputs().iter().flatten();
    node.op()
        .is_any(&["Add", "Sub"])
        .then(|| inputs.find_map(|&v| g.constant(v)?.as_f64()))?
}

/// Keeps a product of dequantized operands together with these: if one of them keeps FP32, all do. TensorRT builds no
/// engine where the scales of a product are of two types (`quantize_ppg.cpp`, TensorRT for RTX 1.7), and a Cast between
/// DequantizeLinear and a product makes it one of floats.
pub(super) fn keep_together(g: &Graph, order: &[NodeId], why: &mut [Option<String>]) {
    const WHY: &str = "it belongs to a quantized product of which a part keeps FP32";
    let groups: Vec<Vec<NodeId>> = (order.iter())
        .filter(|&&id| g.node(id).op().is_any(PRODUCTS) && g.node(id).op().domain().is_empty())
        .filter_map(|&id| {
            let [a, b] = [0, 1].map(|k| g.node(id).input(k).and_then(|v| dequantized(g, v)));
            let (mut group, b) = (a?, b?);
            group.extend(b);
            group.push(id);
            Some(group)
        })
        .collect();
    loop {
        let mut changed = false;
        for group in &groups {
            if group.iter().all(|id| why[id.index()].is_none()) {
                continue;
            }
            for id in group {
                if why[id.index()].is_none() {
                    why[id.index()] = Some(WHY.into());
                    changed = true;
                }
            }
        }
        if !changed {
            return;
        }
    }
}

/// The DequantizeLinear that a value comes from, and what moves its numbers.
fn dequantized(g: &Graph, mut v: ValueId) -> Option<Vec<NodeId>> {
    let mut path = Vec::new();
    loop {
        let id = g.producer(v)?;
        path.push(id);
        if ops::DequantizeLinear::of(g, id).is_some() {
            return Some(path);
        }
        v = g
            .node(id)
            .input(0)
            .filter(|_| g.node(id).op().is_any(MOVES))?;
    }
}
