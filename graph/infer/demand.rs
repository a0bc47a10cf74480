//! What a graph demands of sizes that have no number yet.

use std::cell::RefCell;
use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::atom::Atom;
use super::expr::Expr;

/// A condition on named sizes without which a node does not run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Demand {
    /// Both are one size: operands that are joined, inner dimensions of a product, elements before and after a Reshape.
    Equal(Expr, Expr),
    /// Both are one size, or one of them is 1.
    Broadcast(Expr, Expr),
    /// The first ends at the second: a table that is indexed, a constant that is sliced.
    AtMost(Expr, Expr),
}

/// Demands as they are met, each once.
#[derive(Default, Debug)]
pub(super) struct Demands(RefCell<(Vec<Demand>, FxHashSet<Demand>)>);

impl Demands {
    fn push(&self, demand: Demand) {
        let mut all = self.0.borrow_mut();
        if all.1.insert(demand.clone()) {
            all.0.push(demand);
        }
    }

    /// Two sizes that must be one, as far as both have names.
    pub fn equal(&self, a: &Expr, b: &Expr) {
        self.same(a, b, Demand::Equal);
    }

    /// Two sizes of which one may be 1.
    pub fn broadcast(&self, a: &Expr, b: &Expr) {
        let one = |e: &Expr| e.as_i64() == Some(1);
        if !one(a) && !one(b) {
            self.same(a, b, Demand::Broadcast);
        }
    }

    fn same(&self, a: &Expr, b: &Expr, make: fn(Expr, Expr) -> Demand) {
        if a == b
            || !a.is_named()
            || !b.is_named()
            || (a.as_i64().is_some() && b.as_i64().is_some())
        {
            return;
        }
        // `min(a, 512)` is `a` as long as `a` ends at 512.
        match (a.capped_by(b), b.capped_by(a)) {
            (Some(cap), _) => self.at_most(b, &cap),
            (_, Some(cap)) => self.at_most(a, &cap),
            _ => self.push(make(a.clone(), b.clone())),
        }
    }

    /// A size that ends at another.
    pub fn at_most(&self, a: &Expr, b: &Expr) {
        let certain = a.difference(b).hi.is_some_and(|hi| hi <= 0);
        if a.is_named() && b.is_named() && !certain {
            self.push(Demand::AtMost(a.clone(), b.clone()));
        }
    }

    pub fn take(self) -> Vec<Demand> {
        self.0.into_inner().0
    }
}

impl Expr {
    /// The other arm, if this is the smaller of `size` and one other.
    fn capped_by(&self, size: &Expr) -> Option<Expr> {
        match self.lone_atom()? {
            Atom::Min(arms) => match &arms[..] {
                [a, b] if a == size => Some(b.clone()),
                [a, b] if b == size => Some(a.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The names in it.
    pub fn names(&self) -> BTreeSet<String> {
        let names = std::cell::RefCell::new(BTreeSet::new());
        // Only the visit counts: a name that stays as it is changes nothing.
        self.substitute(&|name| {
            names.borrow_mut().insert(name.to_string());
            None
        });
        names.into_inner()
    }

    /// What `name` is where this expression is zero, if it stands there once, alone, with the factor 1 or -1.
    pub fn solve(&self, name: &str) -> Option<Expr> {
        let wanted = Atom::Symbol(name.into());
        let mut found = None;
        let mut rest = Vec::new();
        for term in self.to_terms() {
            match term.factors.as_slice() {
                [only] if *only == wanted && term.coeff.abs() == 1 => found = Some(term.coeff),
                _ => rest.push(term),
            }
        }
        let sign = found?;
        let rest = Expr::from_terms(rest)?;
        if rest.names().contains(name) {
            return None;
        }
        rest.mul(&Expr::from(-sign))
    }

    /// Whether it can only grow with the sizes in it: no part is taken away but a constant.
    pub fn grows(&self) -> bool {
        self.terms()
            .iter()
            .all(|t| t.factors.is_empty() || t.coeff > 0)
    }
}
