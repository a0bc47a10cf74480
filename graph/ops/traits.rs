//! Properties of operators that passes ask for, as tables over the default domain's names.
//!
//! Unknown operators and those of other domains have none of the convenient properties: they count as neither
//! elementwise nor commutative, and as not deterministic, since nothing is known of them. What a node's attributes or
//! nested graphs change is answered for the node, not for the operator.

use super::{BatchNormalization, Dropout};
use crate::{Graph, INTERNAL_DOMAIN, NodeId, Op};

/// Operators that draw random numbers.
const RANDOM: &[&str] = &[
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

const CONTROL_FLOW: &[&str] = &["If", "Loop", "Scan", "SequenceMap"];

const UNARY: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
];

const BINARY: &[&str] = &[
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Xor",
];

const VARIADIC: &[&str] = &["Max", "Mean", "Min", "Sum"];

const COMMUTATIVE: &[&str] = &[
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Equal",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Or",
    "Sum",
    "Xor",
];

/// Operators outside [`is_elementwise`] whose results depend on nothing but their operands.
const DETERMINISTIC: &[&str] = &[
    "AffineGrid",
    "ArgMax",
    "ArgMin",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "BitCast",
    "BlackmanWindow",
    "CastLike",
    "CausalConvWithState",
    "CenterCropPad",
    "Col2Im",
    "Compress",
    "Concat",
    "ConcatFromSequence",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "CumProd",
    "CumSum",
    "DFT",
    "DeformConv",
    "DepthToSpace",
    "DequantizeLinear",
    "Det",
    "Dropout",
    "DynamicQuantizeLinear",
    "Einsum",
    "Expand",
    "EyeLike",
    "Flatten",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "GroupNormalization",
    "HammingWindow",
    "HannWindow",
    "Hardmax",
    "If",
    "ImageDecoder",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LinearAttention",
    "LogSoftmax",
    "Loop",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "MaxPool",
    "MaxRoiPool",
    "MaxUnpool",
    "MeanVarianceNormalization",
    "MelWeightMatrix",
    "NegativeLogLikelihoodLoss",
    "NonMaxSuppression",
    "NonZero",
    "OneHot",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "Pad",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RMSNormalization",
    "RNN",
    "Range",
    "RegexFullMatch",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "RoiAlign",
    "RotaryEmbedding",
    "STFT",
    "Scan",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "Shape",
    "Size",
    "Slice",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Squeeze",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "SwiGLU",
    "TensorScatter",
    "TfIdfVectorizer",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unique",
    "Unsqueeze",
    "Upsample",
    "Where",
];

/// Whether the result at an element depends only on the operands at that element, after broadcasting: one result, of the
/// broadcast shape.
///
/// `Where` and `CastLike` are not among these: passes that move elementwise operators must look at their operands' roles.
pub fn is_elementwise(op: Op) -> bool {
    op.is_any(UNARY) || op.is_any(BINARY) || op.is_any(VARIADIC)
}

/// Whether it is elementwise over its first operand alone; any further ones are scalars.
pub fn is_unary_elementwise(op: Op) -> bool {
    op.is_any(UNARY)
}

/// Whether it is elementwise over exactly two operands that broadcast.
pub fn is_binary_elementwise(op: Op) -> bool {
    op.is_any(BINARY)
}

/// Whether exchanging any two operands leaves the result as it is.
pub fn is_commutative(op: Op) -> bool {
    op.is_any(COMMUTATIVE)
}

/// Whether only the operand's shape matters, not its elements.
pub fn is_shape_only(op: Op) -> bool {
    op.is_any(&["Shape", "Size"])
}

/// Whether it runs nested graphs.
pub fn is_control_flow(op: Op) -> bool {
    op.is_any(CONTROL_FLOW)
}

