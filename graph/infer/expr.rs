//! Sizes as expressions over named sizes, in one canonical form.
//!
//! An [`Expr`] is a sum of products with 64-bit coefficients over atoms: named sizes, anonymous ones, and the few
//! functions that sizes need (floor division, `max`, `min`, broadcasting). Building an expression normalizes it, so two
//! equal polynomials are equal values and print the same text. Arithmetic that would overflow, or grow past a small
//! limit, gives `None` instead of a wrong number.

use std::sync::Arc;

use smallvec::SmallVec;

use super::atom::{Atom, Term};
use super::bounds::Bounds;

/// The largest expression that is kept, in atoms and coefficients.
pub(super) const MAX_WEIGHT: usize = 48;

/// An integer known as an expression over named sizes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Expr(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Repr {
    Const(i64),
    /// Sorted, without zero coefficients, never a lone constant.
    Sum(Arc<[Term]>),
}

impl From<i64> for Expr {
    fn from(value: i64) -> Expr {
        Expr(Repr::Const(value))
    }
}

impl From<Atom> for Expr {
    fn from(atom: Atom) -> Expr {
        let term = Term {
            factors: SmallVec::from_iter([atom]),
            coeff: 1,
        };
        Expr(Repr::Sum([term].into()))
    }
}

impl Expr {
    /// The size of this name, taken literally.
    pub fn symbol(name: &str) -> Expr {
        Atom::Symbol(name.into()).into()
    }

