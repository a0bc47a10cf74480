//! Operators of kiln's own domain.

use super::call::{Call, Outs, one};

pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
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
