//! Projections of attention in 8 bits with one scale, without factors and biases behind them.
//!
//! TensorRT makes one product of three batches of such queries, keys and values, and attention reads its result where it lies. With
//! factors or biases a kernel writes all three once more. So columns of queries and keys share what the scores see of them, columns of values
//! are scaled back by the output projection, and so is their bias; that of keys is no part of the softmax; and that of queries becomes
//! part of the weight, as the rows of a norm lie in a plane (`analysis/plane.rs`).

use kiln_graph::graph::Slot;
use kiln_graph::ops::{InternalAttention, LayerNormalization, Split, Transpose};
use kiln_graph::{Dim, Graph, NodeId, ValueId, ops};

use super::results;
use crate::analysis::heads::Heads;
use crate::core::pass::Context;
use crate::precision::calibrated::ranges::{self, Choice, ENOUGH};
use crate::precision::calibrated::smooth::{self, FP8_ERROR, SAVED, Smooth};
use crate::precision::calibrated::stats::TensorStats;
use crate::precision::linear::Linear;
use crate::precision::numbers::format::Format;

/// How far β may be moved, in scales: the plane's sum is 0 where offsets are means.
const STEPS: [f64; 8] = [0.0625, -0.0625, 0.125, -0.125, 0.25, -0.25, 0.5, -0.5];

/// Queries, keys and values that one product projects, and what reads attention's result.
pub(super) struct Projections {
    /// Columns of each.
    pub width: usize,
    /// What is added to all columns.
    pub bias: Vec<f64>,
    /// Of queries, keys and values: the value, and its first column.
    pub parts: [(ValueId, usize); 3],
    /// What is of no use without the packed product, the last node first.
    pub replaced: Vec<NodeId>,
    /// What the output projection reads: attention's result, heads side by side.
    pub result: ValueId,
    pub output: NodeId,
    /// Scale and bias of the norm that is projected.
    norm: Option<(Vec<f64>, Vec<f64>)>,
}

/// A reading without biases of what is projected.
pub(super) struct Freed {
    pub smooth: Smooth,
    /// What each channel, read so, adds up to 1 with; empty where queries have no bias.
    pub plane: Vec<f64>,
}

impl Projections {
    /// The projections that a product's columns are, if nothing else reads any of it.
    pub fn of(g: &Graph, layer: &Linear) -> Option<Projections> {
        let width = layer.columns / 3;
        let y = g.node(layer.node).output(0)?;
        let (bias, packed) = match results::bias(g, layer) {
            Some((constant, Some(add))) => {
                let values = g.constant(constant)?.to_f64s()?;
                (values, g.node(add).output(0)?)
            }
            Some((_, None)) => return None,
            None => (vec![0.0; layer.columns], y),
        };
        let split = g.single_use(packed)?.node;
        let (_, lead) = g.value(packed).ty().shape()?.split_last()?;
        let axis = Split::of(g, split)?.axis();
        let last = ops::resolve_axis(axis, lead.len() + 1) == Some(lead.len());
        let parts: Vec<ValueId> = g.node(split).outputs().iter().flatten().copied().collect();
        (last && parts.len() == 3 && lead.len() == 2 && width * 3 == layer.columns).then_some(())?;
        let mut found = [None; 3];
        let mut attention = None;
        for (k, &part) in parts.iter().enumerate() {
            let (reader, role) = reader(g, part, lead, width)?;
            (*attention.get_or_insert(reader) == reader).then_some(())?;
            *found.get_mut(role)? = Some((part, k * width));
        }
        let attention = InternalAttention::of(g, attention?)?;
        let plain = !attention.is_guarded() && attention.softcap() == 0.0;
        let (result, output) = output(g, attention.output(0).filter(|_| plain)?, width)?;
        let norm = smooth::normalization(g, layer.input).and_then(|id| {
            let norm = LayerNormalization::of(g, id)?;
            let numbers = |v: Option<ValueId>| g.constant(v?)?.to_f64s();
            let (scale, bias) = (numbers(norm.scale())?, numbers(norm.bias())?);
            let usable = scale.len() == layer.rows && scale.iter().all(|s| s.recip().is_finite());
            (usable && bias.len() == layer.rows).then_some((scale, bias))
        });
        Some(Projections {
            width,
            bias,
            parts: [found[0]?, found[1]?, found[2]?],
            replaced: match g.producer(packed).filter(|&add| add != layer.node) {
                Some(add) => vec![split, add, layer.node],
                None => vec![split, layer.node],
            },
            result,
            output,
            norm,
        })
    }

