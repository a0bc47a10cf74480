//! Values as rearrangements of another one.
//!
//! Reshape, Transpose, Squeeze, Unsqueeze, Flatten and picking one slice out of a packed dimension (Gather or Slice of one
//! index, Split into single ones) move elements and change none. A [`View`] composes a chain of them: the dimensions of the
//! source are cut into atoms, and each dimension of the result is a sequence of atoms, as in the notation of einops
//! (`b s (h d) -> b h s d`). Two chains that rearrange alike have the same view, whatever their spelling, and
//! [`View::emit`] writes the shortest.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, limits, ops};

use crate::core::patch::{Patch, Ref};

/// Index into [`View::sizes`].
pub type Atom = usize;

/// A value as a rearrangement of `source`.
#[derive(Clone, Debug)]
pub struct View {
    pub source: ValueId,
    sizes: Vec<Expr>,
    /// Atoms of each dimension of the source; none for a dimension of size 1.
    pub from: Vec<Vec<Atom>>,
    /// Atoms of each dimension of the value.
    pub dims: Vec<Vec<Atom>>,
    /// An atom of which the value holds one index only.
    picked: Option<(Atom, i64)>,
    /// The composed nodes, the one nearest to the value first.
    pub nodes: Vec<NodeId>,
}

/// Longer chains are cut.
const MAX_CHAIN: usize = 24;

/// The value that a node rearranges, if that is all it does.
fn rearranged(g: &Graph, node: NodeId) -> Option<ValueId> {
    let n = g.get(node)?;
    let simple = &["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"];
    if n.op().is_any(simple) {
        return n.input(0);
    }
    let floats = |v: ValueId| g.value(v).ty().dtype().is_some_and(|t| t.is_float());
    if n.op().is_any(&["Split", "Slice"]) {
        return n.input(0).filter(|&v| floats(v));
    }
    let gather = ops::Gather::of(g, node)?;
    let index = gather.constant(1)?;
    // Picking a size out of a shape is arithmetic, not a rearrangement of data.
    let data = n.input(0).filter(|&v| floats(v))?;
    (index.rank() == 0 && index.dtype().is_int()).then_some(data)
}

impl View {
    /// The identity.
    fn whole(facts: &Facts, source: ValueId) -> Option<View> {
        let mut view = View {
            source,
            sizes: Vec::new(),
            from: Vec::new(),
            dims: Vec::new(),
            picked: None,
            nodes: Vec::new(),
        };
        for size in facts.dims(source)? {
            let atoms = match size.as_i64() {
                Some(1) => Vec::new(),
                Some(n) if n <= 0 => return None,
                _ => vec![view.atom(size.clone())],
            };
            view.from.push(atoms);
        }
        view.dims = view.from.clone();
        Some(view)
    }

    /// The value as a rearrangement of the farthest source that is known to be one. `None` if its dimensions are unknown.
    pub fn of(g: &Graph, facts: &Facts, value: ValueId) -> Option<View> {
        let mut chain = Vec::new();
        let mut at = value;
        while let Some(node) = g.producer(at).filter(|_| chain.len() < MAX_CHAIN) {
            let Some(x) = rearranged(g, node) else { break };
            // A value that a rewrite has just made: composed with what is above it once it is known.
            if x.index() >= facts.len() {
                return None;
            }
            if facts.dims(x).is_none() {
                break;
            }
            chain.push((node, at));
            at = x;
        }
        let mut view = View::whole(facts, at)?;
        while let Some((node, made)) = chain.pop() {
            let next = view.clone().then(g, facts, node, made);
            view = match next {
                Some(next) => next,
                None => View::whole(facts, made)?,
            };
        }
        Some(view)
    }

    fn atom(&mut self, size: Expr) -> Atom {
        self.sizes.push(size);
        self.sizes.len() - 1
    }

    pub fn size(&self, atom: Atom) -> &Expr {
        &self.sizes[atom]
    }

    /// The size of a dimension of the value, or of any sequence of atoms.
    pub fn product(&self, atoms: &[Atom]) -> Option<Expr> {
        Expr::product(atoms.iter().map(|&a| self.size(a)))
    }

