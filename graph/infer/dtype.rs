//! Element types of outputs: a table by operator name.

use super::call::Call;
use super::internal;
use crate::{Attr, DType, INTERNAL_DOMAIN};

/// The element type of output `k`.
pub(super) fn output(call: &Call<'_>, k: usize) -> Option<DType> {
    match call.node.op().domain() {
        "" => standard(call, k),
        "com.microsoft" => contrib(call, k),
        INTERNAL_DOMAIN => internal::dtype(call, k),
        _ => None,
    }
}

/// The element type of input `k`.
fn input(call: &Call<'_>, k: usize) -> Option<DType> {
    call.input(k)?.dtype
}

/// The element type that an integer attribute names.
fn attr(call: &Call<'_>, name: &str) -> Option<DType> {
    DType::from_onnx(i32::try_from(call.node.attrs().int(name)?).ok()?)
}

/// The attribute's type, or a default where the attribute is absent (not where it is malformed).
fn attr_or(call: &Call<'_>, name: &str, default: Option<DType>) -> Option<DType> {
    if call.node.attrs().get(name).is_none() || call.node.attrs().int(name) == Some(0) {
        return default;
    }
    attr(call, name)
}

fn standard(call: &Call<'_>, k: usize) -> Option<DType> {
    let first = || input(call, 0);
    match call.node.op().name() {
        "And" | "Or" | "Xor" | "Not" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
        | "LessOrEqual" | "IsNaN" | "IsInf" | "RegexFullMatch" | "OptionalHasElement" => {
            Some(DType::Bool)
        }
        "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "NonMaxSuppression"
        | "SequenceLength" => Some(DType::I64),
        "Cast" => attr(call, "to"),
        "CastLike" => input(call, 1),
        "Constant" => constant(call),
        "ConstantOfShape" => match call.node.attrs().get("value") {
            None => Some(DType::F32),
            Some(Attr::Tensor(t)) => Some(t.dtype()),
            Some(_) => None,
        },
        "RandomNormal" | "RandomUniform" => attr_or(call, "dtype", Some(DType::F32)),
        "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" | "EyeLike" => {
            attr_or(call, "dtype", first())
        }
        "Multinomial" => attr_or(call, "dtype", Some(DType::I32)),
        "HannWindow" | "HammingWindow" | "BlackmanWindow" | "MelWeightMatrix" => {
            attr_or(call, "output_datatype", Some(DType::F32))
        }
        "Where" => input(call, 1).or(input(call, 2)),
        "OneHot" => input(call, 2),
        "QuantizeLinear" => quantized(call),
        "DequantizeLinear" => attr_or(call, "output_dtype", input(call, 1)),
        "DynamicQuantizeLinear" => Some(if k == 1 { DType::F32 } else { DType::U8 }),
        "MatMulInteger" | "ConvInteger" => Some(DType::I32),
        "QLinearMatMul" | "QLinearConv" => input(call, 7),
        "Dropout" if k == 1 => Some(DType::Bool),
        "TopK" | "MaxPool" if k == 1 => Some(DType::I64),
        "Unique" if k > 0 => Some(DType::I64),
        "LayerNormalization" | "SimplifiedLayerNormalization" if k > 0 => {
            attr_or(call, "stash_type", Some(DType::F32))
        }
        "BatchNormalization" if k > 0 => input(call, 3),
        "TfIdfVectorizer" => Some(DType::F32),
        "StringNormalizer" | "StringConcat" => Some(DType::String),
        "StringSplit" => Some(if k == 0 { DType::String } else { DType::I64 }),
        "ImageDecoder" => Some(DType::U8),
        "Abs"
        | "Acos"
        | "Acosh"
        | "Add"
        | "AffineGrid"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "Attention"
        | "AveragePool"
        | "BatchNormalization"
        | "BitShift"
        | "BitwiseAnd"
        | "BitwiseNot"
        | "BitwiseOr"
        | "BitwiseXor"
        | "Ceil"
        | "Celu"
        | "CenterCropPad"
        | "Clip"
        | "Col2Im"
        | "Compress"
        | "Concat"
        | "Conv"
        | "ConvTranspose"
        | "Cos"
        | "Cosh"
        | "CumProd"
        | "CumSum"
        | "DFT"
        | "DeformConv"
        | "DepthToSpace"
        | "Det"
        | "Div"
        | "Dropout"
        | "Einsum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Expand"
        | "Flatten"
        | "Floor"
        | "GRU"
        | "Gather"
        | "GatherElements"
        | "GatherND"
        | "Gelu"
        | "Gemm"
        | "GlobalAveragePool"
        | "GlobalLpPool"
        | "GlobalMaxPool"
        | "GridSample"
        | "GroupNormalization"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "Identity"
        | "InstanceNormalization"
        | "LRN"
        | "LSTM"
        | "LayerNormalization"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "LpPool"
        | "MatMul"
        | "Max"
        | "MaxPool"
        | "MaxRoiPool"
        | "MaxUnpool"
        | "Mean"
        | "MeanVarianceNormalization"
        | "Min"
        | "Mish"
        | "Mod"
        | "Mul"
        | "Neg"
        | "NegativeLogLikelihoodLoss"
        | "PRelu"
        | "Pad"
        | "Pow"
        | "RMSNormalization"
        | "RNN"
        | "Range"
        | "Reciprocal"
        | "ReduceL1"
        | "ReduceL2"
        | "ReduceLogSum"
        | "ReduceLogSumExp"
        | "ReduceMax"
        | "ReduceMean"
        | "ReduceMin"
        | "ReduceProd"
        | "ReduceSum"
        | "ReduceSumSquare"
        | "Relu"
        | "Reshape"
        | "Resize"
        | "ReverseSequence"
        | "RoiAlign"
        | "RotaryEmbedding"
        | "Round"
        | "STFT"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sign"
        | "Sin"
        | "SimplifiedLayerNormalization"
        | "Sinh"
        | "Slice"
        | "Softmax"
        | "SoftmaxCrossEntropyLoss"
        | "Softplus"
        | "Softsign"
        | "SpaceToDepth"
        | "Split"
        | "Sqrt"
        | "Squeeze"
        | "Sub"
        | "Sum"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "TensorScatter"
        | "ThresholdedRelu"
        | "Tile"
        | "TopK"
        | "Transpose"
        | "Trilu"
        | "Unique"
        | "Unsqueeze"
        | "Upsample" => first(),
        _ => None,
    }
}

