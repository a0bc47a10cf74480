//! What TensorRT's parser would refuse, or worse, misread: looked for before TensorRT sees the model.

use std::fmt;

use kiln_graph::{DType, Graph, INTERNAL_DOMAIN, Model, Node, NodeId, ops};
use kiln_passes::adopt::expand_grouped;
use kiln_runtime::setting::{DROP_INPUTS, INPUT};
use serde::{Deserialize, Serialize};

/// A node that may not be handed to TensorRT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Name and operator.
    pub node: String,
    pub why: String,
    /// It is about quantization.
    pub quantization: bool,
    /// The operator is of another domain than ONNX's own.
    pub foreign: bool,
    /// It is an input, and not a node.
    pub input: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.why)
    }
}

/// Operators of com.microsoft that TensorRT for RTX 1.7 implements.
const FOREIGN: &[&str] = &["MultiHeadAttention"];

/// An operator of com.microsoft whose importer makes it of a plugin, of which TensorRT for RTX 1.7.1 has none, whatever the attributes:
/// with a scale it says "failed to load GroupQueryAttention plugin", and without one "scale is invalid".
const GROUPED: &str = "GroupQueryAttention";

/// Begins the names of TensorRT's own operators, which have no domain that its parser looks at.
const OWN: &str = "TRT_";

/// TRT_Attention reads query, key, value, mask, and the lengths of queries and of keys.
const OWN_ATTENTION_INPUTS: usize = 6;

/// Names of com.microsoft that the default domain has too, with other operands or attributes.
const COLLIDING: &[&str] = &[
    "Attention",
    "RotaryEmbedding",
    "QuantizeLinear",
    "DequantizeLinear",
    "Gelu",
    "Range",
    "Pad",
    "GatherND",
    "GridSample",
    "Trilu",
    "Unique",
];

/// Quantization at run time and with integer arithmetic (onnx-tensorrt `docs/operators.md`: not supported).
const INTEGER: &[&str] = &[
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
];

/// The same of com.microsoft.
const MICROSOFT: &[&str] = &[
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger16",
    "MatMulNBits",
    "MatMulIntegerToFloat",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearConv",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearReduceMean",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QLinearWhere",
];

/// Standard operators without an importer in TensorRT for RTX 1.7.1, as its parser's `supportsOperator` tells of each.
const MISSING: &[&str] = &[
    "AffineGrid",
    "Bernoulli",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CenterCropPad",
    "Col2Im",
    "Compress",
    "ConcatFromSequence",
    "CumProd",
    "Det",
    "ImageDecoder",
    "MaxRoiPool",
    "MaxUnpool",
    "MelWeightMatrix",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "RegexFullMatch",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SoftmaxCrossEntropyLoss",
    "SplitToSequence",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "SwiGLU",
    "TfIdfVectorizer",
    "Unique",
];

/// Standard operators that its parser makes of plugins, of which TensorRT for RTX has none (each was given to it).
const PLUGINS: &[&str] = &["DFT", "DeformConv", "NonZero", "RoiAlign"];

/// Products of matrices, for which `sm_75` has no FP32 kernels (each was built for it; convolutions have them).
const PRODUCTS: &[&str] = &[
    "Attention",
    "Einsum",
    "GRU",
    "Gemm",
    "LSTM",
    "MatMul",
    "MultiHeadAttention",
    "RNN",
];

/// Whether a node multiplies matrices, whatever they are of.
pub fn multiplies(node: &Node) -> bool {
    PRODUCTS.contains(&node.op().name())
}

/// The nodes that multiply matrices in FP32, in order.
pub fn fp32_products(model: &Model) -> Vec<String> {
    let mut found = Vec::new();
    model.graph.for_each_graph(&mut |g| {
        for (id, node) in g.nodes() {
            let dtype = node.input(0).and_then(|v| g.value(v).ty().dtype());
            if multiplies(node) && dtype == Some(DType::F32) {
                found.push(g.label(id));
            }
        }
    });
    found
}

