//! What is certain of an expression's range.

/// An interval of integers; an absent side is unbounded or unknown.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    pub lo: Option<i64>,
    pub hi: Option<i64>,
}

impl Bounds {
    /// Any size.
    pub const SIZE: Bounds = Bounds {
        lo: Some(0),
        hi: None,
    };

    pub fn exactly(value: i64) -> Bounds {
        Bounds {
            lo: Some(value),
            hi: Some(value),
        }
    }

    pub fn add(self, other: Bounds) -> Bounds {
        Bounds {
            lo: both(self.lo, other.lo, i64::checked_add),
            hi: both(self.hi, other.hi, i64::checked_add),
        }
    }

    /// The range of a product; only products of sizes are worth knowing.
    pub fn mul(self, other: Bounds) -> Bounds {
        match (self.lo, other.lo) {
            (Some(a), Some(b)) if a >= 0 && b >= 0 => Bounds {
                lo: Some(a.saturating_mul(b)),
                hi: both(self.hi, other.hi, i64::checked_mul),
            },
            _ => Bounds::default(),
        }
    }

    pub fn scale(self, by: i64) -> Bounds {
        let times = |side: Option<i64>| side.and_then(|v| v.checked_mul(by));
        if by >= 0 {
            Bounds {
                lo: times(self.lo),
                hi: times(self.hi),
            }
        } else {
            Bounds {
                lo: times(self.hi),
                hi: times(self.lo),
            }
        }
    }

    pub fn floor_div(self, by: Bounds) -> Bounds {
        match by {
            Bounds { lo: Some(b), hi } if hi == Some(b) && b > 0 => Bounds {
                lo: self.lo.map(|v| v.div_euclid(b)),
                hi: self.hi.map(|v| v.div_euclid(b)),
            },
            // The divisor is not 0, so a size divides to something smaller.
            Bounds { lo: Some(0..), .. } if self.lo.is_some_and(|lo| lo >= 0) => Bounds {
                lo: Some(0),
                hi: self.hi,
            },
            _ => Bounds::default(),
        }
    }

    pub fn max(arms: impl Iterator<Item = Bounds>) -> Bounds {
        let start = Bounds {
            lo: None,
            hi: Some(i64::MIN),
        };
        arms.fold(start, |m, b| Bounds {
            lo: m.lo.max(b.lo),
            hi: both(m.hi, b.hi, |a, b| Some(a.max(b))),
        })
    }

    pub fn min(arms: impl Iterator<Item = Bounds>) -> Bounds {
        let start = Bounds {
            lo: Some(i64::MAX),
            hi: None,
        };
        arms.fold(start, |m, b| Bounds {
            lo: both(m.lo, b.lo, |a, b| Some(a.min(b))),
            hi: match (m.hi, b.hi) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        })
    }
}

fn both(a: Option<i64>, b: Option<i64>, f: fn(i64, i64) -> Option<i64>) -> Option<i64> {
    f(a?, b?)
}
