//! Values that attributes have when a node leaves them out, as far as patterns need them.

use crate::{Attr, INTERNAL_DOMAIN, Op};

/// The default of an attribute of a default-domain operator (ONNX `docs/Operators.md`) or an internal one; `None` if it
/// has none, or if patterns never met it.
pub fn default_attr(op: Op, name: &str, opset: i64) -> Option<Attr> {
    if op.domain() == INTERNAL_DOMAIN {
        return internal(op.name(), name);
    }
    if !op.domain().is_empty() {
        return None;
    }
    Some(match (op.name(), name) {
        ("Softmax" | "LogSoftmax", "axis") => Attr::Int(if opset >= 13 { -1 } else { 1 }),
        ("LayerNormalization" | "RMSNormalization", "axis") => Attr::Int(-1),
        ("LayerNormalization" | "RMSNormalization", "epsilon") => Attr::Float(1e-5),
        ("LayerNormalization" | "RMSNormalization", "stash_type") => Attr::Int(1),
        ("InstanceNormalization", "epsilon") => Attr::Float(1e-5),
        ("Gelu", "approximate") => Attr::from("none"),
        ("Gather" | "GatherElements", "axis") => Attr::Int(0),
        ("Gemm", "alpha" | "beta") => Attr::Float(1.0),
        ("Gemm", "transA" | "transB") => Attr::Int(0),
        ("Reshape", "allowzero") => Attr::Int(0),
        ("Cast", "saturate") => Attr::Int(1),
        ("Trilu", "upper") => Attr::Int(1),
        (reduce, "keepdims") if reduce.starts_with("Reduce") => Attr::Int(1),
        (reduce, "noop_with_empty_axes") if reduce.starts_with("Reduce") => Attr::Int(0),
        _ => return None,
    })
}

/// As the views in [`super::internal`] have them.
fn internal(op: &str, name: &str) -> Option<Attr> {
    Some(match (op, name) {
        ("RMSNormalization", "axis") => Attr::Int(-1),
        ("RMSNormalization", "epsilon") => Attr::Float(1e-5),
        ("Swish", "alpha") => Attr::Float(1.0),
        ("RotaryEmbedding", "interleaved" | "rotary_embedding_dim") => Attr::Int(0),
        _ => return None,
    })
}