/// All nodes of a model that TensorRT's parser refuses or reads as something else. Operators of the compiler's own, which
/// lowering replaces, are none of them.
pub fn refusals(model: &Model) -> Vec<Refusal> {
    let functions: Vec<(&str, &str)> = model.functions().collect();
    let texts = model.graph.inputs().iter().filter_map(|&v| {
        let value = model.graph.value(v);
        (value.ty().dtype() == Some(DType::String)).then(|| text(value.name()))
    });
    let mut found: Vec<Refusal> = texts.collect();
    model.graph.for_each_graph(&mut |g| {
        for (id, node) in g.nodes() {
            let op = node.op();
            let local = functions.contains(&(op.domain(), op.name()));
            if op.domain() == INTERNAL_DOMAIN {
                continue;
            }
            let quantized = quantization(g, node);
            if let Some(why) = quantized
                .clone()
                .or_else(|| refusal(g, id, node))
                .filter(|_| !local)
            {
                found.push(Refusal {
                    node: g.label(id),
                    why,
                    quantization: quantized.is_some(),
                    // ONNX's own domains, as that of classical machine learning, come from no optimizer.
                    foreign: !op.domain().is_empty()
                        && !op.domain().starts_with("ai.onnx")
                        && !op.name().starts_with(OWN),
                    input: false,
                });
            }
        }
    });
    found
}

fn text(name: &str) -> Refusal {
    Refusal {
        node: format!("input {name}"),
        why: format!(
            "it is text, which TensorRT does not support: fix it and leave it out with {INPUT} {name}=TEXT {DROP_INPUTS}"
        ),
        quantization: false,
        foreign: false,
        input: true,
    }
}

fn grouped(g: &Graph, id: NodeId) -> String {
    let op = ops::GroupQueryAttention::of(g, id);
    match op.and_then(|op| expand_grouped::stays(&op)) {
        Some(why) => {
            format!("TensorRT makes it of a plugin that it does not come with, and {why}")
        }
        None => "TensorRT makes it of a plugin that it does not come with, and its cache was left as it is".into(),
    }
}

fn refusal(g: &Graph, id: NodeId, node: &Node) -> Option<String> {
    let op = node.op();
    let name = op.name();
    if node.outputs().iter().flatten().next().is_none() {
        return Some("it has no output, which ends TensorRT's process".into());
    }
    if !op.domain().is_empty() {
        let known = op.domain() == "com.microsoft" && FOREIGN.contains(&name);
        if name.starts_with(OWN) {
            return dropped(node);
        }
        if known {
            return None;
        }
        if op.domain() == "com.microsoft" && name == GROUPED {
            return Some(grouped(g, id));
        }
        return Some(match COLLIDING.contains(&name) {
            true => format!("TensorRT goes by the name and would read it as the standard {name}"),
            false => "TensorRT has no operator of this domain and name".into(),
        });
    }
    let plugin = cfg!(not(feature = "tensorrt-enterprise")) && PLUGINS.contains(&name);
    if plugin || MISSING.contains(&name) {
        return Some("TensorRT has no such operator".into());
    }
    (scattered(node).or_else(|| dropped(node))).or_else(|| attention(g, id))
}

/// Scatters that reduce what meets at one place (each was given to TensorRT for RTX 1.7.1: its parser takes `none` alone).
fn scattered(node: &Node) -> Option<String> {
    let reduces = node.attrs().str("reduction").filter(|&r| r != "none");
    let reduction = reduces.filter(|_| node.op().is_any(&["ScatterElements", "ScatterND"]))?;
    Some(format!(
        "TensorRT's {} has no reduction, and its is \"{reduction}\"",
        node.op().name()
    ))
}

/// What TensorRT's parser drops of a node without a word (each was given to TensorRT for RTX 1.7.1: no layer has it).
fn dropped(node: &Node) -> Option<String> {
    let attrs = node.attrs();
    let kind = attrs.str("causal_kind").filter(|&kind| kind != "none");
    match node.op().name() {
        "TRT_Attention" => {
            let drops = |what: &str| {
                format!("TensorRT would drop {what} of its TRT_Attention without a word")
            };
            // It multiplies the scores by nothing.
            if attrs.float("scale").is_some_and(|scale| scale != 1.0) {
                return Some(format!("{}: multiply the query by it", drops("the scale")));
            }
            if attrs.int("is_causal").is_some_and(|causal| causal != 0) {
                return Some(format!(
                    "{}: write causal_kind = \"upper_left\"",
                    drops("is_causal")
                ));
            }
            if attrs.float("softcap").is_some_and(|cap| cap != 0.0) {
                return Some(drops("the softcap"));
            }
            let last = node.inputs().iter().rposition(Option::is_some);
            last.filter(|&k| k >= OWN_ATTENTION_INPUTS)
                .map(|k| drops(&format!("input {k}")))
        }
        "Attention" => kind.map(|_| {
            "TensorRT would drop its causal_kind without a word: write is_causal = 1 or a mask"
                .into()
        }),
        _ => None,
    }
}

