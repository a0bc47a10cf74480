//! Quantized products in half precision: operands that belong together, and offsets in front of a quantization.

use kiln_graph::graph::Use;
use kiln_graph::{Graph, NodeId, ValueId, ops};

use super::format::HalfFormat;
use super::operands::MOVES;
use crate::core::pass::OUT_OF_TOLERANCE;
use crate::precision::numbers::quantized::{Quantized, one_scale};

/// Of a step, what a rounding of an offset may move all numbers by. A product adds that up over all its terms, where what
/// quantization itself rounds is up as often as down.
const OFFSET_ERROR: f64 = 1.0 / 64.0;

/// Of what quantization itself rounds in a product, the most that rounding the product with its offset may add. It is added as
/// squares, so 2 % more noise.
const ABSORBED_ERROR: f64 = 0.25;

const PRODUCTS: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul"];

/// A quantization of `x + c`, with what reads it.
struct Offset {
    add: NodeId,
    quantize: NodeId,
    /// `c` in steps of the quantization.
    steps: f64,
    dequantized: Vec<NodeId>,
}

impl Offset {
    /// One whose offset the format rounds by much of a step.
    fn of(g: &Graph, id: NodeId, format: HalfFormat) -> Option<Offset> {
        let quantize = ops::QuantizeLinear::of(g, id)?;
        let add = quantize.input(0).and_then(|v| g.producer_if(v, "Add"))?;
        let steps = offset(g, add)?.abs() / one_scale(g, quantize.scale())?;
        if steps * format.unit() <= OFFSET_ERROR {
            return None;
        }
        let dequantize = |id: &NodeId| ops::DequantizeLinear::of(g, *id).is_some();
        let dequantized = readers(g, quantize.output(0)).filter(dequantize).collect();
        Some(Offset {
            add,
            quantize: id,
            steps,
            dequantized,
        })
    }
}

/// Gives what takes an offset away again a DequantizeLinear of its own, beside products that have taken it up: the one keeps
/// FP32, the others need not.
pub(in crate::precision) fn separate_offsets(g: &mut Graph, format: HalfFormat) {
    let found: Vec<Offset> = (g.nodes())
        .filter_map(|(id, _)| Offset::of(g, id, format))
        .collect();
    for dequantize in found.into_iter().flat_map(|o| o.dequantized) {
        let Some(v) = g.node(dequantize).output(0) else {
            continue;
        };
        let uses = g.value(v).uses().to_vec();
        let (away, others): (Vec<Use>, Vec<Use>) =
            uses.iter().partition(|u| offset(g, u.node).is_some());
        if away.is_empty() || others.is_empty() {
            continue;
        }
        let node = g.node(dequantize);
        let (op, attrs) = (node.op(), node.attrs().clone());
        let (inputs, label) = (node.inputs().to_vec(), node.name().to_string());
        let ty = g.value(v).ty().clone();
        let own = g.add_node(op, &label, inputs, 1, attrs);
        let Some(made) = g.node(own).output(0) else {
            continue;
        };
        g.set_type(made, ty);
        for reader in away.iter().map(|u| u.node) {
            for k in 0..g.node(reader).inputs().len() {
                if g.node(reader).input(k) == Some(v) {
                    g.set_input(reader, k, Some(made));
                }
            }
        }
    }
}

/// Keeps a quantization with an offset that the format rounds by much of a step: where it is added, and where it is
/// taken away again, or products and biases that have taken up more of it than they can hold.
///
/// `symmetrize-qdq` writes `x + c`, Q, DQ, `- c` for zero points, with offsets of up to 128 steps. `products` says whether
/// products may keep FP32.
pub(in crate::precision) fn keep_offsets(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    products: bool,
    why: &mut [Option<String>],
) {
    for &id in order {
        let Some(found) = Offset::of(g, id, format) else {
            continue;
        };
        let error = found.steps * format.unit();
        let mut group = vec![found.add, found.quantize];
        for &dequantize in &found.dequantized {
            let before = group.len();
            for reader in readers(g, g.node(dequantize).output(0)) {
                match offset(g, reader) {
                    Some(_) => group.push(reader),
                    None if products => absorbed(g, reader, error, &mut group),
                    None => {}
                }
            }
            if group.len() > before {
                group.push(dequantize);
            }
        }
        for id in group {
            why[id.index()].get_or_insert_with(|| {
                format!(
                    "its offset is {:.0} steps, of which {} rounds {error:.2}",
                    found.steps,
                    format.name(),
                )
            });
        }
    }
}

/// What `absorb-offsets` made of an offset: a product that is large by it, and the bias that makes it small again. `error` is
/// what rounding the offset moves it by, in steps.
fn absorbed(g: &Graph, id: NodeId, error: f64, group: &mut Vec<NodeId>) {
    let op = g.node(id).op();
    if !op.is_any(PRODUCTS) && !op.is_any(MOVES) {
        return;
    }
    let product = op.is_any(PRODUCTS);
    if product && grows(g, id).is_some_and(|factor| error * factor <= ABSORBED_ERROR) {
        return;
    }
    let before = group.len();
    for reader in readers(g, g.node(id).output(0)) {
        let mut inputs = g.node(reader).inputs().iter().flatten();
        let adds = g.node(reader).op().is_any(&["Add", "Sub"]);
        let biased = adds && inputs.any(|&v| g.constant(v).is_some());
        match product {
            true if biased => group.push(reader),
            true => {}
            false => absorbed(g, reader, error, group),
        }
    }
    if product || group.len() > before {
        group.push(id);
    }
}

/// What a product by a dequantized matrix makes of a number that is added to its whole operand, against what it makes of the
/// rounding of each element to a step: by column sums and norms, as root mean squares over the columns. An element is off by
/// up to half a step, evenly, which is a twelfth of a step squared.
fn grows(g: &Graph, id: NodeId) -> Option<f64> {
    let turned = ops::Gemm::of(g, id).is_some_and(|gemm| gemm.trans_b());
    let weight = ops::DequantizeLinear::of(g, g.producer(g.node(id).input(1)?)?)?;
    let &[rows, columns] = weight.constant(0)?.dims() else {
        return None;
    };
    let values = Quantized::of(&weight).ok()?.real()?.to_f64s()?;
    let mut sums = vec![0f64; if turned { rows } else { columns }];
    for (k, w) in values.iter().enumerate() {
        let (row, column) = (k / columns.max(1), k % columns.max(1));
        *sums.get_mut(if turned { row } else { column })? += w;
    }
    let squares = |all: &[f64]| all.iter().map(|w| w * w).sum::<f64>();
    let factor = (12.0 * squares(&sums) / squares(&values)).sqrt();
    factor.is_finite().then_some(factor)
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
/// DequantizeLinear and a product makes it one of floats. Where products may not keep FP32, what a search would keep beside
/// them does not.
pub(in crate::precision) fn keep_together(
    g: &Graph,
    order: &[NodeId],
    products: bool,
    why: &mut [Option<String>],
) {
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
    if !products {
        for id in groups.iter().flatten() {
            let searched = |why: &mut String| why == OUT_OF_TOLERANCE;
            why[id.index()].take_if(searched);
        }
    }
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
