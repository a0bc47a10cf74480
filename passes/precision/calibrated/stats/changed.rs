//! What statistics of a tensor become where its channels are shifted and divided.

use super::{BINS, Histogram, TensorStats};

impl TensorStats {
    /// The statistics of `(x - offsets) / factors`, each for a channel. Those of channels are exact up to rounding. The histogram is made
    /// anew: each channel is taken for a bell curve between its smallest and its largest number. `None` where the lengths differ, there
    /// are no statistics for channels, or a factor is not positive.
    pub fn changed(&self, offsets: &[f64], factors: &[f64]) -> Option<TensorStats> {
        let channels = self.channel_absmax.len();
        let lengths = [
            offsets.len(),
            factors.len(),
            self.channel_min.len(),
            self.channel_max.len(),
            self.channel_sum.len(),
            self.channel_sumsq.len(),
        ];
        let fits = lengths.iter().all(|&n| n == channels) && channels > 0 && self.rows > 0;
        let usable = factors.iter().all(|f| f.is_finite() && *f > 0.0);
        if !fits || !usable || self.finite() < self.count {
            return None;
        }
        let rows = self.rows as f64;
        let at = |j: usize, v: f32| (f64::from(v) - offsets[j]) / factors[j];
        let each = |f: &dyn Fn(usize) -> f64| (0..channels).map(f).collect::<Vec<f64>>();
        let mins = each(&|j| at(j, self.channel_min[j]));
        let maxs = each(&|j| at(j, self.channel_max[j]));
        let sums = each(&|j| (self.channel_sum[j] - rows * offsets[j]) / factors[j]);
        let squares = each(&|j| {
            let (o, sum) = (offsets[j], self.channel_sum[j]);
            let square = self.channel_sumsq[j] - 2.0 * o * sum + rows * o * o;
            square.max(0.0) / (factors[j] * factors[j])
        });
        let least = mins.iter().copied().fold(f64::INFINITY, f64::min);
        let most = maxs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let narrow = |all: &[f64]| all.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let mut out = TensorStats {
            min: least as f32,
            max: most as f32,
            absmax: most.max(-least) as f32,
            sum: sums.iter().sum(),
            sumsq: squares.iter().sum(),
            channel_absmax: mins
                .iter()
                .zip(&maxs)
                .map(|(a, b)| b.max(-a) as f32)
                .collect(),
            channel_min: narrow(&mins),
            channel_max: narrow(&maxs),
            channel_sum: sums,
            channel_sumsq: squares,
            ..self.clone()
        };
        out.histogram = out.bells()?;
        Some(out)
    }

    /// The histogram of bell curves, one for each channel.
    fn bells(&self) -> Option<Histogram> {
        let mut empty = Histogram::default();
        empty.widen(self.absmax);
        let rows = self.rows as f64;
        let mut counts = vec![0f64; BINS];
        for j in 0..self.channel_sum.len() {
            let (lo, hi) = (
                f64::from(self.channel_min[j]),
                f64::from(self.channel_max[j]),
            );
            let mean = self.channel_sum[j] / rows;
            let spread = (self.channel_sumsq[j] / rows - mean * mean).max(0.0).sqrt();
            // The logistic function closest to the normal distribution.
            let below = |v: f64| match spread > 0.0 {
                true => (1.0 + (-1.702 * (v.clamp(lo, hi) - mean) / spread).exp()).recip(),
                false => f64::from(u8::from(v >= mean)),
            };
            let (from, to) = (below(lo), below(hi));
            let whole = (to - from).max(f64::MIN_POSITIVE);
            let mut last = below(empty.edges(0).0);
            for (k, count) in counts.iter_mut().enumerate() {
                let next = below(empty.edges(k).1);
                *count += rows * (next - last) / whole;
                last = next;
            }
        }
        let counts = counts.iter().map(|c| c.round() as u64).collect();
        Histogram::from_parts(empty.exponent(), 0, counts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Collector;
    use super::*;

    #[test]
    fn statistics_follow_offsets_and_factors() {
        let mut state = 7u32;
        let mut next = || {
            let mut sum = 0f32;
            for _ in 0..12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sum += (state >> 8) as f32 / (1 << 24) as f32;
            }
            sum - 6.0
        };
        let (offsets, factors) = ([0.5f64, -2.0], [2.0f64, 0.5]);
        let x: Vec<f32> = (0..4000)
            .map(|k| next() * [1.0, 0.3][k % 2] + [0.5, -2.1][k % 2])
            .collect();
        let change =
            |(k, v): (usize, &f32)| ((f64::from(*v) - offsets[k % 2]) / factors[k % 2]) as f32;
        let changed: Vec<f32> = x.iter().enumerate().map(change).collect();
        let stats = |values: &[f32]| {
            let mut seen = Collector::new();
            seen.add(Some(2), values);
            seen.finish()
        };
        let (found, right) = (
            stats(&x).changed(&offsets, &factors).unwrap(),
            stats(&changed),
        );
        assert_eq!(found.channel_min, right.channel_min);
        assert_eq!(found.channel_max, right.channel_max);
        assert!((found.sumsq / right.sumsq - 1.0).abs() < 1e-3);
        assert_eq!(found.histogram.exponent(), right.histogram.exponent());
        let total = |h: &Histogram| h.counts().iter().sum::<u64>() as f64;
        assert!((total(&found.histogram) / total(&right.histogram) - 1.0).abs() < 0.05);
        let close = |p: f64| (found.percentile(p).1 / right.percentile(p).1 - 1.0).abs() < 0.15;
        assert!(close(99.0) && close(90.0));
        assert!(stats(&x).changed(&[0.0], &[1.0]).is_none());
    }
}
