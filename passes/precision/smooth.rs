//! Factors between an activation and the weights that it is multiplied by (Xiao et al., "SmoothQuant"): `x · w` is
//! `(x / s) · (s · w)` for any positive s of each channel, and with the right s neither side has outliers.

use kiln_graph::{Attrs, Graph, INTERNAL_DOMAIN, Op, Tensor, Type, ValueId, ops};

use super::linear::Linear;
use super::ranges::{self, Choice, Method};
use super::stats::{Scheme, TensorStats};

/// Exponents of the activation's magnitude that are tried; the weight's has the rest.
const ALPHAS: [f64; 6] = [0.25, 0.4, 0.5, 0.6, 0.75, 0.9];

/// A Mul of its own, or a change without need, must at least halve the noise.
const WORTH: f64 = 0.5;

/// What saves a product of outliers may have so many times its noise.
const SAVED: f64 = 2.0;

/// Factors of the channels, and how the activation is quantized after division by them.
#[derive(Clone, Debug)]
pub(super) struct Smooth {
    pub factors: Vec<f32>,
    pub choice: Choice,
}

/// The weights that read an activation, as far as noise is concerned.
pub(super) struct Readers<'a> {
    pub layers: &'a [Linear],
    pub matrices: &'a [Option<Vec<f32>>],
    /// The squared norm of each row of all weights.
    pub gains: &'a [f64],
}

impl Readers<'_> {
    /// The sum over columns of the squared step that INT8 weights have, with rows multiplied by the factors.
    fn steps(&self, factors: &[f64]) -> f64 {
        let mut total = 0.0;
        for (layer, matrix) in self.layers.iter().zip(self.matrices) {
            let Some(matrix) = matrix else { continue };
            let mut largest = vec![0f32; layer.columns];
            for (row, &factor) in matrix.chunks(layer.columns.max(1)).zip(factors) {
                for (most, v) in largest.iter_mut().zip(row) {
                    *most = most.max(v.abs() * factor as f32);
                }
            }
            total += largest
                .iter()
                .map(|m| f64::from(m / 127.0).powi(2))
                .sum::<f64>();
        }
        total
    }

    /// The largest magnitude of each row.
    fn rows(&self, channels: usize) -> Vec<f64> {
        let mut rows = vec![0f64; channels];
        for (layer, matrix) in self.layers.iter().zip(self.matrices) {
            let Some(matrix) = matrix else { continue };
            for (most, row) in rows.iter_mut().zip(matrix.chunks(layer.columns.max(1))) {
                *most = row.iter().fold(*most, |m, v| m.max(f64::from(v.abs())));
            }
        }
        rows
    }
}

/// Factors that lower the noise of activation and weights together, if there are any that are worth it: where the factors
/// `fold` into what makes the activation they cost nothing, and replace channels apart.
pub(super) fn choose(
    stats: &TensorStats,
    scheme: Scheme,
    readers: &Readers<'_>,
    plain: &Choice,
    folds: bool,
) -> Option<Smooth> {
    let signed = match scheme {
        Scheme::Fp8E4M3 => return None,
        Scheme::Symmetric { .. } => true,
        Scheme::Asymmetric { .. } => false,
    };
    let enough = plain.noise <= ranges::ENOUGH;
    if enough && !folds {
        return None;
    }
    let channels = stats.channel_absmax.len();
    let power = ranges::signal(stats, readers.gains);
    let moments = stats
        .channel_moments()
        .filter(|m| m.len() == channels && power > 0.0)?;
    let weights = readers.rows(channels);
    let noise = |factors: &[f64]| {
        readers.steps(factors) / 12.0 * sum(&moments, |j| factors[j].powi(-2)) / power
    };
    let limit = plain.noise + noise(&vec![1.0; channels]);
    let limit = limit
        * match (folds, plain.outliers.is_empty()) {
            (true, false) => SAVED,
            (true, true) if !enough => 1.0,
            _ => WORTH,
        };
    let mut best: Option<(f64, Smooth)> = None;
    for alpha in ALPHAS {
        let Some(factors) = factors(stats, &weights, alpha) else {
            continue;
        };
        let most = (0..channels)
            .map(|j| f64::from(stats.channel_absmax[j]) / factors[j])
            .fold(0.0, f64::max);
        let (lo, hi) = match (signed, stats.min < 0.0, stats.max > 0.0) {
            (true, ..) | (_, true, true) => (-most, most),
            (_, false, _) => (0.0, most),
            (_, true, false) => (-most, 0.0),
        };
        let step = (hi - lo) / if signed { 254.0 } else { 255.0 };
        let rounding = step * step / 12.0 * sum(readers.gains, |j| factors[j].powi(2)) / power;
        let total = rounding + noise(&factors);
        if total < limit && best.as_ref().is_none_or(|(least, _)| total < *least) {
            let choice = Choice {
                lo: lo as f32,
                hi: hi as f32,
                by: Method::MinMax,
                outliers: Vec::new(),
                noise: rounding,
            };
            let factors = factors.iter().map(|&s| s as f32).collect();
            best = Some((total, Smooth { factors, choice }));
        }
    }
    best.map(|(_, smooth)| smooth)
}

