//! Operators that make numbers out of shapes, and tensors out of numbers.

use smallvec::SmallVec;

use super::call::{Call, Outs, one, sole};
use super::expr::Expr;
use super::fact::{Dims, Fact, known, known_count};

pub(super) fn shape(call: &Call<'_>) -> Option<Outs> {
    let dims = call.dims(0)?;
    let rank = i64::try_from(dims.len()).ok()?;
    let clamp =
        |at: i64| usize::try_from(if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank));
    let start = clamp(call.int("start")?).ok()?;
    let end = clamp(call.int_or("end", rank)?).ok()?;
    let sizes = dims.get(start..end.max(start))?;
    Some(sole(Fact::vector(sizes.to_vec())))
}

pub(super) fn size(call: &Call<'_>) -> Option<Outs> {
    let count = call.dims(0).and_then(Expr::product);
    Some(sole(Fact::scalar(call.size(count))))
}

pub(super) fn constant_of_shape(call: &Call<'_>) -> Option<Outs> {
    let Some(sizes) = call.values(0) else {
        let rank = *known(call.dims(0)?)?.first()?;
        return (rank <= 64).then(|| one(call.fresh.shape(rank)));
    };
    let dims: Dims = (sizes.iter())
        .map(|d| {
            if d.is_nonnegative() {
                d.clone()
            } else {
                call.fresh.size()
            }
        })
        .collect();
    let fill = match call.node.attrs().get("value") {
        None => Some(Expr::from(0)),
        Some(crate::Attr::Tensor(t)) => Fact::of_tensor(t).values.and_then(|v| v.first().cloned()),
        Some(_) => None,
    };
    let values = fill.and_then(|fill| Some(vec![fill; known_count(&dims)?]));
    Some(sole(Fact::of_values(dims, values)))
}

pub(super) fn range(call: &Call<'_>) -> Option<Outs> {
    let length = || {
        let [start, limit, delta] = [
            call.values(0)?.first()?,
            call.values(1)?.first()?,
            call.values(2)?.first()?,
        ];
        let step = delta.as_i64()?;
        let span = if step > 0 {
            limit.sub(start)?
        } else {
            start.sub(limit)?
        };
        let step_size = Expr::from(step.checked_abs()?);
        let count = span.ceil_div(&step_size)?.maximum(&Expr::from(0))?;
        let values = count.as_i64().filter(|&n| n <= 1024).and_then(|n| {
            (0..n)
                .map(|i: i64| start.add(&Expr::from(i.checked_mul(step)?)))
                .collect()
        });
        Some(Fact::of_values(SmallVec::from_iter([count]), values))
    };
    let fact = length().unwrap_or_else(|| Fact::of_dims(call.fresh.shape(1)));
    Some(sole(fact))
}
