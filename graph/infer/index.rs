//! How far indices reach, where they count up to a size, and what operators with several operands demand of these.

use rustc_hash::FxHashMap;

use super::call::Call;
use super::expr::Expr;
use crate::{Attr, DType};

/// A size that all elements of the first output stay below.
pub(super) fn end(call: &Call<'_>) -> Option<Expr> {
    if !call.node.op().domain().is_empty() {
        return None;
    }
    let of = |k: usize| call.input(k)?.end.clone();
    let number = |k: usize| match call.values(k)? {
        [only] => Some(only),
        _ => None,
    };
    match call.node.op().name() {
        "Cast" if call.input(0)?.dtype == Some(DType::Bool) => Some(Expr::from(2)),
        "Range" if number(2)?.as_i64() == Some(1) => number(1).cloned(),
        "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" | "Expand"
        | "Tile" | "Transpose" | "Slice" => of(0),
        "Gather" => of(0),
        "Add" => match (of(0), of(1)) {
            (Some(end), None) => end.add(number(1)?),
            (None, Some(end)) => end.add(number(0)?),
            _ => None,
        },
        "Sub" => of(0)?.sub(number(1)?),
        "Mul" => {
            // What positions are multiplied with, place by place, and nothing is known of, is a mask.
            let most = |k: usize| match of(k) {
                Some(end) => highest(&end),
                None => (call.dims(0)? == call.dims(1)?).then(|| Expr::from(1)),
            };
            of(0).or_else(|| of(1))?;
            most(0)?.mul(&most(1)?)?.add(&Expr::from(1))
        }
        // What stands where nothing is counted is small.
        "Where" => match (of(1), of(2)) {
            (Some(end), None) if number(2).is_some() => Some(end),
            (None, Some(end)) if number(1).is_some() => Some(end),
            (Some(a), Some(b)) if a == b => Some(a),
            _ => None,
        },
        "ConstantOfShape" => {
            let value = match call.node.attrs().get("value") {
                Some(Attr::Tensor(value)) => value.as_i64()?,
                _ => return None,
            };
            (value >= 0).then(|| Expr::from(value).add(&Expr::from(1)))?
        }
        "NonZero" => match call.dims(0)? {
            [places] => Some(places.clone()),
            _ => None,
        },
        "CumSum" => counted(call),
        _ => None,
    }
}

/// The largest number below an end.
fn highest(end: &Expr) -> Option<Expr> {
    end.sub(&Expr::from(1))
}

/// Running sums: of a mask, where nothing else is known of whole numbers.
fn counted(call: &Call<'_>) -> Option<Expr> {
    let input = call.input(0)?;
    let each = match &input.end {
        Some(end) => highest(end)?,
        None if matches!(input.dtype?, DType::I32 | DType::I64) => Expr::from(1),
        None => return None,
    };
    let [axis] = call.values(1)? else {
        return None;
    };
    let dims = call.dims(0)?;
    let axis = usize::try_from(axis.as_i64()?.rem_euclid(dims.len().max(1) as i64)).ok()?;
    let size = dims.get(axis)?;
    let places = match call.int("exclusive")? {
        0 => size.clone(),
        _ => highest(size)?,
    };
    places.mul(&each)?.add(&Expr::from(1))
}

/// Conditions that no rule of a shape meets: a table that is indexed, lengths that attention compares.
pub(super) fn demand(call: &Call<'_>) {
    match (call.node.op().domain(), call.node.op().name()) {
        ("", "Gather") => drop(table(call)),
        ("", "GatherND") => drop(rows_of_table(call)),
        ("", "Einsum") => drop(letters(call)),
        ("", "Attention") => drop(attention(call)),
        ("", "TensorScatter") => drop(written(call)),
        ("com.microsoft", "Attention") => drop(packed(call)),
        ("com.microsoft", "MultiHeadAttention") => drop(multi_head(call)),
        ("com.microsoft", "GroupQueryAttention") => drop(grouped(call)),
        ("", "LSTM" | "GRU" | "RNN") => drop(recurrent(call)),
        _ => {}
    }
}

/// New tokens fit into a cache.
fn written(call: &Call<'_>) -> Option<()> {
    let (cache, new) = (call.dims(0)?, call.dims(1)?);
    let axis = call.int("axis").unwrap_or(-2);
    let axis = usize::try_from(axis.rem_euclid(cache.len().max(1) as i64)).ok()?;
    call.demands.at_most(new.get(axis)?, cache.get(axis)?);
    Some(())
}

/// An axis that an equation names twice has one size. ONNX Runtime takes a 1 for any.
fn letters(call: &Call<'_>) -> Option<()> {
    let equation = call.node.attrs().str("equation")?.replace(' ', "");
    let operands = equation.split("->").next()?.split(',');
    let mut known: FxHashMap<char, &Expr> = FxHashMap::default();
    for (k, letters) in operands.enumerate() {
        let Some(dims) = call.dims(k) else { continue };
        let (front, behind) = letters.split_once("...").unwrap_or((letters, ""));
        let behind = behind.chars().rev().zip(dims.iter().rev());
        for (letter, size) in front.chars().zip(dims).chain(behind) {
            let before = *known.entry(letter).or_insert(size);
            if ![before, size].iter().any(|e| e.as_i64() == Some(1)) {
                call.demands.equal(before, size);
            }
        }
    }
    Some(())
}