    /// The number, if the expression is one.
    pub fn as_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Const(value) => Some(*value),
            Repr::Sum(_) => None,
        }
    }

    /// The value where named sizes have these values; `None` if one is missing, for division by zero or on overflow.
    pub fn eval(&self, size: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let Repr::Sum(terms) = &self.0 else {
            return self.as_i64();
        };
        terms.iter().try_fold(0i64, |sum, term| {
            let product = (term.factors.iter())
                .try_fold(term.coeff, |p, atom| p.checked_mul(atom.eval(size)?))?;
            sum.checked_add(product)
        })
    }

    /// The expression with named sizes replaced; names without a replacement stay.
    pub fn substitute(&self, with: &dyn Fn(&str) -> Option<Expr>) -> Option<Expr> {
        let Repr::Sum(terms) = &self.0 else {
            return Some(self.clone());
        };
        let mut sum = Expr::from(0);
        for term in terms.iter() {
            let mut product = Expr::from(term.coeff);
            for atom in &term.factors {
                product = product.mul(&atom.substitute(with)?)?;
            }
            sum = sum.add(&product)?;
        }
        Some(sum)
    }

    /// Whether every part of it is a number or a named size.
    pub fn is_named(&self) -> bool {
        self.atoms().all(Atom::is_named)
    }

    pub(super) fn terms(&self) -> &[Term] {
        match &self.0 {
            Repr::Const(_) => &[],
            Repr::Sum(terms) => terms,
        }
    }

    fn atoms(&self) -> impl Iterator<Item = &Atom> {
        self.terms().iter().flat_map(|t| &t.factors)
    }

    pub(super) fn to_terms(&self) -> Vec<Term> {
        match &self.0 {
            Repr::Const(0) => Vec::new(),
            Repr::Const(coeff) => vec![Term {
                factors: SmallVec::new(),
                coeff: *coeff,
            }],
            Repr::Sum(terms) => terms.to_vec(),
        }
    }

    pub(super) fn weight(&self) -> usize {
        let terms = self.terms().iter();
        1 + terms
            .map(|t| 1 + t.factors.iter().map(Atom::weight).sum::<usize>())
            .sum::<usize>()
    }

    pub(super) fn from_terms(mut terms: Vec<Term>) -> Option<Expr> {
        terms.sort_by(|a, b| {
            let constant = |t: &Term| t.factors.is_empty();
            (constant(a), &a.factors).cmp(&(constant(b), &b.factors))
        });
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coeff = last.coeff.checked_add(term.coeff)?;
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|t| t.coeff != 0);
        let expr = match merged.as_slice() {
            [] => Expr::from(0),
            [only] if only.factors.is_empty() => Expr::from(only.coeff),
            _ => Expr(Repr::Sum(merged.into())),
        };
        (expr.weight() <= MAX_WEIGHT).then_some(expr)
    }

    pub fn add(&self, other: &Expr) -> Option<Expr> {
        match (&self.0, &other.0) {
            (Repr::Const(a), Repr::Const(b)) => Some(a.checked_add(*b)?.into()),
            (Repr::Const(0), _) => Some(other.clone()),
            (_, Repr::Const(0)) => Some(self.clone()),
            _ => {
                let mut terms = self.to_terms();
                terms.extend(other.to_terms());
                Expr::from_terms(terms)
            }
        }
    }

    pub fn sub(&self, other: &Expr) -> Option<Expr> {
        self.add(&other.mul(&Expr::from(-1))?)
    }

    pub fn mul(&self, other: &Expr) -> Option<Expr> {
        match (&self.0, &other.0) {
            (Repr::Const(a), Repr::Const(b)) => Some(a.checked_mul(*b)?.into()),
            (Repr::Const(1), _) => Some(other.clone()),
            (_, Repr::Const(1)) => Some(self.clone()),
            _ => {
                let (left, right) = (self.to_terms(), other.to_terms());
                if left.len() * right.len() > MAX_WEIGHT {
                    return None;
                }
                let mut terms = Vec::with_capacity(left.len() * right.len());
                for a in &left {
                    for b in &right {
                        let mut factors = a.factors.clone();
                        factors.extend(b.factors.iter().cloned());
                        factors.sort();
                        let coeff = a.coeff.checked_mul(b.coeff)?;
                        terms.push(Term { factors, coeff });
                    }
                }
                Expr::from_terms(terms)
            }
        }
    }

    /// The product of sizes.
    pub fn product<'a>(sizes: impl IntoIterator<Item = &'a Expr>) -> Option<Expr> {
        sizes.into_iter().try_fold(Expr::from(1), |p, d| p.mul(d))
    }

    pub fn maximum(&self, other: &Expr) -> Option<Expr> {
        extremum(self, other, true)
    }

    pub fn minimum(&self, other: &Expr) -> Option<Expr> {
        extremum(self, other, false)
    }

    /// The size of two dimensions broadcast against each other; `None` for two different numbers, neither of them 1.
    pub fn broadcast(&self, other: &Expr) -> Option<Expr> {
        match (self.as_i64(), other.as_i64()) {
            _ if self == other => return Some(self.clone()),
            (Some(1), _) => return Some(other.clone()),
            (_, Some(1)) => return Some(self.clone()),
            (Some(_), Some(_)) => return None,
            // Whatever is symbolic must be 1 or equal.
            (Some(_), None) => return Some(self.clone()),
            (None, Some(_)) => return Some(other.clone()),
            (None, None) => {}
        }
        let mut sizes: Vec<Expr> = Vec::new();
        for side in [self, other] {
            match side.lone_atom() {
                Some(Atom::Broadcast(list)) => sizes.extend(list.iter().cloned()),
                _ => sizes.push(side.clone()),
            }
        }
        sizes.sort();
        sizes.dedup();
        // Where `min(a, 512)` meets `a`, only a size that leaves them equal can work, or one that is 1.
        let capped: Vec<bool> = (sizes.iter())
            .map(|size| match size.lone_atom() {
                Some(Atom::Min(arms)) => {
                    let rest = arms.iter().filter(|arm| !sizes.contains(arm));
                    arms.iter().any(|arm| sizes.contains(arm))
                        && rest.clone().all(|arm| arm.as_i64().is_some_and(|n| n >= 1))
                }
                _ => false,
            })
            .collect();
        let mut capped = capped.into_iter();
        sizes.retain(|_| !capped.next().unwrap_or(false));
        if let [only] = sizes.as_slice() {
            return Some(only.clone());
        }
        let atom = Atom::Broadcast(sizes.into());
        (atom.weight() <= MAX_WEIGHT).then(|| atom.into())
    }

    pub(super) fn lone_atom(&self) -> Option<&Atom> {
        match self.terms() {
            [Term { factors, coeff: 1 }] => match factors.as_slice() {
                [atom] => Some(atom),
                _ => None,
            },
            _ => None,
        }
    }

    /// The name, if the expression is one named size.
    pub fn lone_symbol(&self) -> Option<&str> {
        match self.lone_atom() {
            Some(Atom::Symbol(name)) => Some(name),
            _ => None,
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        match &self.0 {
            Repr::Const(value) => Bounds::exactly(*value),
            Repr::Sum(terms) => {
                (terms.iter()).fold(Bounds::exactly(0), |sum, term| sum.add(term.bounds()))
            }
        }
    }

    /// Whether it is at least 0 for certain.
    pub fn is_nonnegative(&self) -> bool {
        self.bounds().lo.is_some_and(|lo| lo >= 0)
    }

    /// How the two values compare, where that is certain.
    pub(super) fn difference(&self, other: &Expr) -> Bounds {
        self.sub(other).map_or(Bounds::default(), |d| d.bounds())
    }

    /// Whether the two are equal (`Some(true)`), different (`Some(false)`) or neither for certain.
    pub fn equals(&self, other: &Expr) -> Option<bool> {
        if self == other {
            return Some(true);
        }
        let d = self.difference(other);
        let apart = d.lo.is_some_and(|lo| lo > 0) || d.hi.is_some_and(|hi| hi < 0);
        apart.then_some(false)
    }
}

/// The larger or smaller of two, without arms that another one certainly beats.
fn extremum(a: &Expr, b: &Expr, larger: bool) -> Option<Expr> {
    let mut arms: Vec<Expr> = Vec::new();
    for side in [a, b] {
        let nested = match side.lone_atom() {
            Some(Atom::Max(list)) if larger => list,
            Some(Atom::Min(list)) if !larger => list,
            _ => std::slice::from_ref(side),
        };
        for arm in nested {
            let beats = |x: &Expr, y: &Expr| {
                let d = x.difference(y);
                if larger {
                    d.lo.is_some_and(|lo| lo >= 0)
                } else {
                    d.hi.is_some_and(|hi| hi <= 0)
                }
            };
            if arms.iter().any(|kept| beats(kept, arm)) {
                continue;
            }
            arms.retain(|kept| !beats(arm, kept));
            arms.push(arm.clone());
        }
    }
    arms.sort();
    if let [only] = arms.as_slice() {
        return Some(only.clone());
    }
    let atom = if larger {
        Atom::Max(arms.into())
    } else {
        Atom::Min(arms.into())
    };
    (atom.weight() <= MAX_WEIGHT).then(|| atom.into())
}