    /// Whether nothing else reads what is projected, or there is one batch. The product of three batches reads rows without their own:
    /// a norm that writes them both ways, because a residual sum reads it, too, becomes two kernels.
    pub fn stands_alone(&self, g: &Graph, layer: &Linear, cx: &Context<'_>) -> bool {
        let Some((_, lead)) = g
            .value(layer.input)
            .ty()
            .shape()
            .and_then(<[Dim]>::split_last)
        else {
            return false;
        };
        let one = |d: &Dim| match d {
            Dim::Symbol(name) => cx.options.sizes.get(&**name) == Some(&1),
            dim => dim.known() == Some(1),
        };
        let batches = lead.iter().filter(|d| !one(d)).count() > 1;
        !batches || g.single_use(layer.input).is_some()
    }

    /// A reading with which the queries' bias is part of their weight, if the noise is low enough with it. `matrix` [K, 3 · width] is
    /// the weight as it is, `smooth` the best reading, `plain` that without offsets and factors.
    pub fn freed(
        &self,
        stats: &TensorStats,
        matrix: &[f32],
        (smooth, plain): (Option<&Smooth>, &Choice),
        format: Format,
        gains: &[f64],
    ) -> Option<Freed> {
        let power = ranges::signal(stats, gains);
        let whole = plain
            .outliers
            .is_empty()
            .then(|| Smooth::plain(stats, plain));
        let smooth = match smooth {
            Some(smooth) => smooth.clone(),
            None => whole??,
        };
        let all = Noise {
            matrix,
            columns: 3 * self.width,
            keys: self.parts[1].1,
            queries: self.parts[0].1,
            width: self.width,
            format,
        };
        let limit = (SAVED * all.of(&smooth, None)).max(ENOUGH * power);
        let shift = all.through(&smooth, &self.bias);
        let queries = shift.get(self.parts[0].1..)?.get(..self.width)?;
        if queries.iter().all(|&b| b == 0.0) {
            let after = all.of(&smooth, Some((&[], &[])));
            let plane = Vec::new();
            return (after <= limit).then_some(Freed { smooth, plane });
        }
        let (scale, bias) = self.norm.as_ref()?;
        let mut best: Option<(f64, Freed)> = None;
        for step in STEPS {
            let Some(moved) = smooth.moved(stats, |j| step * scale[j]) else {
                continue;
            };
            let plane = plane(scale, bias, &moved);
            let shift = all.through(&moved, &self.bias);
            let after = all.of(&moved, Some((&plane, &shift)));
            if after <= limit && best.as_ref().is_none_or(|(least, _)| after < *least) {
                let smooth = moved;
                best = Some((after, Freed { smooth, plane }));
            }
        }
        best.map(|(_, freed)| freed)
    }
}

/// What rows `(x - d) / f` of a norm add up to 1 with.
fn plane(scale: &[f64], bias: &[f64], smooth: &Smooth) -> Vec<f64> {
    let offset = |j: usize| smooth.offsets.get(j).map_or(0.0, |&d| f64::from(d));
    let factor = |j: usize| smooth.factors.get(j).map_or(1.0, |&f| f64::from(f));
    let channels = || scale.iter().zip(bias).enumerate();
    let sum: f64 = channels().map(|(j, (s, b))| (b - offset(j)) / s).sum();
    channels().map(|(j, (s, _))| factor(j) / s / sum).collect()
}

/// The expected squared error of the products.
struct Noise<'a> {
    /// [K, columns].
    matrix: &'a [f32],
    columns: usize,
    /// The first columns of both.
    queries: usize,
    keys: usize,
    width: usize,
    format: Format,
}