/// Whether the same operands always give the same results, as far as the operator says; internal operators do. See
/// [`node_is_deterministic`].
pub fn is_deterministic(op: Op) -> bool {
    let known = op.is_any(DETERMINISTIC) || op.is_any(super::REDUCTIONS);
    is_elementwise(op) || known || op.domain() == INTERNAL_DOMAIN
}

/// Whether the node gives the same results for the same operands: no operator that draws random numbers, no dropout in
/// training, none of another domain, neither the node nor anything nested in it.
pub fn node_is_deterministic(graph: &Graph, id: NodeId) -> bool {
    let Some(node) = graph.get(id) else {
        return false;
    };
    let op = node.op();
    if !is_deterministic(op) {
        return false;
    }
    if op.is("Dropout") && !Dropout::of(graph, id).is_some_and(|d| d.is_inference()) {
        return false;
    }
    let nested = node.attrs().iter().flat_map(|(_, a)| a.graphs());
    let mut nested = nested.map(|g| g.nodes().all(|(inner, _)| node_is_deterministic(g, inner)));
    nested.all(|calm| calm)
}

/// Whether running the node does more than compute its results from its operands, so that it may be neither removed,
/// merged with an equal one nor run at compile time: random draws (which advance a generator), training-mode batch
/// normalization (which is expected to update statistics).
///
/// Unused operators of unknown domains may be removed all the same: ONNX gives no operator effects beyond its outputs.
pub fn has_side_effects(graph: &Graph, id: NodeId) -> bool {
    let Some(node) = graph.get(id) else {
        return false;
    };
    let op = node.op();
    if op.is_any(RANDOM) {
        return true;
    }
    if op.is("Dropout") && !Dropout::of(graph, id).is_some_and(|d| d.is_inference()) {
        return true;
    }
    if BatchNormalization::of(graph, id).is_some_and(|b| b.is_training()) {
        return true;
    }
    let mut nested = node.attrs().iter().flat_map(|(_, a)| a.graphs());
    nested.any(|g| g.nodes().any(|(inner, _)| has_side_effects(g, inner)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attr, Attrs, Tensor};

    #[test]
    fn tables_are_sorted_and_disjoint() {
        let mut all = Vec::new();
        for table in [UNARY, BINARY, VARIADIC, DETERMINISTIC, RANDOM] {
            let folded: Vec<_> = table.iter().map(|n| n.to_lowercase()).collect();
            let bytes_or_folded = table.is_sorted() || folded.is_sorted();
            assert!(bytes_or_folded, "{table:?}");
            all.extend_from_slice(table);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for op in COMMUTATIVE {
            assert!(is_elementwise(Op::onnx(op)), "{op}");
        }
    }

    #[test]
    fn unknown_operators_have_no_convenient_property() {
        for op in [Op::new("com.microsoft", "Add"), Op::onnx("Whatever")] {
            assert!(!is_elementwise(op) && !is_commutative(op) && !is_deterministic(op));
        }
        assert!(is_commutative(Op::onnx("Mul")) && !is_commutative(Op::onnx("Sub")));
        assert!(is_shape_only(Op::onnx("Shape")) && is_control_flow(Op::onnx("Loop")));
    }

    #[test]
    fn randomness_is_found_where_it_hides() {
        let training = [Some(Tensor::scalar(0.5f32)), Some(Tensor::scalar(true))];
        let (g, n) = node(13, "Dropout", Attrs::new(), &training);
        assert!(!node_is_deterministic(&g, n) && has_side_effects(&g, n));
        let (inner, _) = node(13, "RandomNormalLike", Attrs::new(), &[]);
        let body = Attr::Graph(Box::new(inner));
        let (g, n) = node(13, "If", Attrs::new().with("then_branch", body), &[]);
        assert!(!node_is_deterministic(&g, n) && has_side_effects(&g, n));
        let (g, n) = node(13, "Relu", Attrs::new(), &[]);
        assert!(node_is_deterministic(&g, n) && !has_side_effects(&g, n));
    }
}
