//! Factors between an activation and the weights that it is multiplied by (Xiao et al., "SmoothQuant"): `x · w` is
//! `(x / s) · (s · w)` for any positive s of each channel, and with the right s neither side has outliers. And offsets (Wei et al.,
//! "Outlier Suppression+"): `x · w` is `(x - d) · w + d · w`, whose second part is a constant; an outlier is mostly the same for
//! every input, and what is left of it is small.

use half::bf16;
use kiln_graph::{Attrs, Graph, INTERNAL_DOMAIN, Op, Tensor, Type, ValueId, ops};

use super::ranges::{self, Choice, Method};
use super::stats::TensorStats;
use crate::precision::linear::Linear;
use crate::precision::numbers::format::Format;

/// Exponents of the activation's magnitude that are tried; the weight's has the rest.
const ALPHAS: [f64; 6] = [0.25, 0.4, 0.5, 0.6, 0.75, 0.9];

/// The least magnitude of a channel, and of a row of the weights, beside the largest.
const LEAST: f64 = 1e-5;

/// The same where offsets are taken away: what is left of a channel in other data may be more.
const FLOOR: f64 = 1e-3;

/// Room beyond the ranges that were measured, where each channel fills its own: other data goes further in one or the other.
const HEADROOM: f64 = 1.25;

/// A Mul of its own, or a change without need, must at least halve the noise.
const WORTH: f64 = 0.5;

/// What saves a product of outliers may have so many times its noise.
pub(in crate::precision) const SAVED: f64 = 2.0;

/// Offsets that the channels lose, factors that they are divided by, and how the activation is quantized then.
#[derive(Clone, Debug)]
pub(in crate::precision) struct Smooth {
    /// Empty where there are none.
    pub offsets: Vec<f32>,
    /// Empty where all are 1.
    pub factors: Vec<f32>,
    pub choice: Choice,
    /// The mean square of each channel, as far as errors of the weights are multiplied by it.
    pub moments: Vec<f64>,
    /// The one offset of all channels, where it is given back by the rounded weights: these are then multiplied by what the
    /// activation was, as its middle is not what it mostly is.
    pub middle: Option<f32>,
}

impl Smooth {
    fn new(shifted: &Shifted, factors: &[f64], (lo, hi): (f64, f64), noise: f64) -> Smooth {
        let moments = shifted.moments.iter().zip(factors);
        let divides = factors.iter().any(|&s| s != 1.0);
        let factors32: Vec<f32> = factors.iter().map(|&s| s as f32).collect();
        Smooth {
            offsets: shifted.offsets.clone(),
            factors: if divides { factors32 } else { Vec::new() },
            choice: Choice {
                lo: lo as f32,
                hi: hi as f32,
                by: Method::MinMax,
                outliers: Vec::new(),
                noise,
            },
            moments: moments.map(|(m, s)| m / (s * s)).collect(),
            middle: None,
        }
    }

    /// No change. `None` where nothing is known of the channels.
    pub fn plain(stats: &TensorStats, choice: &Choice) -> Option<Smooth> {
        Some(Smooth {
            offsets: Vec::new(),
            factors: Vec::new(),
            choice: choice.clone(),
            moments: stats.channel_moments()?,
            middle: None,
        })
    }

    /// The same with each channel's offset larger by `more`. `None` where an offset is out of bounds.
    pub fn moved(&self, stats: &TensorStats, more: impl Fn(usize) -> f64) -> Option<Smooth> {
        let moments = stats.channel_moments()?;
        let old = |j: usize| self.offsets.get(j).map_or(0.0, |&d| d.into());
        let shifted = Shifted::by(stats, &moments, |j| old(j) + more(j))?;
        let channels = shifted.absmax.len();
        let factors: Vec<f64> = match self.factors.is_empty() {
            true => vec![1.0; channels],
            false => self.factors.iter().map(|&s| s.into()).collect(),
        };
        (self.middle.is_none() && factors.len() == channels).then_some(())?;
        let each = shifted.absmax.iter().zip(&factors);
        let most = HEADROOM * each.map(|(a, s)| f64::from(*a) / s).fold(0.0, f64::max);
        let noise = self.choice.noise;
        (most > 0.0).then(|| Smooth::new(&shifted, &factors, (-most, most), noise))
    }

