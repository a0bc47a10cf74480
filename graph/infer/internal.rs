//! Operators of [`crate::INTERNAL_DOMAIN`].

use super::call::{Call, Outs, one};
use super::fact::Fact;
use crate::ops::kind::{Kind, kind};

pub(super) fn shapes(call: &Call<'_>) -> Option<Outs> {
    match call.node.op().name() {
        "Attention" => {
            let [batch, heads, queries, _] = call.dims(0)? else {
                return None;
            };
            let size = call.dims(2)?.last()?;
            let dims = [batch, heads, queries, size].into_iter().cloned();
            let mut outs = one(dims.collect());
            if let Some(keys) = call.dims(1).and_then(|k| k.get(2)) {
                let dims = [batch, heads, queries, keys].into_iter().cloned();
                outs.push(Fact::of_dims(dims.collect()));
            }
            Some(outs)
        }
        _ => match kind(call.node.op()) {
            Kind::Unary | Kind::Along => call.like(0),
            _ => None,
        },
    }
}
