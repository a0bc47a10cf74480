//! TensorRT for RTX: what its parser imports (standard ONNX only, strongly typed), and what its builder makes of that. Measured
//! with 1.7.1 by its lists of kernels; docs/decisions.md and docs/engines.md have the numbers.

use super::types::ANY;
use crate::core::target::{Facts, Native, RotaryTables};
use crate::precision::numbers::format::Format;

pub static FACTS: Facts = Facts {
    dialect: "tensorrt",
    runtime: "TensorRT",
    opset: 23,
    imports: &[],

    // It joins pointwise operators by itself.
    has_kernel: None,

    swish: None,
    rms_norm: Some(Native {
        domain: "",
        name: "RMSNormalization",
        since: 23,
        dtypes: ANY,
    }),
    rotary: Some((
        Native {
            domain: "",
            name: "RotaryEmbedding",
            since: 23,
            dtypes: ANY,
        },
        RotaryTables::OfEachSequence,
    )),
    group_norm: Some(Native {
        domain: "",
        name: "GroupNormalization",
        since: 21,
        dtypes: ANY,
    }),
    nbits_product: None,
    nbits_product_adds: false,
    // It finds them by itself.
    attention: &[],
    standard_attention: &[],

    joins_attention: true,
    // T5's encoder has 16 kernels instead of 17.
    computes_positions_apart: true,
    // Its own has one result, no keys of earlier steps, no lengths, no cap and no mask beside causality, and is none in
    // bodies; those of com.microsoft it misreads.
    rewrites_attention: true,
    // It finds either spelling, and scaling biases apart costs a kernel a layer (XLNet: 32 kernels instead of 30).
    scales_before_biases: false,
    // It reads heads out of a product's result as it is.
    biases_keep_projections_apart: true,
    rotates_apart: true,

    // Whatever `stash_type` says.
    narrow_statistics: true,
    skip_norm_is_slow: false,
    half_norms: false,
    // Its parser selects between numbers of 16 bits and its own of FP32.
    half_lengths: false,
    skip_norms: &[],
    biased_gelu: &[],

    packs_projections: true,
    packs_products: true,
    pads_odd_products: true,
    joins_elementwise: true,

    // No zero points, no UINT8 and no arithmetic on integers (its `docs/operators.md`).
    int8: Format::Int8,
    dynamic_int8: false,
    zero_points: false,
    integer_operators: false,
    // With a scale for each column it multiplies what a Split takes apart in floats, and hands on the bare sums of integers,
    // which FP16 cannot hold.
    scales_columns_behind: true,
    // It says so where another node reads one.
    writes_bytes: true,
    confines_bytes: true,
    quantizes_transposed_conv: true,
    quantizes_results_of_conv: false,
    // An odd number of columns is stored as floats. A shorter last block is built too, but what that computes has not been run.
    wants_whole_blocks: true,
    // Its builder crashes.
    confuses_shared_weights: true,
    dequantizes_apart: true,

    binds_caches: true,
    attends_to_caches: true,

    // Its builder stops at other ones beside another dynamic size.
    flattens_branches: true,
    // Its parser refuses others.
    needs_sizes_of_eye_like: true,
    // Its builder refuses others, and makes Hardmax of one.
    needs_depth_of_one_hot: true,
    // Its builder makes it the bias, and stops at one of one element.
    spreads_offsets: true,
};
