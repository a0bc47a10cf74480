//! Which nodes keep FP32 when a model becomes half precision, and why, by what they are. `half_ranges` has the rules by
//! their numbers.

use kiln_graph::{DType, Dim, Graph, INTERNAL_DOMAIN, NodeId, Op, ValueId, ops};

use super::half_format::HalfFormat;
use crate::pass::{OUT_OF_TOLERANCE, Options};

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

fn norm_why(format: HalfFormat) -> String {
    match format {
        HalfFormat::Fp16 => "normalization sums squares, which overflow FP16".into(),
        HalfFormat::Bf16 => "normalization sums squares, for which BF16 has too few digits".into(),
    }
}

/// Sums over many elements.
const REDUCTIONS: &[&str] = &[
    "ReduceMean",
    "ReduceSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "CumSum",
];

/// What is done to statistics before they meet the data again.
const STATISTICS: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sqrt",
    "Reciprocal",
    "Clip",
    "Max",
    "Min",
    "Pow",
    "Expand",
    "Neg",
    "Exp",
    "Log",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Cast",
    "Where",
    "Abs",
];

/// Inputs that ONNX wants in FP32 whatever the data's type is: Resize's `roi` may be half, its `scales` may not.
pub(super) fn input_stays(op: Op, k: usize) -> bool {
    op.is("Resize") && (k == 1 || k == 2)
}

/// For each node: `None` if it may become half precision, else why it keeps its type.
pub(super) fn kept(
    g: &Graph,
    order: &[NodeId],
    format: HalfFormat,
    options: &Options<'_>,
) -> Vec<Option<String>> {
    let mut why: Vec<Option<String>> = vec![None; g.node_bound()];
    let name = format.name();
    for &id in order {
        let op = g.node(id).op();
        let reason = if let Some(why) = options.keeps(g, id) {
            Some(why)
        } else if !options.wide.is_empty() && options.wide.contains(&g.label(id)) {
            Some(OUT_OF_TOLERANCE.into())
        } else if ops::internal::RmsNormalization::of(g, id).is_some() || op.is_any(NORMS) {
            Some(norm_why(format))
        } else if op.domain() == INTERNAL_DOMAIN {
            None
        } else if !op.domain().is_empty() {
            Some(format!("kiln does not know whether {op} takes {name}"))
        } else if let Some(why) = format.refuses(op, g.opset()) {
            Some(why)
        } else if format == HalfFormat::Bf16 && op.is("ConvTranspose") {
            // TensorRT for RTX 1.7 finds no result type for one and builds no engine.
            Some("TensorRT has no transposed convolution in BF16".into())
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
    keep_statistics(g, order, format, &mut why);
    keep_positions(g, order, &mut why);
    why
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

pub(super) fn is_f32(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty().dtype() == Some(DType::F32)
}

pub(super) fn touches(g: &Graph, id: NodeId, test: impl Fn(ValueId) -> bool) -> bool {
    let node = g.node(id);
    let all = node.inputs().iter().chain(node.outputs()).flatten();
    all.copied()
        .chain(node.captures().iter().copied())
        .any(test)
}

/// A reduction, the square that feeds it, and what is done with its result until it meets the data again.
///
/// A number that the format rounds to zero, such as the 1e-12 that keeps a divisor from being zero, makes a statistic too.
fn keep_statistics(g: &Graph, order: &[NodeId], format: HalfFormat, why: &mut [Option<String>]) {
    const WHY: &str =
        "it computes a sum or mean, or the statistics of a normalization made from one";
    let mut statistic = vec![false; g.value_bound()];
    for &id in order {
        let node = g.node(id);
        let floats = |v: &&ValueId| is_f32(g, **v);
        let reads = node
            .inputs()
            .iter()
            .flatten()
            .filter(floats)
            .any(|v| statistic[v.index()]);
        let reduces = node.op().is_any(REDUCTIONS) && touches(g, id, |v| is_f32(g, v));
        let guard = guard(g, id, format);
        let belongs = reduces || guard.is_some() || (reads && node.op().is_any(STATISTICS));
        if !belongs {
            continue;
        }
        why[id.index()].get_or_insert_with(|| match guard {
            Some(number) => format!("its {number:e} would be 0 in {}", format.name()),
            None => WHY.into(),
        });
        if reduces {
            for producer in node
                .inputs()
                .iter()
                .flatten()
                .filter_map(|&v| g.producer(v))
            {
                let p = g.node(producer);
                if p.op().is("Pow") || (p.op().is("Mul") && p.input(0) == p.input(1)) {
                    why[producer.index()].get_or_insert_with(|| WHY.into());
                }
            }
        }
        // Once a statistic has met a value that is none, the result is data again.
        let others = node.inputs().iter().flatten().filter(floats);
        let met = others
            .into_iter()
            .any(|v| !statistic[v.index()] && !small_constant(g, *v));
        if reduces || guard.is_some() || !met {
            for v in node.outputs().iter().flatten() {
                statistic[v.index()] = true;
            }
        }
    }
}

/// The positive number that an Add, Max or Clip keeps its result above, if the format has none so small.
fn guard(g: &Graph, id: NodeId, format: HalfFormat) -> Option<f64> {
    let node = g.node(id);
    if !node.op().is_any(&["Add", "Max", "Clip"]) {
        return None;
    }
    let mut inputs = node.inputs().iter().flatten();
    let numbers = |v: &ValueId| g.constant(*v).filter(|_| is_f32(g, *v))?.as_f64();
    // Half of the smallest number is rounded to the even zero.
    let vanishes = |number: &f64| *number > 0.0 && *number <= format.tiny() / 2.0;
    inputs.find_map(|v| numbers(v).filter(vanishes))
}

/// Angles of rotary and sinusoidal embeddings: float values made from integers and constants only, up to Sin and Cos.
fn keep_positions(g: &Graph, order: &[NodeId], why: &mut [Option<String>]) {
    let mut positional = vec![false; g.value_bound()];
    for &id in order {
        let node = g.node(id);
        let derived = node
            .inputs()
            .iter()
            .flatten()
            .all(|&v| positional[v.index()] || !is_f32(g, v) || g.constant(v).is_some());
        // A row of a table is an embedding, not a position.
        if derived && node.captures().is_empty() && !node.op().is_any(&["Gather", "GatherND"]) {
            for &v in node.outputs().iter().flatten() {
                positional[v.index()] = is_f32(g, v);
            }
        }
    }
    let roots = order.iter().filter(|&&id| {
        // An index that is computed in floats (the buckets of T5) is another one after a rounding.
        g.node(id).op().is_any(&["Sin", "Cos"]) || truncates(g, id)
    });
    let mut todo: Vec<NodeId> = roots.copied().collect();
    while let Some(id) = todo.pop() {
        for &v in g.node(id).inputs().iter().flatten() {
            let Some(producer) = g.producer(v).filter(|_| positional[v.index()]) else {
                continue;
            };
            if why[producer.index()].is_none() {
                why[producer.index()] = Some("it computes a position or its angle".into());
                todo.push(producer);
            }
        }
    }
}

/// A Cast of floats to integers.
fn truncates(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    let result = node.output(0).and_then(|v| g.value(v).ty().dtype());
    node.op().is("Cast") && result.is_some_and(|d| !d.is_float() && d != DType::Bool)
}

fn small_constant(g: &Graph, v: ValueId) -> bool {
    let elements = g.value(v).ty().shape().map(|s| s.iter().map(Dim::known));
    let count = elements.and_then(|mut s| s.try_fold(1usize, |n, d| n.checked_mul(d?)));
    g.constant(v).is_some() && count.is_some_and(|n| n <= 1)
}
