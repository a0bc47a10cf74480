//! ONNX Runtime's CUDA provider, with its `com.microsoft` operators. Types are those of the kernels that ONNX Runtime 1.24 registers
//! (its `docs/OperatorKernels.md`), not checked against the release that kiln is tested with. Nothing here has been timed on a GPU.

use kiln_graph::DType;

use super::types::{FLOATS, THREE_FLOATS};
use crate::core::target::{AttentionForm, Facts, MICROSOFT, Native, RotaryTables};
use crate::precision::numbers::format::Format;

pub static FACTS: Facts = Facts {
    dialect: "cuda",
    runtime: "ONNX Runtime's CUDA provider",
    opset: 20,
    imports: &[(MICROSOFT, 1)],

    swish: Some(Native {
        domain: MICROSOFT,
        name: "QuickGelu",
        since: 1,
        dtypes: FLOATS,
    }),
    rms_norm: Some(Native {
        domain: "",
        name: "SimplifiedLayerNormalization",
        since: 1,
        dtypes: FLOATS,
    }),
    rotary: Some((
        Native {
            domain: MICROSOFT,
            name: "RotaryEmbedding",
            since: 1,
            dtypes: THREE_FLOATS,
        },
        RotaryTables::ByPosition,
    )),
    group_norm: None,
    nbits_product: Some(Native {
        domain: MICROSOFT,
        name: "MatMulNBits",
        since: 1,
        dtypes: THREE_FLOATS,
    }),
    // Projections stay products of their own, which cuBLAS multiplies. In half precision, rows whose keys are all hidden by a number
    // keep the differences of their scores in these kernels, as they add it in FP32 (`lower/keyless_rows.rs`).
    attention: &[
        (DType::F32, AttentionForm::MultiHead { projects: false }),
        (DType::F16, AttentionForm::MultiHead { projects: false }),
        (DType::BF16, AttentionForm::MultiHead { projects: false }),
    ],

    joins_attention: false,
    computes_positions_apart: false,
    rewrites_attention: false,
    scales_before_biases: true,
    biases_keep_projections_apart: false,

    narrow_statistics: false,
    // SkipLayerNormalization has a kernel of its own.
    skip_norm_is_slow: false,

    packs_projections: true,
    packs_products: false,
    pads_odd_products: false,
    joins_elementwise: false,

    int8: Format::Uint8,
    dynamic_int8: false,
    zero_points: true,
    // They fall to the CPU.
    integer_operators: false,
    scales_columns_behind: false,
    confines_bytes: false,
    quantizes_transposed_conv: false,
    quantizes_results_of_conv: true,
    wants_whole_blocks: false,
    confuses_shared_weights: false,
    dequantizes_apart: false,

    flattens_branches: false,
    needs_sizes_of_eye_like: false,
    spreads_offsets: false,
};
