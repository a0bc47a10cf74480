//! ONNX Runtime's CUDA provider, with its `com.microsoft` operators. Types are held against the kernels that it registers
//! ([`super::cuda_kernels`]). Nothing here has been timed on a GPU.

use kiln_graph::DType;

use super::types::{FLOATS, THREE_FLOATS};
use crate::core::target::{AttentionForm, Facts, MICROSOFT, Native, RotaryTables};
use crate::precision::numbers::format::Format;

pub static FACTS: Facts = TABLE;

/// The facts, for tables that differ in one of them ([`super::cuda_forms`]).
pub(super) const TABLE: Facts = Facts {
    dialect: "cuda",
    runtime: "ONNX Runtime's CUDA provider",
    opset: 20,
    imports: &[(MICROSOFT, 1)],

    has_kernel: Some(super::cuda_kernels::takes_at),

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
    // Its kernel ends with an error where it is given one (ONNX Runtime 1.31).
    nbits_product_adds: false,
    // Projections stay products of their own, which cuBLAS multiplies. In half precision, rows whose keys are all hidden by a number
    // keep the differences of their scores in these kernels, as they add it in FP32 (`lower/keyless_rows.rs`).
    attention: &[
        (DType::F32, AttentionForm::MultiHead { projects: false }),
        (DType::F16, AttentionForm::MultiHead { projects: false }),
        (DType::BF16, AttentionForm::MultiHead { projects: false }),
    ],
    // GroupQueryAttention has no kernel of FP32 and refuses several rows of several tokens behind a cache.
    standard_attention: THREE_FLOATS,

    joins_attention: false,
    computes_positions_apart: false,
    rewrites_attention: false,
    scales_before_biases: true,
    biases_keep_projections_apart: false,
    rotates_apart: false,

    narrow_statistics: false,
    // SkipLayerNormalization has a kernel of its own.
    skip_norm_is_slow: false,
    half_norms: true,
    half_lengths: true,
    skip_norms: THREE_FLOATS,
    biased_gelu: FLOATS,

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

#[cfg(test)]
mod tests {
    use kiln_graph::Op;

    use super::FACTS;
    use crate::core::target::{AttentionForm, MICROSOFT, Native};
    use crate::targets::cuda_kernels;
    use kiln_graph::DType;

    fn held(domain: &str, name: &str, types: &[DType]) {
        // No type of its own: every one that its schema has a kernel for.
        let types = if types.is_empty() {
            super::THREE_FLOATS
        } else {
            types
        };
        for &dtype in types {
            let op = Op::new(domain, name);
            assert!(cuda_kernels::takes(op, dtype), "{op} of {}", dtype.name());
        }
    }

    #[test]
    fn every_operator_that_is_written_has_a_kernel_in_its_types() {
        let native = |n: &Native| held(n.domain, n.name, n.dtypes);
        let norms = [&FACTS.swish, &FACTS.rms_norm, &FACTS.nbits_product];
        norms.into_iter().flatten().for_each(native);
        FACTS.rotary.iter().for_each(|(n, _)| native(n));
        for (dtype, form) in FACTS.attention {
            assert_eq!(*form, AttentionForm::MultiHead { projects: false });
            held(MICROSOFT, "MultiHeadAttention", &[*dtype]);
        }
        held("", "Attention", FACTS.standard_attention);
        for name in ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"] {
            held(MICROSOFT, name, FACTS.skip_norms);
        }
        for name in ["BiasGelu", "FastGelu"] {
            held(MICROSOFT, name, FACTS.biased_gelu);
        }
        // Norms that stay in half precision.
        held("", "LayerNormalization", super::THREE_FLOATS);
        assert!(!cuda_kernels::takes(
            Op::new(MICROSOFT, "GroupQueryAttention"),
            DType::F32
        ));
    }
}
