//! Bounds of values that are made of integers and constants, by arithmetic on intervals.

use kiln_graph::ops::kind::{Kind, kind};
use kiln_graph::{DType, Graph, NodeId, Tensor, ValueId, ops};

use super::format::HalfFormat;

/// Sizes and indices of a tensor's elements are no more than this: runtimes count elements of an axis in 32 bits.
const SIZE: f64 = 2147483647.0;

/// Constants of more elements are not read for their bounds.
const READ: usize = 1 << 14;

/// Where a value that is made of integers and constants lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::precision) struct Count {
    pub lo: f64,
    pub hi: f64,
    /// Integers stand behind it that a format does not tell apart.
    pub wide: bool,
}

impl Count {
    pub fn of(lo: f64, hi: f64) -> Count {
        let wide = false;
        match lo.is_nan() || hi.is_nan() {
            true => Count::ANY,
            false => Count { lo, hi, wide },
        }
    }

    /// Nothing is known of it.
    pub const ANY: Count = Count {
        lo: f64::NEG_INFINITY,
        hi: f64::INFINITY,
        wide: false,
    };

    /// Sizes of tensors, and places in them.
    pub const SIZE: Count = Count {
        lo: 0.0,
        hi: SIZE,
        wide: false,
    };

    pub const BIT: Count = Count {
        lo: 0.0,
        hi: 1.0,
        wide: false,
    };

    /// What the integers of a type are, if it is one of integers or booleans.
    pub fn of_type(dtype: DType) -> Option<Count> {
        let signed = |bits: i32| Count::of(-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0);
        let unsigned = |bits: i32| Count::of(0.0, 2f64.powi(bits) - 1.0);
        Some(match dtype {
            DType::Bool => Count::BIT,
            DType::I8 => signed(8),
            DType::I16 => signed(16),
            DType::I32 => signed(32),
            DType::I64 => signed(64),
            DType::U8 => unsigned(8),
            DType::U16 => unsigned(16),
            DType::U32 => unsigned(32),
            DType::U64 => unsigned(64),
            _ => return None,
        })
    }

    /// Of a constant; large ones are not read.
    pub fn of_constant(tensor: &Tensor) -> Count {
        let unread = Count::of_type(tensor.dtype()).unwrap_or(Count::ANY);
        if tensor.len() > READ {
            return unread;
        }
        let integers = || {
            let all = tensor.to_i64s()?;
            Some(all.into_iter().map(|n| n as f64).collect::<Vec<f64>>())
        };
        let numbers = tensor.to_f64s().or_else(integers);
        let Some(numbers) = numbers.filter(|n| !n.is_empty()) else {
            return unread;
        };
        let (lo, hi) = numbers
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), n| {
                (lo.min(*n), hi.max(*n))
            });
        Count::of(lo, hi)
    }

    pub fn union(self, other: Count) -> Count {
        Count {
            lo: self.lo.min(other.lo),
            hi: self.hi.max(other.hi),
            wide: self.wide || other.wide,
        }
    }

    /// The largest magnitude.
    pub fn reach(self) -> f64 {
        self.lo.abs().max(self.hi.abs())
    }

    /// Whether a format has each integer in it.
    pub fn is_exact(self, format: HalfFormat) -> bool {
        self.reach() <= 1.0 / format.unit()
    }

    /// Whether a format has room for it: nothing becomes infinite, and nothing that is not zero loses its digits.
    pub fn fits(self, format: HalfFormat) -> bool {
        let least = match (self.lo > 0.0, self.hi < 0.0) {
            (true, _) => self.lo,
            (_, true) => -self.hi,
            _ => format.normal(),
        };
        self.reach() <= format.max() && least >= format.normal()
    }

    /// Whether all of it is positive and becomes zero in the format.
    pub fn vanishes(self, format: HalfFormat) -> bool {
        self.lo >= 0.0 && self.hi > 0.0 && self.hi <= format.tiny() / 2.0
    }

    /// What is known after a function that rises everywhere.
    fn rising(self, f: impl Fn(f64) -> f64) -> Count {
        Count {
            wide: self.wide,
            ..Count::of(f(self.lo), f(self.hi))
        }
    }

    fn corners(self, other: Count, f: impl Fn(f64, f64) -> f64) -> Count {
        let all = [
            f(self.lo, other.lo),
            f(self.lo, other.hi),
            f(self.hi, other.lo),
            f(self.hi, other.hi),
        ];
        // Zero times no bound is zero: the bound stands for finite numbers.
        let all = all.map(|v| if v.is_nan() { 0.0 } else { v });
        let lo = all.into_iter().fold(f64::INFINITY, f64::min);
        let hi = all.into_iter().fold(f64::NEG_INFINITY, f64::max);
        Count {
            wide: self.wide || other.wide,
            ..Count::of(lo, hi)
        }
    }

    fn unknown(self) -> Count {
        Count {
            wide: self.wide,
            ..Count::ANY
        }
    }
}