    /// What the manifest calls it.
    pub fn name(&self, folded: bool) -> &'static str {
        match (folded, self.offsets.is_empty(), self.factors.is_empty()) {
            (true, true, _) => "norm",
            (true, false, _) => "norm, offsets",
            (false, true, _) => "mul",
            (false, false, true) => "offsets",
            (false, false, false) => "mul, offsets",
        }
    }

    /// The means of the channels, as far as errors of the weights are multiplied by them.
    pub fn means(&self, means: &[f64]) -> Vec<f64> {
        let offset = |j: usize| match self.middle {
            Some(_) => 0.0,
            None => self.offsets.get(j).map_or(0.0, |&d| d.into()),
        };
        let factor = |j: usize| self.factors.get(j).map_or(1.0, |&s| s.into());
        let means = means.iter().enumerate();
        means.map(|(j, m)| (m - offset(j)) / factor(j)).collect()
    }

    /// What the offsets add to the columns of a product with `matrix` [K, columns].
    pub fn given_back(&self, matrix: &[f32], columns: usize) -> Option<Vec<f64>> {
        let mut sums = vec![0f64; columns];
        for (row, &d) in matrix.chunks(columns.max(1)).zip(&self.offsets) {
            for (sum, &v) in sums.iter_mut().zip(row) {
                *sum += f64::from(d) * f64::from(v);
            }
        }
        (!self.offsets.is_empty()).then_some(sums)
    }
}

/// The weights that read an activation, as far as noise is concerned.
pub(in crate::precision) struct Readers<'a> {
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

/// What a target gives for nothing.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Free {
    /// The division by the factors.
    pub factors: bool,
    /// The subtraction of offsets.
    pub offsets: bool,
}

/// What may be taken from the channels before they are divided.
struct Shifted {
    offsets: Vec<f32>,
    /// The largest magnitude and the mean square that is left of each.
    absmax: Vec<f32>,
    moments: Vec<f64>,
}

impl Shifted {
    fn by(stats: &TensorStats, moments: &[f64], offset: impl Fn(usize) -> f64) -> Option<Shifted> {
        let channels = stats.channel_absmax.len();
        let all = [
            stats.channel_min.len(),
            stats.channel_max.len(),
            stats.channel_sum.len(),
        ];
        all.iter().all(|&n| n == channels).then_some(())?;
        // Few digits, which all formats hold, so that what is subtracted is what the bias gives back.
        let offsets: Vec<f32> = (0..channels)
            .map(|j| bf16::from_f64(offset(j)).to_f32())
            .collect();
        let fits = |d: &f32| d.abs() < 1e4;
        let left =
            |(j, &d): (usize, &f32)| (stats.channel_max[j] - d).max(d - stats.channel_min[j]);
        let rows = stats.rows.max(1) as f64;
        let moment = |(j, &d): (usize, &f32)| {
            let d = f64::from(d);
            (moments[j] - 2.0 * d * stats.channel_sum[j] / rows + d * d).max(0.0)
        };
        offsets.iter().all(fits).then(|| Shifted {
            absmax: offsets.iter().enumerate().map(left).collect(),
            moments: offsets.iter().enumerate().map(moment).collect(),
            offsets,
        })
    }

    /// None; the middle of each channel's range; its mean.
    fn all(stats: &TensorStats, moments: &[f64], free: Free) -> Vec<Shifted> {
        let none = Shifted {
            offsets: Vec::new(),
            absmax: stats.channel_absmax.clone(),
            moments: moments.to_vec(),
        };
        let mut all = vec![none];
        if free.offsets {
            let middle =
                |j: usize| f64::midpoint(stats.channel_min[j].into(), stats.channel_max[j].into());
            let mean = |j: usize| stats.channel_sum[j] / stats.rows.max(1) as f64;
            all.extend(Shifted::by(stats, moments, middle));
            all.extend(Shifted::by(stats, moments, mean));
        }
        all
    }
}

