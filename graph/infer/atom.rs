//! Products and atoms: the parts of an expression.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bounds::Bounds;
use super::expr::Expr;

/// A coefficient times a product of atoms; no atoms is the constant term, which comes last.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Term {
    pub factors: SmallVec<[Atom; 2]>,
    pub coeff: i64,
}

/// What an expression is built from.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Atom {
    /// A named size: at least 0.
    Symbol(Arc<str>),
    /// A value that nothing names, the same wherever its number appears in one run.
    Fresh {
        id: u32,
        size: bool,
    },
    /// Division rounded down; the divisor is assumed not to be 0.
    Floor(Arc<(Expr, Expr)>),
    Max(Arc<[Expr]>),
    Min(Arc<[Expr]>),
    /// The common size of dimensions that are equal or 1.
    Broadcast(Arc<[Expr]>),
}

impl Term {
    /// The quotient, if the division is exact.
    pub fn divide(&self, by: &Term) -> Option<Term> {
        if by.coeff == 0 || self.coeff.checked_rem(by.coeff)? != 0 {
            return None;
        }
        let mut factors = self.factors.clone();
        for atom in &by.factors {
            let k = factors.iter().position(|f| f == atom)?;
            factors.remove(k);
        }
        Some(Term {
            factors,
            coeff: self.coeff.checked_div(by.coeff)?,
        })
    }

    pub fn bounds(&self) -> Bounds {
        let product = (self.factors.iter()).fold(Bounds::exactly(1), |p, a| p.mul(a.bounds()));
        product.scale(self.coeff)
    }
}

impl Atom {
    fn parts(&self) -> &[Expr] {
        match self {
            Atom::Max(arms) | Atom::Min(arms) | Atom::Broadcast(arms) => arms,
            _ => &[],
        }
    }

    pub fn weight(&self) -> usize {
        match self {
            Atom::Floor(inner) => 1 + inner.0.weight() + inner.1.weight(),
            _ => 1 + self.parts().iter().map(Expr::weight).sum::<usize>(),
        }
    }

    pub fn is_named(&self) -> bool {
        match self {
            Atom::Fresh { .. } => false,
            Atom::Floor(inner) => inner.0.is_named() && inner.1.is_named(),
            _ => self.parts().iter().all(Expr::is_named),
        }
    }

    pub fn bounds(&self) -> Bounds {
        match self {
            Atom::Symbol(_) | Atom::Fresh { size: true, .. } => Bounds::SIZE,
            Atom::Fresh { size: false, .. } => Bounds::default(),
            Atom::Floor(inner) => inner.0.bounds().floor_div(inner.1.bounds()),
            Atom::Max(arms) => Bounds::max(arms.iter().map(Expr::bounds)),
            Atom::Min(arms) => Bounds::min(arms.iter().map(Expr::bounds)),
            Atom::Broadcast(_) => Bounds::SIZE,
        }
    }

    pub fn eval(&self, size: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut parts = self.parts().iter().map(|e| e.eval(size));
        match self {
            Atom::Symbol(name) => size(name),
            Atom::Fresh { .. } => None,
            Atom::Floor(inner) => Expr::from(inner.0.eval(size)?)
                .floor_div(&inner.1.eval(size)?.into())?
                .as_i64(),
            Atom::Max(_) => parts.try_fold(i64::MIN, |m, v| Some(m.max(v?))),
            Atom::Min(_) => parts.try_fold(i64::MAX, |m, v| Some(m.min(v?))),
            Atom::Broadcast(_) => parts.try_fold(1, |m, v| match (m, v?) {
                (1, v) => Some(v),
                (m, v) => (v == 1 || v == m).then_some(m),
            }),
        }
    }

    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Expr>) -> Option<Expr> {
        let fold = |join: &dyn Fn(&Expr, &Expr) -> Option<Expr>| {
            let mut parts = self.parts().iter().map(|e| e.substitute(with));
            let first = parts.next()??;
            parts.try_fold(first, |a, b| join(&a, &b?))
        };
        match self {
            Atom::Symbol(name) => Some(with(name).unwrap_or_else(|| self.clone().into())),
            Atom::Fresh { .. } => Some(self.clone().into()),
            Atom::Floor(inner) => inner
                .0
                .substitute(with)?
                .floor_div(&inner.1.substitute(with)?),
            Atom::Max(_) => fold(&Expr::maximum),
            Atom::Min(_) => fold(&Expr::minimum),
            Atom::Broadcast(_) => fold(&Expr::broadcast),
        }
    }
}
