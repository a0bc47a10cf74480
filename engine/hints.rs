//! What to do about the refusals of TensorRT for RTX 1.7 that are known.

use kiln_runtime::setting::{DIM, FP16, TARGET};

/// A hint applies where its text occurs in the reason.
type Hints = &'static [(&'static str, fn() -> String)];

const PARSE_HINTS: Hints = &[
    ("not an ONNX model", || {
        "check that the file is complete and not a Git LFS pointer".into()
    }),
    ("Failed to open file", || {
        "keep the files with the model's external data beside the model".into()
    }),
    ("Non-zero zero point", || {
        "quantize symmetrically: TensorRT takes no zero point but 0".into()
    }),
    ("must have same input types", || {
        "all float inputs of a node must share one type: put a Cast before the odd one".into()
    }),
    ("cosCache has batch size", || {
        "give RotaryEmbedding cos and sin caches with the batch of its input, or decompose it"
            .into()
    }),
];

fn attention() -> String {
    "TensorRT's Attention has one output, no past key or value, no softcap and no mask beside \
     causality: kiln writes such nodes as products unless the passes were chosen without expand-attention"
    .into()
}

const FIXED_SIZES: &str = "the model was exported with fixed sizes that the profile does not keep: give those sizes, \
     or export it with dynamic ones";

const BUILD_HINTS: Hints = &[
    ("FP32 GEMM is not supported", || {
        format!(
            "sm_75 has no FP32 matrix products: compile with {FP16}, and keep no product in FP32"
        )
    }),
    ("static_cast<size_t>(i) < op->input_size()", || {
        format!(
            "it fails so at an If whose branches give different sizes, or hold another If, beside dynamic dimensions: fix the \
         batch, as in {DIM} batch=1"
        )
    }),
    ("not supported by a dedicated kernel", || {
        format!(
            "give the Attention node the attribute TRT_decomposable = 1, or compile with {FP16}"
        )
    }),
    ("no optimization profile has been defined", || {
        format!("give the sizes of the dynamic dimensions with {DIM}")
    }),
    ("is missing dimensions in profile", || {
        format!("give the sizes of the dynamic dimensions with {DIM}")
    }),
    ("reshaping failed", || FIXED_SIZES.into()),
    ("not self-consistent", || {
        "inputs that share a dimension need the same size for it in a profile".into()
    }),
    ("violate shape constraints", || FIXED_SIZES.into()),
    ("has no runners that implement it", || {
        format!(
            "TensorRT reads this operator and has no kernel for it: replace it in the model, or compile with {TARGET} cpu"
        )
    }),
    ("CUDA error", || {
        "no GPU can be used here: name the compute capability to build for, such as sm_89".into()
    }),
];

/// For what the parser refuses.
pub(super) fn parse_hint(op: Option<&str>, reason: &str) -> Option<String> {
    pick(PARSE_HINTS, reason).or_else(|| (op == Some("Attention")).then(attention))
}

/// For what the builder refuses.
pub(super) fn build_hint(reason: &str) -> Option<String> {
    pick(BUILD_HINTS, reason)
}

fn pick(hints: Hints, reason: &str) -> Option<String> {
    hints
        .iter()
        .find(|(text, _)| reason.contains(text))
        .map(|(_, hint)| hint())
}
