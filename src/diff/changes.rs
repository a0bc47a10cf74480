//! What is different at each node, and which pass did it.

use std::collections::BTreeMap;

use kiln_graph::ops::traits::is_commutative;
use kiln_graph::{Attr, Def, Tensor, ValueId};
use rustc_hash::FxHashMap;

use super::nodes::{Item, Nodes};
use super::pairs::Pairs;
use super::sides::Read;

/// Which nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    OnlyA(usize),
    OnlyB(usize),
    Both(usize, usize),
}

/// A difference.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub kind: Kind,
    /// Of a node in both: what differs.
    pub what: String,
    pub pass: Option<String>,
}

/// All differences, those of the first model's nodes in its order, then what only the second has.
pub(super) fn all(
    first: &Read,
    second: &Read,
    left: &Nodes<'_>,
    right: &Nodes<'_>,
    pairs: &Pairs,
) -> Vec<Change> {
    let (a, b) = (&left.items, &right.items);
    let retype = second.retypes().or_else(|| first.retypes());
    let (removed_b, removed_a) = (second.removed(), first.removed());
    let instead: FxHashMap<usize, usize> = pairs.instead.iter().map(|(b, a)| (*a, *b)).collect();
    let mut changes = Vec::new();
    for (k, item) in a.iter().enumerate() {
        let Some(at) = pairs.of_a[k] else {
            // What has its result's name now took its place.
            let taken = instead.get(&k).and_then(|&at| b[at].pass());
            let pass = gone(item, &removed_b, taken);
            changes.push(Change {
                kind: Kind::OnlyA(k),
                what: String::new(),
                pass,
            });
            continue;
        };
        let other = &b[at];
        if let Some(what) = differs((left, item), (right, other), pairs) {
            let anew = other.pass().filter(|p| item.pass() != Some(p));
            let pass = match what {
                What::Types(_) => retype.or(anew),
                _ => anew,
            };
            changes.push(Change {
                kind: Kind::Both(k, at),
                what: what.to_string(),
                pass: pass.map(String::from),
            });
        }
    }
    for (at, item) in b
        .iter()
        .enumerate()
        .filter(|(at, _)| pairs.of_b[*at].is_none())
    {
        let replaced = pairs.instead.get(&at).and_then(|&k| a[k].pass());
        let pass = match item.pass() {
            Some(pass) => Some(pass.to_string()),
            None => gone(item, &removed_a, replaced),
        };
        changes.push(Change {
            kind: Kind::OnlyB(at),
            what: String::new(),
            pass,
        });
    }
    changes
}

/// The pass that is behind a node of one model that the other has not: it removed it there, or made it here.
fn gone(item: &Item<'_>, removed: &BTreeMap<&str, &str>, taken: Option<&str>) -> Option<String> {
    let outermost = item.within.is_empty();
    let known = removed.get(item.result()).copied().filter(|_| outermost);
    known.or(taken).or(item.pass()).map(String::from)
}

/// What differs at a node that both have: what says most.
#[derive(Debug, PartialEq)]
enum What {
    Types(String),
    Constants(String),
    Attributes(String),
    Operands,
    Sizes(String),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Types(how) | What::Constants(how) | What::Sizes(how) => f.write_str(how),
            What::Attributes(names) => write!(f, "attribute {names}"),
            What::Operands => f.write_str("reads other values"),
        }
    }
}

/// A node, and those of its model.
type Place<'n, 'g> = (&'n Nodes<'g>, &'n Item<'g>);

fn differs(left: Place<'_, '_>, right: Place<'_, '_>, pairs: &Pairs) -> Option<What> {
    let (x, y) = (left.1, right.1);
    types(x, y)
        .or_else(|| constants(x, y))
        .or_else(|| attributes(x, y))
        .or_else(|| operands(left, right, pairs))
        .or_else(|| sizes(x, y))
}

fn types(x: &Item<'_>, y: &Item<'_>) -> Option<What> {
    let both = x.node().outputs().iter().zip(y.node().outputs());
    let both = both.filter_map(|(v, w)| Some(((*v)?, (*w)?)));
    both.into_iter().find_map(|(v, w)| {
        let (from, to) = (
            x.graph.value(v).ty().dtype()?,
            y.graph.value(w).ty().dtype()?,
        );
        (from != to).then(|| What::Types(format!("{from} → {to}")))
    })
}

