//! Ranges for quantizers, chosen by the histogram.
//!
//! Within a bin, elements are taken as spread evenly; the outermost bins end at the smallest and the largest element. A
//! range is `(lo, hi)` with lo ≤ 0 ≤ hi, within the smallest and the largest element.

use super::TensorStats;
use crate::precision::numbers::format::{Floats, Format};

/// Numbers at equal distances: the multiples of `step` between two of them.
#[derive(Clone, Copy, Debug)]
struct Segment {
    from: f64,
    to: f64,
    step: f64,
}

/// What a format has over a range, in ascending order: a scale maps its largest number to the end of the range.
struct Grid {
    segments: Vec<Segment>,
    lowest: f64,
    highest: f64,
}

impl Grid {
    fn new(lo: f64, hi: f64, format: Format) -> Grid {
        let (least, last) = format.range();
        let scale = lo.abs().max(hi.abs()) / last;
        let segments = match format.floats() {
            Some(floats) => segments(floats, scale),
            // (k − z)·s for k from 0, with s = (hi − lo) / k's last and z = round(−lo / s). Zero is always in the range.
            None if format.has_zero_point() => {
                let (lo, hi) = (lo.min(0.0), hi.max(0.0));
                let step = (hi - lo) / last;
                let zero = (-lo / step).round_ties_even().clamp(0.0, last);
                vec![Segment {
                    from: -zero * step,
                    to: (last - zero) * step,
                    step,
                }]
            }
            // k·s, with s = max(|lo|, |hi|) / k's last.
            None => vec![Segment {
                from: least * scale,
                to: last * scale,
                step: scale,
            }],
        };
        // Without a range, everything becomes zero.
        let segments = match segments.iter().all(|s| s.step > 0.0 && s.step.is_finite()) {
            true => segments,
            false => Vec::new(),
        };
        Grid {
            lowest: segments.first().map_or(0.0, |s| s.from),
            highest: segments.last().map_or(0.0, |s| s.to),
            segments,
        }
    }

    /// The mean of (x − Q(x))² over x in [a, b].
    fn error(&self, a: f64, b: f64) -> f64 {
        let width = b - a;
        let mut total = 0.0;
        // Outside of the grid: ∫ (x − end)² dx.
        for (end, from, to) in [
            (self.lowest, a, b.min(self.lowest)),
            (self.highest, a.max(self.highest), b),
        ] {
            if to >= from && (to != end || from != end) {
                let (u, v) = (from - end, to - end);
                if width <= 0.0 {
                    return u * u;
                }
                // (v³ − u³) / 3, without cancellation.
                total += (to - from) * (u * u + u * v + v * v) / 3.0;
            }
        }
        for s in &self.segments {
            let (from, to) = (a.max(s.from), b.min(s.to));
            if from > to || (from == to && width > 0.0) {
                continue;
            }
            // Differences of the integral lose their digits where the piece is far smaller than a step.
            if to - from < s.step * 1e-3 {
                let x = (from + to) / 2.0;
                let r = x - (x / s.step).round() * s.step;
                if width <= 0.0 {
                    return r * r;
                }
                total += (to - from) * r * r;
            } else {
                total += s.integral(to) - s.integral(from);
            }
        }
        match width > 0.0 {
            true => total / width,
            false => total,
        }
    }
}

impl Segment {
    /// ∫ (t − Q(t))² dt from 0 to x: n·step³/12 + r³/3, where n·step is the multiple next to x and r the distance to it.
    fn integral(&self, x: f64) -> f64 {
        let n = (x / self.step).round();
        let r = x - n * self.step;
        n * self.step.powi(3) / 12.0 + r.powi(3) / 3.0
    }
}

/// Steps of the smallest number up to the first normal one, then of a part of each power of two.
fn segments(floats: Floats, scale: f64) -> Vec<Segment> {
    let first = Segment {
        from: 0.0,
        to: floats.normal() * scale,
        step: floats.tiny() * scale,
    };
    let mut positive = vec![first];
    let powers = (floats.least..).take_while(|&k| 2f64.powi(k) < floats.max);
    positive.extend(powers.map(|k| Segment {
        from: 2f64.powi(k) * scale,
        to: 2f64.powi(k + 1).min(floats.max) * scale,
        step: 2f64.powi(k + 1 - floats.significant) * scale,
    }));
    let negative = positive.iter().rev().map(|s| Segment {
        from: -s.to,
        to: -s.from,
        step: s.step,
    });
    negative.chain(positive.iter().copied()).collect()
}

/// Elements that lie between two numbers.
#[derive(Clone, Copy)]
struct Mass {
    from: f64,
    to: f64,
    count: f64,
}

fn error(masses: &[Mass], total: f64, lo: f64, hi: f64, format: Format) -> f64 {
    let grid = Grid::new(lo, hi, format);
    let sum: f64 = (masses.iter())
        .map(|m| m.count * grid.error(m.from, m.to))
        .sum();
    if total > 0.0 { sum / total } else { 0.0 }
}

impl TensorStats {
    /// The elements but the zeros, in ascending order.
    fn masses(&self) -> Vec<Mass> {
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let counts = self.histogram.counts().iter().enumerate();
        counts
            .filter(|(_, n)| **n > 0)
            .map(|(k, &n)| {
                let (from, to) = self.histogram.edges(k);
                let from = from.max(min);
                Mass {
                    from,
                    to: to.min(max).max(from),
                    count: n as f64,
                }
            })
            .collect()
    }

    fn within(&self, lo: f64, hi: f64) -> (f32, f32) {
        let lo = (lo as f32).max(self.min).min(0.0);
        let hi = (hi as f32).min(self.max).max(0.0);
        (lo, hi)
    }

