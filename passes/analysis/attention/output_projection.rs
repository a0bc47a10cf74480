//! From attention's result to the product that joins its heads.

use kiln_graph::graph::Slot;
use kiln_graph::infer::Facts;
use kiln_graph::{DType, Graph, NodeId, Tensor, ValueId};

use super::operand_bias::MOVES;
use crate::analysis::view::{Atom, View};
use crate::core::pass::Miss;

/// `MatMul(attention, w)` and the bias behind it.
#[derive(Debug)]
pub struct OutputProjection<'g> {
    /// What the product reads, as a rearrangement of attention's result [batch, heads, seq, size].
    view: View,
    pub product: NodeId,
    weight: &'g Tensor,
    bias: Option<&'g Tensor>,
    /// The product.
    pub y: ValueId,
    /// The product with its bias, if it has one.
    pub sum: Option<ValueId>,
}

impl<'g> OutputProjection<'g> {
    /// The product that alone reads attention's result `made` [batch, heads, seq, size].
    ///
    /// # Errors
    /// What stands between, or reads it too.
    pub fn of(g: &'g Graph, facts: &Facts, made: ValueId) -> Result<OutputProjection<'g>, Miss> {
        let mut at = made;
        let product = loop {
            let miss = |why: &str| Miss::at(at, 4, why);
            let [sole] = g.value(at).uses() else {
                return Err(miss("not one node alone reads the result"));
            };
            let node = g.node(sole.node);
            if g.value(at).is_output() || sole.slot != Slot::Input(0) {
                return Err(miss("the result goes to no product with a weight"));
            }
            if node.op().is("MatMul") {
                break sole.node;
            }
            let Some(next) = node.sole_output().filter(|_| node.op().is_any(MOVES)) else {
                return Err(miss("the result goes to no product with a weight"));
            };
            at = next;
        };
        let miss = |why: &str| Miss::at(at, 4, why);
        let node = g.node(product);
        let weight = node.input(1).and_then(|v| g.constant(v));
        let weight = weight.filter(|t| t.rank() == 2 && t.dtype().is_float());
        let (Some(weight), Some(y)) = (weight, node.output(0)) else {
            return Err(miss("the result goes to no product with a weight"));
        };
        let view = View::of(g, facts, at).filter(|v| v.source == made && !v.is_part());
        let view = view.ok_or_else(|| miss("how the result is rearranged is unknown"))?;
        let (bias, sum) = added(g, facts, y).unzip();
        let found = OutputProjection {
            view,
            product,
            weight,
            bias,
            y,
            sum,
        };
        match found.rows() {
            Some(_) => Ok(found),
            None => Err(miss("its heads are not the weight's rows")),
        }
    }

    /// What is computed from attention's result, up to the product. The product itself is not among them if it has no bias yet.
    pub fn values(&self, g: &Graph) -> impl Iterator<Item = ValueId> {
        let moved = self
            .view
            .nodes
            .iter()
            .filter_map(|&n| g.node(n).sole_output());
        moved.chain(self.sum.map(|_| self.y))
    }

    /// The row of the weight for each channel of each head.
    fn rows(&self) -> Option<Vec<usize>> {
        let [_, heads, _, size] = self.view.from.as_slice() else {
            return None;
        };
        let (last, before) = self.view.dims.split_last()?;
        let is_channel = |a: &Atom| heads.contains(a) || size.contains(a);
        let apart = last.iter().all(is_channel) && !before.iter().flatten().any(is_channel);
        (apart && last.len() == heads.len() + size.len()).then_some(())?;
        let places = |atoms: &[Atom]| -> Option<Vec<usize>> {
            let mut out = vec![0];
            for atom in atoms {
                let count = usize::try_from(self.view.size(*atom).as_i64()?).ok()?;
                let at = last.iter().position(|a| a == atom)?;
                let step = usize::try_from(self.view.product(&last[at + 1..])?.as_i64()?).ok()?;
                (out.len().checked_mul(count)? <= self.weight.dims()[0]).then_some(())?;
                let next = |from: usize| (0..count).map(move |k| from + k * step);
                out = out.into_iter().flat_map(next).collect();
            }
            Some(out)
        };
        let (rows, columns) = (places(heads)?, places(size)?);
        let all = rows.iter().flat_map(|r| columns.iter().map(move |c| r + c));
        let all: Vec<usize> = all.collect();
        (all.len() == self.weight.dims()[0]).then_some(all)
    }

    /// What the product makes of one number for each channel of each head.
    pub fn through(&self, channels: &[f64]) -> Option<Vec<f64>> {
        let rows = self.rows().filter(|r| r.len() == channels.len())?;
        let width = self.weight.dims()[1];
        let mut out = vec![0f64; width];
        let (bytes, dtype) = (self.weight.bytes(), self.weight.dtype());
        let long = bytes.len().checked_div(self.weight.dims()[0])?;
        for (row, number) in rows.into_iter().zip(channels) {
            let row = bytes.slice(row * long..(row + 1) * long);
            let row = Tensor::from_raw(dtype, [width].as_slice(), row).ok()?;
            for (sum, w) in out.iter_mut().zip(row.to_f64s()?) {
                *sum += number * w;
            }
        }
        out.iter().all(|v| v.is_finite()).then_some(out)
    }

    /// The bias with these numbers added, in its type and form.
    pub fn offset(&self, moved: &[f64]) -> Option<Tensor> {
        let (mut numbers, dtype) = match self.bias {
            Some(bias) => (bias.to_f64s()?, bias.dtype()),
            None => (vec![0f64; moved.len()], self.weight.dtype()),
        };
        for (number, more) in numbers.iter_mut().zip(moved) {
            *number += more;
        }
        let dims = self.bias.map_or(vec![moved.len()], |b| b.dims().to_vec());
        of_type(&numbers, dtype)?.reshaped(dims.as_slice()).ok()
    }
}

/// The constant that is added to each row of a product, and the sum.
fn added<'g>(g: &'g Graph, facts: &Facts, y: ValueId) -> Option<(&'g Tensor, ValueId)> {
    let [sole] = g.value(y).uses() else {
        return None;
    };
    let node = g.node(sole.node);
    let other = node.inputs().iter().flatten().find(|&&v| v != y)?;
    let sum = node.sole_output()?;
    let bias = g.constant(*other)?;
    let width = facts.dims(y)?.last()?.as_i64()?;
    let (last, before) = bias.dims().split_last()?;
    let row = usize::try_from(width) == Ok(*last) && before.iter().all(|&d| d == 1);
    let fits = row && bias.dtype().is_float() && facts.dims(y) == facts.dims(sum);
    (node.op().is("Add") && fits && !g.value(y).is_output()).then_some((bias, sum))
}

/// Numbers as a vector of a float type; `None` where one is too large for it.
pub(crate) fn of_type(numbers: &[f64], dtype: DType) -> Option<Tensor> {
    let narrow: Vec<f32> = numbers.iter().map(|&v| v as f32).collect();
    let tensor = match dtype {
        DType::F64 => Tensor::vector(numbers),
        DType::F32 => Tensor::vector(&narrow),
        DType::F16 | DType::BF16 => {
            let lost = Tensor::vector(&narrow).narrowing_loss(dtype)?;
            (lost.clamped == 0).then(|| Tensor::vector(&narrow).narrowed(dtype))??
        }
        _ => return None,
    };
    narrow.iter().all(|v| v.is_finite()).then_some(tensor)
}