fn sum(values: &[f64], factor: impl Fn(usize) -> f64) -> f64 {
    values.iter().enumerate().map(|(j, v)| v * factor(j)).sum()
}

/// `a^α / w^(1 − α)`, with a geometric mean of 1; `None` if a number is out of bounds.
fn factors(stats: &TensorStats, weights: &[f64], alpha: f64) -> Option<Vec<f64>> {
    let floor = f64::from(stats.absmax) * 1e-5;
    let heaviest = weights.iter().fold(0.0, |m: f64, w| m.max(*w)) * 1e-5;
    let log = |(a, w): (&f32, &f64)| {
        alpha * f64::from(*a).max(floor).ln() - (1.0 - alpha) * w.max(heaviest).ln()
    };
    let logs: Vec<f64> = stats.channel_absmax.iter().zip(weights).map(log).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let all: Vec<f64> = logs.iter().map(|l| (l - mean).exp()).collect();
    all.iter().all(|s| (1e-4..1e4).contains(s)).then_some(all)
}

/// The normalization whose scale and bias can take the factors of `x`: nothing but the layers reads it.
pub(super) fn norm(g: &Graph, x: ValueId, layers: &[Linear]) -> Option<Norm> {
    let value = g.value(x);
    let all = value
        .uses()
        .iter()
        .all(|u| layers.iter().any(|l| l.node == u.node));
    if value.is_output() || !all {
        return None;
    }
    let id = g.producer(x)?;
    let node = g.node(id);
    let normalizes = ops::LayerNormalization::of(g, id).is_some()
        || (node.op().is("RMSNormalization") && node.op().domain().is_empty())
        || (node.op().domain() == INTERNAL_DOMAIN
            && ops::internal::RmsNormalization::of(g, id).is_some());
    let channels = g.value(x).ty().shape()?.last()?.known()?;
    let fits = |k: usize| match node.input(k) {
        None => k == 2,
        Some(v) => g
            .constant(v)
            .is_some_and(|t| t.dims() == [channels] && t.values::<f32>().is_some()),
    };
    (normalizes && node.sole_output() == Some(x) && fits(1) && fits(2)).then_some(Norm { id })
}

/// A normalization with constant parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    id: kiln_graph::NodeId,
}

/// Divides the activation by the factors, in the parameters of the norm or else by a Mul; gives the value to read.
pub(super) fn apply(
    g: &mut Graph,
    x: ValueId,
    norm: Option<Norm>,
    factors: &[f32],
    pass: &str,
) -> Option<ValueId> {
    let name = g.value(x).name().to_string();
    let Some(Norm { id }) = norm else {
        let inverse: Vec<f32> = factors.iter().map(|s| s.recip()).collect();
        let inverse = g.add_constant(&format!("{name}_smoothing"), Tensor::vector(&inverse));
        let smoothed = format!("{name}_smoothed");
        let inputs = [Some(x), Some(inverse)];
        let mul = g.add_node_named(
            Op::onnx("Mul"),
            "",
            inputs,
            &[Some(&smoothed)],
            Attrs::new(),
        );
        g.notes_mut(mul).set("kiln.pass", pass.into());
        let made = g.node(mul).output(0)?;
        let shape = g.value(x).ty().shape().map(|s| s.into());
        g.set_type(made, Type::tensor(kiln_graph::DType::F32, shape));
        return Some(made);
    };
    for k in [1, 2] {
        let Some(old) = g.node(id).input(k) else {
            continue;
        };
        let values = g.constant(old)?.values::<f32>()?;
        let divided: Vec<f32> = values.iter().zip(factors).map(|(v, s)| v / s).collect();
        let label = format!("{}_smoothed", g.value(old).name());
        let new = g.add_constant(&label, Tensor::vector(&divided));
        g.set_input(id, k, Some(new));
        g.remove_unused_value(old);
    }
    Some(x)
}
