//! The three projections of one input, as com.microsoft:Attention computes them itself.

use kiln_graph::infer::Facts;
use kiln_graph::{Graph, Tensor, ValueId, ops};

use crate::analysis::view::{Atom, View};

/// `x · weight + bias`, whose columns are those of the queries, the keys and the values.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub x: ValueId,
    /// `x` is [seq, batch, hidden] and not [batch, seq, hidden].
    pub seq_first: bool,
    pub weight: Tensor,
    pub bias: Tensor,
    /// Columns of each.
    pub widths: [i64; 3],
}

struct Part<'g> {
    x: ValueId,
    seq_first: bool,
    weight: &'g Tensor,
    bias: Option<&'g Tensor>,
    /// First column and number of columns of the product.
    columns: (usize, usize),
}

impl Packed {
    /// The projections of queries, keys and values [batch, heads, seq, size], if they are of one input and nothing else
    /// reads them.
    pub fn of(g: &Graph, facts: &Facts, operands: [ValueId; 3]) -> Option<Packed> {
        let parts: Vec<Part<'_>> = operands
            .into_iter()
            .map(|v| Part::of(g, facts, v))
            .collect::<Option<_>>()?;
        let [q, k, v] = parts.as_slice() else {
            return None;
        };
        let alike = |p: &Part<'_>| p.x == q.x && p.seq_first == q.seq_first;
        (alike(k) && alike(v)).then_some(())?;
        let widths = [q, k, v].map(|p| i64::try_from(p.columns.1).unwrap_or(0));
        // One product already, in the order that is wanted: nothing is copied.
        let whole = [k, v].iter().all(|p| std::ptr::eq(p.weight, q.weight))
            && q.columns.0 == 0
            && k.columns.0 == q.columns.1
            && v.columns.0 == k.columns.0 + k.columns.1
            && q.weight.dims().last() == Some(&(v.columns.0 + v.columns.1));
        let cut = |t: &Tensor, (start, width): (usize, usize)| t.columns(start, width);
        let weight = match whole {
            true => q.weight.clone(),
            false => {
                let cuts: Vec<Tensor> = parts
                    .iter()
                    .map(|p| cut(p.weight, p.columns))
                    .collect::<Option<_>>()?;
                Tensor::joined(&cuts.iter().collect::<Vec<_>>())?
            }
        };
        let offsets = parts.iter().map(|p| match p.bias {
            Some(bias) => cut(bias, p.columns),
            None => Some(Tensor::vector(&vec![0f32; p.columns.1])),
        });
        let offsets: Vec<Tensor> = offsets.collect::<Option<_>>()?;
        let bias = Tensor::joined(&offsets.iter().collect::<Vec<_>>())?;
        Some(Packed {
            x: q.x,
            seq_first: q.seq_first,
            weight,
            bias,
            widths,
        })
    }
}

impl Packed {
    /// Columns of the queries, keys and values of each head side by side.
    pub fn by_heads(&self, columns: &Tensor, heads: i64, size: i64) -> Option<Tensor> {
        (self.widths == [heads.checked_mul(size)?; 3]).then_some(())?;
        let (heads, size) = (usize::try_from(heads).ok()?, usize::try_from(size).ok()?);
        let places = (0..heads).flat_map(|head| (0..3).map(move |part| part * heads + head));
        let cuts = places.map(|place| columns.columns(place * size, size));
        let cuts: Vec<Tensor> = cuts.collect::<Option<_>>()?;
        Tensor::joined(&cuts.iter().collect::<Vec<_>>())
    }
}

impl<'g> Part<'g> {
    fn of(g: &'g Graph, facts: &Facts, operand: ValueId) -> Option<Part<'g>> {
        let view = View::of(g, facts, operand)?;
        let [batch, heads, seq, size] = view.dims.as_slice() else {
            return None;
        };
        let channels = [heads.as_slice(), size].concat();
        let [first, second, last] = view.from.as_slice() else {
            return None;
        };
        let one = |d: &[Atom]| d.len() == 1;
        (*last == channels && !view.is_part() && one(batch) && one(seq)).then_some(())?;
        let seq_first = match (
            first == batch && second == seq,
            first == seq && second == batch,
        ) {
            (true, _) => false,
            (_, true) => true,
            _ => return None,
        };
        let width = usize::try_from(view.product(&channels)?.as_i64()?).ok()?;
        // What is read elsewhere, as keys and values that leave for a cache are, would be computed twice.
        let mut moved = operand;
        while moved != view.source {
            let alone = g
                .value(moved)
                .uses()
                .iter()
                .filter(|u| !g.node(u.node).op().is("Shape"));
            (alone.count() <= 1 && !g.value(moved).is_output()).then_some(())?;
            moved = g.node(g.producer(moved)?).input(0)?;
        }
        let (mut at, mut columns) = (view.source, (0, width));
        if let Some(id) = g.producer_if(at, "Split") {
            let split = ops::Split::of(g, id)?;
            let node = g.node(id);
            let rank = split.rank(0)?;
            (ops::resolve_axis(split.axis(), rank) == Some(rank - 1)).then_some(())?;
            let mut start = 0;
            for part in node.outputs().iter().flatten() {
                let size = facts.dims(*part)?.last()?.as_i64()?;
                (g.value(*part).uses().len() <= 1).then_some(())?;
                if *part == at {
                    break;
                }
                start += usize::try_from(size).ok()?;
            }
            at = node.input(0)?;
            columns.0 = start;
        }
        let sole = |v: ValueId| g.value(v).uses().len() == 1 && !g.value(v).is_output();
        let mut bias = None;
        if let Some(id) = g.producer_if(at, "Add") {
            let add = g.node(id);
            let vector = |k: usize| {
                add.input(k)
                    .and_then(|v| g.constant(v))
                    .filter(|t| t.rank() == 1)
            };
            let inner = match (vector(0), vector(1)) {
                (Some(t), None) => (t, add.input(1)?),
                (None, Some(t)) => (t, add.input(0)?),
                _ => return None,
            };
            sole(at).then_some(())?;
            (bias, at) = (Some(inner.0), inner.1);
        }
        let product = g.node(g.producer_if(at, "MatMul")?);
        let weight = g.constant(product.input(1)?).filter(|t| t.rank() == 2)?;
        let x = product.input(0)?;
        let fits = bias.is_none_or(|b| Some(&b.len()) == weight.dims().last());
        (sole(at) && fits && facts.dims(x)?.len() == 3).then_some(())?;
        Some(Part {
            x,
            seq_first,
            weight,
            bias,
            columns,
        })
    }
}