/// Factors and offsets that lower the noise of activation and weights together, if there are any that are worth it: where they
/// are `free` they replace channels apart.
pub(in crate::precision) fn choose(
    stats: &TensorStats,
    format: Format,
    readers: &Readers<'_>,
    plain: &Choice,
    free: Free,
) -> Option<Smooth> {
    if format.floats().is_some() {
        return float(stats, readers, plain, free);
    }
    let signed = !format.has_zero_point();
    let enough = plain.noise <= ranges::ENOUGH;
    if enough && !free.factors {
        return None;
    }
    let channels = stats.channel_absmax.len();
    let power = ranges::signal(stats, readers.gains);
    let moments = stats
        .channel_moments()
        .filter(|m| m.len() == channels && power > 0.0)?;
    let weights = readers.rows(channels);
    let ones = vec![1.0; channels];
    let noise = |factors: &[f64], moments: &[f64]| {
        readers.steps(factors) / 12.0 * sum(moments, |j| factors[j].powi(-2)) / power
    };
    let limit = plain.noise + noise(&ones, &moments);
    let limit = limit
        * match (free.factors, plain.outliers.is_empty()) {
            (true, false) => SAVED,
            (true, true) if !enough => 1.0,
            _ => WORTH,
        };
    let mut best: Option<(f64, Smooth)> = None;
    for shifted in Shifted::all(stats, &moments, free) {
        let floor = if free.offsets { FLOOR } else { LEAST };
        let tried = ALPHAS
            .iter()
            .map(|&a| factors(&shifted.absmax, &weights, a, floor));
        let tried = tried.chain(
            free.offsets
                .then(|| factors(&shifted.absmax, &weights, 1.0, floor)),
        );
        let tried = tried.chain((!shifted.offsets.is_empty()).then(|| Some(ones.clone())));
        for factors in tried.flatten() {
            let most = (0..channels)
                .map(|j| f64::from(shifted.absmax[j]) / factors[j])
                .fold(0.0, f64::max);
            let most = if free.offsets { most * HEADROOM } else { most };
            let (lo, hi) = match (signed, stats.min < 0.0, stats.max > 0.0) {
                (true, ..) | (_, true, true) => (-most, most),
                (_, false, _) => (0.0, most),
                (_, true, false) => (-most, 0.0),
            };
            let steps = format.max() * if signed { 2.0 } else { 1.0 };
            let step = (hi - lo) / steps;
            let rounding = step * step / 12.0 * sum(readers.gains, |j| factors[j].powi(2)) / power;
            let total = rounding + noise(&factors, &shifted.moments);
            if total < limit && best.as_ref().is_none_or(|(least, _)| total < *least) {
                best = Some((total, Smooth::new(&shifted, &factors, (lo, hi), rounding)));
            }
        }
    }
    best.map(|(_, smooth)| smooth)
}

/// One offset for all channels, the middle of a range that is not around zero, as behind Gelu: half of the steps of a range
/// around zero would serve numbers that do not occur. `plain` is the choice of such a range, whose channels apart stay so.
pub(in crate::precision) fn around(
    stats: &TensorStats,
    gains: &[f64],
    plain: &Choice,
) -> Option<Smooth> {
    let found = ranges::apart(stats, Format::Uint8, gains, plain.outliers.len());
    let pays = found.noise <= WORTH * plain.noise;
    let moments = stats.channel_moments().filter(|_| pays)?;
    let middle = f64::midpoint(found.lo.min(0.0).into(), found.hi.max(0.0).into());
    let shifted = Shifted::by(stats, &moments, |_| middle)?;
    let d = *shifted.offsets.first()?;
    let most = f64::from((found.hi - d).max(d - found.lo));
    let ones = vec![1.0; moments.len()];
    let smooth = Smooth::new(&shifted, &ones, (-most, most), found.noise);
    Some(Smooth {
        choice: Choice {
            by: found.by,
            outliers: found.outliers,
            ..smooth.choice
        },
        moments,
        middle: Some(d),
        ..smooth
    })
}

/// The mean square of E4M3's relative error: steps are 1/8 of a power of two, and numbers are spread evenly between two of these.
pub(in crate::precision) const FP8_ERROR: f64 = 1.0 / 64.0 / 12.0 / 2.0;

/// FP8 has relative steps, so that only what is far from zero for all inputs is worth an offset, the mean.
fn float(stats: &TensorStats, readers: &Readers<'_>, plain: &Choice, free: Free) -> Option<Smooth> {
    let channels = stats.channel_absmax.len();
    let power = ranges::signal(stats, readers.gains);
    let moments = stats.channel_moments();
    let moments = moments.filter(|m| m.len() == channels && free.offsets && power > 0.0)?;
    let shifted = Shifted::all(stats, &moments, free).pop()?;
    let noise = |moments: &[f64]| FP8_ERROR * sum(readers.gains, |j| moments[j]) / power;
    let limit = match plain.outliers.is_empty() {
        true => WORTH * noise(&moments),
        false => SAVED * plain.noise,
    };
    let after = noise(&shifted.moments);
    let most = HEADROOM * f64::from(shifted.absmax.iter().fold(0f32, |m, v| m.max(*v)));
    let ones = vec![1.0; channels];
    (after < limit && most > 0.0).then(|| Smooth::new(&shifted, &ones, (-most, most), after))
}

fn sum(values: &[f64], factor: impl Fn(usize) -> f64) -> f64 {
    values.iter().enumerate().map(|(j, v)| v * factor(j)).sum()
}

