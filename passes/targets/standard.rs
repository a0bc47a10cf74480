//! Plain ONNX, for any runtime.

use crate::core::target::Facts;
use crate::precision::numbers::format::Format;

pub static FACTS: Facts = Facts {
    dialect: "standard",
    runtime: "ONNX",
    opset: 20,
    imports: &[],

    has_kernel: None,

    swish: None,
    rms_norm: None,
    rotary: None,
    group_norm: None,
    nbits_product: None,
    nbits_product_adds: false,
    attention: &[],
    standard_attention: &[],

    joins_attention: false,
    computes_positions_apart: false,
    rewrites_attention: false,
    scales_before_biases: false,
    biases_keep_projections_apart: false,
    rotates_apart: false,

    narrow_statistics: false,
    skip_norm_is_slow: false,
    half_norms: false,
    half_lengths: true,
    skip_norms: &[],
    biased_gelu: &[],

    packs_projections: true,
    packs_products: false,
    pads_odd_products: false,
    joins_elementwise: false,

    int8: Format::Uint8,
    dynamic_int8: true,
    zero_points: true,
    integer_operators: true,
    scales_columns_behind: false,
    writes_bytes: false,
    confines_bytes: false,
    quantizes_transposed_conv: false,
    quantizes_results_of_conv: true,
    wants_whole_blocks: false,
    confuses_shared_weights: false,
    dequantizes_apart: false,

    binds_caches: false,
    attends_to_caches: false,

    flattens_branches: false,
    needs_sizes_of_eye_like: false,
    needs_depth_of_one_hot: false,
    spreads_offsets: false,
};