    fn then(mut self, g: &Graph, facts: &Facts, node: NodeId, made: ValueId) -> Option<View> {
        let n = g.node(node);
        if n.op().is("Transpose") {
            let perm: Vec<usize> = match n.attrs().ints("perm") {
                Some(p) => p
                    .iter()
                    .map(|&k| usize::try_from(k).ok())
                    .collect::<Option<_>>()?,
                None => (0..self.dims.len()).rev().collect(),
            };
            self.dims = permuted(&self.dims, &perm)?;
        } else if let Some(gather) = ops::Gather::of(g, node) {
            let axis = ops::resolve_axis(gather.axis(), self.dims.len())?;
            let index = gather.constant(1)?.as_i64()?;
            self.pick(axis, index)?;
        } else if let Some(split) = ops::Split::of(g, node) {
            let axis = ops::resolve_axis(split.axis(), self.dims.len())?;
            let single = facts.dims(made)?.get(axis)?.as_i64() == Some(1);
            let even = g.node(node).outputs().len() as i64;
            let whole = self.product(&self.dims[axis])?.as_i64();
            (single && whole == Some(even)).then_some(())?;
            let index = (n.outputs().iter()).position(|&v| v == Some(made))?;
            self.pick(axis, i64::try_from(index).ok()?)?;
            self.dims.insert(axis, Vec::new());
        } else if let Some(slice) = ops::Slice::of(g, node) {
            let ranges = slice.ranges()?;
            let [range] = ranges.as_slice() else {
                return None;
            };
            let axis = ops::resolve_axis(range.axis, self.dims.len())?;
            let single = facts.dims(made)?.get(axis)?.as_i64() == Some(1);
            (single && range.step == 1).then_some(())?;
            self.pick(axis, range.start)?;
            self.dims.insert(axis, Vec::new());
        } else {
            self.regroup(facts.dims(made)?)?;
        }
        self.nodes.insert(0, node);
        Some(self)
    }

    /// Takes one index of a dimension, and the dimension away.
    fn pick(&mut self, axis: usize, index: i64) -> Option<()> {
        match (self.dims.remove(axis).as_slice(), self.picked) {
            ([], _) if index == 0 || index == -1 => {}
            ([atom], None) => {
                let size = self.size(*atom).as_i64()?;
                let index = if index < 0 { index + size } else { index };
                (0..size).contains(&index).then_some(())?;
                self.picked = Some((*atom, index));
            }
            _ => return None,
        }
        Some(())
    }

    /// Reshapes to these dimensions, cutting atoms where they must be.
    pub fn regroup(&mut self, target: &[Expr]) -> Option<()> {
        let mut atoms: Vec<Atom> = self.dims.concat();
        atoms.reverse();
        let mut dims = Vec::with_capacity(target.len());
        for size in target {
            let mut group = Vec::new();
            let mut left = size.clone();
            while left.as_i64() != Some(1) {
                let atom = atoms.pop()?;
                if let Some(rest) = left.exact_div(self.size(atom)) {
                    left = rest;
                    group.push(atom);
                    continue;
                }
                let rest = self.size(atom).exact_div(&left)?;
                let (head, tail) = self.cut(atom, left, rest);
                atoms.push(tail);
                group.push(head);
                break;
            }
            dims.push(group);
        }
        self.dims = dims;
        atoms.is_empty().then_some(())
    }

    /// Cuts an atom of the source in two.
    fn cut(&mut self, atom: Atom, head: Expr, tail: Expr) -> (Atom, Atom) {
        let (head, tail) = (self.atom(head), self.atom(tail));
        for group in &mut self.from {
            if let Some(k) = group.iter().position(|&a| a == atom) {
                group.splice(k..=k, [head, tail]);
            }
        }
        (head, tail)
    }

    /// Whether it holds only a part of its source.
    pub fn is_part(&self) -> bool {
        self.picked.is_some()
    }

    /// The view with its last two dimensions exchanged; `None` below rank 2.
    pub fn with_last_two_swapped(mut self) -> Option<View> {
        let n = self.dims.len();
        (n >= 2).then(|| self.dims.swap(n - 2, n - 1))?;
        Some(self)
    }

