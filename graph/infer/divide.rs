//! Division of expressions.

use std::sync::Arc;

use super::atom::{Atom, Term};
use super::expr::{Expr, MAX_WEIGHT};

impl Expr {
    /// Division rounded down, for a divisor that is not 0.
    pub fn floor_div(&self, by: &Expr) -> Option<Expr> {
        match (self.as_i64(), by.as_i64()) {
            (_, Some(0)) => return None,
            (Some(a), Some(b)) => {
                let quotient = a.checked_div(b)?;
                let down = a.checked_rem(b)? != 0 && (a < 0) != (b < 0);
                return quotient.checked_sub(i64::from(down)).map(Expr::from);
            }
            (Some(0), _) => return Some(Expr::from(0)),
            (_, Some(1)) => return Some(self.clone()),
            (_, Some(b)) if b < 0 => {
                let minus = Expr::from(-1);
                return self.mul(&minus)?.floor_div(&by.mul(&minus)?);
            }
            _ => {}
        }
        if let Some(whole) = self.divide_by_sum(by) {
            return Some(whole);
        }
        // Multiples of the divisor leave the floor: floor((q*b + r) / b) = q + floor(r / b).
        let (mut whole, mut rest) = (Vec::new(), Vec::new());
        for term in self.to_terms() {
            match by.monomial().and_then(|b| term.divide(&b)) {
                Some(quotient) => whole.push(quotient),
                None => rest.push(term),
            }
        }
        let whole = Expr::from_terms(whole)?;
        let rest = Expr::from_terms(rest)?;
        if rest == Expr::from(0) {
            return Some(whole);
        }
        let (rest, by) = rest.cancel(by)?;
        whole.add(&rest.floor_atom(&by)?)
    }

    /// Division rounded up, for a divisor above 0.
    pub fn ceil_div(&self, by: &Expr) -> Option<Expr> {
        self.add(by)?.sub(&Expr::from(1))?.floor_div(by)
    }

    /// The quotient where it is exact for certain.
    pub fn exact_div(&self, by: &Expr) -> Option<Expr> {
        let quotient = self.floor_div(by)?;
        (quotient.mul(by)? == *self).then_some(quotient)
    }

    fn floor_atom(&self, by: &Expr) -> Option<Expr> {
        if by.as_i64() == Some(1) {
            return Some(self.clone());
        }
        if let Some(b) = by.as_i64() {
            if self.as_i64().is_some() {
                return self.floor_div(by);
            }
            let bounds = self.bounds();
            if bounds.lo.is_some_and(|lo| lo >= 0) && bounds.hi.is_some_and(|hi| hi < b) {
                return Some(Expr::from(0));
            }
            // floor(floor(x / a) / b) = floor(x / (a * b)) for a and b above 0.
            if let [Term { factors, coeff: 1 }] = self.terms()
                && let [Atom::Floor(inner)] = factors.as_slice()
                && inner.1.as_i64().is_some_and(|a| a > 0)
            {
                return inner.0.floor_div(&inner.1.mul(by)?);
            }
        }
        let atom = Atom::Floor(Arc::new((self.clone(), by.clone())));
        (atom.weight() <= MAX_WEIGHT).then(|| atom.into())
    }

    /// The quotient by a sum of several terms, where it is a single product.
    fn divide_by_sum(&self, by: &Expr) -> Option<Expr> {
        let [lead, _, ..] = by.terms() else {
            return None;
        };
        let quotient = self.terms().first()?.divide(lead)?;
        let quotient = Expr::from_terms(vec![quotient])?;
        (quotient.mul(by)? == *self).then_some(quotient)
    }

    fn monomial(&self) -> Option<Term> {
        match self.to_terms().as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// Both sides without the factors that all their terms share.
    fn cancel(&self, by: &Expr) -> Option<(Expr, Expr)> {
        let (mut above, mut below) = (self.to_terms(), by.to_terms());
        let all = above.iter().chain(&below);
        let divisor = all
            .clone()
            .fold(0u64, |g, t| gcd(g, t.coeff.unsigned_abs()));
        let mut shared = above.first()?.factors.clone();
        for term in all {
            let mut left = term.factors.clone();
            shared.retain(|atom| match left.iter().position(|f| *f == *atom) {
                Some(k) => {
                    left.remove(k);
                    true
                }
                None => false,
            });
        }
        let common = Term {
            factors: shared,
            coeff: i64::try_from(divisor).ok().filter(|&d| d > 0)?,
        };
        for term in above.iter_mut().chain(&mut below) {
            *term = term.divide(&common)?;
        }
        Some((Expr::from_terms(above)?, Expr::from_terms(below)?))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
