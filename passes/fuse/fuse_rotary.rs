//! Rotary position embeddings, from the ways models spell the rotation.

use kiln_graph::{Attrs, Dim, Graph, NodeId, Op, Tensor, ValueId, ops};

use super::half_table::{DEPTH, Halver, Layout, same};
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct FuseRotary;

impl Rule for FuseRotary {
    fn name(&self) -> &'static str {
        "fuse-rotary"
    }

    fn about(&self) -> &'static str {
        "the spelled-out rotation of query and key becomes internal.RotaryEmbedding"
    }

    fn details(&self) -> String {
        "Pairs (a, b) of a head's elements become (a·cos - b·sin, b·cos + a·sin) (Su et al., \"RoFormer\", 2021; \
         RotaryEmbedding-23 of ONNX). Known spellings, with any order of operands:\n\n\
         \x20 - x·cos + Concat(-x[d/2:], x[:d/2])·sin          Llama, NeoX\n\
         \x20 - x·cos + Reshape(stack(-x[1::2], x[0::2]))·sin  GPT-J, interleaved\n\
         \x20 - Concat(a·cos - b·sin, b·cos + a·sin), and stacked for interleaved pairs\n\
         \x20 - Concat(rotated, rest) after one of these       partial rotation\n\n\
         The first two read tables as wide as the head, of which the operator takes one half. Both halves must be \
         proven equal: the table is cos or sin of Concat(f, f), possibly scaled, cast, gathered or sliced by rows, or a \
         constant. x must be [batch, heads, length, size]."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &["Add", "Concat", "Reshape"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        match g.node(root).op().name() {
            "Add" => whole(g, root),
            "Concat" => match partial(g, root) {
                Err(miss) if miss.depth == 0 => in_parts(g, root, root, Layout::Halves),
                found => found,
            },
            _ => {
                let stack = g.node(root).input(0).and_then(|v| g.producer(v));
                let stack = stack.filter(|&n| g.node(n).op().is("Concat"));
                in_parts(g, root, stack.ok_or_else(Miss::none)?, Layout::Pairs)
            }
        }
    }
}

/// The elements of the last axis that a value takes of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    of: ValueId,
    first: bool,
    layout: Layout,
}

fn last_dim(g: &Graph, v: ValueId) -> Option<usize> {
    g.value(v).ty().shape()?.last()?.known()
}

fn is_last(g: &Graph, v: ValueId, axis: i64) -> bool {
    let rank = g.value(v).ty().rank();
    rank.is_some_and(|rank| ops::resolve_axis(axis, rank).is_some_and(|a| a + 1 == rank))
}

