//! The two float formats of 16 bits: their numbers, and which operators take them.

use kiln_graph::{DType, Op};

/// What a conversion makes of FP32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfFormat {
    /// IEEE 754 binary16: 5 bits of exponent, 11 significant bits.
    Fp16,
    /// The upper half of FP32: 8 bits of exponent, 8 significant bits.
    Bf16,
}

use HalfFormat::{Bf16, Fp16};

impl HalfFormat {
    pub fn dtype(self) -> DType {
        match self {
            Fp16 => DType::F16,
            Bf16 => DType::BF16,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Fp16 => "FP16",
            Bf16 => "BF16",
        }
    }

    /// What the name of a converted copy ends in.
    pub fn suffix(self) -> &'static str {
        match self {
            Fp16 => "fp16",
            Bf16 => "bf16",
        }
    }

    /// The largest finite number.
    pub fn max(self) -> f64 {
        match self {
            Fp16 => 65504.0,
            Bf16 => f64::from(half::bf16::MAX),
        }
    }

    /// What a mask's -1e12 or -3.4e38 becomes: so low that nothing of it is left behind a softmax, and so far from the end
    /// of the range that a score can be added to it. In the middle of FP16's last binade scores below 16 are lost in it, as
    /// they are in FP32, and scores up to 16 thousand do not make it infinite, which is NaN where a row is all masked.
    pub fn fill(self) -> f64 {
        match self {
            Fp16 => 49152.0,
            Bf16 => self.max(),
        }
    }

    /// The smallest positive normal number; below it, numbers have fewer digits.
    pub fn normal(self) -> f64 {
        match self {
            Fp16 => f64::from(half::f16::MIN_POSITIVE),
            Bf16 => f64::from(half::bf16::MIN_POSITIVE),
        }
    }

    /// The smallest positive number.
    pub fn tiny(self) -> f64 {
        match self {
            Fp16 => f64::from(half::f16::MIN_POSITIVE_SUBNORMAL),
            Bf16 => f64::from(half::bf16::MIN_POSITIVE_SUBNORMAL),
        }
    }

    /// The largest relative error of a rounding: half a unit in the last of the significant bits.
    pub fn unit(self) -> f64 {
        match self {
            Fp16 => 2f64.powi(-11),
            Bf16 => 2f64.powi(-8),
        }
    }

    /// Why no node of an operator can compute in this format, whatever its operands are.
    pub fn refuses(self, op: Op, opset: i64) -> Option<String> {
        let name = self.name();
        if op.is_any(NO_HALF) {
            return Some(format!("ONNX's {op} has no form in {name}"));
        }
        let table = match self {
            Fp16 => FP16_SINCE,
            Bf16 => BF16_SINCE,
        };
        let row = table.iter().find(|(_, ops)| op.is_any(ops));
        match (row, self) {
            (Some(&(since, _)), _) if since > opset => Some(format!(
                "ONNX's {op} takes {name} from operator set {since} on only"
            )),
            (None, Bf16) => Some(format!("ONNX's {op} has no form in {name}")),
            _ => None,
        }
    }
}

/// Operators of the default domain whose float operands may not be 16 bits wide, or whose result type is written in an
/// attribute (ONNX `docs/Operators.md`, type constraints).
const NO_HALF: &[&str] = &[
    "Bernoulli",
    "BlackmanWindow",
    "Celu",
    "DFT",
    "DynamicQuantizeLinear",
    "EyeLike",
    "HammingWindow",
    "HannWindow",
    "ImageDecoder",
    "MelWeightMatrix",
    "Multinomial",
    "NonMaxSuppression",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "QLinearConv",
    "QLinearMatMul",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Range",
    "STFT",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
    "ConcatFromSequence",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "RegexFullMatch",
    "TfIdfVectorizer",
    "Upsample",
];

/// The operator set from which an operator takes FP16, where FP32 came first. All others took both at once.
const FP16_SINCE: &[(i64, &[&str])] = &[
    (14, &["CumSum"]),
    (19, &["DequantizeLinear", "QuantizeLinear"]),
    (20, &["IsInf"]),
];

