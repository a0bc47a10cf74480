//! Rows that nothing reads are not computed.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, Dim, Graph, INTERNAL_DOMAIN, Model, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss, Pass, PassFailure, in_each_graph};
use crate::core::patch::{Patch, Ref};

#[derive(Debug)]
pub struct TakeRows;

const NAME: &str = "take-rows";

impl Pass for TakeRows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "compute only the one row of the last layer that a classifier reads"
    }

    fn details(&self) -> String {
        "`Gather(LayerNormalization(Add(x, MatMul(a, w))), 0)` becomes the norm and the product of `Gather(x, 0)` and \
         `Gather(a, 0)`, if nothing reads the other rows: a pooler reads the first token of the last layer only. Through attention \
         it moves to the queries; keys and values stay whole. The row is one constant index, or a Slice of the first or last one, of \
         an axis that is neither the first nor the last. A causal attention lets pass the last row, which sees all keys. A norm \
         whose other rows are outputs of the model only is computed twice, which is less than its rows are."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        cx.misses.retain(|m| m.pass != NAME);
        // Squeeze takes its axes as an input from then on.
        if model.graph.opset() < 13 {
            return Ok(0);
        }
        in_each_graph(model, &mut |g| {
            let mut open: Vec<NodeId> = g.nodes().map(|(id, _)| id).collect();
            open.retain(|&id| Taken::of(g, id).is_some());
            let mut applied = 0;
            while let Some(root) = open.pop() {
                let taken = g.get(root).and_then(|_| Taken::of(g, root));
                let Some(Ok(moved)) = taken.map(|t| Moved::of(g, t)) else {
                    continue;
                };
                let label = g.label(moved.node);
                if !cx.admit(NAME, || label.clone()) {
                    break;
                }
                let sources: Vec<ValueId> = moved.sources(g).collect();
                let patch = moved.write(g);
                patch
                    .apply(g, moved.node, NAME)
                    .map_err(|e| PassFailure::Node {
                        node: label,
                        why: format!("the rewrite does not fit: {e}"),
                    })?;
                applied += 1;
                for v in sources {
                    let mut takes = g.value(v).uses().iter().map(|u| u.node);
                    open.extend(takes.find(|&id| Taken::of(g, id).is_some()));
                }
            }
            let left: Vec<NodeId> = g.nodes().map(|(id, _)| id).collect();
            for root in left {
                if let Some(Err(miss)) = Taken::of(g, root).map(|t| Moved::of(g, t)) {
                    cx.record(NAME, g, root, miss);
                }
            }
            Ok(applied)
        })
    }
}

/// One row of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    axis: usize,
    /// From the end, if negative.
    index: i64,
}

/// What a node takes.
#[derive(Clone, Copy, Debug)]
struct Taken {
    x: ValueId,
    row: Row,
    /// The axis is dropped from the result.
    drops: bool,
}

impl Taken {
    fn of(g: &Graph, id: NodeId) -> Option<Taken> {
        let node = g.node(id);
        let x = node.input(0)?;
        let (axis, index, drops) = if node.op().is("Gather") {
            let gather = ops::Gather::of(g, id)?;
            let index = gather.constant(1).filter(|t| t.len() == 1)?;
            (index.rank() < 2).then_some(())?;
            (gather.axis(), index.as_i64()?, index.rank() == 0)
        } else {
            let ranges = ops::Slice::of(g, id)?.ranges()?;
            let [range] = ranges.as_slice() else {
                return None;
            };
            // Other rows are missing where there are fewer, which a Gather is an error for.
            let first = range.start == 0 && range.end == 1;
            let last = range.start == -1 && range.end >= i64::from(i32::MAX);
            (range.step == 1 && (first || last)).then_some(())?;
            (range.axis, range.start, false)
        };
        let shape = g.value(x).ty().shape()?;
        let axis = ops::resolve_axis(axis, shape.len())?;
        let inner = axis > 0 && axis + 1 < shape.len() && shape[axis].known() != Some(1);
        let row = Row { axis, index };
        inner.then_some(Taken { x, row, drops })
    }
}