fn attention(g: &Graph, id: NodeId) -> Option<String> {
    let attention = ops::Attention::of(g, id)?;
    let outputs = attention.node().outputs().iter().flatten().count();
    if outputs > 1 {
        return Some(format!(
            "TensorRT's Attention has one output, not {outputs}"
        ));
    }
    if attention.past_key().is_some() || attention.past_value().is_some() {
        return Some("TensorRT's Attention takes no past key or value".into());
    }
    if attention.nonpad_kv_seqlen().is_some() {
        return Some("TensorRT's Attention takes no lengths of keys".into());
    }
    if attention.softcap() != 0.0 {
        return Some("TensorRT's Attention caps no scores (softcap)".into());
    }
    let same = attention.input(0).is_some() && attention.input(0) == attention.input(1);
    (same && attention.input(1) == attention.input(2))
        .then(|| "query, key and value are one tensor, which ends TensorRT's process".into())
}

fn quantization(g: &Graph, node: &Node) -> Option<String> {
    if node.op().is_any(INTEGER)
        || node.op().domain() == "com.microsoft" && MICROSOFT.contains(&node.op().name())
    {
        return Some("TensorRT quantizes with QuantizeLinear and DequantizeLinear around float operators only".into());
    }
    let quantizes = node.op().is("QuantizeLinear");
    if !quantizes && !node.op().is("DequantizeLinear") {
        return None;
    }
    let constant = |k: usize| node.input(k).and_then(|v| g.constant(v));
    if node.input(2).is_some() && constant(2).is_none() {
        return Some("its zero point is computed: TensorRT quantizes symmetrically".into());
    }
    let scale = constant(1);
    if scale
        .and_then(|t| t.to_f64s())
        .is_some_and(|all| all.iter().any(|&s| s <= 0.0))
    {
        return Some("a scale of it is not positive".into());
    }
    if quantizes && constant(0).is_none() && scale.is_some_and(|t| t.len() > 1) {
        return Some("TensorRT quantizes an activation by one scale only".into());
    }
    let zero = constant(2);
    if zero.is_some_and(|t| t.to_i64s().is_some_and(|all| all.iter().any(|&z| z != 0))) {
        return Some("its zero point is not 0: TensorRT quantizes symmetrically".into());
    }
    let written = node.attrs().int("output_dtype").is_some_and(|t| t != 0);
    if quantizes && node.input(2).is_none() && !written {
        let why =
            "without a zero point ONNX quantizes to UINT8 and TensorRT to INT8: write an INT8 zero";
        return Some(why.into());
    }
    let dtype = |v| g.value(v).ty().dtype();
    let narrow = match quantizes {
        true => node.output(0).and_then(dtype),
        false => node.input(0).and_then(dtype),
    };
    let refused = [DType::U8, DType::U4, DType::I16, DType::U16, DType::I32];
    narrow.is_some_and(|t| refused.contains(&t)).then(|| {
        let name = narrow.map_or(String::new(), |t| t.to_string());
        format!("it quantizes to {name}, which TensorRT does not take")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::onnx;

    fn whys(inputs: &str, nodes: &str) -> Vec<String> {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 23, \"com.microsoft\" : 1, \"trt\" : 1]>\n\
             g ({inputs}) => (float[2, 2, 3, 4] y) <int8 zero = {{0}}, int8 off = {{3}}, uint8 u = {{0}}, float s = {{0.5}}, \
             float no = {{0.0}}, int16 i16 = {{0}}, float[2] four = {{0.5, 0.25}}, int8[2] fours = {{0, 0}}>\n\
             {{ {nodes} }}"
        );
        let mut model = onnx::read_text(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        kiln_graph::infer::annotate(&mut model.graph);
        refusals(&model).into_iter().map(|r| r.why).collect()
    }

    const X: &str = "float[2, 2, 3, 4] x, float[2, 2, 3, 4] z";

    #[test]
    fn what_the_parser_takes_passes() {
        assert_eq!(whys(X, "y = Attention(x, z, z)"), [""; 0]);
        assert_eq!(
            whys(
                X,
                "q = QuantizeLinear(x, s, zero) y = DequantizeLinear(q, s, zero)"
            ),
            [""; 0]
        );
        assert_eq!(
            whys(
                X,
                "y = com.microsoft.MultiHeadAttention<num_heads = 2>(x, z, z)"
            ),
            [""; 0]
        );
    }

    #[test]
    fn what_the_parser_drops_is_refused() {
        let taken = [
            "y = trt.TRT_Attention(x, z, z)",
            "y = TRT_Attention<scale = 1.0, is_causal = 0>(x, z, z)",
            "y = trt.TRT_Attention<causal_kind = \"lower_right\">(x, z, z, \"\", n, n)",
            "y = Attention<causal_kind = \"none\">(x, z, z)",
            "y = Attention<scale = 0.5, is_causal = 1>(x, z, z)",
        ];
        let inputs = format!("{X}, int32[2] n, bool c, float[3, 2] cos, int64[2, 3] at");
        for nodes in taken {
            assert_eq!(whys(&inputs, nodes), [""; 0], "{nodes}");
        }
        let branches = |node: &str| {
            format!(
                "y = If(c) <then_branch = t () => (float[2, 2, 3, 4] a) {{ a = {node} }}, \
                 else_branch = e () => (float[2, 2, 3, 4] b) {{ b = Neg(x) }}>"
            )
        };
        for (node, part) in [
            ("trt.TRT_Attention<scale = 0.5>(x, z, z)", "drop the scale"),
            ("TRT_Attention<scale = 0.5>(x, z, z)", "drop the scale"),
            (
                "com.microsoft.TRT_Attention<is_causal = 1>(x, z, z)",
                "drop is_causal",
            ),
            ("TRT_Attention<softcap = 30.0>(x, z, z)", "drop the softcap"),
            (
                "trt.TRT_Attention(x, z, z, \"\", \"\", \"\", n)",
                "drop input 6",
            ),
            (
                "trt.TRT_Attention(x, z, z, \"\", \"\", \"\", \"\", n)",
                "drop input 7",
            ),
            (
                "Attention<causal_kind = \"upper_left\">(x, z, z)",
                "drop its causal_kind",
            ),
            (
                "ScatterElements<reduction = \"add\">(x, n, x)",
                "ScatterElements has no reduction, and its is \"add\"",
            ),
            (
                "ScatterND<reduction = \"max\">(x, n, x)",
                "ScatterND has no reduction, and its is \"max\"",
            ),
            (
                "com.microsoft.RotaryEmbedding(x, at, cos, cos)",
                "read it as the standard RotaryEmbedding",
            ),
            (
                "com.microsoft.RotaryEmbedding<interleaved = 1, scale = 2.0>(x, at, cos, cos)",
                "read it as the standard RotaryEmbedding",
            ),
            (
                "com.microsoft.RotaryEmbedding<is_packed_batching = 1>(x, at, cos, cos)",
                "read it as the standard RotaryEmbedding",
            ),
        ] {
            for nodes in [format!("y = {node}"), branches(node)] {
                let found = whys(&inputs, &nodes);
                assert!(
                    matches!(&found[..], [why] if why.contains(part)),
                    "{nodes}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn what_it_refuses_or_misreads_is_named() {
        for (nodes, part) in [
            (
                "y = com.microsoft.Attention<num_heads = 2>(x, z, z)",
                "read it as the standard Attention",
            ),
            (
                "y = com.microsoft.FastGelu(x)",
                "no operator of this domain and name",
            ),
            ("y = Unique(x)", "no such operator"),
            ("n = NonZero(x) y = Cast<to = 1>(n)", "no such operator"),
            ("y = Attention<softcap = 30.0>(x, z, z)", "caps no scores"),
            ("y = Attention(x, z, z, \"\", x, z)", "no past key"),
            ("y, k, v = Attention(x, z, z)", "one output, not 3"),
            ("y = Attention(x, x, x)", "one tensor"),
            (
                "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
                "write an INT8 zero",
            ),
            (
                "q = QuantizeLinear(x, s, off) y = DequantizeLinear(q, s, off)",
                "not 0",
            ),
            (
                "q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)",
                "uint8",
            ),
            (
                "q, a, b = DynamicQuantizeLinear(x) y = Cast<to = 1>(q)",
                "float operators only",
            ),
            (
                "y = com.microsoft.QLinearSigmoid(x, s, u, s, u)",
                "float operators only",
            ),
            (
                "q = QuantizeLinear(x, four, fours) y = DequantizeLinear(q, four, fours)",
                "one scale only",
            ),
            (
                "q = QuantizeLinear(x, no, zero) y = DequantizeLinear(q, no, zero)",
                "not positive",
            ),
            (
                "q = QuantizeLinear(x, s, i16) y = DequantizeLinear(q, s, i16)",
                "int16",
            ),
            (
                "c = Cast<to = 3>(s) q = QuantizeLinear(x, s, c) y = DequantizeLinear(q, s, c)",
                "zero point is computed",
            ),
        ] {
            let found = whys(X, nodes);
            assert!(found.iter().any(|w| w.contains(part)), "{nodes}: {found:?}");
        }
    }
}
