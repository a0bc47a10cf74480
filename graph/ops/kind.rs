//! What kind of computation an operator is: the one thing that passes ask for and ONNX's schemas do not say.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use crate::{INTERNAL_DOMAIN, Op};

/// How the results of an operator come from its operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Each element from the first operand's element at its place; further operands are scalars.
    Unary,
    /// Each element from two operands' elements at its place, after broadcasting.
    Binary,
    /// Each element from any number of operands' elements at its place, after broadcasting.
    Variadic,
    /// Elements of the first operand, unchanged: moved, repeated or left out.
    Move,
    /// Elements of all operands, unchanged.
    Join,
    /// The first operand's elements, some of them replaced; its shape.
    Update,
    /// The first operand's shape; elements depend on each other along some axes.
    Along,
    /// The first operand's shape; numbers in another encoding.
    Encode,
    /// Axes of the first operand are summed up to one element each.
    Reduce,
    /// Places of elements, by their values.
    Search,
    /// Sums of products of two operands.
    Product,
    /// Windows over the spatial axes of images and signals.
    Window,
    /// Steps along a sequence.
    Recurrent,
    /// The first operand's shape alone decides.
    Shape,
    /// Tensors made from attributes and sizes.
    Make,
    /// Random numbers.
    Random,
    /// Nested graphs.
    Control,
    /// Sequences, optional values and texts.
    Collection,
    /// None of these.
    Other,
    /// Nothing is known of the operator.
    Unknown,
}

#[rustfmt::skip]
const STANDARD: &[(Kind, &[&str])] = &[
    (Kind::Unary, &[
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
        "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
        "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
        "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    ]),
    (Kind::Binary, &[
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Xor",
    ]),
    (Kind::Variadic, &["Max", "Mean", "Min", "Sum"]),
    (Kind::Move, &[
        "Compress", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    ]),
    (Kind::Join, &["Concat"]),
    (Kind::Update, &["Scatter", "ScatterElements", "ScatterND", "TensorScatter", "Trilu"]),
    (Kind::Along, &[
        "BatchNormalization", "CumProd", "CumSum", "Dropout", "GroupNormalization", "Hardmax", "InstanceNormalization",
        "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization",
        "RotaryEmbedding", "Softmax",
    ]),
    (Kind::Encode, &["BitCast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"]),
    (Kind::Reduce, &[
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare",
    ]),
    (Kind::Search, &["ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK", "Unique"]),
    (Kind::Product, &[
        "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "MatMul", "MatMulInteger",
        "QLinearConv", "QLinearMatMul",
    ]),
    (Kind::Window, &[
        "AveragePool", "CenterCropPad", "Col2Im", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample", "LpPool", "MaxPool",
        "MaxRoiPool", "MaxUnpool", "Pad", "Resize", "RoiAlign", "Upsample",
    ]),
    (Kind::Recurrent, &["CausalConvWithState", "GRU", "LSTM", "LinearAttention", "RNN"]),
    (Kind::Shape, &["Shape", "Size"]),
    (Kind::Make, &[
        "AffineGrid", "BlackmanWindow", "Constant", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow",
        "MelWeightMatrix", "OneHot", "Range",
    ]),
    (Kind::Random, &[
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    ]),
    (Kind::Control, &["If", "Loop", "Scan", "SequenceMap"]),
    (Kind::Collection, &[
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
        "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
    ]),
    (Kind::Other, &[
        "CastLike", "DFT", "Det", "ImageDecoder", "NegativeLogLikelihoodLoss", "STFT", "SoftmaxCrossEntropyLoss",
        "SwiGLU", "Where",
    ]),
];

/// What fusions make.
const INTERNAL: &[(Kind, &[&str])] = &[
    (Kind::Unary, &["Swish"]),
    (Kind::Along, &["RMSNormalization", "RotaryEmbedding"]),
    (Kind::Product, &["Attention"]),
];

type Kinds = FxHashMap<&'static str, Kind>;

fn by_name(table: &[(Kind, &[&'static str])]) -> Kinds {
    let rows = table.iter();
    rows.flat_map(|(kind, names)| names.iter().map(|name| (*name, *kind)))
        .collect()
}

/// The kind of an operator of the default domain or of [`INTERNAL_DOMAIN`]; [`Kind::Unknown`] for all others.
pub fn kind(op: Op) -> Kind {
    static STANDARD_BY_NAME: LazyLock<Kinds> = LazyLock::new(|| by_name(STANDARD));
    static INTERNAL_BY_NAME: LazyLock<Kinds> = LazyLock::new(|| by_name(INTERNAL));
    let kinds = match op.domain() {
        "" => &STANDARD_BY_NAME,
        INTERNAL_DOMAIN => &INTERNAL_BY_NAME,
        _ => return Kind::Unknown,
    };
    kinds.get(op.name()).copied().unwrap_or(Kind::Unknown)
}

/// The names of the default domain that have a kind.
#[cfg(test)]
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    STANDARD.iter().flat_map(|(_, names)| names.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_has_one_kind() {
        for table in [STANDARD, INTERNAL] {
            let names: Vec<_> = table.iter().flat_map(|(_, names)| *names).collect();
            assert_eq!(names.len(), by_name(table).len());
        }
    }

    #[test]
    fn domains_are_told_apart() {
        assert_eq!(kind(Op::onnx("Add")), Kind::Binary);
        assert_eq!(kind(Op::new("com.microsoft", "Add")), Kind::Unknown);
        assert_eq!(kind(Op::new(INTERNAL_DOMAIN, "Swish")), Kind::Unary);
        assert_eq!(kind(Op::onnx("Whatever")), Kind::Unknown);
    }
}