/// A node that computes rows, and what it computes one of them from.
struct Moved {
    node: NodeId,
    row: Row,
    /// For each operand, the axis that the row is taken of; `None` where it is read whole.
    operands: Vec<Option<usize>>,
}

impl Moved {
    fn of(g: &Graph, taken: Taken) -> Result<Moved, Miss> {
        let Taken { x, row, .. } = taken;
        let node = g.producer(x).ok_or_else(Miss::none)?;
        let outputs = || g.node(node).outputs().iter().flatten();
        let taken = |v: &ValueId| {
            let mut uses = g.value(*v).uses().iter();
            uses.all(|u| {
                g.node(u.node).input(0) == Some(*v)
                    && Taken::of(g, u.node).is_some_and(|t| t.row == row)
            })
        };
        let inside = |v: &ValueId| is_norm(g, node) || !g.value(*v).is_output();
        if !(outputs().all(taken) && outputs().all(inside)) {
            return Err(Miss::at(x, 1, "its other rows are read, too"));
        }
        let operands = operands(g, node, x, row);
        let operands =
            operands.ok_or_else(|| Miss::at(x, 1, "a row of it takes more than a row"))?;
        Ok(Moved {
            node,
            row,
            operands,
        })
    }

    /// What rows are taken of.
    fn sources<'a>(&'a self, g: &'a Graph) -> impl Iterator<Item = ValueId> + 'a {
        let inputs = g.node(self.node).inputs().iter().zip(&self.operands);
        inputs.filter_map(|(v, axis)| axis.and(*v))
    }

    fn write(&self, g: &Graph) -> Patch {
        let node = g.node(self.node);
        let mut patch = Patch::new();
        let take = |patch: &mut Patch, v: ValueId, axis: usize| {
            let index = patch.constant(Tensor::vector(&[self.row.index]));
            let attrs = Attrs::new().with("axis", axis as i64);
            patch.node(Op::onnx("Gather"), [v.into(), index], attrs)
        };
        let mut inputs: Vec<Option<Ref>> = Vec::new();
        for (v, axis) in node.inputs().iter().zip(&self.operands) {
            inputs.push(v.map(|v| match axis {
                Some(axis) => take(&mut patch, v, *axis),
                None => v.into(),
            }));
        }
        let mut attrs = node.attrs().clone();
        let y = node.output(0);
        if let Some(shape) = y.and_then(|y| leading(g, self.node, y, self.row)) {
            inputs.truncate(1);
            inputs.push(Some(patch.constant(Tensor::vector(&shape))));
            attrs.remove("allowzero");
        }
        if InternalAttention::of(g, self.node).is_some() {
            attrs.remove("is_causal");
        }
        let made = patch.again(node, inputs, attrs);
        let axis = patch.constant(Tensor::vector(&[self.row.axis as i64]));
        for (old, new) in node.outputs().iter().zip(made) {
            let uses = old.map_or(&[][..], |v| g.value(v).uses());
            for used in uses {
                let (Some(taken), Some(y)) = (Taken::of(g, used.node), g.node(used.node).output(0))
                else {
                    continue;
                };
                let row = match taken.drops {
                    true => patch.node(Op::onnx("Squeeze"), [new, axis], Attrs::new()),
                    false => new,
                };
                patch.replace(y, row);
            }
        }
        patch
    }
}

fn is_internal(g: &Graph, node: NodeId, name: &str) -> bool {
    let op = g.node(node).op();
    op.domain() == INTERNAL_DOMAIN && op.name() == name
}

fn is_norm(g: &Graph, node: NodeId) -> bool {
    let op = g.node(node).op();
    op.is_any(&["LayerNormalization", "RMSNormalization"])
        || is_internal(g, node, "RMSNormalization")
}

