//! Operators that work element by element, on shapes and on followed numbers.

use super::call::{Call, Outs, sole};
use super::expr::Expr;
use super::fact::{Dims, Fact, known, known_count};
use crate::DType;

/// Shape of input 0; numbers survive where the operator keeps or negates integers.
pub(super) fn unary(call: &Call<'_>) -> Option<Outs> {
    let input = call.input(0)?;
    let dims: Dims = input.dims.as_deref()?.into();
    let Some(values) = input.values.as_deref() else {
        return Some(sole(Fact::of_dims(dims)));
    };
    let apply: fn(&Expr) -> Option<Expr> = match call.node.op().name() {
        "Identity" | "Floor" | "Ceil" | "Round" => |v| Some(v.clone()),
        "Cast" | "CastLike" => cast(input.dtype, super::dtype::output(call, 0)),
        "Neg" => |v| Expr::from(0).sub(v),
        "Abs" => |v| {
            if v.is_nonnegative() {
                Some(v.clone())
            } else {
                v.as_i64()?.checked_abs().map(Expr::from)
            }
        },
        "Not" => |v| Some(Expr::from(i64::from(v.as_i64()? == 0))),
        "Sign" => |v| match v.as_i64() {
            Some(n) => Some(n.signum().into()),
            None => (v.bounds().lo? > 0).then(|| 1.into()),
        },
        _ => return Some(sole(Fact::of_dims(dims))),
    };
    let values = values
        .iter()
        .map(|v| apply(v).unwrap_or_else(|| call.fresh.integer()));
    let values = values.collect();
    Some(sole(Fact::of_values(dims, Some(values))))
}

/// Casts keep numbers between types that hold every size exactly.
fn cast(from: Option<DType>, to: Option<DType>) -> fn(&Expr) -> Option<Expr> {
    use DType::{Bool, F32, F64, I32, I64};
    match (from, to) {
        (Some(F32 | F64 | I32 | I64 | Bool), Some(F32 | F64 | I32 | I64)) => |v| Some(v.clone()),
        (_, Some(Bool)) => |v| v.equals(&Expr::from(0)).map(|zero| i64::from(!zero).into()),
        (_, Some(I64 | I32 | F32 | F64)) => |v| v.as_i64().map(Expr::from),
        _ => |v| v.as_i64().filter(|n| (0..128).contains(n)).map(Expr::from),
    }
}

/// Shapes of all inputs broadcast against each other; numbers where the operator is plain arithmetic.
pub(super) fn broadcast(call: &Call<'_>) -> Option<Outs> {
    let count = call.node.inputs().len();
    let mut dims: Dims = call.dims(0)?.into();
    for k in 1..count {
        dims = call.broadcast(&dims, call.dims(k)?)?;
    }
    let values = broadcast_values(call, &dims, count);
    Some(sole(Fact::of_values(dims, values)))
}

fn broadcast_values(call: &Call<'_>, dims: &[Expr], count: usize) -> Option<Vec<Expr>> {
    let total = known_count(dims)?;
    let inputs: Vec<Spread<'_>> = (0..count)
        .map(|k| Spread::new(call.dims(k)?, call.values(k)?, dims))
        .collect::<Option<_>>()?;
    let name = call.node.op().name();
    let float = call.input(0)?.dtype.is_some_and(DType::is_float);
    (0..total)
        .map(|at| {
            let operands: Option<Vec<&Expr>> = inputs.iter().map(|i| i.get(at)).collect();
            let computed = fold(name, float, &operands?);
            Some(computed.unwrap_or_else(|| call.fresh.integer()))
        })
        .collect()
}