/// The result of arithmetic on operands of which something is known; `None` for operators that do something else.
pub(in crate::precision) fn arithmetic(
    g: &Graph,
    id: NodeId,
    operands: &[Option<Count>],
) -> Option<Count> {
    let all: Option<Vec<Count>> = operands.iter().flatten().copied().map(Some).collect();
    let all = all.filter(|a| !a.is_empty())?;
    let first = all[0];
    let joined = all[1..].iter().fold(first, |a, b| a.union(*b));
    let fold = |f: &dyn Fn(f64, f64) -> f64| {
        let rest = all.get(1..).unwrap_or_default();
        rest.iter().fold(first, |a, b| a.corners(*b, f))
    };
    let ends = |f: &dyn Fn(f64, f64) -> f64| {
        let rest = all.get(1..).unwrap_or_default();
        rest.iter().fold(first, |a, b| Count {
            wide: a.wide || b.wide,
            ..Count::of(f(a.lo, b.lo), f(a.hi, b.hi))
        })
    };
    Some(match g.node(id).op().name() {
        "Add" | "Sum" => ends(&|a, b| a + b),
        "Sub" => fold(&|a, b| a - b),
        "Mul" => fold(&|a, b| a * b),
        "Div" if all.len() == 2 && (all[1].lo > 0.0 || all[1].hi < 0.0) => fold(&|a, b| a / b),
        "Reciprocal" if first.lo > 0.0 => Count {
            wide: first.wide,
            ..Count::of(1.0 / first.hi, 1.0 / first.lo)
        },
        "Mod" if all.len() == 2 => {
            let reach = all[1].reach();
            Count {
                wide: joined.wide,
                ..Count::of(if first.lo >= 0.0 { 0.0 } else { -reach }, reach)
            }
        }
        "Max" => ends(&f64::max),
        "Min" => ends(&f64::min),
        "Clip" => clipped(first, operands),
        "Neg" => Count {
            wide: first.wide,
            ..Count::of(-first.hi, -first.lo)
        },
        "Abs" => Count {
            wide: first.wide,
            ..Count::of(
                if first.lo <= 0.0 && first.hi >= 0.0 {
                    0.0
                } else {
                    first.lo.abs().min(first.hi.abs())
                },
                first.reach(),
            )
        },
        "Relu" => first.rising(|v| v.max(0.0)),
        "Sqrt" => first.rising(|v| v.max(0.0).sqrt()),
        "Exp" => first.rising(f64::exp),
        "Log" if first.lo > 0.0 => first.rising(f64::ln),
        "Softplus" => first.rising(|v| v.max(0.0) + (-v.abs()).exp().ln_1p()),
        "Floor" => first.rising(f64::floor),
        "Ceil" => first.rising(f64::ceil),
        "Round" => first.rising(f64::round_ties_even),
        "Sign" => Count {
            wide: first.wide,
            ..Count::of(-1.0, 1.0)
        },
        "Mean" => joined,
        // The condition is no operand of which something is known here.
        "Where" | "Concat" | "ScatterND" | "ScatterElements" => joined,
        "Pad" => joined.union(Count::of(0.0, 0.0)),
        "Pow" if all.len() == 2 && first.lo > 0.0 => {
            first.corners(all[1], |a, b| (a.ln() * b).exp())
        }
        "AveragePool" | "Cast" | "CastLike" | "Dropout" | "Identity" | "MaxPool" | "ReduceMax"
        | "ReduceMean" | "ReduceMin" | "TopK" => first,
        "Trilu" => first.union(Count::of(0.0, 0.0)),
        "Range" => joined,
        "CumSum" | "ReduceSum" | "ReduceL1" => Count {
            wide: first.wide,
            ..match first.lo >= 0.0 && first.hi <= 1.0 {
                true => Count::SIZE,
                false => first.unknown(),
            }
        },
        "Div" | "Reciprocal" | "Log" | "Pow" | "ReduceSumSquare" | "ReduceL2" | "ReduceProd"
        | "ReduceLogSum" | "ReduceLogSumExp" | "LeakyRelu" | "PRelu" | "Elu" | "BitShift"
        | "Einsum" | "Mod" => joined.unknown(),
        _ if kind(g.node(id).op()) == Kind::Move => first,
        _ => return None,
    })
}

