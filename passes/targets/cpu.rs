//! ONNX Runtime's CPU provider, with its `com.microsoft` operators (its `docs/ContribOperators.md` and `docs/OperatorKernels.md`).

use kiln_graph::DType;

use super::types::{ANY, HALF_AND_SINGLE};
use crate::core::target::{AttentionForm, Facts, MICROSOFT, Native, RotaryTables};
use crate::precision::numbers::format::Format;

pub static FACTS: Facts = Facts {
    dialect: "cpu",
    runtime: "ONNX Runtime",
    opset: 20,
    imports: &[(MICROSOFT, 1)],

    has_kernel: None,

    swish: Some(Native {
        domain: MICROSOFT,
        name: "QuickGelu",
        since: 1,
        dtypes: HALF_AND_SINGLE,
    }),
    // In the default domain, at any operator set.
    rms_norm: Some(Native {
        domain: "",
        name: "SimplifiedLayerNormalization",
        since: 1,
        dtypes: HALF_AND_SINGLE,
    }),
    rotary: Some((
        Native {
            domain: MICROSOFT,
            name: "RotaryEmbedding",
            since: 1,
            dtypes: HALF_AND_SINGLE,
        },
        RotaryTables::ByPosition,
    )),
    group_norm: None,
    // Without it, the weight is widened in every run.
    nbits_product: Some(Native {
        domain: MICROSOFT,
        name: "MatMulNBits",
        since: 1,
        dtypes: ANY,
    }),
    nbits_product_adds: true,
    // There is no kernel of FP16. Attention is faster than MultiHeadAttention behind three products (0.94 to 0.98 of the original's
    // latency against 0.96 to 1.00: MiniLM-L3 and BERT-base at 128 tokens).
    attention: &[(DType::F32, AttentionForm::MultiHead { projects: true })],
    // 0.42 of the products' time for a token over a cache of 160, 0.7 over a prompt of 128 (12 heads, 4 of keys, size 64), and
    // faster than GroupQueryAttention, which refuses several rows behind a cache.
    standard_attention: &[DType::F32],

    joins_attention: false,
    computes_positions_apart: false,
    rewrites_attention: false,
    scales_before_biases: true,
    // Its operators take the biases with them.
    biases_keep_projections_apart: false,
    rotates_apart: false,

    narrow_statistics: false,
    skip_norm_is_slow: true,
    half_norms: false,
    half_lengths: true,
    skip_norms: &[],
    biased_gelu: &[],

    packs_projections: false,
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
    // QLinearConv.
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