fn fold(name: &str, float: bool, operands: &[&Expr]) -> Option<Expr> {
    let join: Option<fn(&Expr, &Expr) -> Option<Expr>> = match name {
        "Max" => Some(Expr::maximum),
        "Min" => Some(Expr::minimum),
        "Sum" => Some(Expr::add),
        _ => None,
    };
    if let Some(join) = join {
        let (first, rest) = operands.split_first()?;
        return rest.iter().try_fold((*first).clone(), |a, b| join(&a, b));
    }
    if let ("Where", [cond, x, y]) = (name, operands) {
        return match cond.equals(&Expr::from(0)) {
            Some(true) => Some((*y).clone()),
            Some(false) => Some((*x).clone()),
            None => (x == y).then(|| (*x).clone()),
        };
    }
    let [a, b] = operands else {
        return None;
    };
    let truth = |t: bool| Expr::from(i64::from(t));
    let compare = |yes: fn(i64) -> bool| {
        let d = a.difference(b);
        match (d.lo, d.hi) {
            (Some(lo), Some(hi)) if yes(lo) == yes(hi) => Some(truth(yes(lo))),
            // One side alone decides where the comparison holds from there on.
            (Some(lo), _) if yes(lo) && yes(i64::MAX) => Some(truth(true)),
            (Some(lo), _) if !yes(lo) && !yes(i64::MAX) => Some(truth(false)),
            (_, Some(hi)) if yes(hi) && yes(i64::MIN) => Some(truth(true)),
            (_, Some(hi)) if !yes(hi) && !yes(i64::MIN) => Some(truth(false)),
            _ => None,
        }
    };
    match name {
        "Add" => a.add(b),
        "Sub" => a.sub(b),
        "Mul" => a.mul(b),
        "Div" if float => a.exact_div(b),
        "Div" => integer_div(a, b),
        "Mod" if a.is_nonnegative() && b.is_nonnegative() => a.sub(&a.floor_div(b)?.mul(b)?),
        "Equal" => a.equals(b).map(truth),
        "Less" => compare(|d| d < 0),
        "LessOrEqual" => compare(|d| d <= 0),
        "Greater" => compare(|d| d > 0),
        "GreaterOrEqual" => compare(|d| d >= 0),
        "And" => logic(a, b, |x, y| x && y),
        "Or" => logic(a, b, |x, y| x || y),
        "Xor" => logic(a, b, |x, y| x != y),
        _ => None,
    }
}

fn logic(a: &Expr, b: &Expr, f: fn(bool, bool) -> bool) -> Option<Expr> {
    Some(i64::from(f(a.as_i64()? != 0, b.as_i64()? != 0)).into())
}

/// ONNX divides integers towards zero, which is the floor only where nothing is negative.
fn integer_div(a: &Expr, b: &Expr) -> Option<Expr> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.checked_div(b).map(Expr::from),
        _ if a.is_nonnegative() && b.is_nonnegative() => a.floor_div(b),
        _ => a.exact_div(b),
    }
}

/// One operand's elements, repeated along broadcast dimensions.
pub(super) struct Spread<'a> {
    values: &'a [Expr],
    /// `(size, stride)` of each output dimension; a stride of 0 repeats.
    axes: Vec<(usize, usize)>,
}

impl<'a> Spread<'a> {
    pub fn new(dims: &[Expr], values: &'a [Expr], out: &[Expr]) -> Option<Spread<'a>> {
        let (dims, out) = (known(dims)?, known(out)?);
        let lead = out.len().checked_sub(dims.len())?;
        let mut axes = vec![(1, 0); out.len()];
        let mut stride = 1usize;
        for k in (0..out.len()).rev() {
            let size = k
                .checked_sub(lead)
                .and_then(|i| dims.get(i))
                .copied()
                .unwrap_or(1);
            axes[k] = (out[k], if size == 1 { 0 } else { stride });
            stride = stride.saturating_mul(size.max(1));
        }
        Some(Spread { values, axes })
    }

    pub fn get(&self, mut at: usize) -> Option<&'a Expr> {
        let mut index = 0;
        for &(size, stride) in self.axes.iter().rev() {
            index += at.checked_rem(size)?.checked_mul(stride)?;
            at /= size;
        }
        self.values.get(index)
    }
}