/// The operator set from which all float operands of an operator may be BF16 (ONNX `docs/Changelog.md`, type
/// constraints). What is not here never takes it, or is in [`NO_HALF`].
#[rustfmt::skip]
const BF16_SINCE: &[(i64, &[&str])] = &[
    (13, &[
        "Abs", "Add", "ArgMax", "ArgMin", "Cast", "Ceil", "Clip", "Concat", "DepthToSpace", "Div", "Equal", "Erf", "Exp",
        "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "Greater", "Hardmax", "Identity",
        "IsNaN", "LRN", "Less", "Log", "LogSoftmax", "MatMul", "Max", "Mean", "MeanVarianceNormalization", "Min", "Mod",
        "Mul", "Neg", "NonZero", "Pad", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
        "Resize", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax",
        "SoftmaxCrossEntropyLoss", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose",
        "Unsqueeze",
    ]),
    (14, &["BatchNormalization", "CumSum", "Trilu"]),
    (15, &["CastLike", "Pow"]),
    (16, &["GreaterOrEqual", "If", "LeakyRelu", "LessOrEqual", "Loop", "PRelu", "Scan", "Where"]),
    (17, &["LayerNormalization"]),
    (18, &["CenterCropPad", "Col2Im"]),
    (19, &["DequantizeLinear", "QuantizeLinear"]),
    (20, &["AffineGrid", "ConstantOfShape", "Gelu", "IsInf"]),
    (21, &["GroupNormalization"]),
    (22, &[
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Conv", "ConvTranspose", "Cos", "Cosh",
        "DeformConv", "Det", "Dropout", "Elu", "GRU", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample",
        "HardSigmoid", "HardSwish", "InstanceNormalization", "LSTM", "LpNormalization", "LpPool", "MaxPool",
        "MaxRoiPool", "MaxUnpool", "Mish", "NegativeLogLikelihoodLoss", "RNN", "RoiAlign", "Round", "Selu", "Sin", "Sinh",
        "Softplus", "Softsign", "Tan", "ThresholdedRelu",
    ]),
    (23, &["Attention", "RMSNormalization", "RotaryEmbedding"]),
    (24, &["Swish", "TensorScatter", "TopK"]),
    (26, &["BitCast", "CumProd"]),
    (27, &["CausalConvWithState", "LinearAttention"]),
    (28, &["Compress", "Einsum", "OneHot", "ReverseSequence", "SwiGLU", "Unique"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_is_in_one_row() {
        for table in [FP16_SINCE, BF16_SINCE] {
            let mut names: Vec<&str> = table
                .iter()
                .flat_map(|(_, ops)| ops.iter().copied())
                .collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count);
            assert!(names.iter().all(|n| !NO_HALF.contains(n)));
        }
    }

    #[test]
    fn operator_sets_decide() {
        let why = |format: HalfFormat, op, opset| format.refuses(Op::onnx(op), opset);
        assert_eq!(why(Fp16, "Conv", 11), None);
        assert!(why(Fp16, "IsInf", 13).is_some());
        assert_eq!(
            why(Bf16, "Conv", 20).as_deref(),
            Some("ONNX's Conv takes BF16 from operator set 22 on only")
        );
        assert_eq!(why(Bf16, "Conv", 22), None);
        assert_eq!(
            why(Bf16, "Shrink", 22).as_deref(),
            Some("ONNX's Shrink has no form in BF16")
        );
        assert_eq!(why(Fp16, "Shrink", 22), None);
        assert!(why(Fp16, "Range", 22).is_some() && why(Bf16, "Range", 22).is_some());
    }

    #[test]
    fn numbers_are_those_of_the_formats() {
        assert_eq!(Bf16.max(), 3.389_531_389_251_535_5e38);
        assert_eq!(Fp16.max(), f64::from(half::f16::MAX));
        assert_eq!(Fp16.normal(), 2f64.powi(-14));
        assert_eq!(Fp16.tiny(), 2f64.powi(-24));
        assert_eq!(
            (Bf16.normal(), Bf16.tiny()),
            (2f64.powi(-126), 2f64.powi(-133))
        );
    }
}
