//! From an input to the attention that reads it, and from a value to the output that it leaves by.

use rustc_hash::FxHashSet;

use super::kinds::{Holds, Update};
use crate::graph::Slot;
use crate::{Attrs, Def, Graph, INTERNAL_DOMAIN, Node, NodeId, ValueId};

/// The node that is the attention, by its depth below the model's graph, the nodes around it, and its own place.
pub(super) type Attention = (usize, usize, usize);

/// Where a cache was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub update: Update,
    pub holds: Holds,
    pub axis: usize,
    pub output: Option<usize>,
    pub attention: Attention,
}

/// A graph within the bodies around it.
pub(super) struct Room<'g> {
    pub graph: &'g Graph,
    pub outer: Option<(&'g Room<'g>, NodeId)>,
}

/// Operators that hand their first operand on, in the same order of elements along each axis.
pub(super) const SAME: &[&str] = &["Identity", "Cast", "DequantizeLinear", "QuantizeLinear"];

/// How far a walk goes between a cache and the product that reads it, or that product and its Softmax.
pub(super) const STEPS: usize = 24;

impl Room<'_> {
    /// Follows an input to where it is joined, written into or read. `axes` are the input's axes as `v` has them.
    pub(super) fn search(
        &self,
        v: ValueId,
        axes: &[usize],
        seen: &mut FxHashSet<ValueId>,
        rank: usize,
    ) -> Option<Place> {
        if !seen.insert(v) {
            return None;
        }
        let mut uses: Vec<_> = self.graph.value(v).uses().to_vec();
        uses.sort_unstable_by_key(|u| (u.node, u.slot));
        for used in &uses {
            let node = self.graph.node(used.node);
            let found = match used.slot {
                Slot::Input(k) => self.at(used.node, node, k as usize, v, axes, seen, rank),
                Slot::Capture(k) => self.within(used.node, node, k, axes, rank),
            };
            if found.is_some() {
                return found;
            }
        }
        if rank < 4 || axes.len() < 4 {
            return None;
        }
        let read = self.only_read(v, axes);
        let (attention, holds, axis) = read.filter(|(.., axis)| *axis < rank)?;
        Some(Place {
            update: Update::Kept,
            holds,
            axis,
            output: self.given_out(v),
            attention,
        })
    }

    /// The attention that reads a value, as what, and the axis of the input that counts tokens by how it is read: a product
    /// takes keys [.., size, tokens] and values [.., tokens, size], operators [batch, heads, tokens, size] or, flat,
    /// [batch, tokens, hidden].
    fn only_read(&self, v: ValueId, axes: &[usize]) -> Option<(Attention, Holds, usize)> {
        const NEW: usize = usize::MAX;
        let ty = |v: ValueId| self.graph.value(v).ty();
        let rank = |n: &Node| ty(n.output(0)?).rank();
        let last = |v: ValueId| ty(v).shape()?.last()?.known();
        let mut open = vec![(v, axes.to_vec(), false)];
        let mut seen = FxHashSet::default();
        while let Some((v, axes, flat)) = open.pop() {
            if !seen.insert(v) || seen.len() > 4 * STEPS {
                continue;
            }
            let mut uses = self.graph.value(v).uses().to_vec();
            uses.sort_unstable_by_key(|u| std::cmp::Reverse((u.node, u.slot)));
            for used in uses {
                let Slot::Input(k) = used.slot else { continue };
                let node = self.graph.node(used.node);
                let list = |k: usize| self.graph.constant(node.input(k)?)?.to_i64s();
                let (mut axes, mut flat) = (axes.clone(), flat);
                match (node.op().domain(), node.op().name(), k) {
                    ("", "MatMul", 1) => {
                        let product = node.input(0).and_then(|o| self.product(used.node, o));
                        let Some((attention, holds)) = product else {
                            continue;
                        };
                        let behind = if holds == Holds::Keys { 1 } else { 2 };
                        return Some((attention, holds, *axes.get(axes.len() - behind)?));
                    }
                    (
                        "" | "com.microsoft" | INTERNAL_DOMAIN,
                        "Attention" | "MultiHeadAttention",
                        1 | 2,
                    )
                    | ("com.microsoft", "GroupQueryAttention", 1 | 2) => {
                        let holds = if k == 1 { Holds::Keys } else { Holds::Values };
                        return Some((self.key(used.node), holds, axes[if flat { 1 } else { 2 }]));
                    }
                    ("", "Mul" | "Div", k) => {
                        let other = node.input(1 - k.min(1) as usize);
                        if other.is_none_or(|o| self.graph.constant(o).is_none()) {
                            continue;
                        }
                    }
                    ("", "Transpose", 0) => match (node.attrs().ints("perm"), axes.len()) {
                        (Some([0, 2, 1]), n) if flat => axes.swap(n - 1, n - 2),
                        (Some(perm), n) if perm.len() == n => {
                            let from = |&p: &i64| {
                                usize::try_from(p).ok()?.lt(&n).then(|| axes[p as usize])
                            };
                            let Some(moved) = perm.iter().map(from).collect() else {
                                continue;
                            };
                            axes = moved;
                        }
                        _ => continue,
                    },
                    // Heads that several queries share are repeated along an axis of their own.
                    ("", "Unsqueeze", 0) => {
                        let at = list(1).or_else(|| node.attrs().ints("axes").map(<[i64]>::to_vec));
                        let Some(&[at]) = at.as_deref() else { continue };
                        let Some(at) = place(at, axes.len() + 1) else {
                            continue;
                        };
                        axes.insert(at, NEW);
                    }
                    ("", "Reshape", 0) => match list(1).map(|to| to.len()).or(rank(node)) {
                        // Rows and heads are one axis, as products of three axes take them.
                        Some(3)
                            if axes.len() == 4
                                && last(v)
                                    .is_some_and(|n| Some(n) == node.output(0).and_then(last)) =>
                        {
                            axes.remove(0);
                        }
                        Some(4) if axes.len() == 3 && !flat => axes.insert(0, NEW),
                        Some(3) if axes.len() == 4 => flat = true,
                        Some(n) if n + 1 == axes.len() => axes.retain(|a| *a != NEW),
                        Some(n) if n == axes.len() => {}
                        // The sizes are computed.
                        None => axes.retain(|a| *a != NEW),
                        _ => continue,
                    },
                    ("", name, 0) if SAME.contains(&name) => {}
                    ("", "Expand" | "Tile" | "Slice", 0) => {}
                    _ => continue,
                }
                let outputs = node.outputs().iter().flatten();
                open.extend(outputs.map(|o| (*o, axes.clone(), flat)));
            }
        }
        None
    }

    fn within(
        &self,
        id: NodeId,
        node: &Node,
        k: u32,
        axes: &[usize],
        rank: usize,
    ) -> Option<Place> {
        let bodies = node.attrs().iter().flat_map(|(_, a)| a.graphs());
        bodies.into_iter().find_map(|body| {
            let captured = |d: &Def| matches!(d, Def::Capture(at) if *at == k);
            let (inner, _) = body.values().find(|(_, v)| captured(v.def()))?;
            let room = Room {
                graph: body,
                outer: Some((self, id)),
            };
            room.search(inner, axes, &mut FxHashSet::default(), rank)
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn at(
        &self,
        id: NodeId,
        node: &Node,
        k: usize,
        v: ValueId,
        axes: &[usize],
        seen: &mut FxHashSet<ValueId>,
        rank: usize,
    ) -> Option<Place> {
        let (op, attrs) = (node.op(), node.attrs());
        let on = |axes: &[usize], seen: &mut FxHashSet<ValueId>| {
            let outputs = node.outputs().iter().flatten();
            outputs
                .copied()
                .find_map(|o| self.search(o, axes, seen, rank))
        };
        match (op.domain(), op.name(), k) {
            ("", name, 0) if SAME.contains(&name) => on(axes, seen),
            // A cache that was joined with nothing first.
            ("", "Concat", 0) if node.inputs().len() == 1 => on(axes, seen),
            ("", "Transpose", 0) => {
                let moved: Vec<usize> = match attrs.ints("perm") {
                    Some(perm) => (perm.iter())
                        .map(|&p| axes.get(usize::try_from(p).ok()?).copied())
                        .collect::<Option<_>>()?,
                    None => axes.iter().rev().copied().collect(),
                };
                on(&moved, seen)
            }
            // One of several caches in a tensor.
            ("", "Split" | "Slice", 0) => on(axes, seen),
            ("", "Gather", 0) => {
                let index = self.graph.constant(node.input(1)?)?;
                let at = axis_of(attrs, 0, axes.len())?;
                let mut left = axes.to_vec();
                if index.rank() == 0 {
                    left.remove(at);
                }
                on(&left, seen)
            }
            ("", "Squeeze", 0) => {
                let list = match node.input(1) {
                    Some(list) => self.graph.constant(list)?.to_i64s()?,
                    None => attrs.ints("axes")?.to_vec(),
                };
                let gone: Vec<usize> = list.iter().filter_map(|&a| place(a, axes.len())).collect();
                let kept = axes.iter().enumerate().filter(|(at, _)| !gone.contains(at));
                on(&kept.map(|(_, a)| *a).collect::<Vec<_>>(), seen)
            }
            ("", "Concat", 0) if node.inputs().len() == 2 => {
                let at = axis_of(attrs, 0, axes.len())?;
                let new = node.input(1)?;
                if new == v || self.graph.constant(new).is_some() {
                    return None;
                }
                self.updated(node.output(0)?, Update::Grows, axes[at])
            }
            ("", "TensorScatter", 0) => {
                let at = axis_of(attrs, -2, axes.len())?;
                self.updated(node.output(0)?, Update::Written, axes[at])
            }
            ("", "Attention", 4 | 5) => self.operator(id, node, k, 1 + (k - 4), axes, 2),
            ("com.microsoft", "MultiHeadAttention", 6 | 7) => {
                self.operator(id, node, k, 1 + (k - 6), axes, 2)
            }
            ("com.microsoft", "GroupQueryAttention", 3 | 4) => {
                self.operator(id, node, k, 1 + (k - 3), axes, 2)
            }
            ("com.microsoft", "Attention", 4) => self.operator(id, node, k, 1, axes, 3),
            _ => None,
        }
    }

    /// A cache that an operator takes and gives back by itself.
    fn operator(
        &self,
        id: NodeId,
        node: &Node,
        k: usize,
        output: usize,
        axes: &[usize],
        axis: usize,
    ) -> Option<Place> {
        let given = node.output(output).and_then(|o| self.given_out(o));
        let update = match (node.op().name(), given) {
            ("GroupQueryAttention", Some(_)) => Update::Shared,
            (_, Some(_)) => Update::Grows,
            // Keys of an encoder: what comes out is not asked for.
            (_, None) => Update::Kept,
        };
        let holds = match (axis, k.is_multiple_of(2)) {
            (3, _) => Holds::Both,
            // The operand of the keys comes before that of the values.
            (_, even) => match even == (node.op().name() != "GroupQueryAttention") {
                true => Holds::Keys,
                false => Holds::Values,
            },
        };
        Some(Place {
            update,
            holds,
            axis: *axes.get(axis)?,
            output: given,
            attention: self.key(id),
        })
    }

    fn updated(&self, joined: ValueId, update: Update, axis: usize) -> Option<Place> {
        let (attention, holds) = self.reads(joined)?;
        Some(Place {
            update,
            holds,
            axis,
            output: self.given_out(joined),
            attention,
        })
    }

    fn key(&self, id: NodeId) -> Attention {
        let mut around = (0, 0);
        let mut at = self.outer;
        while let Some((room, node)) = at {
            around = (around.0 + 1, node.index());
            at = room.outer;
        }
        let order = self.graph.topo_order().unwrap_or_default();
        let place = order.iter().position(|n| *n == id).unwrap_or(id.index());
        (around.0, around.1, place)
    }

    /// The place of the model's output that a value leaves by, as it is, in another order, or stacked on others.
    fn given_out(&self, v: ValueId) -> Option<usize> {
        let mut open = vec![v];
        let mut seen = FxHashSet::default();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || seen.len() > 4 * STEPS {
                continue;
            }
            let here = self.graph.outputs().iter().position(|o| o.value == v);
            match (here, self.outer) {
                (Some(at), None) => return Some(at),
                (Some(at), Some((room, node))) => {
                    if let Some(out) = room.graph.node(node).output(at)
                        && let Some(found) = room.given_out(out)
                    {
                        return Some(found);
                    }
                }
                (None, _) => {}
            }
            for used in self.graph.value(v).uses() {
                let node = self.graph.node(used.node);
                let hands_on = node.op().is_any(SAME)
                    || node
                        .op()
                        .is_any(&["Transpose", "Unsqueeze", "Concat", "Reshape"]);
                if hands_on && matches!(used.slot, Slot::Input(_)) {
                    open.extend(node.outputs().iter().flatten());
                }
            }
        }
        None
    }

    /// The attention that reads a value as its keys or values.
    pub(super) fn reads(&self, v: ValueId) -> Option<(Attention, Holds)> {
        let mut open = vec![v];
        let mut seen = FxHashSet::default();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || seen.len() > 4 * STEPS {
                continue;
            }
            let mut uses = self.graph.value(v).uses().to_vec();
            uses.sort_unstable_by_key(|u| std::cmp::Reverse((u.node, u.slot)));
            for used in uses {
                let Slot::Input(k) = used.slot else { continue };
                let node = self.graph.node(used.node);
                let op = node.op();
                match (op.domain(), op.name(), k) {
                    // Queries and weights stand in front.
                    ("", "MatMul", 1) => {
                        if let Some(found) = node.input(0).and_then(|o| self.product(used.node, o))
                        {
                            return Some(found);
                        }
                    }
                    (
                        "" | "com.microsoft" | INTERNAL_DOMAIN,
                        "Attention" | "MultiHeadAttention",
                        1 | 2,
                    )
                    | ("com.microsoft", "GroupQueryAttention", 1 | 2) => {
                        let holds = if k == 1 { Holds::Keys } else { Holds::Values };
                        return Some((self.key(used.node), holds));
                    }
                    ("", "Mul" | "Div", k) => {
                        let other = node.input(1 - k.min(1) as usize);
                        if other.is_some_and(|o| self.graph.constant(o).is_some()) {
                            open.extend(node.outputs().iter().flatten());
                        }
                    }
                    ("", name, 0)
                        if SAME.contains(&name)
                            || op.is_any(&[
                                "Transpose",
                                "Unsqueeze",
                                "Squeeze",
                                "Expand",
                                "Reshape",
                                "Tile",
                                "Slice",
                                "Gather",
                            ]) =>
                    {
                        open.extend(node.outputs().iter().flatten());
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// What a product with `other` is to an attention: it weighs values where `other` comes of a Softmax, and compares keys
    /// where its own result goes into one.
    fn product(&self, product: NodeId, other: ValueId) -> Option<(Attention, Holds)> {
        self.graph.constant(other).is_none().then_some(())?;
        if let Some(softmax) = self.softmax_before(other) {
            return Some((self.key(softmax), Holds::Values));
        }
        let scores = self.graph.node(product).sole_output()?;
        let softmax = self.softmax_behind(scores)?;
        Some((self.key(softmax), Holds::Keys))
    }

    fn softmax_before(&self, v: ValueId) -> Option<NodeId> {
        let mut open = vec![v];
        let mut seen = FxHashSet::default();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || seen.len() > STEPS {
                continue;
            }
            let Some(id) = self.graph.producer(v) else {
                continue;
            };
            let node = self.graph.node(id);
            let op = node.op();
            if op.is("Softmax") {
                return Some(id);
            }
            if op.is("Where") {
                open.extend([node.input(1), node.input(2)].into_iter().flatten());
            } else if op.is_any(SAME) || op.is_any(&["Reshape", "Dropout", "Mul", "Transpose"]) {
                open.extend(node.input(0));
            }
        }
        None
    }

    fn softmax_behind(&self, v: ValueId) -> Option<NodeId> {
        const BETWEEN: &[&str] = &[
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Where",
            "Reshape",
            "Max",
            "Min",
            "Tanh",
            "Transpose",
            "Clip",
        ];
        let mut open = vec![v];
        let mut seen = FxHashSet::default();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || seen.len() > STEPS {
                continue;
            }
            for used in self.graph.value(v).uses() {
                let node = self.graph.node(used.node);
                if node.op().is("Softmax") {
                    return Some(used.node);
                }
                if node.op().is_any(SAME) || node.op().is_any(BETWEEN) {
                    open.extend(node.outputs().iter().flatten());
                }
            }
        }
        None
    }
}

fn axis_of(attrs: &Attrs, default: i64, rank: usize) -> Option<usize> {
    place(attrs.int("axis").unwrap_or(default), rank)
}

fn place(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}
