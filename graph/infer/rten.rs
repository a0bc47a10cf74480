//! Operators whose shapes the crate `rten-shape-inference` computes.
//!
//! It is handed each symbolic size as an opaque variable and builds plain trees over them, which are evaluated here in
//! 64 bits with checks. Operators whose rules there compute in 32 bits, or simplify, have rules of their own instead.

use rten_shape_inference::{
    InferShapes, InferShapesContext, InferShapesError, SymExpr, SymTensor, SymbolGen, ops,
};

use super::call::{Call, Outs};
use super::expr::Expr;
use super::fact::{Dims, Fact};

/// Sizes by the number in their variable's name.
#[derive(Default)]
struct Bridge {
    sizes: Vec<Expr>,
}

impl Bridge {
    fn put(&mut self, size: &Expr) -> SymExpr {
        if let Some(n) = size.as_i64().and_then(|n| i32::try_from(n).ok()) {
            return SymExpr::Value(n);
        }
        let at = self
            .sizes
            .iter()
            .position(|s| s == size)
            .unwrap_or_else(|| {
                self.sizes.push(size.clone());
                self.sizes.len() - 1
            });
        let name = at.to_string();
        if size.is_nonnegative() {
            SymExpr::pos_var(&name)
        } else {
            SymExpr::var(&name)
        }
    }

    fn fact(&mut self, fact: &Fact) -> SymTensor {
        let Some(dims) = fact.dims.as_deref() else {
            return SymTensor::unknown("not inferred");
        };
        match (dims.len(), fact.values.as_deref()) {
            (0, Some([value])) => SymTensor::from_scalar(self.put(value)),
            (1, Some(values)) => SymTensor::from_vec(values.iter().map(|v| self.put(v)).collect()),
            _ => SymTensor::from_shape(dims.iter().map(|d| self.put(d)).collect()),
        }
    }

    fn take(&self, expr: &SymExpr) -> Option<Expr> {
        let both = |a: &SymExpr, b: &SymExpr| Some((self.take(a)?, self.take(b)?));
        match expr {
            SymExpr::Value(n) => Some(i64::from(*n).into()),
            SymExpr::Var(symbol) if symbol.synthetic => None,
            SymExpr::Var(symbol) => self.sizes.get(symbol.name.parse::<usize>().ok()?).cloned(),
            SymExpr::Add(a, b) => both(a, b).and_then(|(a, b)| a.add(&b)),
            SymExpr::Sub(a, b) => both(a, b).and_then(|(a, b)| a.sub(&b)),
            SymExpr::Mul(a, b) => both(a, b).and_then(|(a, b)| a.mul(&b)),
            SymExpr::Div(a, b) => both(a, b).and_then(|(a, b)| a.floor_div(&b)),
            SymExpr::DivCeil(a, b) => both(a, b).and_then(|(a, b)| a.ceil_div(&b)),
            SymExpr::Max(a, b) => both(a, b).and_then(|(a, b)| a.maximum(&b)),
            SymExpr::Min(a, b) => both(a, b).and_then(|(a, b)| a.minimum(&b)),
            SymExpr::Broadcast(a, b) => both(a, b).and_then(|(a, b)| a.broadcast(&b)),
            SymExpr::Neg(a) => Expr::from(0).sub(&self.take(a)?),
        }
    }
}

fn infer(call: &Call<'_>, op: &dyn InferShapes) -> Option<Outs> {
    let mut bridge = Bridge::default();
    let inputs = call.node.inputs().iter().enumerate();
    let inputs: Vec<Option<SymTensor>> = inputs
        .map(|(k, v)| {
            v.map(|_| {
                call.input(k)
                    .map_or(SymTensor::unknown(""), |f| bridge.fact(f))
            })
        })
        .collect();
    infer_with(call, op, &bridge, &inputs)
}

fn infer_with(
    call: &Call<'_>,
    op: &dyn InferShapes,
    bridge: &Bridge,
    inputs: &[Option<SymTensor>],
) -> Option<Outs> {
    match op.infer_shapes(InferShapesContext::new(inputs), &mut SymbolGen::new()) {
        Ok(outputs) => {
            let facts = outputs.iter().map(|out| {
                let dims = out.shape()?.map(|d| {
                    let size = bridge.take(&d).filter(Expr::is_nonnegative);
                    call.size(size)
                });
                Some(Fact::of_dims(dims.collect::<Dims>()))
            });
            Some(facts.map(Option::unwrap_or_default).collect())
        }
        Err(why @ (InferShapesError::IncompatibleShapes | InferShapesError::IncorrectRank)) => {
            call.conflict(why.to_string());
            None
        }
        Err(_) => None,
    }
}