/// `a^α / w^(1 − α)`, with a geometric mean of 1; `None` if a number is out of bounds. No channel is smaller than `floor` of
/// the largest.
fn factors(absmax: &[f32], weights: &[f64], alpha: f64, floor: f64) -> Option<Vec<f64>> {
    let most = absmax.iter().fold(0f32, |m, v| m.max(*v));
    let floor = f64::from(most) * floor;
    let heaviest = weights.iter().fold(0.0, |m: f64, w| m.max(*w)) * LEAST;
    let log = |(a, w): (&f32, &f64)| {
        alpha * f64::from(*a).max(floor).ln() - (1.0 - alpha) * w.max(heaviest).ln()
    };
    let logs: Vec<f64> = absmax.iter().zip(weights).map(log).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let all: Vec<f64> = logs.iter().map(|l| (l - mean).exp()).collect();
    all.iter().all(|s| (1e-4..1e4).contains(s)).then_some(all)
}

/// The normalization over the last axis that a value is the result of.
pub(in crate::precision) fn normalization(g: &Graph, x: ValueId) -> Option<kiln_graph::NodeId> {
    let id = g.producer(x)?;
    let node = g.node(id);
    let normalizes = ops::LayerNormalization::of(g, id).is_some()
        || (node.op().is("RMSNormalization") && node.op().domain().is_empty())
        || (node.op().domain() == INTERNAL_DOMAIN
            && ops::internal::RmsNormalization::of(g, id).is_some());
    (normalizes && node.sole_output() == Some(x)).then_some(id)
}

/// The normalization whose scale and bias can take the factors of `x`: nothing but the layers reads it.
pub(in crate::precision) fn norm(g: &Graph, x: ValueId, layers: &[Linear]) -> Option<Norm> {
    let value = g.value(x);
    let all = value
        .uses()
        .iter()
        .all(|u| layers.iter().any(|l| l.node == u.node));
    if value.is_output() || !all {
        return None;
    }
    let id = normalization(g, x)?;
    let node = g.node(id);
    let channels = g.value(x).ty().shape()?.last()?.known()?;
    let fits = |k: usize| match node.input(k) {
        None => k == 2,
        Some(v) => g
            .constant(v)
            .is_some_and(|t| t.dims() == [channels] && t.values::<f32>().is_some()),
    };
    (fits(1) && fits(2)).then_some(Norm { id })
}

/// A normalization with constant parameters.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Norm {
    id: kiln_graph::NodeId,
}

impl Norm {
    /// Whether it has a bias, which can take offsets.
    fn is_biased(self, g: &Graph) -> bool {
        let layer = ops::LayerNormalization::of(g, self.id).is_some();
        layer && g.node(self.id).input(2).is_some()
    }
}

/// Takes the offsets from the activation and divides it by the factors, in the parameters of the norm or else by nodes; gives the
/// value to read.
pub(in crate::precision) fn apply(
    g: &mut Graph,
    x: ValueId,
    norm: Option<Norm>,
    (offsets, factors): (&[f32], &[f32]),
    pass: &str,
) -> Option<ValueId> {
    let fits = |n: &Norm| offsets.is_empty() || n.is_biased(g);
    let Some(Norm { id }) = norm.filter(fits) else {
        return Some(written(g, x, (offsets, factors), pass));
    };
    for k in [1, 2] {
        let Some(old) = g.node(id).input(k) else {
            continue;
        };
        let mut values = g.constant(old)?.values::<f32>()?;
        if k == 2 {
            let shifted = values.iter_mut().zip(offsets);
            shifted.for_each(|(v, d)| *v -= d);
        }
        let divided = values.iter_mut().zip(factors);
        divided.for_each(|(v, s)| *v /= s);
        let label = format!("{}_smoothed", g.value(old).name());
        let new = g.add_constant(&label, Tensor::vector(&values));
        g.set_input(id, k, Some(new));
        g.remove_unused_value(old);
    }
    Some(x)
}

/// `(x - offsets) · 1 / factors`.
fn written(g: &mut Graph, x: ValueId, (offsets, factors): (&[f32], &[f32]), pass: &str) -> ValueId {
    let name = g.value(x).name().to_string();
    let inverse: Vec<f32> = factors.iter().map(|s| s.recip()).collect();
    let steps = [
        ("Sub", "offset", "shifted", offsets),
        ("Mul", "smoothing", "smoothed", inverse.as_slice()),
    ];
    let mut at = x;
    for (op, constant, made, values) in steps {
        if values.is_empty() {
            continue;
        }
        let constant = g.add_constant(&format!("{name}_{constant}"), Tensor::vector(values));
        let made = format!("{name}_{made}");
        let inputs = [Some(at), Some(constant)];
        let id = g.add_node_named(Op::onnx(op), "", inputs, &[Some(&made)], Attrs::new());
        g.notes_mut(id).set("kiln.pass", pass.into());
        if let Some(v) = g.node(id).output(0) {
            let shape = g.value(x).ty().shape().map(|s| s.into());
            g.set_type(v, Type::tensor(kiln_graph::DType::F32, shape));
            at = v;
        }
    }
    at
}
