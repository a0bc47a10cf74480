//! One node under inference: its operands' facts, its attributes, and where contradictions go.

use std::cell::RefCell;

use smallvec::SmallVec;

use super::demand::Demands;
use super::expr::Expr;
use super::fact::{Dims, Fact, Fresh};
use crate::ops::schema;
use crate::{Attr, Graph, Node, Tensor};

/// Facts of a node's outputs; those left out at the end are unknown.
pub(super) type Outs = SmallVec<[Fact; 2]>;

pub(super) struct Call<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    pub facts: &'a [Fact],
    pub fresh: &'a Fresh,
    pub conflicts: &'a RefCell<Vec<String>>,
    pub demands: &'a Demands,
    pub opset: i64,
}

/// Axes that an operator names by an attribute or an input.
pub(super) enum Axes {
    Absent,
    Unknown,
    At(SmallVec<[usize; 4]>),
}

impl<'a> Call<'a> {
    pub fn input(&self, k: usize) -> Option<&'a Fact> {
        self.facts.get(self.node.input(k)?.index())
    }

    pub fn dims(&self, k: usize) -> Option<&'a [Expr]> {
        self.input(k)?.dims.as_deref()
    }

    pub fn values(&self, k: usize) -> Option<&'a [Expr]> {
        self.input(k)?.values.as_deref()
    }

    /// The values of an input that is known in full.
    pub fn ints(&self, k: usize) -> Option<Vec<i64>> {
        self.values(k)?.iter().map(Expr::as_i64).collect()
    }

    pub fn tensor(&self, k: usize) -> Option<&'a Tensor> {
        self.graph.constant(self.node.input(k)?)
    }

    pub fn has(&self, k: usize) -> bool {
        self.node.input(k).is_some()
    }

    /// An integer attribute or its default by the schema; `None` if it is there and of another kind, or without a default.
    pub fn int(&self, name: &str) -> Option<i64> {
        let given = self.node.attrs().get(name);
        match given.or_else(|| schema::default_attr(self.node.op(), name, self.opset))? {
            Attr::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// An integer attribute that no schema has a default for.
    pub fn int_or(&self, name: &str, default: i64) -> Option<i64> {
        match self.node.attrs().get(name) {
            None => Some(default),
            Some(Attr::Int(v)) => Some(*v),
            Some(_) => None,
        }
    }

    /// A list attribute, `Some(None)` if it is absent.
    pub fn list(&self, name: &str) -> Option<Option<&'a [i64]>> {
        match self.node.attrs().get(name) {
            None => Some(None),
            Some(Attr::Ints(v)) => Some(Some(v)),
            Some(_) => None,
        }
    }

    pub fn conflict(&self, message: impl Into<String>) {
        self.conflicts.borrow_mut().push(message.into());
    }

    /// The axis counted from the front; a contradiction if it does not exist.
    pub fn axis(&self, axis: i64, rank: usize) -> Option<usize> {
        let found = resolve(axis, rank);
        if found.is_none() {
            self.conflict(format!("axis {axis} does not exist in rank {rank}"));
        }
        found
    }

    /// Axes by the attribute `axes` (older operator sets) or by input `k`, counted in `rank`.
    pub fn axes(&self, k: usize, rank: usize) -> Option<Axes> {
        let axes = match self.list("axes")? {
            Some(axes) => axes.to_vec(),
            None if !self.has(k) => return Some(Axes::Absent),
            None => match self.ints(k) {
                Some(axes) => axes,
                None => return Some(Axes::Unknown),
            },
        };
        let axes: Option<SmallVec<[usize; 4]>> = axes.iter().map(|&a| self.axis(a, rank)).collect();
        let mut axes = axes?;
        axes.sort_unstable();
        axes.dedup();
        Some(Axes::At(axes))
    }

    /// The same shape as input `k`, without its values.
    pub fn like(&self, k: usize) -> Option<Outs> {
        Some(one(self.dims(k)?.into()))
    }

    /// A size as it comes out of arithmetic, anonymous where that failed.
    pub fn size(&self, computed: Option<Expr>) -> Expr {
        computed.unwrap_or_else(|| self.fresh.size())
    }

    /// The common size of two dimensions that must be equal.
    pub fn unify(&self, a: &Expr, b: &Expr, what: &str) -> Expr {
        if a.equals(b) == Some(false) {
            self.conflict(format!("{what} differ: {a} and {b}"));
        } else {
            self.demands.equal(a, b);
        }
        if b.as_i64().is_some() || (!a.is_named() && b.is_named()) {
            b.clone()
        } else {
            a.clone()
        }
    }

    /// Dimensions of operands broadcast against each other.
    pub fn broadcast(&self, a: &[Expr], b: &[Expr]) -> Option<Dims> {
        let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
        let lead = long.len() - short.len();
        let mut dims: Dims = long[..lead].into();
        for (x, y) in long[lead..].iter().zip(short) {
            let dim = x.broadcast(y);
            if dim.is_none() && x.equals(y) == Some(false) {
                self.conflict(format!(
                    "shapes {} and {} do not broadcast",
                    text(a),
                    text(b)
                ));
                return None;
            }
            self.demands.broadcast(x, y);
            dims.push(self.size(dim));
        }
        Some(dims)
    }
}

pub(super) fn one(dims: Dims) -> Outs {
    SmallVec::from_iter([Fact::of_dims(dims)])
}

pub(super) fn sole(fact: Fact) -> Outs {
    SmallVec::from_iter([fact])
}

pub(super) fn resolve(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let at = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    usize::try_from(at).ok().filter(|_| at < rank)
}

/// `[batch,seq,64]`
pub(super) fn text(dims: &[Expr]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(","))
}
