//! Results of products that are written in INT8 themselves.
//!
//! TensorRT's product of integers applies one scale and writes what the next node wants: INT8 where that is QuantizeLinear.
//! Biases, factors of the columns and activations are kernels of their own behind it, which read a quarter of FP32's bytes then.
//!
//! One scale serves all columns, so that the widest would decide. A column of a coarser weight has smaller integers: what its weight
//! loses, all others gain.

use kiln_graph::{Graph, Model, NodeId, ValueId, ops};

use super::qdq::Weight;
use crate::precision::calibrated::ranges::ENOUGH;
use crate::precision::calibrated::stats::TensorStats;
use crate::precision::linear::{self, Linear};

/// Parts of the widest range that are tried.
const PARTS: [f64; 12] = [
    1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15,
];

/// What the columns may lose on average, each of its own variance: 30 dB. Else the widest ones decide for all, or those that are mostly
/// one number, as in residual sums.
const EACH: f64 = 2.0 * ENOUGH;

/// Room beyond a column's range, which coarser weights leave it and which clips alike for all inputs beyond: ranges of made and of real
/// inputs differ by as much.
const ROOM: f64 = 1.4;

/// Below it Gelu is zero within 2e-4.
const GELU_ENDS: f64 = -4.0;

/// The results of linear layers that could be written in INT8.
pub fn wanted(model: &Model) -> Vec<ValueId> {
    let g = &model.graph;
    let layers = g.nodes().filter_map(|(id, _)| Linear::of(g, id)?.ok());
    let results = layers.filter_map(|l| {
        read(g, &l)?;
        g.node(l.node).output(0)
    });
    linear::floats(g, results)
}

/// What stands behind a product.
struct Read {
    /// What is added to the columns behind the result.
    bias: Option<Vec<f64>>,
    /// Sums below it give nothing.
    ends: Option<f64>,
}

/// The constant bias of a layer's columns, of a Gemm or of an Add that alone reads the result, and the Add.
pub(super) fn bias(g: &Graph, layer: &Linear) -> Option<(ValueId, Option<NodeId>)> {
    let fits = |v: &ValueId| g.constant(*v).is_some_and(|t| t.dims() == [layer.columns]);
    if let Some(gemm) = ops::Gemm::of(g, layer.node) {
        return gemm.c().filter(fits).map(|c| (c, None));
    }
    let output = g.node(layer.node).output(0)?;
    let add = g.single_use(output)?.node;
    if !g.node(add).op().is("Add") || g.value(output).is_output() {
        return None;
    }
    let found = g.node(add).inputs().iter().flatten().copied().find(fits);
    found.map(|c| (c, Some(add)))
}

/// `None` where the result is the model's.
fn read(g: &Graph, layer: &Linear) -> Option<Read> {
    let mut value = g.node(layer.node).output(0)?;
    let mut bias = None;
    if let Some((constant, Some(add))) = self::bias(g, layer) {
        bias = Some(g.constant(constant)?.values::<f32>()?);
        value = g.node(add).output(0)?;
    }
    let ends = |op: &str| match op {
        "Gelu" => Some(GELU_ENDS),
        "Relu" => Some(0.0),
        _ => None,
    };
    let mut readers = Vec::new();
    let mut todo = vec![value];
    while let Some(v) = todo.pop() {
        if g.value(v).is_output() {
            return None;
        }
        for user in g.value(v).uses() {
            let op = g.node(user.node).op();
            match op.name() {
                "Reshape" | "Transpose" | "Split" | "Slice" | "Squeeze" | "Unsqueeze" => {
                    todo.extend(g.node(user.node).outputs().iter().flatten());
                }
                name => readers.push(ends(name)),
            }
        }
    }
    let lowest = readers.iter().copied().collect::<Option<Vec<f64>>>();
    (!readers.is_empty()).then(|| Read {
        bias: bias.map(|b| b.iter().map(|&v| f64::from(v)).collect()),
        ends: lowest.and_then(|all| all.into_iter().reduce(f64::min)),
    })
}

/// One column of a product before its factor.
struct Column {
    factor: f64,
    lo: f64,
    hi: f64,
    mean: f64,
    /// The mean distance from the mean, where numbers are as those of Laplace's distribution.
    spread: f64,
}

impl Column {
    /// The largest magnitude.
    fn most(&self) -> f64 {
        self.hi.max(-self.lo)
    }

    fn variance(&self) -> f64 {
        2.0 * self.spread.powi(2)
    }

    /// How many times as coarse the weight is with which all numbers are within ±`most`, with room for others.
    fn coarser(&self, most: f64) -> f64 {
        (ROOM * self.most() / most).max(1.0)
    }

    /// The expected squared error of what is clipped at ±`most`.
    fn clipped(&self, most: f64) -> f64 {
        let beyond = |distance: f64, seen: bool| match seen && self.spread > 0.0 {
            true => self.spread.powi(2) * (-distance.max(0.0) / self.spread).exp(),
            false => 0.0,
        };
        beyond(most - self.mean, self.hi > most) + beyond(most + self.mean, self.lo < -most)
    }
}

/// A way to write the columns with one scale.
struct Way<'a> {
    columns: &'a [Column],
    /// The widest magnitude that is written.
    most: f64,
    /// Columns beyond it get coarser weights; else they are clipped.
    coarsens: bool,
    /// The expected squared error of a column from rounding its weight.
    weights: f64,
}

