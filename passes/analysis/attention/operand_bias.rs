//! What is added to queries, keys or values on their way from a projection: its bias, wherever it stands.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::view::{Atom, View};
use crate::core::pass::{Context, Miss};
use crate::core::patch::{Patch, Ref};

/// A constant that is added to an operand of attention, the same for every token. Nothing else reads the sum, or each other
/// part of it is another operand.
#[derive(Debug)]
pub struct OperandBias<'g> {
    operand: ValueId,
    sum: ValueId,
    /// What the constant is added to.
    term: ValueId,
    constant: &'g Tensor,
    part: Option<Part>,
    /// The operand [batch, heads, seq, size] as a rearrangement of the sum, or of its part.
    view: View,
}

/// A piece of packed projections.
#[derive(Debug)]
struct Part {
    split: NodeId,
    axis: usize,
    start: usize,
    width: usize,
}

/// Why a bias is not found where there is none; what else stops the match is no reason to think so.
pub const UNBIASED: &str = "its projection has no bias";

impl<'g> OperandBias<'g> {
    /// The constant behind an operand [batch, heads, seq, size] of attention.
    ///
    /// # Errors
    /// Why there is none, [`UNBIASED`] where the operand comes from a product as it is.
    pub fn of(g: &'g Graph, facts: &Facts, operand: ValueId) -> Result<OperandBias<'g>, Miss> {
        let view = View::of(g, facts, operand)
            .ok_or_else(|| Miss::at(operand, 2, "its shape is unknown"))?;
        let miss = |why: &str| Miss::at(operand, 2, why);
        if view.dims.len() != 4 || view.is_part() {
            return Err(miss(
                "it is no [batch, heads, length, size] of a whole value",
            ));
        }
        let made = view.nodes.iter().filter_map(|&n| g.node(n).sole_output());
        if !made.chain([view.source]).all(|v| is_sole(g, v)) {
            return Err(miss("something else reads it"));
        }
        let part = match g.producer_if(view.source, "Split") {
            Some(split) => Some(
                Part::of(g, facts, split, view.source)
                    .ok_or_else(|| miss("its part of the packed projections is unknown"))?,
            ),
            None => None,
        };
        let sum = match &part {
            Some(part) => g.node(part.split).input(0).filter(|&v| is_sole(g, v)),
            None => Some(view.source),
        };
        let sum = sum.ok_or_else(|| miss("something else reads the packed projections"))?;
        if g.producer_if(sum, "MatMul").is_some() {
            return Err(miss(UNBIASED));
        }
        let add = g.producer_if(sum, "Add").map(|id| g.node(id));
        let terms = add.and_then(|add| Some((add.input(0)?, add.input(1)?)));
        let (term, constant) = match terms.map(|(a, b)| (a, b, g.constant(a), g.constant(b))) {
            Some((a, _, None, Some(t))) => (a, t),
            Some((_, b, Some(t), None)) => (b, t),
            _ => return Err(miss("it comes from no sum with a constant")),
        };
        // The constant broadcasts, and not what it is added to.
        if facts.dims(term).is_none() || facts.dims(term) != facts.dims(sum) {
            return Err(miss(
                "the constant changes the shape of what it is added to",
            ));
        }
        let found = OperandBias {
            operand,
            sum,
            term,
            constant,
            part,
            view,
        };
        let Some(numbers) = found.per_head() else {
            return Err(miss("what is added differs between tokens"));
        };
        // Of a sum of zeros alone nothing is left once it is taken away.
        match found.part.is_some() && is_zero(&numbers) && !is_zero(constant) {
            true => Err(miss(UNBIASED)),
            false => Ok(found),
        }
    }

    /// The constant as [1, heads, 1, size].
    pub fn per_head(&self) -> Option<Tensor> {
        let width = self.constant.byte_len() / self.constant.len().max(1);
        let whole = self.constant.dtype().is_float() && width > 0;
        let source = whole.then(|| self.constant.bytes())?;
        let [_, heads, _, size] = self.view.dims.as_slice() else {
            return None;
        };
        let (rows, columns) = (self.steps(heads)?, self.steps(size)?);
        let told_apart = |atom: &Atom| heads.contains(atom) || size.contains(atom);
        let mut varying = self.axes().map(|(axis, ..)| &self.view.from[axis]);
        varying
            .all(|atoms| atoms.iter().all(told_apart))
            .then_some(())?;
        let start = match &self.part {
            Some(part) => part.start * self.axes().find(|a| a.0 == part.axis)?.2,
            None => 0,
        };
        let mut out = Vec::with_capacity(rows.len() * columns.len() * width);
        for row in &rows {
            for column in &columns {
                let at = (start + row + column) * width;
                out.extend_from_slice(source.get(at..at + width)?);
            }
        }
        let dims = [1, rows.len(), 1, columns.len()];
        Tensor::from_raw(self.constant.dtype(), dims.as_slice(), out.into()).ok()
    }

    /// Whether nothing is rearranged behind the sum.
    pub fn is_sunk(&self) -> bool {
        self.view.nodes.is_empty()
    }

    /// Axes of the source along which the constant varies: the axis, its size in the constant, its stride.
    fn axes(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let dims = self.constant.dims();
        let rank = self.view.from.len();
        (0..dims.len()).filter_map(move |k| {
            let stride = dims[k + 1..].iter().product();
            let axis = (rank + k).checked_sub(dims.len())?;
            (dims[k] != 1).then_some((axis, dims[k], stride))
        })
    }

    /// By how many elements of the constant the next index of an atom is away, if the constant varies with it.
    fn step(&self, atom: Atom) -> Option<usize> {
        self.axes().find_map(|(axis, _, stride)| {
            let atoms = self.view.from.get(axis)?;
            let at = atoms.iter().position(|&a| a == atom)?;
            let inner = self.view.product(&atoms[at + 1..])?.as_i64()?;
            Some(usize::try_from(inner).ok()? * stride)
        })
    }

    /// Where the elements of a dimension of the operand are in the constant.
    fn steps(&self, atoms: &[Atom]) -> Option<Vec<usize>> {
        let mut out = vec![0];
        for &atom in atoms {
            let count = usize::try_from(self.view.size(atom).as_i64()?).ok()?;
            let step = self.step(atom).unwrap_or(0);
            (out.len().checked_mul(count)? <= kiln_graph::limits::DECLARED_AXIS).then_some(())?;
            let next = |from: usize| (0..count).map(move |k| from + k * step);
            out = out.into_iter().flat_map(next).collect();
        }
        Some(out)
    }

    /// Takes the constant away: what it is added to stands in for the sum. Other parts of packed projections keep what is added
    /// to them. The operand's numbers change with it.
    pub fn remove(&self, g: &Graph, patch: &mut Patch) -> Option<()> {
        let rest = match &self.part {
            Some(part) => self.rest(part)?,
            None => None,
        };
        let made = self
            .view
            .nodes
            .iter()
            .filter_map(|&n| g.node(n).sole_output());
        let made = made.chain([self.view.source, self.sum]);
        for value in made.filter(|&v| v != self.operand) {
            patch.change(value);
        }
        let mut at = Ref::Old(self.term);
        if let Some(rest) = rest {
            let rest = patch.constant(rest);
            at = patch.node(Op::onnx("Add"), [at, rest], Attrs::new());
        }
        patch.replace(self.sum, at);
        Some(())
    }

    /// Adds the constant to the operand instead.
    pub fn sink(&self, g: &Graph, patch: &mut Patch) -> Option<()> {
        let last = g.node(*self.view.nodes.first()?);
        let numbers = self.per_head()?;
        self.remove(g, patch)?;
        let inputs: Vec<Option<Ref>> = last.inputs().iter().map(|v| v.map(Ref::Old)).collect();
        let mut at = patch.node_with(last.op(), inputs, 1, last.attrs().clone())[0];
        if !is_zero(&numbers) {
            let numbers = patch.constant(numbers);
            at = patch.node(Op::onnx("Add"), [at, numbers], Attrs::new());
        }
        patch.replace(self.operand, at);
        Some(())
    }

    /// The constant with zeros in this part; `Some(None)` if nothing is left of it.
    fn rest(&self, part: &Part) -> Option<Option<Tensor>> {
        let (_, size, stride) = self.axes().find(|a| a.0 == part.axis)?;
        let width = self.constant.byte_len() / self.constant.len().max(1);
        let mut bytes = self.constant.bytes().to_vec();
        for block in bytes.chunks_mut(size * stride * width) {
            let from = part.start * stride * width;
            block
                .get_mut(from..from + part.width * stride * width)?
                .fill(0);
        }
        let (dtype, dims) = (self.constant.dtype(), self.constant.dims());
        let rest = Tensor::from_raw(dtype, dims, bytes.into()).ok()?;
        Some((!is_zero(&rest)).then_some(rest))
    }
}

impl Part {
    fn of(g: &Graph, facts: &Facts, split: NodeId, output: ValueId) -> Option<Part> {
        let node = g.node(split);
        let axis = ops::Split::of(g, split)?.axis();
        let axis = ops::resolve_axis(axis, facts.dims(output)?.len())?;
        let size = |v: ValueId| usize::try_from(facts.dims(v)?.get(axis)?.as_i64()?).ok();
        let mut start = 0;
        for part in node.outputs() {
            let width = size((*part)?)?;
            if *part == Some(output) {
                return Some(Part {
                    split,
                    axis,
                    start,
                    width,
                });
            }
            start += width;
        }
        None
    }
}

/// Whether it pays to have no bias between the projections of an attention and its heads. TensorRT for RTX then multiplies
/// the three in one product of three batches. It reads rows without their own batches: a norm that writes them both ways,
/// because a residual sum reads it, too, becomes two kernels, unless there is one batch.
///
/// # Errors
/// What else reads what is projected.
pub fn projects_alone(
    g: &Graph,
    cx: &Context<'_>,
    attention: &InternalAttention<'_>,
) -> Result<(), Miss> {
    let facts = &cx.facts;
    let mut readers = Vec::new();
    let mut projected = None;
    for operand in (0..3).filter_map(|k| attention.input(k)) {
        let product = product(g, facts, operand)
            .ok_or_else(|| Miss::at(operand, 3, "it comes from no product with a weight"))?;
        let x = g.node(product).input(0).ok_or_else(Miss::none)?;
        if projected.is_some_and(|p| p != x) {
            return Err(Miss::at(operand, 3, "its projection is of another value"));
        }
        projected = Some(x);
        readers.push(product);
    }
    let mut x = projected.ok_or_else(Miss::none)?;
    if facts.dims(x).is_some_and(|dims| is_one_batch(dims, cx)) {
        return Ok(());
    }
    for _ in 0..MAX_MOVES {
        let others = g.value(x).uses().iter().any(|u| !readers.contains(&u.node));
        if others || g.value(x).is_output() {
            return Err(Miss::at(x, 4, "something else reads what is projected"));
        }
        let moved = g.producer(x).filter(|&n| g.node(n).op().is_any(MOVES));
        let Some((node, from)) = moved.and_then(|n| Some((n, g.node(n).input(0)?))) else {
            return Ok(());
        };
        (readers, x) = (vec![node], from);
    }
    Ok(())
}

/// Whether at most one of the axes before the last is longer than 1.
fn is_one_batch(dims: &[Expr], cx: &Context<'_>) -> bool {
    let lead = dims.split_last().map_or(dims, |(_, lead)| lead);
    lead.iter()
        .filter(|d| cx.options.held(d) != Some(1))
        .count()
        <= 1
}

/// What only rearranges.
pub(crate) const MOVES: &[&str] = &["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"];

/// Rearrangements in a row that are followed.
const MAX_MOVES: usize = 4;

/// The product with a weight behind an operand, its bias before or behind the telling apart of heads.
fn product(g: &Graph, facts: &Facts, operand: ValueId) -> Option<NodeId> {
    let mut at = operand;
    for _ in 0..MAX_MOVES {
        at = View::of(g, facts, at)?.source;
        if let Some(split) = g.producer_if(at, "Split") {
            at = g.node(split).input(0)?;
        }
        if let Some(product) = g.producer_if(at, "MatMul") {
            let weight = g.constant(g.node(product).input(1)?)?;
            return (weight.rank() == 2).then_some(product);
        }
        let add = g.node(g.producer_if(at, "Add")?);
        let terms = [add.input(0)?, add.input(1)?];
        at = terms.into_iter().find(|&v| g.constant(v).is_none())?;
    }
    None
}

/// Whether there are floats, and all of them zero.
fn is_zero(t: &Tensor) -> bool {
    let values = t.to_f64s();
    values.is_some_and(|all| all.iter().all(|&v| v == 0.0))
}

/// Whether exactly one node reads the value, once.
fn is_sole(g: &Graph, v: ValueId) -> bool {
    g.value(v).uses().len() == 1 && !g.value(v).is_output()
}