    /// Where the source repeats each element of a dimension of size 1 by Expand, directly inside dimension `axis` of this
    /// view: the view of what is repeated, and how often. That is how exporters write grouped-query attention:
    /// [batch, kv heads, 1, seq, size] expanded to [batch, kv heads, n, seq, size] and read as [batch, kv heads · n, …], and
    /// one head that is shared by all: [batch, 1, seq, size] expanded to [batch, n, seq, size].
    pub fn unrepeated(&self, g: &Graph, facts: &Facts, axis: usize) -> Option<(View, i64)> {
        let expand = g.producer_if(self.source, "Expand")?;
        let x = g.node(expand).input(0)?;
        let (before, after) = (facts.dims(x)?, facts.dims(self.source)?);
        let mut changed = (0..after.len()).filter(|&k| before.get(k) != after.get(k));
        let (Some(at), None, true) = (changed.next(), changed.next(), before.len() == after.len())
        else {
            return None;
        };
        let repeats = after.get(at)?.as_i64()?;
        let &([inner] | [_, inner]) = self.dims.get(axis)?.as_slice() else {
            return None;
        };
        (self.from.get(at)?.as_slice() == [inner]).then_some(())?;
        let mut view = self.clone();
        view.source = x;
        view.from.get_mut(at)?.clear();
        view.dims.get_mut(axis)?.pop();
        Some((view, repeats))
    }

    /// Nodes of the chain that die if the value is computed otherwise: those that only the chain reads.
    pub fn dying(&self, g: &Graph) -> usize {
        let inner = self.nodes.iter().skip(1).take_while(|&&n| {
            let sole = g.node(n).sole_output().map(|v| g.value(v));
            sole.is_some_and(|v| v.uses().len() == 1 && !v.is_output())
        });
        1 + inner.count()
    }

    /// Whether it is one of several parts that are picked out of one rearrangement of the source, which nothing else reads.
    pub fn is_unpacked(&self, g: &Graph) -> bool {
        let picks = |n: NodeId| g.node(n).op().is_any(&["Gather", "Split", "Slice"]);
        let Some(at) = self.nodes.iter().take(2).position(|&n| picks(n)) else {
            return false;
        };
        let Some(data) = g.node(self.nodes[at]).input(0) else {
            return false;
        };
        let value = g.value(data);
        let direct = at == 0 || !g.node(self.nodes[at]).op().is("Gather");
        let readers = value.uses().iter().all(|usage| picks(usage.node));
        self.is_part() && direct && at + 1 < self.nodes.len() && readers && !value.is_output()
    }

    /// Writes the view with as few nodes as it takes. Gives the value and the number of nodes; `None` where a shape is
    /// not known well enough to be written as a constant.
    pub fn emit(&self, g: &Graph, patch: &mut Patch) -> Option<(Ref, usize)> {
        let kept = self.with_ones();
        let count = |view: &View| Some(view.write(g, &mut Patch::new())?.1);
        let fewer = count(&kept).is_some_and(|k| count(self).is_none_or(|n| k < n));
        if fewer { &kept } else { self }.write(g, patch)
    }

    /// Dimensions of size 1 as atoms, as far as both sides have them. A batch of one is then moved like any other, and need
    /// not be taken away and put back.
    fn with_ones(&self) -> View {
        let mut view = self.clone();
        let empty = |dims: &[Vec<Atom>]| -> Vec<usize> {
            (0..dims.len()).filter(|&k| dims[k].is_empty()).collect()
        };
        for (from, to) in empty(&self.from).into_iter().zip(empty(&self.dims)) {
            let one = view.atom(Expr::from(1));
            view.from[from].push(one);
            view.dims[to].push(one);
        }
        view
    }

    fn write(&self, g: &Graph, patch: &mut Patch) -> Option<(Ref, usize)> {
        let mut view = self.clone();
        let mut count = 0;
        let mut at = Ref::Old(view.source);
        if let Some((atom, index)) = view.picked {
            at = view.split(g, patch, atom, index)?;
            count += 1;
        }
        view.join();
        let order: Vec<Atom> = view.dims.concat();
        if view.from.concat() != order {
            if view.from.iter().any(|d| d.len() != 1) {
                let atoms: Vec<Vec<Atom>> =
                    view.from.concat().into_iter().map(|a| vec![a]).collect();
                at = view.reshape(patch, at, &view.from, &atoms)?;
                view.from = atoms;
                count += 1;
            }
            let perm: Vec<i64> = (order.iter())
                .map(|a| {
                    view.from
                        .iter()
                        .position(|d| d.contains(a))
                        .map(|k| k as i64)
                })
                .collect::<Option<_>>()?;
            at = patch.node(Op::onnx("Transpose"), [at], Attrs::new().with("perm", perm));
            view.from = order.into_iter().map(|a| vec![a]).collect();
            count += 1;
        }
        if view.from != view.dims {
            at = view.reshape(patch, at, &view.from, &view.dims)?;
            count += 1;
        }
        Some((at, count))
    }