/// The range `start..end` by `step` of the last axis of `of`, nodes on the way noted.
fn range(g: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<(ValueId, [usize; 3])> {
    let id = g.producer(v)?;
    nodes.push(id);
    if let Some(slice) = ops::Slice::of(g, id) {
        let x = slice.input(0)?;
        let size = last_dim(g, x)?;
        let ranges = slice.ranges()?;
        let [range] = ranges.as_slice() else {
            return None;
        };
        let place = |at: i64| match at {
            0.. => usize::try_from(at).ok().map(|at| at.min(size)),
            _ => size.checked_sub(usize::try_from(at.unsigned_abs()).ok()?),
        };
        let step = usize::try_from(range.step).ok().filter(|&s| s > 0)?;
        let found = [place(range.start)?, place(range.end)?, step];
        return is_last(g, x, range.axis).then_some((x, found));
    }
    let split = ops::Split::of(g, id)?;
    let x = split.input(0)?;
    let outputs = split.node().outputs();
    let sizes = outputs.iter().map(|o| last_dim(g, (*o)?));
    let sizes: Vec<usize> = sizes.collect::<Option<_>>()?;
    let at = outputs.iter().position(|&o| o == Some(v))?;
    let start = sizes[..at].iter().sum::<usize>();
    is_last(g, x, split.axis()).then_some((x, [start, start + sizes[at], 1]))
}

/// Which half, or which elements of pairs, a value is.
fn part(g: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<Part> {
    let known = nodes.len();
    if let Some((of, [start, end, step])) = range(g, v, nodes) {
        let size = last_dim(g, of).filter(|n| n % 2 == 0 && *n > 0)?;
        let (first, layout) = match (start, end, step) {
            (0, end, 1) if end * 2 == size => (true, Layout::Halves),
            (start, end, 1) if start * 2 == size && end == size => (false, Layout::Halves),
            (0, end, 2) if end + 1 >= size => (true, Layout::Pairs),
            (1, end, 2) if end == size => (false, Layout::Pairs),
            _ => return None,
        };
        return Some(Part { of, first, layout });
    }
    nodes.truncate(known);
    paired(g, v, nodes)
}

/// One element of each pair, where pairs are an axis of their own: `Reshape(x, […, size/2, 2])[…, 0 or 1]`.
fn paired(g: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<Part> {
    let id = g.producer(v)?;
    nodes.push(id);
    let (pairs, at) = match ops::Squeeze::of(g, id) {
        Some(squeeze) => {
            let one = squeeze.input(0)?;
            let axes = squeeze.axes()?;
            let (pairs, [start, end, _]) = range(g, one, nodes)?;
            let last = matches!(axes.as_slice(), [axis] if is_last(g, one, *axis));
            (pairs, (last && end == start + 1).then_some(start)?)
        }
        None => {
            let gather = ops::Gather::of(g, id).filter(|n| n.node().op().is("Gather"))?;
            let pairs = gather.input(0)?;
            let at = usize::try_from(gather.scalar_index()?.rem_euclid(2)).ok()?;
            (pairs, is_last(g, pairs, gather.axis()).then_some(at)?)
        }
    };
    let reshape = g.producer_if(pairs, "Reshape")?;
    nodes.push(reshape);
    let of = g.node(reshape).input(0)?;
    let shape = |v: ValueId| g.value(v).ty().shape();
    let split = match (shape(of)?.split_last()?, shape(pairs)?) {
        ((Dim::Known(size), lead), [rest @ .., Dim::Known(half), Dim::Known(2)]) => {
            half * 2 == *size && same(lead, rest)
        }
        _ => false,
    };
    split.then_some(Part {
        of,
        first: at == 0,
        layout: Layout::Pairs,
    })
}

fn operands(g: &Graph, v: ValueId, op: &str) -> Option<(NodeId, [ValueId; 2])> {
    let id = g.producer_if(v, op)?;
    match g.node(id).inputs() {
        [Some(a), Some(b)] => Some((id, [*a, *b])),
        _ => None,
    }
}

fn both_orders([a, b]: [ValueId; 2]) -> [[ValueId; 2]; 2] {
    [[a, b], [b, a]]
}

/// `x·cos + turned(x)·sin` with full-width tables.
fn whole(g: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let [Some(left), Some(right)] = *g.node(root).inputs() else {
        return Err(Miss::none());
    };
    let mut deepest = Miss::none();
    for [plain, turned] in both_orders([left, right]) {
        let (Some((a, plain)), Some((b, turned))) =
            (operands(g, plain, "Mul"), operands(g, turned, "Mul"))
        else {
            continue;
        };
        for [x, cos] in both_orders(plain) {
            for [turned, sin] in both_orders(turned) {
                let mut nodes = vec![root, a, b];
                let Some(layout) = turn(g, turned, x, &mut nodes) else {
                    continue;
                };
                let found = Rotation {
                    g,
                    root,
                    x,
                    layout,
                    tables: [cos, sin],
                    full: true,
                };
                match found.patch(&nodes) {
                    Ok(patch) => return Ok(patch),
                    Err(miss) if miss.depth > deepest.depth => deepest = miss,
                    Err(_) => {}
                }
            }
        }
    }
    Err(deepest)
}

/// Whether `v` is x turned by a quarter, the second elements of the pairs negated.
fn turn(g: &Graph, v: ValueId, x: ValueId, nodes: &mut Vec<NodeId>) -> Option<Layout> {
    let mut id = g.producer(v)?;
    let stacked = g.node(id).op().is("Reshape");
    if stacked {
        nodes.push(id);
        id = g.producer(g.node(id).input(0)?)?;
    }
    let [negated, kept] = joined(g, id, stacked, nodes)?;
    let negation = g.producer_if(negated, "Neg")?;
    nodes.push(negation);
    let second = part(g, g.node(negation).input(0)?, nodes)?;
    let first = part(g, kept, nodes)?;
    let layout = match stacked {
        true => Layout::Pairs,
        false => Layout::Halves,
    };
    let of_x = |p: Part, first: bool| {
        p == Part {
            of: x,
            first,
            layout,
        }
    };
    (of_x(second, false) && of_x(first, true)).then_some(layout)
}

/// The two operands of a Concat along the last axis, or of one that stacks them as pairs.
fn joined(g: &Graph, id: NodeId, stacked: bool, nodes: &mut Vec<NodeId>) -> Option<[ValueId; 2]> {
    let concat = ops::Concat::of(g, id)?;
    nodes.push(id);
    let [Some(a), Some(b)] = *concat.node().inputs() else {
        return None;
    };
    if !is_last(g, concat.output(0)?, concat.axis()?) {
        return None;
    }
    if !stacked {
        return Some([a, b]);
    }
    let mut inner = |v: ValueId| {
        let id = g.producer_if(v, "Unsqueeze")?;
        nodes.push(id);
        let axes = ops::Unsqueeze::of(g, id)?.axes()?;
        let last = matches!(axes.as_slice(), [axis] if is_last(g, v, *axis));
        g.node(id).input(0).filter(|_| last)
    };
    Some([inner(a)?, inner(b)?])
}

/// `a·cos - b·sin` joined with `b·cos + a·sin`, with half-width tables.
fn in_parts(g: &Graph, root: NodeId, concat: NodeId, layout: Layout) -> Result<Patch, Miss> {
    let mut nodes = vec![root];
    let parts = joined(g, concat, layout == Layout::Pairs, &mut nodes);
    let [turned, other] = parts.ok_or_else(Miss::none)?;
    let (minus, [ac, bs]) = operands(g, turned, "Sub").ok_or_else(Miss::none)?;
    let (plus, sums) = operands(g, other, "Add").ok_or_else(Miss::none)?;
    let products = (operands(g, ac, "Mul"), operands(g, bs, "Mul"));
    let (Some((p, ac)), Some((q, bs))) = products else {
        return Err(Miss::none());
    };
    nodes.extend([minus, plus, p, q]);
    let deep = || Miss::at(other, 5, "it is not the other half of a rotation");
    for [a, cos] in both_orders(ac) {
        for [b, sin] in both_orders(bs) {
            for [bc, as_] in both_orders(sums) {
                let is = |v: ValueId, want: [ValueId; 2]| {
                    let (id, found) = operands(g, v, "Mul")?;
                    both_orders(found).contains(&want).then_some(id)
                };
                let (Some(r), Some(s)) = (is(bc, [b, cos]), is(as_, [a, sin])) else {
                    continue;
                };
                let mut nodes = nodes.clone();
                nodes.extend([r, s]);
                let (Some(a), Some(b)) = (part(g, a, &mut nodes), part(g, b, &mut nodes)) else {
                    continue;
                };
                let x = a.of;
                let pair = [true, false].map(|first| Part {
                    of: x,
                    first,
                    layout,
                });
                if [a, b] != pair {
                    continue;
                }
                return Rotation {
                    g,
                    root,
                    x,
                    layout,
                    tables: [cos, sin],
                    full: false,
                }
                .patch(&nodes);
            }
        }
    }
    Err(deep())
}

/// A rotation as it was found.
struct Rotation<'a> {
    g: &'a Graph,
    root: NodeId,
    x: ValueId,
    layout: Layout,
    /// Cosines and sines as they meet x or its parts.
    tables: [ValueId; 2],
    /// Whether the tables are as wide as x.
    full: bool,
}

impl Rotation<'_> {
    fn patch(&self, nodes: &[NodeId]) -> Result<Patch, Miss> {
        let (g, x) = (self.g, self.x);
        closed(g, self.root, nodes)?;
        let shape = g.value(x).ty().shape().unwrap_or_default();
        let [batch, _, length, Dim::Known(size)] = shape else {
            let why = "it is not [batch, heads, length, size]";
            return Err(Miss::at(x, DEPTH, why));
        };
        // What was stacked is reshaped into x's own shape: the order of elements says that pairs stay together.
        let output = g.node(self.root).output(0).ok_or_else(Miss::none)?;
        let made = g.value(output).ty().shape().unwrap_or_default();
        if !same(made, shape) && self.layout == Layout::Pairs {
            return Err(Miss::at(
                output,
                DEPTH,
                "it is not known to be of x's shape",
            ));
        }
        let mut halver = Halver::new(g, self.layout, *size);
        let mut inputs = vec![Ref::Old(x)];
        for table in self.tables {
            inputs.push(self.table(&mut halver, table, [batch, length], *size)?);
        }
        let mut patch = halver.patch;
        let interleaved = i64::from(self.layout == Layout::Pairs);
        let attrs = Attrs::new().with("interleaved", interleaved);
        let made = patch.node(ops::internal::op("RotaryEmbedding"), inputs, attrs);
        patch.replace(output, made);
        Ok(patch)
    }

    /// The table as `[batch or 1, length, size / 2]`.
    fn table(
        &self,
        halver: &mut Halver<'_>,
        table: ValueId,
        [batch, length]: [&Dim; 2],
        size: usize,
    ) -> Result<Ref, Miss> {
        let g = self.g;
        let wrong = |why: &str| Err(Miss::at(table, DEPTH, why));
        let shape = g.value(table).ty().shape().unwrap_or_default();
        let one = Dim::Known(1);
        let (rows, over, width) = match shape {
            [b, heads, s, w] if *heads == one => (s, b, w),
            [b, s, w] if *b == one => (s, b, w),
            [s, w] => (s, &one, w),
            _ => return wrong("the table is not [batch, 1, length, size]"),
        };
        let want = if self.full { size } else { size / 2 };
        if width.known() != Some(want) {
            return wrong("the table is not as wide as what it rotates");
        }
        if !rows.certainly_equals(length) {
            return wrong("the table is not known to have a row for each place of x");
        }
        if *over != one && !over.certainly_equals(batch) {
            return wrong("the table's batch is not known to be that of x");
        }
        let rank = shape.len();
        // An axis for the heads that was just inserted is left out again.
        let inserted = g.producer_if(table, "Unsqueeze").filter(|&n| {
            let axes = ops::Unsqueeze::of(g, n).and_then(|u| u.axes());
            rank == 4 && matches!(axes.as_deref(), Some([1 | -3]))
        });
        let (table, rank) = match inserted.and_then(|n| g.node(n).input(0)) {
            Some(inner) => (inner, 3),
            None => (table, rank),
        };
        let half = match self.full {
            true => halver.half(table)?,
            false => table.into(),
        };
        let axis = |patch: &mut Patch, op: &str, axis: i64| {
            let axes = patch.constant(Tensor::vector(&[axis]));
            patch.node(Op::onnx(op), [half, axes], Attrs::new())
        };
        Ok(match rank {
            4 => axis(&mut halver.patch, "Squeeze", 1),
            2 => axis(&mut halver.patch, "Unsqueeze", 0),
            _ => half,
        })
    }
}

/// Interior values may not be read from outside: the fusion would leave them to be computed twice.
fn closed(g: &Graph, root: NodeId, nodes: &[NodeId]) -> Result<(), Miss> {
    for &id in nodes.iter().filter(|&&id| id != root) {
        for &v in g.node(id).outputs().iter().flatten() {
            let value = g.value(v);
            if value.is_output() || value.uses().iter().any(|u| !nodes.contains(&u.node)) {
                return Err(Miss::at(v, nodes.len(), "it is used outside the match"));
            }
        }
    }
    Ok(())
}

/// `Concat(RotaryEmbedding(x[:n]), x[n:])` rotates the first n elements of x.
fn partial(g: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let mut nodes = vec![root];
    let [rotated, rest] = joined(g, root, false, &mut nodes).ok_or_else(Miss::none)?;
    let rotary = g.producer(rotated).ok_or_else(Miss::none)?;
    let view = ops::internal::RotaryEmbedding::of(g, rotary).ok_or_else(Miss::none)?;
    let miss = |at: ValueId, why: &str| Err(Miss::at(at, 2, why));
    let inputs = [0, 1, 2].map(|k| view.input(k));
    let ([Some(turned), Some(cos), Some(sin)], Some(output)) = (inputs, g.node(root).output(0))
    else {
        return Err(Miss::none());
    };
    nodes.push(rotary);
    let parts = (range(g, turned, &mut nodes), range(g, rest, &mut nodes));
    let (Some((x, [0, size, 1])), Some((other, [start, end, 1]))) = parts else {
        return miss(rest, "it is not what a slice of the rotated value leaves");
    };
    let whole = x == other && start == size && last_dim(g, x) == Some(end);
    if !whole || view.rotary_embedding_dim() != 0 {
        return miss(rest, "it is not what a slice of the rotated value leaves");
    }
    closed(g, root, &nodes)?;
    let attrs = (view.node().attrs().clone()).with("rotary_embedding_dim", size as i64);
    let mut patch = Patch::new();
    let inputs = [x, cos, sin].map(Ref::Old);
    let made = patch.node(view.node().op(), inputs, attrs);
    patch.replace(output, made);
    Ok(patch)
}
