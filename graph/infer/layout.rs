//! Operators that move elements about: reshaping, slicing, joining, picking.

use smallvec::SmallVec;

use super::call::{Axes, Call, Outs, one, resolve, sole, text};
use super::elementwise::Spread;
use super::expr::Expr;
use super::fact::{Dims, Fact, Values, known, known_count};

/// The same elements in the same order under other dimensions.
fn with_values(dims: Dims, values: Option<&Values>) -> Outs {
    let count = known_count(&dims);
    sole(Fact {
        values: values.filter(|v| Some(v.len()) == count).cloned(),
        ..Fact::of_dims(dims)
    })
}

/// Elements picked from `input` by an index for each output element.
fn picked(input: &Fact, dims: Dims, pick: impl Fn(&[usize]) -> Option<usize>) -> Outs {
    let values = input.values.as_deref().and_then(|values| {
        let sizes = known(&dims)?;
        let total = known_count(&dims)?;
        let mut index: SmallVec<[usize; 4]> = SmallVec::from_elem(0, sizes.len());
        (0..total)
            .map(|at| {
                let mut rest = at;
                for (i, &size) in index.iter_mut().zip(&sizes).rev() {
                    *i = rest.checked_rem(size)?;
                    rest /= size;
                }
                values.get(pick(&index)?).cloned()
            })
            .collect::<Option<Vec<Expr>>>()
    });
    sole(Fact::of_values(dims, values))
}

/// Steps between neighbours along each dimension; empty where sizes are unknown.
fn strides(dims: &[Expr]) -> SmallVec<[usize; 4]> {
    let Some(sizes) = known(dims) else {
        return SmallVec::new();
    };
    let mut strides: SmallVec<[usize; 4]> = SmallVec::from_elem(1, sizes.len());
    for k in (1..sizes.len()).rev() {
        strides[k - 1] = strides[k].saturating_mul(sizes[k]);
    }
    strides
}

pub(super) fn reshape(call: &Call<'_>) -> Option<Outs> {
    let data = call.input(0)?;
    let attr = call.list("shape")?;
    let wanted: Vec<Expr> = match (attr, call.values(1)) {
        (Some(shape), _) if !call.has(1) => shape.iter().map(|&d| d.into()).collect(),
        (_, Some(shape)) => shape.to_vec(),
        _ => {
            let rank = known(call.dims(1)?)?;
            return rank
                .first()
                .filter(|&&r| r <= 64)
                .map(|&r| one(call.fresh.shape(r)));
        }
    };
    let copies = call.int("allowzero")? == 0;
    let mut dims = Dims::new();
    let mut open = None;
    for (k, want) in wanted.iter().enumerate() {
        let dim = match want.as_i64() {
            Some(0) if copies => match data.dims.as_deref() {
                Some(source) => match source.get(k) {
                    Some(dim) => dim.clone(),
                    None => {
                        call.conflict(format!(
                            "the new shape copies dimension {k} of rank {}",
                            source.len()
                        ));
                        call.fresh.size()
                    }
                },
                None => call.fresh.size(),
            },
            Some(-1) => {
                if open.replace(k).is_some() {
                    call.conflict("the new shape leaves more than one dimension open");
                    return Some(one(call.fresh.shape(wanted.len())));
                }
                call.fresh.size()
            }
            Some(n) if n < -1 => {
                call.conflict(format!("the new shape has a dimension of {n}"));
                call.fresh.size()
            }
            _ if want.is_nonnegative() => want.clone(),
            _ => call.fresh.size(),
        };
        dims.push(dim);
    }
    // A single size that nothing names follows from the others, as an open one does.
    let anonymous = |dim: &Expr| !dim.is_named() && dim.lone_atom().is_some();
    let mut unnamed = (0..dims.len()).filter(|&k| !dims[k].is_named());
    let sole_unnamed = unnamed
        .next()
        .filter(|&k| unnamed.next().is_none() && anonymous(&dims[k]));
    let solved = open.or(sole_unnamed);
    if let Some(source) = data.dims.as_deref() {
        // Sizes on both sides go first: products of many symbols need not even be formed.
        let (mut left, mut right): (Vec<&Expr>, Vec<&Expr>) = (source.iter().collect(), Vec::new());
        for (_, dim) in dims.iter().enumerate().filter(|(k, _)| solved != Some(*k)) {
            match left.iter().position(|d| *d == dim) {
                Some(at) => drop(left.remove(at)),
                None => right.push(dim),
            }
        }
        let (total, rest) = (Expr::product(left), Expr::product(right));
        match (solved, total, rest) {
            (Some(k), Some(total), Some(rest)) if rest.as_i64() != Some(0) => {
                if let (Some(t), Some(r)) = (total.as_i64(), rest.as_i64())
                    && t.checked_rem(r) != Some(0)
                {
                    call.conflict(format!(
                        "{} cannot take the shape {}",
                        text(source),
                        text(&wanted)
                    ));
                } else if let Some(size) = total.floor_div(&rest) {
                    dims[k] = size;
                }
            }
            (None, Some(total), Some(rest)) if total.equals(&rest) == Some(false) => {
                call.conflict(format!(
                    "{} cannot take the shape {}",
                    text(source),
                    text(&wanted)
                ));
            }
            (None, Some(total), Some(rest)) => call.demands.equal(&total, &rest),
            _ => {}
        }
    }
    Some(with_values(dims, data.values.as_ref()))
}