impl Way<'_> {
    fn coarser(&self, column: &Column) -> f64 {
        match self.coarsens {
            true => column.coarser(self.most),
            false => 1.0,
        }
    }

    /// The expected squared error of a column's bare result, without what its weight loses anyway.
    fn noise(&self, column: &Column) -> f64 {
        let times = self.coarser(column).powi(2);
        let step = (self.most / 127.0).powi(2) / 12.0;
        let clipped = match self.coarsens {
            true => 0.0,
            false => column.clipped(self.most),
        };
        times * step + (times - 1.0) * self.weights + clipped
    }

    /// That of all columns.
    fn total(&self) -> f64 {
        let each = (self.columns.iter()).map(|c| c.factor.powi(2) * self.noise(c));
        each.sum()
    }
}

/// How a product's result is written in INT8.
pub(super) struct Handed {
    /// Of the bare result, in INT8.
    pub scale: f32,
    /// How many times as coarse as it would be the weight of each column is; empty where none is.
    pub coarser: Vec<f32>,
}

impl Handed {
    /// The scale behind the coarser weight, whose own scale is another.
    pub fn with(&self, old: &Weight, coarser: &Weight) -> Option<f32> {
        let times = coarser.scales.as_f64()? / old.scales.as_f64()?;
        Some((f64::from(self.scale) * times) as f32)
    }
}

/// How a product's bare result is written in INT8, if what it loses is 33 dB below the result, and not much more of any part of it.
///
/// `stats` are of the layer's result, `given` what its columns get back behind their factors, `moments` the mean squares of its
/// input's channels.
pub(super) fn handed(
    g: &Graph,
    layer: &Linear,
    stats: &TensorStats,
    weight: &Weight,
    (given, moments): (Option<&[f64]>, Option<&[f64]>),
) -> Option<Handed> {
    let read = read(g, layer)?;
    let whole = stats.finite() == stats.count && stats.rows > 0 && weight.apart.is_none();
    let factors = weight.factors.as_ref()?.values::<f32>()?;
    if !whole || stats.channel_sumsq.len() != factors.len() {
        return None;
    }
    let own = ops::Gemm::of(g, layer.node).and_then(|gemm| gemm.c());
    let own = match own {
        Some(c) => Some(
            g.constant(c)
                .filter(|t| t.dims() == [layer.columns])?
                .values::<f32>()?,
        ),
        None => None,
    };
    let rows = stats.rows as f64;
    let column = |j: usize| {
        let factor = f64::from(factors[j]);
        // What is added behind the factors is no part of the product.
        let behind = given.map_or(0.0, |d| d[j]) + own.as_ref().map_or(0.0, |c| c[j].into());
        let bare = |v: f64| (v - behind) / factor;
        let mean = stats.channel_sum[j] / rows;
        let spread = (stats.channel_sumsq[j] / rows - mean * mean)
            .max(0.0)
            .sqrt();
        let added = read.bias.as_ref().map_or(0.0, |b| b[j]);
        let lowest = f64::from(stats.channel_min[j]);
        let lo = read.ends.map_or(lowest, |e| lowest.max(e - added));
        Column {
            factor,
            lo: bare(lo).min(0.0),
            hi: bare(stats.channel_max[j].into()).max(0.0),
            mean: bare(mean),
            spread: spread / factor / 2f64.sqrt(),
        }
    };
    let columns: Vec<Column> = (0..factors.len()).map(column).collect();
    let widest = columns.iter().fold(0f64, |m, c| m.max(c.most()));
    let power: f64 = stats.channel_sumsq.iter().sum::<f64>() / rows;
    let step = weight.scales.as_f64()?;
    let weights = moments.map(|m| m.iter().sum::<f64>() * step * step / 12.0);
    let ways = PARTS.iter().flat_map(|part| {
        [false, true].map(|coarsens| Way {
            columns: &columns,
            most: part * widest,
            coarsens,
            weights: weights.unwrap_or(0.0),
        })
    });
    // What is added to a residual sum loses more than it gains by what other inputs clip.
    let may = weights.is_some() && read.ends.is_some();
    let ways = ways.filter(|w| !w.coarsens || may);
    let way = ways.min_by(|a, b| a.total().total_cmp(&b.total()))?;
    let scale = (way.most / 127.0) as f32;
    let of_own = |c: &Column| match c.variance() > 0.0 {
        true => way.noise(c) / c.variance(),
        false => 0.0,
    };
    let each = columns.iter().map(of_own).sum::<f64>() / columns.len() as f64;
    let fits = way.total() <= ENOUGH * power && each <= EACH;
    let coarser = columns.iter().map(|c| way.coarser(c) as f32);
    (fits && scale.is_normal()).then(|| Handed {
        scale,
        coarser: match way.coarsens {
            true => coarser.collect(),
            false => Vec::new(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(most: f64) -> Column {
        Column {
            factor: 1.0,
            lo: -most,
            hi: most,
            mean: 0.0,
            spread: most / 8.0,
        }
    }

    fn way(columns: &[Column], most: f64, coarsens: bool, weights: f64) -> f64 {
        let way = Way {
            columns,
            most,
            coarsens,
            weights,
        };
        way.total()
    }

    #[test]
    fn a_wide_column_gets_a_coarser_weight_where_all_others_gain() {
        let mut columns: Vec<Column> = (0..63).map(|_| column(100.0)).collect();
        columns.push(column(2000.0));
        let whole = way(&columns, 2000.0, false, 0.01);
        assert!(way(&columns, 200.0, true, 0.01) < whole / 10.0);
        // Clipping it costs more than its steps.
        assert!(way(&columns, 200.0, false, 0.01) > whole);
        // With few steps for each weight it is not worth it.
        assert!(way(&columns, 200.0, true, 200.0) > whole);
    }

    #[test]
    fn a_column_within_the_range_keeps_its_weight() {
        assert_eq!(column(100.0).coarser(200.0), 1.0);
        assert_eq!(column(100.0).coarser(100.0), ROOM);
    }
}
