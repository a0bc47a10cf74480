//! `Slice`, by attributes or inputs, on known and symbolic sizes.

use super::call::{Call, Outs, one, sole};
use super::expr::Expr;
use super::fact::{Dims, Fact, known, known_count};

/// A bound this far out means "to the end", whatever the size.
const FAR: i64 = i32::MAX as i64;

/// What one axis keeps: `start + k * step` for each `k` below `len`.
#[derive(Clone)]
struct Cut {
    start: Option<i64>,
    step: i64,
    len: Option<Expr>,
}

pub(super) fn slice(call: &Call<'_>) -> Option<Outs> {
    let input = call.input(0)?;
    let dims = input.dims.as_deref()?;
    let from_attrs = call.node.attrs().get("starts").is_some();
    let operand = |name: &str, k: usize| -> Option<Vec<Expr>> {
        if from_attrs {
            return Some(call.list(name)??.iter().map(|&v| v.into()).collect());
        }
        call.values(k).map(<[Expr]>::to_vec)
    };
    let present = |name: &str, k: usize| {
        if from_attrs {
            call.node.attrs().get(name).is_some()
        } else {
            call.has(k)
        }
    };
    let axes: Vec<usize> = if present("axes", 3) {
        let Some(axes) = operand("axes", 3) else {
            return Some(one(call.fresh.shape(dims.len())));
        };
        let Some(axes) = axes.iter().map(Expr::as_i64).collect::<Option<Vec<i64>>>() else {
            return Some(one(call.fresh.shape(dims.len())));
        };
        axes.iter()
            .map(|&a| call.axis(a, dims.len()))
            .collect::<Option<_>>()?
    } else {
        (0..dims.len()).collect()
    };
    let (starts, ends) = (operand("starts", 1), operand("ends", 2));
    let steps = present("steps", 4).then(|| operand("steps", 4));
    let mut cuts: Vec<Option<Cut>> = vec![None; dims.len()];
    let bounds = starts.as_ref().map_or(0, Vec::len);
    for (k, &axis) in axes.iter().enumerate() {
        if !present("axes", 3) && starts.is_some() && k >= bounds {
            break;
        }
        let at = |list: &Option<Vec<Expr>>| list.as_ref().and_then(|l| l.get(k).cloned());
        let step = match &steps {
            None => Some(1),
            Some(steps) => at(steps).and_then(|s| s.as_i64()),
        };
        let cut = step.and_then(|step| cut(&dims[axis], &at(&starts)?, &at(&ends)?, step));
        let unknown = Cut {
            start: None,
            step: 1,
            len: None,
        };
        cuts[axis] = Some(cut.unwrap_or(unknown));
    }
    let out: Dims = (dims.iter().zip(&cuts))
        .map(|(dim, cut)| match cut {
            None => dim.clone(),
            Some(cut) => call.size(cut.len.clone()),
        })
        .collect();
    let values = cut_values(input, &out, &cuts);
    Some(sole(Fact::of_values(out, values)))
}

fn cut(size: &Expr, start: &Expr, end: &Expr, step: i64) -> Option<Cut> {
    if let (Some(n), Some(s), Some(e)) = (size.as_i64(), start.as_i64(), end.as_i64()) {
        return known_cut(n, s, e, step);
    }
    let zero = Expr::from(0);
    if step < 0 {
        let whole = start.as_i64() == Some(-1) && end.as_i64().is_some_and(|e| e <= -FAR);
        return (whole && step == -1).then(|| Cut {
            start: None,
            step,
            len: Some(size.clone()),
        });
    }
    let place = |at: &Expr| match at.as_i64() {
        Some(n) if n >= FAR => Some(size.clone()),
        Some(n) if n <= -FAR => Some(zero.clone()),
        _ if at.is_nonnegative() => at.minimum(size),
        _ if at.bounds().hi.is_some_and(|hi| hi < 0) => at.add(size)?.maximum(&zero),
        // Minus a size that may be 0: -0 is the front and not the end.
        _ if *at == zero.sub(size)? => Some(zero.clone()),
        _ => None,
    };
    let (first, last) = (place(start)?, place(end)?);
    let ordered = start.is_nonnegative() && end.difference(start).lo.is_some_and(|lo| lo >= 0);
    let span = last.sub(&first)?;
    let span = if ordered { span } else { span.maximum(&zero)? };
    Some(Cut {
        start: first.as_i64(),
        step,
        len: Some(span.ceil_div(&Expr::from(step))?),
    })
}

fn known_cut(size: i64, start: i64, end: i64, step: i64) -> Option<Cut> {
    // A window that its input is too small for leaves less than nothing.
    if size < 0 {
        return None;
    }
    let (lowest, highest) = if step > 0 {
        (0, size)
    } else {
        (-1, size.checked_sub(1)?)
    };
    let place = |at: i64| {
        let at = if at < 0 { at.saturating_add(size) } else { at };
        at.clamp(lowest, highest)
    };
    let (start, end) = (place(start), place(end));
    let span = if step > 0 { end - start } else { start - end };
    let size = step.checked_abs().filter(|&s| s > 0)?;
    let len = span.max(0).checked_add(size - 1)?.checked_div(size)?;
    Some(Cut {
        start: Some(start),
        step,
        len: Some(len.into()),
    })
}

fn cut_values(input: &Fact, out: &[Expr], cuts: &[Option<Cut>]) -> Option<Vec<Expr>> {
    let values = input.values.as_deref()?;
    let sizes = known(input.dims.as_deref()?)?;
    let lens = known(out)?;
    if known_count(out)? == 0 {
        return Some(Vec::new());
    }
    let mut picks = vec![0usize];
    for ((size, len), cut) in sizes.iter().zip(&lens).zip(cuts) {
        let (start, step) = match cut {
            None => (0, 1),
            Some(cut) => (cut.start?, cut.step),
        };
        let along = (0..*len).map(|k| {
            let at = i64::try_from(k)
                .ok()?
                .checked_mul(step)?
                .checked_add(start)?;
            usize::try_from(at).ok().filter(|at| at < size)
        });
        let along = along.collect::<Option<Vec<usize>>>()?;
        picks = picks
            .iter()
            .flat_map(|p| along.iter().map(move |a| p * size + a))
            .collect();
    }
    picks.into_iter().map(|p| values.get(p).cloned()).collect()
}
