//! Operators of [`crate::INTERNAL_DOMAIN`].

use super::call::{Call, Outs};
use crate::DType;

pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
        "RMSNormalization" | "RotaryEmbedding" | "Swish" => call.like(0),
        _ => None,
    }
}

/// The element type of output `k`.
pub(super) fn dtype(call: &Call<'_>, _k: usize) -> Option<DType> {
    match call.node.op().name() {
        "RMSNormalization" | "RotaryEmbedding" | "Swish" => call.input(0)?.dtype,
        _ => None,
    }
}