fn sizes(x: &Item<'_>, y: &Item<'_>) -> Option<What> {
    let both = x.node().outputs().iter().zip(y.node().outputs());
    let both = both.filter_map(|(v, w)| Some(((*v)?, (*w)?)));
    both.into_iter().find_map(|(v, w)| {
        let (from, to) = (x.graph.value(v).ty(), y.graph.value(w).ty());
        from.conflicts(to)
            .then(|| What::Sizes(format!("{from} → {to}")))
    })
}

/// Operands; where their order means nothing, a constant is the last.
fn reads(item: &Item<'_>) -> Vec<Option<ValueId>> {
    let mut all = item.node().inputs().to_vec();
    let constant = |v: &Option<ValueId>| v.is_some_and(|v| item.graph.constant(v).is_some());
    if let [first, last] = all.as_mut_slice()
        && is_commutative(item.op())
        && constant(first)
        && !constant(last)
    {
        std::mem::swap(first, last);
    }
    all
}

fn constants(x: &Item<'_>, y: &Item<'_>) -> Option<What> {
    let both = reads(x).into_iter().zip(reads(y));
    both.into_iter().find_map(|(v, w)| {
        let (s, t) = (x.graph.constant(v?)?, y.graph.constant(w?)?);
        (!s.same_bits(t)).then(|| What::Constants(tensors(s, t)))
    })
}

fn tensors(s: &Tensor, t: &Tensor) -> String {
    match (s.dtype() == t.dtype(), s.dims() == t.dims()) {
        (false, _) => format!("constants {} → {}", s.dtype(), t.dtype()),
        (_, false) => "constants of other sizes".into(),
        _ => "other constants".into(),
    }
}

fn attributes(x: &Item<'_>, y: &Item<'_>) -> Option<What> {
    let (p, q) = (x.node().attrs(), y.node().attrs());
    let mut names: Vec<&str> = (p.iter().chain(q.iter()))
        .map(|(name, _)| &**name)
        .filter(|name| match (p.get(name), q.get(name)) {
            // Their nodes are compared on their own.
            (Some(v), Some(w)) if !v.graphs().is_empty() && !w.graphs().is_empty() => false,
            (Some(Attr::Opaque(v)), Some(Attr::Opaque(w))) => v != w,
            (Some(v), Some(w)) => !v.same(w),
            _ => true,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| What::Attributes(names.join(", ")))
}

/// Whether an operand is another value although both models have both: what was made or removed before a node is told there.
fn operands(left: Place<'_, '_>, right: Place<'_, '_>, pairs: &Pairs) -> Option<What> {
    let (p, mut q) = (reads(left.1), reads(right.1));
    let others = |q: &[Option<ValueId>]| {
        (0..p.len().max(q.len())).any(|k| {
            match (p.get(k).copied().flatten(), q.get(k).copied().flatten()) {
                (None, None) => false,
                (Some(v), Some(w)) => !alike((left, v), (right, w), pairs),
                (Some(_), None) | (None, Some(_)) => true,
            }
        })
    };
    if !others(&q) {
        return None;
    }
    q.reverse();
    let swapped = q.len() == 2 && is_commutative(right.1.op()) && !others(&q);
    (!swapped).then_some(What::Operands)
}

fn alike(
    ((a, x), v): (Place<'_, '_>, ValueId),
    ((b, y), w): (Place<'_, '_>, ValueId),
    pairs: &Pairs,
) -> bool {
    let (from, to) = (x.graph.value(v), y.graph.value(w));
    if !from.name().is_empty() && from.name() == to.name() {
        return true;
    }
    let alone_a = || a.producer(x, v).is_none_or(|p| pairs.of_a[p].is_none());
    let alone_b = || b.producer(y, w).is_none_or(|q| pairs.of_b[q].is_none());
    match (from.def(), to.def()) {
        (Def::Node(_, i), Def::Node(_, j)) => {
            let same = a.producer(x, v).and_then(|p| pairs.of_a[p]) == b.producer(y, w);
            alone_a() || alone_b() || same && i == j
        }
        (Def::Node(..), _) => alone_a(),
        (_, Def::Node(..)) => alone_b(),
        // What differs in them is told of constants.
        (Def::Constant(_), Def::Constant(_)) => true,
        (Def::Input(i), Def::Input(j)) | (Def::Capture(i), Def::Capture(j)) => i == j,
        _ => false,
    }
}
