//! The range of an activation that is quantized, and the channels that must not decide it.
//!
//! A few channels of a Transformer's activations are many times larger than all others (Dettmers et al., "LLM.int8()";
//! Bondarenko et al., "Understanding and Overcoming the Challenges of Efficient Transformer Quantization"). One scale for
//! the whole tensor then leaves the others few of its steps, so such channels are multiplied apart, in the original precision.

use super::stats::TensorStats;
use crate::precision::numbers::format::Format;

/// How an activation is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub lo: f32,
    pub hi: f32,
    /// What chose the range.
    pub by: Method,
    /// Channels of the last axis that are multiplied apart, in ascending order.
    pub outliers: Vec<usize>,
    /// The expected power of the error in the products, over the power of what the channels that could not be outliers add
    /// to them: an outlier is mostly the same for every input, so that its power carries little.
    pub noise: f64,
}

/// How a range is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    MinMax,
    Percentile,
    Entropy,
    Mse,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::MinMax => "min-max",
            Method::Percentile => "percentile",
            Method::Entropy => "entropy",
            Method::Mse => "mse",
        }
    }
}

/// Numbers of channels that may be multiplied apart. Each costs what 1 of K rows of the weight does, and the first a
/// Gather and an Add.
const SPLITS: [usize; 6] = [0, 1, 2, 4, 8, 16];

/// At most one of so many channels is multiplied apart.
const SHARE: usize = 16;

/// Noise that is not worth another channel: 33 dB below the product, four times what INT8 weights of a normal distribution
/// add by themselves.
pub(in crate::precision) const ENOUGH: f64 = 5e-4;

/// What is left out of a range by percentile.
const PERCENTILES: [f64; 2] = [99.99, 99.9];

/// The choice for an activation. `gains[j]` is the squared norm of row j of all weights that it is multiplied by; errors of
/// elements are taken as independent of each other, so that the product's is their sum, weighted by the gains.
///
/// The fewest outliers are chosen with which the noise is low enough, or within twice the least.
pub fn choose(stats: &TensorStats, format: Format, gains: &[f64]) -> Option<Choice> {
    let channels = stats.channel_absmax.len();
    if channels == 0 || gains.len() != channels || stats.rows == 0 || stats.finite() < stats.count {
        return None;
    }
    let counts = SPLITS.iter().filter(|&&k| k == 0 || k <= channels / SHARE);
    let choices: Vec<Choice> = counts
        .map(|&count| apart(stats, format, gains, count))
        .collect();
    let least = choices
        .iter()
        .map(|c| c.noise)
        .fold(f64::INFINITY, f64::min);
    choices
        .into_iter()
        .find(|c| c.noise <= ENOUGH || c.noise <= 2.0 * least)
}

/// The choice with so many of the channels multiplied apart, as many as there are gains.
pub(in crate::precision) fn apart(
    stats: &TensorStats,
    format: Format,
    gains: &[f64],
    count: usize,
) -> Choice {
    let order = by_magnitude(stats);
    let power = signal(stats, gains);
    let mut outliers = order[..count].to_vec();
    let rest = stats.channel_absmax[order[count]];
    outliers.sort_unstable();
    let within = match count {
        0 => stats.clone(),
        _ => stats.truncated(rest),
    };
    let (by, (lo, hi), error) = range(&within, format);
    let gain: f64 = order[count..].iter().map(|&j| gains[j]).sum();
    let noise = if power > 0.0 {
        error * gain / power
    } else {
        0.0
    };
    Choice {
        lo,
        hi,
        by,
        outliers,
        noise,
    }
}

/// The choice for a tensor of which no channel is multiplied apart; its noise is the error's power over the tensor's own.
pub fn whole(stats: &TensorStats, format: Format) -> Option<Choice> {
    let power = stats.mean_square();
    if power == 0.0 || stats.finite() < stats.count {
        return None;
    }
    let (by, (lo, hi), error) = range(stats, format);
    Some(Choice {
        lo,
        hi,
        by,
        outliers: Vec::new(),
        noise: error / power,
    })
}

/// Channels, the largest first.
fn by_magnitude(stats: &TensorStats) -> Vec<usize> {
    let mut order: Vec<usize> = (0..stats.channel_absmax.len()).collect();
    order.sort_by(|&a, &b| stats.channel_absmax[b].total_cmp(&stats.channel_absmax[a]));
    order
}

/// The power that channels which could not be outliers add to the products.
pub(in crate::precision) fn signal(stats: &TensorStats, gains: &[f64]) -> f64 {
    let order = by_magnitude(stats);
    let most = SPLITS.into_iter().rfind(|k| *k <= order.len() / SHARE);
    let rest = order.iter().skip(most.unwrap_or(0));
    rest.map(|&j| stats.channel_sumsq[j] / stats.rows.max(1) as f64 * gains[j])
        .sum()
}

/// The range with the least expected squared error, the simplest first.
fn range(stats: &TensorStats, format: Format) -> (Method, (f32, f32), f64) {
    let percentiles = PERCENTILES.map(|p| (Method::Percentile, stats.percentile(p)));
    let tried = [(Method::MinMax, stats.full_range())]
        .into_iter()
        .chain(percentiles)
        .chain([
            (Method::Entropy, stats.entropy_range()),
            (Method::Mse, stats.mse_range(format)),
        ]);
    let mut best = (Method::MinMax, stats.full_range(), f64::INFINITY);
    for (method, (lo, hi)) in tried {
        let error = stats.quantization_error(lo, hi, format);
        if error < best.2 {
            best = (method, (lo, hi), error);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::stats::Collector;
    use super::*;

    /// 4096 rows of 64 channels in ±1, one of which is `factor` times as large.
    fn stats(factor: f32) -> TensorStats {
        let mut state = 1u64;
        let values: Vec<f32> = (0..4096 * 64)
            .map(|k| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let v = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                if k % 64 == 7 { v * factor } else { v }
            })
            .collect();
        let mut collector = Collector::new();
        collector.add(Some(64), &values);
        collector.finish()
    }

    #[test]
    fn an_outlier_channel_is_split_off_and_nothing_else() {
        let found = choose(&stats(50.0), Format::Uint8, &[1.0; 64]).unwrap();
        assert_eq!(found.outliers, [7]);
        assert!(found.hi <= 1.0 && found.lo >= -1.0, "{found:?}");
        let even = choose(&stats(1.0), Format::Uint8, &[1.0; 64]).unwrap();
        assert!(even.outliers.is_empty() && even.noise < 1e-4, "{even:?}");
    }

    #[test]
    fn relative_steps_keep_small_channels_beside_large_ones() {
        // Half of FP8's steps, 1/8 of a power of two, squared over twelve.
        let found = choose(&stats(1.0), Format::Fp8, &[1.0; 64]).unwrap();
        assert!(found.outliers.is_empty(), "{found:?}");
        assert!(found.noise > 3e-4 && found.noise < 2e-3, "{found:?}");
    }

    #[test]
    fn what_has_no_channels_or_no_end_has_no_range() {
        assert_eq!(choose(&TensorStats::default(), Format::Int8, &[]), None);
        let mut infinite = stats(1.0);
        infinite.infinite = 1;
        assert_eq!(choose(&infinite, Format::Int8, &[1.0; 64]), None);
    }
}