    /// The expected squared error of an element: rounding within the range, clipping outside of it.
    ///
    /// It is the mean over all finite elements of (x − Q(x))², with Q rounding to the nearest number that the format has
    /// over `lo` to `hi`. Zeros have no error.
    pub fn quantization_error(&self, lo: f32, hi: f32, format: Format) -> f64 {
        error(
            &self.masses(),
            self.finite() as f64,
            f64::from(lo),
            f64::from(hi),
            format,
        )
    }

    /// The range of all finite elements, and zero.
    pub fn full_range(&self) -> (f32, f32) {
        (self.min.min(0.0), self.max.max(0.0))
    }

    /// The range that leaves out (100 − p)/2 percent of the elements at each end, `p` from 0 to 100.
    pub fn percentile(&self, p: f64) -> (f32, f32) {
        let tail = (100.0 - p.clamp(0.0, 100.0)) / 200.0;
        self.within(self.quantile(tail), self.quantile(1.0 - tail))
    }

    /// The number below which this part of the elements lies.
    fn quantile(&self, part: f64) -> f64 {
        let mut masses = self.masses();
        let zeros = Mass {
            from: 0.0,
            to: 0.0,
            count: self.histogram.zeros() as f64,
        };
        let at = masses.partition_point(|m| m.to <= 0.0 && m.from < 0.0);
        masses.insert(at, zeros);
        let total: f64 = masses.iter().map(|m| m.count).sum();
        let mut left = part * total;
        for m in &masses {
            if left <= m.count && m.count > 0.0 {
                return m.from + (m.to - m.from) * (left / m.count);
            }
            left -= m.count;
        }
        f64::from(self.max)
    }

    /// The range with the least [`TensorStats::quantization_error`] among those tried: for formats around zero 128 fractions
    /// of the largest magnitude, then 16 around the best; for those with a zero point 64 fractions of both ends together, then of
    /// each end in turn, twice.
    pub fn mse_range(&self, format: Format) -> (f32, f32) {
        let masses = self.masses();
        let total = self.finite() as f64;
        let best = |tried: &mut dyn Iterator<Item = (f64, f64)>| {
            let mut least = (f64::INFINITY, (0.0, 0.0));
            for (lo, hi) in tried {
                let e = error(&masses, total, lo, hi, format);
                if e < least.0 {
                    least = (e, (lo, hi));
                }
            }
            least.1
        };
        let (lo, hi) = match format {
            Format::Uint8 => {
                let (lowest, highest) =
                    (f64::from(self.min.min(0.0)), f64::from(self.max.max(0.0)));
                let part = |k: i32| f64::from(k) / 64.0;
                let (mut lo, mut hi) = best(
                    &mut (1..=64)
                        .rev()
                        .map(|k| (lowest * part(k), highest * part(k))),
                );
                for _ in 0..2 {
                    hi = best(&mut (0..=64).rev().map(|k| (lo, highest * part(k)))).1;
                    lo = best(&mut (0..=64).rev().map(|k| (lowest * part(k), hi))).0;
                }
                (lo, hi)
            }
            _ => {
                let most = f64::from(self.absmax);
                let (_, coarse) = best(&mut (1..=128).rev().map(|k| {
                    let t = most * f64::from(k) / 128.0;
                    (-t, t)
                }));
                best(&mut (-8..=8).rev().map(|k| {
                    let t = (coarse + most * f64::from(k) / 1024.0).min(most);
                    (-t, t)
                }))
            }
        };
        self.within(lo, hi)
    }

    /// The range of TensorRT's entropy calibrator (S. Migacz, "8-bit Inference with TensorRT", GTC 2017): the threshold at
    /// which the magnitudes, clipped, diverge least from what 128 levels keep of them. Zeros are left out.
    pub fn entropy_range(&self) -> (f32, f32) {
        const LEVELS: usize = 128;
        let magnitudes = self.histogram.magnitudes();
        let used = magnitudes.iter().rposition(|&n| n > 0).map_or(0, |k| k + 1);
        let mut least = (f64::INFINITY, used);
        let mut clipped: u64 = magnitudes[LEVELS.min(used)..used].iter().sum();
        for bins in LEVELS..=used {
            let divergence = divergence(&magnitudes[..bins], clipped, LEVELS);
            if divergence < least.0 {
                least = (divergence, bins);
            }
            clipped -= magnitudes.get(bins).copied().unwrap_or(0);
        }
        let threshold = least.1 as f64 * self.histogram.width();
        self.within(-threshold, threshold)
    }
}

/// What an empty bin at the threshold counts as, so that clipped elements in it diverge finitely.
const EMPTY: f64 = 1e-4;

/// The Kullback-Leibler divergence, in nats, of the kept bins with what is clipped added to the last, from the kept bins
/// merged into levels and spread over their filled bins again.
fn divergence(kept: &[u64], clipped: u64, levels: usize) -> f64 {
    let inside: u64 = kept.iter().sum();
    if inside == 0 {
        return f64::INFINITY;
    }
    let total = (inside + clipped) as f64;
    let mut sum = 0.0;
    for level in 0..levels {
        let from = level * kept.len() / levels;
        let to = (level + 1) * kept.len() / levels;
        let bins = &kept[from..to];
        let filled = bins.iter().filter(|n| **n > 0).count();
        let q = bins.iter().sum::<u64>() as f64 / filled.max(1) as f64 / inside as f64;
        for (k, &n) in bins.iter().enumerate() {
            let last = from + k + 1 == kept.len();
            let p = (n + if last { clipped } else { 0 }) as f64 / total;
            if p > 0.0 {
                let q = if n == 0 { EMPTY } else { q };
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}
