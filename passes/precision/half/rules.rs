//! Which nodes keep FP32 when a model becomes half precision, and why, by what they are. `ranges` has the rules by
//! their numbers.

use kiln_graph::{DType, Graph, INTERNAL_DOMAIN, NodeId, Op, ops};

use super::decisions;
use super::flow::Flow;
use super::format::HalfFormat;
use super::touch::{is_f32, touches};
use crate::core::pass::{OUT_OF_TOLERANCE, Options};
use crate::core::target::Facts;

/// Normalizations sum squares of activations: FP16 overflows beyond 256, and BF16 adds no more to a sum than 256 of its
/// terms (TensorRT takes the precision of the statistics from the operand since strong typing, `stash_type` does nothing).
const NORMS: &[&str] = &[
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "MeanVarianceNormalization",
    "LpNormalization",
    "SimplifiedLayerNormalization",
];

fn is_norm(g: &Graph, id: NodeId) -> bool {
    is_layer_norm(g, id) || g.node(id).op().is_any(NORMS)
}

fn is_layer_norm(g: &Graph, id: NodeId) -> bool {
    let op = g.node(id).op();
    let standard = op.is_any(&["LayerNormalization", "SimplifiedLayerNormalization"]);
    standard || ops::internal::RmsNormalization::of(g, id).is_some()
}

fn norm_why(format: HalfFormat) -> String {
    match format {
        HalfFormat::Fp16 => "normalization sums squares, which overflow FP16".into(),
        HalfFormat::Bf16 => "normalization sums squares, for which BF16 has too few digits".into(),
    }
}

/// Inputs that ONNX wants in FP32 whatever the data's type is: Resize's `roi` may be half, its `scales` may not.
pub(in crate::precision) fn input_stays(op: Op, k: usize) -> bool {
    op.is("Resize") && (k == 1 || k == 2)
}

/// For each node: `None` if it may become half precision, else why it keeps its type. `masked` says which values hold a mask's
/// number for infinity, `facts` what the target takes.
pub(in crate::precision) fn kept(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    flow: &Flow,
    masked: &[bool],
    options: &Options<'_>,
    facts: &Facts,
) -> Vec<Option<String>> {
    let mut why: Vec<Option<String>> = vec![None; g.node_bound()];
    let name = format.name();
    for &id in order {
        let op = g.node(id).op();
        let reason = if let Some(why) = options.keeps(g, id) {
            Some(why)
        } else if !options.wide.is_empty() && options.wide.contains(&g.label(id)) {
            Some(OUT_OF_TOLERANCE.into())
        } else if is_norm(g, id) && !(facts.half_norms && is_layer_norm(g, id)) {
            Some(norm_why(format))
        } else if op.domain() == INTERNAL_DOMAIN {
            None
        } else if !op.domain().is_empty() {
            Some(format!("kiln does not know whether {op} takes {name}"))
        } else if let Some(why) = format.refuses(op, g.opset()) {
            Some(why)
        } else if falls(g, id, format, facts) {
            Some(format!(
                "{} has no kernel for {op} in {name}",
                facts.runtime
            ))
        } else if format == HalfFormat::Bf16 && op.is("ConvTranspose") {
            // TensorRT for RTX 1.7 finds no result type for one and builds no engine.
            Some("TensorRT has no transposed convolution in BF16".into())
        } else if !facts.half_lengths
            && op.is_any(&["GRU", "LSTM", "RNN"])
            && g.node(id).input(4).is_some()
        {
            Some(format!(
                "the target takes lengths of sequences beside FP32 alone, not beside {name}"
            ))
        } else if let Some(why) = scale_needs_f32(g, id, format) {
            Some(why)
        } else if op.is_any(&["Sin", "Cos"]) {
            Some(format!(
                "{name} cannot hold the angle of a distant position"
            ))
        } else {
            None
        };
        let unknown = || touches(g, id, |v| g.value(v).ty().dtype().is_none());
        let unknown = || unknown().then(|| "the type of one of its values is unknown".into());
        why[id.index()] = (reason.or_else(unknown)).filter(|_| touches(g, id, |v| is_f32(g, v)));
    }
    for &id in order {
        if let Some(reason) = flow.reason(id) {
            why[id.index()].get_or_insert_with(|| reason.clone());
        }
    }
    decisions::keep_divisors(g, order, format, &mut why);
    decisions::keep_counts(g, order, format, flow, masked, &mut why);
    why
}

/// Whether a target that runs a node in FP32 leaves it to the CPU in a format. Weights that are dequantized become part of a product, or
/// are folded.
fn falls(g: &Graph, id: NodeId, format: HalfFormat, facts: &Facts) -> bool {
    let node = g.node(id);
    let weight = node.input(0).is_some_and(|v| g.constant(v).is_some());
    if node.op().is("DequantizeLinear") && weight {
        return false;
    }
    let has = |dtype| {
        facts
            .has_kernel
            .is_none_or(|has| has(node.op(), g.opset(), dtype))
    };
    has(DType::F32) && !has(format.dtype())
}

/// Why QuantizeLinear or DequantizeLinear must keep its FP32 scale.
fn scale_needs_f32(g: &Graph, id: NodeId, format: HalfFormat) -> Option<String> {
    let name = format.name();
    let (scale, small) = if let Some(quantize) = ops::QuantizeLinear::of(g, id) {
        (quantize.scale(), false)
    } else if let Some(dequantize) = ops::DequantizeLinear::of(g, id) {
        let wide = [DType::I32, DType::I16, DType::U16];
        if dequantize.dtype(0).is_none_or(|d| wide.contains(&d)) {
            return Some(format!("its integers may be more than {name} holds"));
        }
        (dequantize.scale(), true)
    } else {
        return None;
    };
    let Some(scale) = scale.and_then(|v| g.constant(v)) else {
        return Some("its scale is computed".into());
    };
    let scales = scale.to_f64s()?;
    let (least, most) = (scales.iter()).fold((f64::INFINITY, 0f64), |(least, most), s| {
        (least.min(s.abs()), most.max(s.abs()))
    });
    // What a dequantized scale loses counts against the largest one, as with weights themselves; but none may be 0.
    let fits = match small {
        true => most >= format.normal() && least >= format.tiny(),
        false => least >= format.normal(),
    };
    (!fits || most > format.max()).then(|| format!("{name} cannot hold its scale"))
}
