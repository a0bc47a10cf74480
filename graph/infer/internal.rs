//! Operators of [`crate::INTERNAL_DOMAIN`].

use super::call::{Call, Outs, one};
use crate::DType;

pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
        "RMSNormalization" | "RotaryEmbedding" | "Swish" => call.like(0),
        "Attention" => {
            let [batch, heads, queries, _] = call.dims(0)? else {
                return None;
            };
            let size = call.dims(2)?.last()?;
            let dims = [batch, heads, queries, size].into_iter().cloned();
            Some(one(dims.collect()))
        }
        _ => None,
    }
}

/// The element type of output `k`.
pub(super) fn dtype(call: &Call<'_>, _k: usize) -> Option<DType> {
    match call.node.op().name() {
        "Attention" | "RMSNormalization" | "RotaryEmbedding" | "Swish" => call.input(0)?.dtype,
        _ => None,
    }
}