fn constant(call: &Call<'_>) -> Option<DType> {
    let attrs = call.node.attrs();
    let kinds = [
        ("value_float", DType::F32),
        ("value_floats", DType::F32),
        ("value_int", DType::I64),
        ("value_ints", DType::I64),
        ("value_string", DType::String),
        ("value_strings", DType::String),
    ];
    let tensor = attrs.tensor("value").map(crate::Tensor::dtype);
    tensor.or_else(|| {
        kinds
            .iter()
            .find(|(name, _)| attrs.get(name).is_some())
            .map(|kind| kind.1)
    })
}

/// The zero point says what is quantized to; without one it is an attribute, else `uint8`.
fn quantized(call: &Call<'_>) -> Option<DType> {
    if call.has(2) {
        input(call, 2)
    } else {
        attr_or(call, "output_dtype", Some(DType::U8))
    }
}

fn contrib(call: &Call<'_>, k: usize) -> Option<DType> {
    let first = || input(call, 0);
    match call.node.op().name() {
        "EmbedLayerNormalization" => {
            if k == 1 {
                Some(DType::I32)
            } else {
                input(call, 2)
            }
        }
        "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization"
        | "LayerNormalization"
        | "SimplifiedLayerNormalization"
            if k == 1 || k == 2 =>
        {
            Some(DType::F32)
        }
        "QuantizeLinear" => quantized(call),
        "DequantizeLinear" => input(call, 1),
        "QAttention" => input(call, 3),
        "QLinearConcat" | "QLinearWhere" => input(call, 1),
        "QGemm" if call.has(8) => input(call, 8),
        "QGemm" => input(call, 1),
        "MatMulIntegerToFloat" => input(call, 2),
        "GatherBlockQuantized" => input(call, 2),
        "MatMulInteger16" => Some(DType::I32),
        "GroupQueryAttention" if k == 1 || k == 2 => input(call, 2 + k).or_else(first),
        "ConvTransposeWithDynamicPads"
        | "Attention"
        | "BiasAdd"
        | "BiasGelu"
        | "BiasSoftmax"
        | "BiasSplitGelu"
        | "CDist"
        | "DecoderAttention"
        | "DecoderMaskedMultiHeadAttention"
        | "DecoderMaskedSelfAttention"
        | "DynamicQuantizeLSTM"
        | "DynamicQuantizeMatMul"
        | "ExpandDims"
        | "FastGelu"
        | "FusedConv"
        | "FusedGemm"
        | "FusedMatMul"
        | "GatedRelativePositionBias"
        | "GatherND"
        | "Gelu"
        | "GemmFastGelu"
        | "GridSample"
        | "GroupNorm"
        | "GroupQueryAttention"
        | "Identity"
        | "Inverse"
        | "LayerNormalization"
        | "LongformerAttention"
        | "MatMulBnb4"
        | "MatMulFpQ4"
        | "MatMulNBits"
        | "MoE"
        | "MultiHeadAttention"
        | "NGramRepeatBlock"
        | "NhwcConv"
        | "NhwcFusedConv"
        | "PackedAttention"
        | "PackedMultiHeadAttention"
        | "Pad"
        | "QLinearAdd"
        | "QLinearAveragePool"
        | "QLinearGlobalAveragePool"
        | "QLinearLeakyRelu"
        | "QLinearMul"
        | "QLinearReduceMean"
        | "QLinearSigmoid"
        | "QLinearSoftmax"
        | "QMoE"
        | "QuickGelu"
        | "RelativePositionBias"
        | "RemovePadding"
        | "RestorePadding"
        | "RotaryEmbedding"
        | "SimplifiedLayerNormalization"
        | "SkipGroupNorm"
        | "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization"
        | "SparseAttention"
        | "TransposeMatMul"
        | "Trilu"
        | "Unique" => first(),
        _ => None,
    }
}

/// Inputs of the node that must have one element type: `(first, last)`.
fn alike(call: &Call<'_>) -> Option<(usize, usize)> {
    let last = call.node.inputs().len().checked_sub(1)?;
    match call.node.op().name() {
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Equal" | "Less" | "LessOrEqual" | "Greater"
        | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Max" | "Min" | "Sum" | "Mean" | "Concat"
        | "MatMul" | "Gemm" | "Einsum" | "PRelu" | "Conv" | "ConvTranspose" => Some((0, last)),
        "Where" => Some((1, 2)),
        _ => None,
    }
}

/// Notes operands whose types certainly differ though the operator wants one.
pub(super) fn check(call: &Call<'_>) {
    if !call.node.op().domain().is_empty() {
        return;
    }
    let Some((from, to)) = alike(call) else {
        return;
    };
    let mut types = (from..=to).filter_map(|k| input(call, k));
    let Some(first) = types.next() else {
        return;
    };
    if let Some(other) = types.find(|&t| t != first) {
        call.conflict(format!("operands of types {first} and {other}"));
    }
}