/// For each operand the axis of which one row is enough for this row of `y`, or `None` if it takes the whole operand. `None`
/// for nodes whose rows depend on one another.
fn operands(g: &Graph, id: NodeId, y: ValueId, row: Row) -> Option<Vec<Option<usize>>> {
    let node = g.node(id);
    let shape = g.value(y).ty().shape()?;
    let rank = shape.len();
    let alone = |axis: usize| {
        let rest = node.inputs().len().saturating_sub(1);
        let all = std::iter::once(Some(axis)).chain(std::iter::repeat_n(None, rest));
        Some(all.collect::<Vec<_>>())
    };
    let rank_of = |k: usize| g.value(node.input(k)?).ty().rank();
    let behind = |axis: i64| ops::resolve_axis(axis, rank).is_some_and(|a| a > row.axis);
    if ops::traits::is_elementwise(node.op()) || node.op().is("Where") {
        let inputs = node.inputs().iter();
        let broadcast = inputs.map(|v| match v {
            Some(v) => broadcast(g, *v, shape, row.axis),
            None => Some(None),
        });
        return broadcast.collect();
    }
    if node.op().is_any(&["QuantizeLinear", "DequantizeLinear"]) {
        let one = g.constant(node.input(1)?)?.len() == 1;
        return one.then(|| alone(row.axis))?;
    }
    if is_norm(g, id) {
        let axis = node.attrs().int("axis").unwrap_or(-1);
        let vectors = (1..node.inputs().len()).all(|k| rank_of(k).is_none_or(|r| r <= 1));
        let last = behind(axis) && vectors && node.outputs().iter().skip(1).all(Option::is_none);
        return last.then(|| alone(row.axis))?;
    }
    if node.op().is("Softmax") {
        let softmax = ops::Softmax::of(g, id)?;
        return (behind(softmax.axis()) && !softmax.flattens()).then(|| alone(row.axis))?;
    }
    if node.op().is("MatMul") {
        let rows = row.axis + 2 == rank || rank_of(1) == Some(2);
        return (rows && rank_of(0) == Some(rank)).then(|| alone(row.axis))?;
    }
    if node.op().is("Transpose") {
        let perm = ops::Transpose::of(g, id)?.perm()?;
        return alone(*perm.get(row.axis)?);
    }
    if node.op().is("Split") {
        let axis = ops::resolve_axis(ops::Split::of(g, id)?.axis(), rank)?;
        return (axis != row.axis).then(|| alone(row.axis))?;
    }
    if node.op().is("Reshape") {
        leading(g, id, y, row)?;
        return alone(row.axis);
    }
    let attention = InternalAttention::of(g, id)?;
    let length = |k: usize| g.value(node.input(k)?).ty().shape()?.get(row.axis);
    // The last query sees all keys, unless there are more of these.
    let sees_all = || Some(length(0)?.certainly_equals(length(1)?));
    let unmasked = !attention.is_causal() || (row.index == -1 && sees_all() == Some(true));
    (rank == 4 && row.axis == 2 && attention.probabilities().is_none() && unmasked).then_some(())?;
    let mut found = alone(row.axis)?;
    if let Some(bias) = attention.bias() {
        *found.get_mut(3)? = broadcast(g, bias, shape, row.axis)?;
    }
    Some(found)
}

/// The axis of an operand that becomes `axis` of a result of this shape, `None` inside where it is broadcast.
fn broadcast(g: &Graph, v: ValueId, shape: &[Dim], axis: usize) -> Option<Option<usize>> {
    let own = g.value(v).ty().shape()?;
    let Some(own_axis) = (axis + own.len()).checked_sub(shape.len()) else {
        return Some(None);
    };
    let dim = own.get(own_axis)?;
    if dim.known() == Some(1) {
        return Some(None);
    }
    let same = dim.certainly_equals(&shape[axis]) && !dim.is_anonymous();
    same.then_some(Some(own_axis))
}

/// What to reshape to, if a Reshape leaves the axes alone up to that of the row.
fn leading(g: &Graph, id: NodeId, y: ValueId, row: Row) -> Option<Vec<i64>> {
    let reshape = ops::Reshape::of(g, id)?;
    let (from, to) = (
        g.value(reshape.input(0)?).ty().shape()?,
        g.value(y).ty().shape()?,
    );
    let (front, rest) = to.split_at_checked(row.axis + 1)?;
    let same = |(a, b): (&Dim, &Dim)| a.certainly_equals(b) && !a.is_anonymous();
    (from.len() > row.axis && front.iter().zip(from).all(same)).then_some(())?;
    let mut shape = vec![0i64; front.len()];
    for dim in rest {
        shape.push(i64::try_from(dim.known()?).ok()?);
    }
    Some(shape)
}