pub(super) fn flatten(call: &Call<'_>) -> Option<Outs> {
    let dims = call.dims(0)?;
    let axis = call.int("axis")?;
    let at = if usize::try_from(axis) == Ok(dims.len()) {
        dims.len()
    } else {
        call.axis(axis, dims.len())?
    };
    let (outer, inner) = dims.split_at(at);
    let sides = [outer, inner].map(|side| call.size(Expr::product(side)));
    Some(with_values(
        SmallVec::from_iter(sides),
        call.input(0)?.values.as_ref(),
    ))
}

pub(super) fn squeeze(call: &Call<'_>) -> Option<Outs> {
    let input = call.input(0)?;
    let dims = input.dims.as_deref()?;
    let gone = match call.axes(1, dims.len())? {
        Axes::At(axes) => axes,
        Axes::Unknown => return None,
        Axes::Absent => {
            let sizes = dims
                .iter()
                .map(Expr::as_i64)
                .collect::<Option<Vec<i64>>>()?;
            (0..sizes.len()).filter(|&k| sizes[k] == 1).collect()
        }
    };
    for &k in &gone {
        if dims[k].equals(&Expr::from(1)) == Some(false) {
            call.conflict(format!("dimension {k} of {} is not 1", text(dims)));
        }
    }
    let kept = dims.iter().enumerate().filter(|(k, _)| !gone.contains(k));
    Some(with_values(
        kept.map(|(_, d)| d.clone()).collect(),
        input.values.as_ref(),
    ))
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Option<Outs> {
    let input = call.input(0)?;
    let dims = input.dims.as_deref()?;
    let count = match call.list("axes")? {
        Some(axes) => axes.len(),
        None => *known(call.dims(1)?)?.first()?,
    };
    if count > 64 {
        return None;
    }
    let rank = dims.len() + count;
    let new = match call.axes(1, rank)? {
        Axes::At(new) => new,
        _ => return Some(one(call.fresh.shape(rank))),
    };
    if new.len() != count {
        call.conflict("an axis is named twice");
        return None;
    }
    let mut old = dims.iter().cloned();
    let dims = (0..rank)
        .map(|k| {
            if new.contains(&k) {
                Some(Expr::from(1))
            } else {
                old.next()
            }
        })
        .collect::<Option<Dims>>()?;
    Some(with_values(dims, input.values.as_ref()))
}

pub(super) fn transpose(call: &Call<'_>) -> Option<Outs> {
    let perm = call.list("perm")?;
    let input = call.input(0)?;
    let Some(dims) = input.dims.as_deref() else {
        return perm.map(|p| one(call.fresh.shape(p.len())));
    };
    let perm: SmallVec<[usize; 4]> = match perm {
        None => (0..dims.len()).rev().collect(),
        Some(perm) => {
            let mut seen = vec![false; dims.len()];
            let valid = perm.len() == dims.len()
                && (perm.iter()).all(|&p| {
                    resolve(p, dims.len()).is_some_and(|p| !std::mem::replace(&mut seen[p], true))
                });
            if !valid {
                call.conflict(format!("{perm:?} is no permutation of rank {}", dims.len()));
                return None;
            }
            perm.iter()
                .filter_map(|&p| resolve(p, dims.len()))
                .collect()
        }
    };
    let steps = strides(dims);
    let out = perm.iter().map(|&p| dims[p].clone()).collect();
    Some(picked(input, out, |index| {
        index
            .iter()
            .zip(&perm)
            .map(|(i, &p)| Some(i * steps.get(p)?))
            .sum()
    }))
}

pub(super) fn expand(call: &Call<'_>) -> Option<Outs> {
    let data = call.input(0)?;
    let dims = data.dims.as_deref()?;
    let wanted: Dims = match call.values(1) {
        Some(shape) => shape
            .iter()
            .map(|d| {
                if d.is_nonnegative() {
                    d.clone()
                } else {
                    call.fresh.size()
                }
            })
            .collect(),
        None => call
            .fresh
            .shape(*known(call.dims(1)?)?.first().filter(|&&r| r <= 64)?),
    };
    let out = call.broadcast(dims, &wanted)?;
    let values = data.values.as_deref().and_then(|values| {
        let total = known_count(&out)?;
        let spread = Spread::new(dims, values, &out)?;
        (0..total).map(|at| spread.get(at).cloned()).collect()
    });
    Some(sole(Fact::of_values(out, values)))
}

pub(super) fn concat(call: &Call<'_>) -> Option<Outs> {
    let count = call.node.inputs().len();
    let first = (0..count).find_map(|k| call.dims(k))?;
    let rank = first.len();
    let axis = call.axis(call.int_or("axis", 1)?, rank)?;
    let mut dims: Dims = first.into();
    let mut along = Some(Expr::from(0));
    for k in 0..count {
        let Some(part) = call.dims(k) else {
            along = None;
            continue;
        };
        if part.len() != rank {
            call.conflict(format!(
                "operands of rank {rank} and {} are joined",
                part.len()
            ));
            return None;
        }
        along = along.and_then(|sum| sum.add(&part[axis]));
        for (at, dim) in dims.iter_mut().enumerate().filter(|(at, _)| *at != axis) {
            *dim = call.unify(dim, &part[at], &format!("sizes of dimension {at}"));
        }
    }
    dims[axis] = call.size(along);
    let values = joined(call, count, axis, &dims);
    Some(sole(Fact::of_values(dims, values)))
}

fn joined(call: &Call<'_>, count: usize, axis: usize, dims: &[Expr]) -> Option<Vec<Expr>> {
    let total = known_count(dims)?;
    if total == 0 {
        return Some(Vec::new());
    }
    let outer: usize = known(&dims[..axis])?.iter().product();
    let mut out = Vec::with_capacity(total);
    for block in 0..outer {
        for k in 0..count {
            let values = call.values(k)?;
            let chunk = values.len() / outer;
            out.extend_from_slice(values.get(block * chunk..(block + 1) * chunk)?);
        }
    }
    Some(out)
}

pub(super) fn split(call: &Call<'_>) -> Option<Outs> {
    let input = call.input(0)?;
    let dims = input.dims.as_deref()?;
    let axis = call.axis(call.int_or("axis", 0)?, dims.len())?;
    let count = call.node.outputs().len();
    let sizes: Vec<Expr> = match (call.list("split")?, call.has(1)) {
        (Some(sizes), _) => sizes.iter().map(|&s| s.into()).collect(),
        (None, true) => match call.values(1) {
            Some(sizes) => sizes.to_vec(),
            None => (0..count).map(|_| call.fresh.size()).collect(),
        },
        (None, false) => {
            let parts = Expr::from(i64::try_from(count).ok()?);
            let each = dims[axis].ceil_div(&parts);
            let before = each
                .as_ref()
                .and_then(|e| e.mul(&parts.sub(&Expr::from(1))?));
            let last = before.and_then(|b| dims[axis].sub(&b));
            let mut sizes = vec![call.size(each); count];
            *sizes.last_mut()? = call.size(last);
            sizes
        }
    };
    if sizes.len() != count {
        call.conflict(format!("{} sizes for {count} outputs", sizes.len()));
        return None;
    }
    let sum = sizes.iter().try_fold(Expr::from(0), |sum, s| sum.add(s));
    if sum.is_some_and(|sum| sum.equals(&dims[axis]) == Some(false)) {
        call.conflict(format!(
            "parts {} of a dimension of {}",
            text(&sizes),
            dims[axis]
        ));
    }
    if let Some(sum) = sizes.iter().try_fold(Expr::from(0), |sum, s| sum.add(s)) {
        call.demands.equal(&sum, &dims[axis]);
    }
    let steps = strides(dims);
    let mut start = Some(0usize);
    let parts = sizes.into_iter().map(|size| {
        let mut part: Dims = dims.into();
        let from = start;
        start = from.and_then(|f| f.checked_add(usize::try_from(size.as_i64()?).ok()?));
        part[axis] = if size.is_nonnegative() {
            size
        } else {
            call.fresh.size()
        };
        let mut out = picked(input, part, |index| {
            let flat = index.iter().zip(&steps).map(|(i, s)| i * s).sum::<usize>();
            flat.checked_add(from?.checked_mul(*steps.get(axis)?)?)
        });
        out.pop().unwrap_or_default()
    });
    Some(parts.collect())
}

pub(super) fn gather(call: &Call<'_>) -> Option<Outs> {
    let (data, index) = (call.input(0)?, call.input(1)?);
    let dims = data.dims.as_deref()?;
    let axis = call.axis(call.int("axis")?, dims.len())?;
    let picks = index.dims.as_deref()?;
    let mut out: Dims = dims[..axis].into();
    out.extend(picks.iter().cloned());
    out.extend(dims[axis + 1..].iter().cloned());
    let size = dims[axis].as_i64();
    if let (Some(size), Some(indices)) = (size, &index.values) {
        let bad = (indices.iter())
            .filter_map(Expr::as_i64)
            .find(|&i| i >= size || i < -size);
        if let Some(bad) = bad {
            call.conflict(format!("index {bad} in a dimension of {size}"));
            return Some(one(out));
        }
    }
    let steps = strides(dims);
    let pick_steps = strides(picks);
    Some(picked(data, out, |at| {
        let (outer, rest) = at.split_at_checked(axis)?;
        let (middle, inner) = rest.split_at_checked(picks.len())?;
        let which = middle
            .iter()
            .zip(&pick_steps)
            .map(|(i, s)| i * s)
            .sum::<usize>();
        let chosen = index.values.as_deref()?.get(which)?.as_i64()?;
        let chosen = resolve(chosen, usize::try_from(size?).ok()?)?;
        let path = outer.iter().chain([&chosen]).chain(inner);
        Some(path.zip(&steps).map(|(i, s)| i * s).sum())
    }))
}
