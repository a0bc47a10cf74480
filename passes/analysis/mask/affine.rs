//! Whole numbers that are affine in the coordinates of an element.

use kiln_graph::infer::Expr;

/// The axes of attention scores `[B, H, Q, K]`: batch, head, query, key.
pub(super) const AXES: usize = 4;
pub(super) const BATCH: usize = 0;
pub(super) const QUERY: usize = 2;
pub(super) const KEY: usize = 3;

/// `constant + Σ coeffs[a] · coordinate(a)`, where coefficients and constant are expressions over sizes.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Affine {
    coeffs: [Expr; AXES],
    constant: Expr,
}

impl From<Expr> for Affine {
    fn from(constant: Expr) -> Affine {
        Affine {
            coeffs: std::array::from_fn(|_| Expr::from(0)),
            constant,
        }
    }
}

impl From<i64> for Affine {
    fn from(constant: i64) -> Affine {
        Expr::from(constant).into()
    }
}

impl Affine {
    pub fn coordinate(axis: usize) -> Affine {
        Affine {
            coeffs: std::array::from_fn(|a| Expr::from(i64::from(a == axis))),
            constant: Expr::from(0),
        }
    }

    pub fn coeff(&self, axis: usize) -> Option<i64> {
        self.coeffs.get(axis)?.as_i64()
    }

    pub fn constant(&self) -> &Expr {
        &self.constant
    }

    /// The expression, if no coordinate is in it.
    pub fn as_expr(&self) -> Option<&Expr> {
        let free = self.coeffs.iter().all(|c| c.as_i64() == Some(0));
        free.then_some(&self.constant)
    }

    pub fn as_i64(&self) -> Option<i64> {
        self.as_expr()?.as_i64()
    }

    fn zip(&self, other: &Affine, op: impl Fn(&Expr, &Expr) -> Option<Expr>) -> Option<Affine> {
        let mut out = Affine::from(op(&self.constant, &other.constant)?);
        let pairs = self.coeffs.iter().zip(&other.coeffs);
        for (slot, (a, b)) in out.coeffs.iter_mut().zip(pairs) {
            *slot = op(a, b)?;
        }
        Some(out)
    }

    pub fn add(&self, other: &Affine) -> Option<Affine> {
        self.zip(other, Expr::add)
    }

    pub fn sub(&self, other: &Affine) -> Option<Affine> {
        self.zip(other, Expr::sub)
    }

    pub fn scale(&self, by: &Expr) -> Option<Affine> {
        self.zip(self, |a, _| a.mul(by))
    }

    pub fn negate(&self) -> Option<Affine> {
        self.scale(&Expr::from(-1))
    }

    /// The product, where one of the two is free of coordinates.
    pub fn mul(&self, other: &Affine) -> Option<Affine> {
        match (self.as_expr(), other.as_expr()) {
            (_, Some(by)) => self.scale(by),
            (Some(by), None) => other.scale(by),
            (None, None) => None,
        }
    }
}

/// The sizes of the axes: a coordinate runs from 0 to one below its axis' size.
#[derive(Debug)]
pub(super) struct Space {
    pub sizes: [Expr; AXES],
}

impl Space {
    /// The least value over all elements (`most` false) or the largest one. There is at least one element: nothing has
    /// to hold where there is none.
    fn extreme(&self, a: &Affine, most: bool) -> Option<Expr> {
        let mut sum = a.constant.clone();
        for (coeff, size) in a.coeffs.iter().zip(&self.sizes) {
            let grows = coeff.is_nonnegative();
            if !grows && !coeff.mul(&Expr::from(-1))?.is_nonnegative() {
                return None;
            }
            if grows == most {
                sum = sum.add(&coeff.mul(&size.sub(&Expr::from(1))?)?)?;
            }
        }
        Some(sum)
    }

    /// Whether it is at least `bound` at every element for certain.
    pub fn at_least(&self, a: &Affine, bound: &Expr) -> bool {
        let least = self.extreme(a, false);
        least
            .and_then(|l| l.sub(bound))
            .is_some_and(|d| d.is_nonnegative())
    }

    /// Whether it is at most `bound` at every element for certain.
    pub fn at_most(&self, a: &Affine, bound: &Expr) -> bool {
        let most = self.extreme(a, true);
        most.and_then(|m| bound.sub(&m))
            .is_some_and(|d| d.is_nonnegative())
    }

    /// The index into each dimension of the element at this place in row-major order.
    ///
    /// `b·T + k` with `k < T` is `[b, k]` in a tensor of dimensions `[B, T]`. `None` where a part is not certainly below
    /// the stride it would have to be below.
    pub fn unravel(&self, place: &Affine, dims: &[Expr]) -> Option<Vec<Affine>> {
        let mut rest = place.clone();
        let mut index = Vec::with_capacity(dims.len());
        for (k, dim) in dims.iter().enumerate() {
            if dim.as_i64() == Some(1) {
                index.push(Affine::from(0));
                continue;
            }
            let stride = Expr::product(dims.get(k + 1..)?)?;
            let whole = rest.quotient(&stride)?;
            rest = rest.sub(&whole.scale(&stride)?)?;
            let last = stride.sub(&Expr::from(1))?;
            if !self.at_least(&rest, &Expr::from(0)) || !self.at_most(&rest, &last) {
                return None;
            }
            index.push(whole);
        }
        (rest.as_i64() == Some(0)).then_some(index)
    }

    /// The place in row-major order of the element at this index.
    pub fn ravel(index: &[Affine], dims: &[Expr]) -> Option<Affine> {
        let pairs = index.iter().zip(dims);
        pairs
            .into_iter()
            .try_fold(Affine::from(0), |place, (at, dim)| {
                place.scale(dim)?.add(at)
            })
    }
}

impl Affine {
    /// The parts that `stride` divides, divided by it.
    fn quotient(&self, stride: &Expr) -> Option<Affine> {
        let divided = |e: &Expr| match (e.as_i64(), stride.as_i64()) {
            (Some(n), Some(s)) if s > 0 => Expr::from(n.div_euclid(s)),
            _ => e.exact_div(stride).unwrap_or(Expr::from(0)),
        };
        self.zip(self, |e, _| Some(divided(e)))
    }
}