impl Noise<'_> {
    /// Of all columns, which have a scale each; or `freed` with one scale, of a plane and what queries have of it.
    fn of(&self, smooth: &Smooth, freed: Option<(&[f64], &[f64])>) -> f64 {
        let mut largest = vec![0f64; self.columns];
        let mut activation = 0.0;
        let step = f64::from(smooth.choice.hi.max(-smooth.choice.lo)) / 127.0;
        for (i, row) in self.matrix.chunks(self.columns.max(1)).enumerate() {
            let factor = smooth.factors.get(i).map_or(1.0, |&f| f64::from(f));
            let mut norm = 0.0;
            for (j, v) in row.iter().enumerate() {
                let mut v = f64::from(*v) * factor;
                if let Some((plane, shift)) = freed
                    && (self.queries..self.queries + self.width).contains(&j)
                {
                    v += plane.get(i).map_or(0.0, |c| c * shift[j]);
                }
                largest[j] = largest[j].max(v.abs());
                norm += v * v;
            }
            activation += norm
                * match self.format.floats() {
                    Some(_) => FP8_ERROR * smooth.moments.get(i).copied().unwrap_or(0.0),
                    None => step * step / 12.0,
                };
        }
        if self.format.floats().is_some() {
            return activation;
        }
        let mut steps: Vec<f64> = largest.iter().map(|m| m / 127.0).collect();
        if freed.is_some() {
            let pairs = (0..self.width).map(|j| (self.queries + j, self.keys + j));
            let shared = |(q, k): (usize, usize)| (largest[q] * largest[k]).sqrt();
            let widest = pairs.clone().map(shared).fold(0.0, f64::max);
            for pair in pairs {
                let times = widest / shared(pair);
                if times.is_finite() {
                    steps[pair.0] *= times;
                    steps[pair.1] *= times;
                }
            }
        }
        let squares = steps.iter().map(|s| s * s).sum::<f64>();
        activation + squares / 12.0 * smooth.moments.iter().sum::<f64>()
    }

    /// What is added to the columns, with what the offsets give back.
    fn through(&self, smooth: &Smooth, bias: &[f64]) -> Vec<f64> {
        let back = smooth.given_back(self.matrix, self.columns);
        match back {
            Some(back) => back.iter().zip(bias).map(|(a, b)| a + b).collect(),
            None => bias.to_vec(),
        }
    }
}

/// The attention that reads a part [.., width] by heads and nothing else does, and as which operand.
fn reader(g: &Graph, part: ValueId, lead: &[Dim], width: usize) -> Option<(NodeId, usize)> {
    let heads = Heads::of(g, part, lead)?;
    let turned = turned(g, heads.output)?;
    let usage = g.single_use(turned)?;
    let Slot::Input(role @ 0..=2) = usage.slot else {
        return None;
    };
    InternalAttention::of(g, usage.node)?;
    let whole = usize::try_from(heads.count * heads.size) == Ok(width);
    whole.then_some((usage.node, role as usize))
}

/// The sole Transpose between rows and heads of a value.
fn turned(g: &Graph, v: ValueId) -> Option<ValueId> {
    let node = g.single_use(v)?.node;
    let perm = Transpose::of(g, node)?.perm()?;
    (perm == [0, 2, 1, 3]).then(|| g.node(node).output(0))?
}

/// What the output projection reads of attention's result, and the product.
fn output(g: &Graph, result: ValueId, width: usize) -> Option<(ValueId, NodeId)> {
    let reshape = g.single_use(turned(g, result)?)?.node;
    let joined = g.node(reshape).output(0)?;
    let last = g.value(joined).ty().shape()?.last()?.known();
    (g.node(reshape).op().is("Reshape") && last == Some(width)).then_some(())?;
    let usage = g.single_use(joined)?;
    let layer = Linear::of(g, usage.node)?.ok()?;
    let fits = usage.slot == Slot::Input(0) && layer.rows == width && !layer.transposed;
    let float = g.constant(layer.weight)?.dtype() == kiln_graph::DType::F32;
    (fits && float && g.node(usage.node).op().is("MatMul")).then_some((joined, usage.node))
}