/// A Clip's bounds are operands since operator set 11.
fn clipped(x: Count, operands: &[Option<Count>]) -> Count {
    let bound = |k: usize| operands.get(k).copied().flatten();
    let lo = bound(1).map_or(f64::NEG_INFINITY, |b| b.lo);
    let hi = bound(2).map_or(f64::INFINITY, |b| b.hi);
    x.rising(|v| v.max(lo).min(hi))
}

/// What is known of integers and booleans that no arithmetic makes, by operator.
pub(in crate::precision) fn made(g: &Graph, id: NodeId, v: ValueId) -> Option<Count> {
    let op = g.node(id).op();
    let dtype = g.value(v).ty().dtype();
    let places = [
        "Shape",
        "Size",
        "ArgMax",
        "ArgMin",
        "NonZero",
        "NonMaxSuppression",
        "Unique",
    ];
    if let Some(fill) = ops::ConstantOfShape::of(g, id) {
        let value = fill.node().attrs().tensor("value").cloned();
        let value = value.unwrap_or_else(|| Tensor::vector(&[0f32]));
        return Some(Count::of_constant(&value));
    }
    match op.is_any(&places) || op.is("TopK") && dtype.is_some_and(|d| !d.is_float()) {
        true => Some(Count::SIZE),
        false if op.is_any(&["EyeLike", "OneHot"]) => Some(Count::BIT),
        false => Count::of_type(dtype?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_integers_apart_up_to_their_digits() {
        let to = |hi| Count::of(0.0, hi);
        assert!(to(2048.0).is_exact(HalfFormat::Fp16) && !to(2049.0).is_exact(HalfFormat::Fp16));
        assert!(to(256.0).is_exact(HalfFormat::Bf16) && !to(257.0).is_exact(HalfFormat::Bf16));
    }

    #[test]
    fn what_fits_is_neither_too_large_nor_too_small() {
        let fits = |lo, hi| Count::of(lo, hi).fits(HalfFormat::Fp16);
        assert!(fits(-65504.0, 1.0) && !fits(0.0, 65505.0));
        assert!(fits(0.0, 1.0) && fits(1e-3, 1.0) && !fits(1e-6, 1.0) && !fits(-1.0, -1e-6));
        assert!(Count::of(1e-12, 1e-9).vanishes(HalfFormat::Fp16));
        assert!(!Count::of(1e-12, 1e-9).vanishes(HalfFormat::Bf16));
    }

    #[test]
    fn no_bound_times_zero_is_zero() {
        let product = Count::ANY.corners(Count::of(0.0, 0.0), |a, b| a * b);
        assert_eq!((product.lo, product.hi), (0.0, 0.0));
    }
}