/// Operators that take no more than an attribute or two.
pub(super) fn plain(call: &Call<'_>) -> Option<Outs> {
    let axis = || i32::try_from(call.int("axis")?).ok();
    match call.node.op().name() {
        "Einsum" => {
            let equation = call.node.attrs().str("equation")?;
            infer(call, &ops::Einsum { equation })
        }
        "DepthToSpace" => {
            let block_size = u32::try_from(call.int("blocksize")?)
                .ok()
                .filter(|&b| b > 0)?;
            infer(call, &ops::DepthToSpace { block_size })
        }
        "GridSample" => infer(call, &ops::GridSample),
        "TopK" if call.has(1) => infer(
            call,
            &ops::TopK {
                axis: Some(axis()?),
            },
        ),
        "OneHot" => infer(call, &ops::OneHot { axis: axis()? }),
        "Tile" if call.opset >= 6 => infer(call, &ops::Tile),
        "NonZero" => infer(call, &ops::NonZero),
        "NonMaxSuppression" => infer(call, &ops::NonMaxSuppression),
        "LSTM" if call.int("layout")? == 0 => infer(
            call,
            &ops::LSTM {
                direction: direction(call),
            },
        ),
        "GRU" if call.int("layout")? == 0 => infer(
            call,
            &ops::GRU {
                direction: direction(call),
            },
        ),
        "STFT" => infer(
            call,
            &ops::STFT {
                onesided: call.int("onesided")? != 0,
            },
        ),
        "DFT" if call.opset >= 20 => infer(
            call,
            &ops::DFT {
                inverse: call.int("inverse")? != 0,
                onesided: call.int("onesided")? != 0,
            },
        ),
        _ => None,
    }
}

fn direction(call: &Call<'_>) -> ops::Direction {
    match call.node.attrs().str("direction") {
        Some("bidirectional") => ops::Direction::Bidirectional,
        _ => ops::Direction::Unidirectional,
    }
}

/// `Pad`, by attribute or input.
pub(super) fn pad(call: &Call<'_>) -> Option<Outs> {
    let Some(pads) = call.list("pads")? else {
        return infer(call, &ops::Pad);
    };
    let mut bridge = Bridge::default();
    let data = bridge.fact(call.input(0)?);
    let pads = pads.iter().map(|&p| bridge.put(&p.into())).collect();
    infer_with(
        call,
        &ops::Pad,
        &bridge,
        &[Some(data), Some(SymTensor::from_vec(pads))],
    )
}

/// The standard `Attention`, and the two of `com.microsoft` with separate or packed query, key and value.
pub(super) fn attention(call: &Call<'_>) -> Option<Outs> {
    let heads = |name: &str| {
        call.node
            .attrs()
            .int(name)
            .and_then(|n| u32::try_from(n).ok())
    };
    match call.node.op().name() {
        "MultiHeadAttention" => {
            let num_heads = heads("num_heads")?;
            let mut outs = infer(call, &ops::MultiHeadAttention { num_heads })?;
            // A key or value of rank 4 is a cache in its own layout.
            if call.dims(1).is_some_and(|d| d.len() != 3) {
                outs.truncate(1);
                return call
                    .dims(0)
                    .filter(|d| d.len() == 3)
                    .and_then(|_| call.like(0));
            }
            Some(outs)
        }
        "GroupQueryAttention" => {
            let (num_heads, kv_num_heads) = (heads("num_heads")?, heads("kv_num_heads")?);
            let mut outs = infer(
                call,
                &ops::GroupQueryAttention {
                    num_heads,
                    kv_num_heads,
                },
            )?;
            // The cache may be a shared buffer that is already as long as it gets.
            for cache in outs.iter_mut().skip(1) {
                if let Some(length) = cache.dims.as_mut().and_then(|d| d.get_mut(2)) {
                    *length = call.fresh.size();
                }
            }
            Some(outs)
        }
        _ => {
            let (q_num_heads, kv_num_heads) = (heads("q_num_heads"), heads("kv_num_heads"));
            let mut outs = infer(
                call,
                &ops::Attention {
                    q_num_heads,
                    kv_num_heads,
                },
            )?;
            outs.push(scores(call, q_num_heads, outs.get(1)).unwrap_or_default());
            Some(outs)
        }
    }
}

/// The fourth output of `Attention`: `[batch, heads, queries, keys]`.
fn scores(call: &Call<'_>, heads: Option<u32>, keys: Option<&Fact>) -> Option<Fact> {
    let total = keys?.dims.as_deref()?.get(2)?.clone();
    let dims = match call.dims(0)? {
        [batch, heads, queries, _] => [batch.clone(), heads.clone(), queries.clone(), total],
        [batch, queries, _] => [
            batch.clone(),
            i64::from(heads?).into(),
            queries.clone(),
            total,
        ],
        _ => return None,
    };
    Some(Fact::of_dims(dims.into_iter().collect()))
}