fn table(call: &Call<'_>) -> Option<()> {
    let rows = call.dims(0)?;
    let axis = call.int("axis")?;
    let axis = if axis < 0 {
        axis + rows.len() as i64
    } else {
        axis
    };
    let rows = rows.get(usize::try_from(axis).ok()?)?;
    let end = call.input(1)?.end.as_ref()?;
    call.demands.at_most(end, rows);
    Some(())
}

/// Indices of one number each, as torch's newer exporter writes a table of positions.
fn rows_of_table(call: &Call<'_>) -> Option<()> {
    let axis = usize::try_from(call.int("batch_dims")?).ok()?;
    let depth = call.dims(1)?.last()?.as_i64();
    let rows = call.dims(0)?.get(axis).filter(|_| depth == Some(1))?;
    let end = call.input(1)?.end.as_ref()?;
    call.demands.at_most(end, rows);
    Some(())
}

/// The standard operator: keys and values have one length, and a mask's last axis is that with the past.
fn attention(call: &Call<'_>) -> Option<()> {
    let (q, k, v) = (call.dims(0)?, call.dims(1)?, call.dims(2)?);
    let length = |dims: &[Expr]| dims.get(dims.len().checked_sub(2)?).cloned();
    let keys = length(k)?;
    call.demands.equal(&keys, &length(v)?);
    call.demands.equal(q.first()?, k.first()?);
    caches(call, [4, 5]);
    let total = match call.dims(4) {
        Some(past) => length(past)?.add(&keys)?,
        None => keys,
    };
    let mask = call.dims(3)?;
    if let [.., rows, columns] = mask {
        call.demands.broadcast(rows, &length(q)?);
        call.demands.equal(columns, &total);
    }
    if let [batch, _, _, _] = mask {
        call.demands.broadcast(batch, q.first()?);
    }
    Some(())
}

/// A mask has a number for each key, of earlier steps (`[2, batch, heads, past, size]`) and new ones.
fn packed(call: &Call<'_>) -> Option<()> {
    let new = call.dims(0)?.get(1)?;
    let total = match call.dims(4).and_then(|p| p.get(3)) {
        Some(past) => past.add(new)?,
        None => new.clone(),
    };
    if let Some(mask @ ([_, _] | [_, _, _])) = call.dims(3) {
        call.demands.equal(mask.last()?, &total);
    }
    Some(())
}

/// That of ONNX Runtime: `[batch, sequence, size]`, or a cache `[batch, heads, past, size]` before.
fn multi_head(call: &Call<'_>) -> Option<()> {
    let (q, k) = (call.dims(0)?, call.dims(1)?);
    let (3, 3) = (q.len(), k.len()) else {
        return None;
    };
    call.demands.equal(&q[0], &k[0]);
    caches(call, [6, 7]);
    let past = call.dims(6).and_then(|p| p.get(2));
    let total = match past {
        Some(past) => past.add(&k[1])?,
        None => k[1].clone(),
    };
    if let Some([_, _, rows, columns]) = call.dims(5) {
        call.demands.broadcast(rows, &q[1]);
        call.demands.equal(columns, &total);
    }
    if let Some([batch, columns]) = call.dims(4) {
        call.demands.equal(batch, &q[0]);
        call.demands.equal(columns, &total);
    }
    Some(())
}

/// Queries that share keys, with a total that the graph computes. Where the length of the cache is open, the cache grows: a
/// buffer that is longer than the total runs, too, and is what a caller makes of it.
fn grouped(call: &Call<'_>) -> Option<()> {
    caches(call, [3, 4]);
    let total = call.values(6)?.first()?;
    if let Some([rows, _]) = call.dims(7) {
        call.demands.at_most(total, rows);
    }
    let past = call.dims(3)?.get(2)?;
    let new = call.dims(0)?.get(1)?;
    if past.as_i64().is_none() {
        call.demands.equal(total, &past.add(new)?);
    }
    Some(())
}

/// Caches of keys and values, `[batch, heads, past, size]`: as many as there are queries, and of one length.
fn caches(call: &Call<'_>, at: [usize; 2]) {
    let batch = call.dims(0).and_then(|d| d.first());
    let caches = at.map(|k| call.dims(k).filter(|d| d.len() == 4));
    for cache in caches.into_iter().flatten() {
        if let Some(batch) = batch {
            call.demands.equal(&cache[0], batch);
        }
    }
    if let [Some(keys), Some(values)] = caches {
        call.demands.equal(&keys[2], &values[2]);
    }
}

/// `X [sequence, batch, size]`, `initial_h` and `initial_c [directions, batch, hidden]`.
fn recurrent(call: &Call<'_>) -> Option<()> {
    if call.int("layout")? != 0 {
        return None;
    }
    let batch = call.dims(0)?.get(1)?;
    for k in [5, 6] {
        if let Some([_, states, _]) = call.dims(k) {
            call.demands.equal(states, batch);
        }
    }
    if let Some([lengths]) = call.dims(4) {
        call.demands.equal(lengths, batch);
    }
    Some(())
}