    /// The piece of the source at `index` of an atom that leads its dimension.
    fn split(&mut self, g: &Graph, patch: &mut Patch, atom: Atom, index: i64) -> Option<Ref> {
        let axis = self.from.iter().position(|d| d.first() == Some(&atom))?;
        let parts = self.size(atom).as_i64()?;
        let rest = self.product(&self.from[axis][1..])?.as_i64()?;
        let rank = g.value(self.source).ty().rank()?;
        let parts = declared(parts)?;
        let sizes = patch.constant(Tensor::vector(&vec![rest; parts]));
        let axis_attr = if axis + 1 == rank { -1 } else { axis as i64 };
        let outputs = patch.node_with(
            Op::onnx("Split"),
            [Some(Ref::Old(self.source)), Some(sizes)],
            parts,
            Attrs::new().with("axis", axis_attr),
        );
        self.from[axis].remove(0);
        outputs.get(usize::try_from(index).ok()?).copied()
    }

    /// Joins atoms that neither side separates.
    fn join(&mut self) {
        let pairs = |dims: &[Vec<Atom>]| -> Vec<(Atom, Atom)> {
            dims.iter()
                .flat_map(|d| d.windows(2).map(|w| (w[0], w[1])))
                .collect()
        };
        while let Some((head, tail)) = pairs(&self.from)
            .into_iter()
            .find(|p| pairs(&self.dims).contains(p))
        {
            let Some(size) = self.size(head).mul(self.size(tail)) else {
                return;
            };
            let joined = self.atom(size);
            for group in self.from.iter_mut().chain(&mut self.dims) {
                if let Some(k) = group.iter().position(|&a| a == head) {
                    group.splice(k..=k + 1, [joined]);
                }
            }
        }
    }

    fn reshape(
        &self,
        patch: &mut Patch,
        at: Ref,
        from: &[Vec<Atom>],
        to: &[Vec<Atom>],
    ) -> Option<Ref> {
        let mut without_ones = from.iter().filter(|d| !d.is_empty());
        let mut wanted = to.iter().filter(|d| !d.is_empty());
        let same = without_ones.clone().count() == wanted.clone().count()
            && without_ones.all(|d| Some(d) == wanted.next());
        let ones = |dims: &[Vec<Atom>]| -> Vec<i64> {
            let empty = dims.iter().enumerate().filter(|(_, d)| d.is_empty());
            empty.map(|(k, _)| k as i64).collect()
        };
        let (removed, added) = (ones(from), ones(to));
        if same && (removed.is_empty() || added.is_empty()) {
            let (op, axes) = match removed.is_empty() {
                true => ("Unsqueeze", added),
                false => ("Squeeze", removed),
            };
            let axes = patch.constant(Tensor::vector(&axes));
            return Some(patch.node(Op::onnx(op), [at, axes], Attrs::new()));
        }
        let sizes = |dims: &[Vec<Atom>]| -> Option<Vec<Expr>> {
            dims.iter().map(|d| self.product(d)).collect()
        };
        let target = reshape_target(&sizes(from)?, &sizes(to)?)?;
        let target = patch.constant(Tensor::vector(&target));
        Some(patch.node(Op::onnx("Reshape"), [at, target], Attrs::new()))
    }
}

/// The operand of a Reshape between these sizes as a constant: numbers, 0 for a size that stays in its place, and at
/// most one -1. `None` if that cannot say it.
pub fn reshape_target(from: &[Expr], to: &[Expr]) -> Option<Vec<i64>> {
    let target: Vec<i64> = (to.iter().enumerate())
        .map(|(k, size)| match size.as_i64() {
            Some(n) => n,
            None if from.get(k) == Some(size) => 0,
            None => -1,
        })
        .collect();
    let fits = target.iter().filter(|&&d| d == -1).count() <= 1
        && !to.iter().any(|size| size.as_i64() == Some(0));
    fits.then_some(target)
}

fn permuted(dims: &[Vec<Atom>], perm: &[usize]) -> Option<Vec<Vec<Atom>>> {
    (perm.len() == dims.len()).then_some(())?;
    perm.iter().map(|&k| dims.get(k).cloned()).collect()
}
/// A size that the file declares, as a number of elements that a pass may make.
pub(crate) fn declared(size: i64) -> Option<usize> {
    let size = usize::try_from(size).ok()?;
    (size <= limits::DECLARED_AXIS).then_some(size)
}
