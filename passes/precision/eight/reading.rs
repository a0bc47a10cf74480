//! How the input of layers is read: its range, channels apart, factors and offsets.

use kiln_graph::Graph;

use super::projections::Projections;
use super::qdq::Weight;
use crate::precision::calibrated::ranges::{self, Choice};
use crate::precision::calibrated::smooth;
use crate::precision::calibrated::stats::TensorStats;
use crate::precision::linear::Linear;
use crate::precision::numbers::format::Format;

/// How activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::precision) enum Form {
    /// By ranges that were measured before.
    Static(Format),
    /// UINT8, by the range of each run.
    Dynamic,
}

/// What was chosen for an input.
#[derive(Default)]
pub(in crate::precision) struct Reading {
    pub choice: Option<Choice>,
    /// The mean square of each channel.
    pub moments: Option<Vec<f64>>,
    /// The mean of each channel, as far as errors of the weights are multiplied by it.
    pub means: Option<Vec<f64>>,
    /// What the channels are divided by; empty where nothing is.
    pub factors: Vec<f32>,
    /// What the manifest calls the change of the input.
    pub smoothing: Option<&'static str>,
    /// What the columns of each layer get back for what the input lost.
    offsets: Vec<Option<Vec<f64>>>,
    middle: Option<f32>,
    /// Where attention's projections are without biases: what the channels add up to 1 with.
    pub freed: Option<Vec<f64>>,
}

impl Reading {
    /// Whether all layers get something back behind the product.
    pub fn gives_back(&self) -> bool {
        let all = !self.offsets.is_empty() && self.offsets.iter().all(Option::is_some);
        self.middle.is_some() || all
    }

    /// What is added to the columns of the only layer, with its bias.
    pub fn shift(&self, bias: &[f64]) -> Vec<f64> {
        match self.offsets.first().and_then(Option::as_ref) {
            Some(back) => back.iter().zip(bias).map(|(a, b)| a + b).collect(),
            None => bias.to_vec(),
        }
    }

    /// What is taken from the channels before they are divided by the factors.
    pub fn taken(&self, stats: &TensorStats) -> Option<Vec<f64>> {
        let (before, after) = (stats.channel_means()?, self.means.as_ref()?);
        let factor = |j: usize| self.factors.get(j).map_or(1.0, |&f| f64::from(f));
        let each = before.iter().zip(after).enumerate();
        Some(each.map(|(j, (a, b))| a - b * factor(j)).collect())
    }

    /// What the columns of the layer at this place get back.
    pub fn given_back(&self, layer: usize, weight: &Weight) -> Option<Vec<f64>> {
        let rounded = self
            .middle
            .and_then(|d| Some((f64::from(d), weight.sums()?)));
        let rounded = rounded.map(|(d, sums)| sums.iter().map(|v| d * v).collect());
        rounded.or_else(|| self.offsets.get(layer)?.clone())
    }
}

/// What decides how an input may be read.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub form: Form,
    /// What computes each element by itself costs nothing.
    pub joins: bool,
    /// What the one layer projects for attention, if it may be without biases.
    pub projections: Option<&'a Projections>,
    pub pass: &'static str,
}

/// The reading of the input that all layers have, written into the graph, the layers and their matrices.
pub(super) fn of(
    g: &mut Graph,
    stats: &TensorStats,
    layers: &mut [Linear],
    matrices: &mut [Option<Vec<f32>>],
    how: How<'_>,
) -> Reading {
    // Channels apart and factors help ranges of each run as well.
    let format = match how.form {
        Form::Static(format) => format,
        Form::Dynamic => Format::Uint8,
    };
    let gains = gains(layers, matrices, stats.channel_absmax.len());
    let mut found = Reading {
        choice: ranges::choose(stats, format, &gains),
        moments: stats.channel_moments(),
        means: stats.channel_means(),
        offsets: vec![None; layers.len()],
        ..Reading::default()
    };
    // A layer that keeps its weight reads the input as it was.
    let finite = |m: &Option<Vec<f32>>| m.as_ref().is_some_and(|m| m.iter().all(|v| v.is_finite()));
    let (Some(plain), Some(first)) = (&found.choice, layers.first()) else {
        return found;
    };
    if !matrices.iter().all(finite) {
        return found;
    }
    let input = first.input;
    let norm = smooth::norm(g, input, layers);
    let joins = how.joins && how.form != Form::Dynamic;
    // Channels of norms have about the same ranges for all inputs. Attention and activations do not: what one row of attention
    // gives depends on how many keys it has.
    let steady = joins && smooth::normalization(g, input).is_some();
    let free = smooth::Free {
        factors: steady || norm.is_some(),
        offsets: steady,
    };
    let readers = smooth::Readers {
        layers,
        matrices,
        gains: &gains,
    };
    let mut smooth = smooth::choose(stats, format, &readers, plain, free);
    if smooth.is_none() && joins && format == Format::Int8 {
        smooth = smooth::around(stats, &gains, plain);
    }
    if let (Some(projections), [Some(matrix)]) = (how.projections, &*matrices) {
        let readings = (smooth.as_ref(), plain);
        if let Some(freed) = projections.freed(stats, matrix, readings, format, &gains) {
            found.freed = Some(freed.plane);
            smooth = Some(freed.smooth);
        }
    }
    let Some(smooth) = smooth else { return found };
    let changed = !smooth.offsets.is_empty() || !smooth.factors.is_empty();
    let change = (&smooth.offsets[..], &smooth.factors[..]);
    let Some(x) = smooth::apply(g, input, norm, change, how.pass) else {
        return found;
    };
    for (k, (layer, matrix)) in layers.iter_mut().zip(matrices).enumerate() {
        layer.input = x;
        let Some(matrix) = matrix else { continue };
        found.offsets[k] = smooth.given_back(matrix, layer.columns);
        for (row, s) in matrix.chunks_mut(layer.columns.max(1)).zip(&smooth.factors) {
            row.iter_mut().for_each(|v| *v *= s);
        }
    }
    Reading {
        smoothing: changed.then(|| smooth.name(x == input)),
        means: found.means.as_ref().map(|m| smooth.means(m)),
        factors: smooth.factors,
        choice: Some(smooth.choice),
        moments: Some(smooth.moments),
        middle: smooth.middle,
        ..found
    }
}

/// The squared norm of each row of all weights that a value is multiplied by.
fn gains(layers: &[Linear], matrices: &[Option<Vec<f32>>], rows: usize) -> Vec<f64> {
    let mut gains = vec![0f64; rows];
    for (layer, matrix) in layers.iter().zip(matrices) {
        let Some(matrix) = matrix else { continue };
        for (gain, row) in gains.iter_mut().zip(matrix.chunks(layer.columns.max(1))) {
            *gain += row.iter().map(|v| f64::from(v * v)).sum::<f64>();
        }
    }
    gains
}
