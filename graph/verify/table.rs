//! Which dtypes ONNX requires at the edges of an operator.
//!
//! The table claims only what every version from 7 to 24 of the operator requires (type variables and constraints in
//! `docs/Changelog.md`); positions that a version does not have are no claim on it.

use crate::DType;
use crate::ops::REDUCTIONS;

/// A place at a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    In(usize),
    Out(usize),
    /// Every operand.
    Ins,
    /// Every result.
    Outs,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// All these have one dtype.
    Same(&'static [At]),
    /// This has one of these dtypes.
    Is(At, &'static [DType]),
    /// This is a floating-point number.
    Float(At),
}

use At::{In, Ins, Out, Outs};
use Rule::{Float, Is, Same};

const BOOL: &[DType] = &[DType::Bool];
const I64: &[DType] = &[DType::I64];
const INDEX: &[DType] = &[DType::I32, DType::I64];
const BYTES: &[DType] = &[DType::I8, DType::U8];

pub(super) const TABLE: &[(&[&str], &[Rule])] = &[
    (
        &[
            "Add",
            "BitShift",
            "BitwiseAnd",
            "BitwiseOr",
            "BitwiseXor",
            "Div",
            "MatMul",
            "Mod",
            "Mul",
            "PRelu",
            "Sub",
        ],
        &[Same(&[In(0), In(1), Out(0)])],
    ),
    (
        &["Max", "Mean", "Min", "Sum", "Concat", "Einsum"],
        &[Same(&[Ins, Out(0)])],
    ),
    (&["Pow"], &[Same(&[In(0), Out(0)])]),
    (
        &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"],
        &[Same(&[In(0), In(1)]), Is(Out(0), BOOL)],
    ),
    (
        &["And", "Or", "Xor"],
        &[Is(In(0), BOOL), Is(In(1), BOOL), Is(Out(0), BOOL)],
    ),
    (&["Not"], &[Is(In(0), BOOL), Is(Out(0), BOOL)]),
    (&["IsInf", "IsNaN"], &[Float(In(0)), Is(Out(0), BOOL)]),
    (
        &["Where"],
        &[Is(In(0), BOOL), Same(&[In(1), In(2), Out(0)])],
    ),
    (
        &[
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "Ceil",
            "Celu",
            "Cos",
            "Cosh",
            "Elu",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Hardmax",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "LpNormalization",
            "Mish",
            "Reciprocal",
            "Round",
            "Selu",
            "Sigmoid",
            "Sin",
            "Sinh",
            "Softmax",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "AveragePool",
        ],
        &[Float(In(0)), Same(&[In(0), Out(0)])],
    ),
    (
        &[
            "Abs",
            "BitwiseNot",
            "DepthToSpace",
            "Dropout",
            "Erf",
            "Flatten",
            "Identity",
            "MaxPool",
            "Neg",
            "Relu",
            "ReverseSequence",
            "Shrink",
            "Sign",
            "SpaceToDepth",
            "Transpose",
        ],
        &[Same(&[In(0), Out(0)])],
    ),
    (&["Gemm"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (
        &[
            "Conv",
            "ConvTranspose",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
        ],
        &[Float(In(0)), Same(&[In(0), In(1), In(2), Out(0)])],
    ),
    (
        &["RMSNormalization"],
        &[Float(In(0)), Same(&[In(1), Out(0)])],
    ),
    (
        &["BatchNormalization"],
        &[
            Float(In(0)),
            Same(&[In(0), Out(0)]),
            Same(&[In(1), In(2)]),
            Same(&[In(3), In(4)]),
        ],
    ),
    (
        &["Attention"],
        &[
            Float(In(0)),
            Float(In(2)),
            Same(&[In(0), In(1), In(4), Out(0), Out(1)]),
            Same(&[In(2), In(5), Out(2)]),
        ],
    ),
    (
        &["RotaryEmbedding"],
        &[
            Float(In(0)),
            Same(&[In(0), In(1), In(2), Out(0)]),
            Is(In(3), I64),
        ],
    ),
    (
        &["MatMulInteger"],
        &[
            Is(In(0), BYTES),
            Is(In(1), BYTES),
            Same(&[In(0), In(2)]),
            Same(&[In(1), In(3)]),
            Is(Out(0), &[DType::I32]),
        ],
    ),
    (
        &["DynamicQuantizeLinear"],
        &[
            Is(In(0), &[DType::F32]),
            Is(Out(0), &[DType::U8]),
            Is(Out(1), &[DType::F32]),
            Is(Out(2), &[DType::U8]),
        ],
    ),
    (&["QuantizeLinear"], &[Same(&[In(2), Out(0)])]),
    (
        &["DequantizeLinear"],
        &[Same(&[In(0), In(2)]), Float(In(1)), Float(Out(0))],
    ),
    (&["CastLike"], &[Same(&[In(1), Out(0)])]),
    (
        &["Expand", "Reshape", "Squeeze", "Tile", "Trilu", "Unsqueeze"],
        &[Same(&[In(0), Out(0)]), Is(In(1), I64)],
    ),
    (&["Split"], &[Same(&[In(0), Outs]), Is(In(1), I64)]),
    (&["Pad"], &[Same(&[In(0), In(2), Out(0)]), Is(In(1), I64)]),
    (&["Clip"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (
        &["Slice"],
        &[
            Same(&[In(0), Out(0)]),
            Is(In(1), INDEX),
            Same(&[In(1), In(2), In(3), In(4)]),
        ],
    ),
    (
        &["CumSum", "Gather", "GatherElements"],
        &[Same(&[In(0), Out(0)]), Is(In(1), INDEX)],
    ),
    (&["GatherND"], &[Same(&[In(0), Out(0)]), Is(In(1), I64)]),
    (
        &["Scatter", "ScatterElements"],
        &[Same(&[In(0), In(2), Out(0)]), Is(In(1), INDEX)],
    ),
    (
        &["ScatterND"],
        &[Same(&[In(0), In(2), Out(0)]), Is(In(1), I64)],
    ),
    (
        &["TopK"],
        &[Same(&[In(0), Out(0)]), Is(In(1), I64), Is(Out(1), I64)],
    ),
    (REDUCTIONS, &[Same(&[In(0), Out(0)]), Is(In(1), I64)]),
    (
        &["ArgMax", "ArgMin", "NonZero", "Shape", "Size"],
        &[Is(Out(0), I64)],
    ),
    (&["ConstantOfShape"], &[Is(In(0), I64)]),
    (&["OneHot"], &[Same(&[In(2), Out(0)])]),
    (&["Range"], &[Same(&[In(0), In(1), In(2), Out(0)])]),
    (&["Resize"], &[Same(&[In(0), Out(0)])]),
    (&["If"], &[Is(In(0), BOOL)]),
    (&["Loop"], &[Is(In(0), I64), Is(In(1), BOOL)]),
];

/// What operators of [`crate::INTERNAL_DOMAIN`] require (the views in [`crate::ops::internal`]).
pub(super) const INTERNAL: &[(&str, &[Rule])] = &[
    (
        "RMSNormalization",
        &[Float(In(0)), Same(&[In(0), In(1), Out(0)])],
    ),
    (
        "RotaryEmbedding",
        &[Float(In(0)), Same(&[In(0), In(1), In(2), Out(0)])],
    ),
    ("Swish", &[Float(In(0)), Same(&[In(0), Out(0)])]),
];
