use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Statistics of latencies. All times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Stats {
    pub runs: usize,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
    /// The standard deviation of the sample.
    pub stddev: f64,
    /// The coefficient of variation, `stddev / mean`.
    pub cov: f64,
}

impl Stats {
    /// `None` without samples. Percentiles between two samples are interpolated.
    pub fn of(samples: &[u64]) -> Option<Stats> {
        let sorted = sorted(samples);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let runs = sorted.len();
        let mean = sorted.iter().sum::<f64>() / runs as f64;
        let squares: f64 = sorted.iter().map(|s| (s - mean).powi(2)).sum();
        let stddev = (squares / (runs.max(2) - 1) as f64).sqrt();
        Some(Stats {
            runs,
            min,
            mean,
            p50: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
            p95: quantile(&sorted, 0.95),
            p99: quantile(&sorted, 0.99),
            max,
            stddev,
            cov: if mean > 0. { stddev / mean } else { 0. },
        })
    }
}

pub(super) fn sorted(samples: &[u64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.iter().map(|&s| s as f64).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The quantile `q` of sorted numbers, interpolated; 0 without any.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.;
    };
    let at = q * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// The median distance from the median: a spread that outliers do not move.
pub(super) fn median_deviation(sorted: &[f64]) -> f64 {
    let median = quantile(sorted, 0.5);
    let mut distances: Vec<f64> = sorted.iter().map(|s| (s - median).abs()).collect();
    distances.sort_unstable_by(f64::total_cmp);
    quantile(&distances, 0.5)
}

/// A range that holds a number with the probability `level`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
    pub level: f64,
}

/// How much faster a subject is than the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Ratio {
    pub baseline: String,
    pub subject: String,
    /// The baseline's median latency divided by the subject's: above 1 the subject is faster.
    pub speedup: f64,
    /// Where the true ratio is, with a probability of at least 95 %. `None` for fewer than seven runs.
    ///
    /// From order statistics of both medians, so it supposes nothing about the distribution of latencies, only that
    /// runs do not depend on each other.
    pub interval: Option<Interval>,
}

impl Ratio {
    /// Whether the interval excludes that both are equally fast.
    pub fn is_significant(&self) -> bool {
        self.interval.is_some_and(|i| i.low > 1. || i.high < 1.)
    }

    pub(crate) fn of(baseline: (&str, &[u64]), subject: (&str, &[u64])) -> Ratio {
        let (base, other) = (sorted(baseline.1), sorted(subject.1));
        let interval = median_interval(&base).zip(median_interval(&other));
        Ratio {
            baseline: baseline.0.to_owned(),
            subject: subject.0.to_owned(),
            speedup: quantile(&base, 0.5) / quantile(&other, 0.5),
            interval: interval.map(|(base, other)| Interval {
                low: base.0 / other.1,
                high: base.1 / other.0,
                level: 0.95,
            }),
        }
    }
}

/// Each end of a median's interval is missed with this probability at most, so two medians are within theirs with
/// 95 % at least.
const TAIL: f64 = 0.0125;
/// The normal distribution has [`TAIL`] beyond this many standard deviations.
const TAIL_DEVIATIONS: f64 = 2.2415;

/// The order statistics around the median.
fn median_interval(sorted: &[f64]) -> Option<(f64, f64)> {
    let n = sorted.len();
    let k = rank(n)?;
    Some((*sorted.get(k)?, *sorted.get(n - 1 - k)?))
}

/// The highest `k` such that at most `k` of `n` samples are below the median with a probability of [`TAIL`] at most.
fn rank(n: usize) -> Option<usize> {
    if n > 1000 {
        // 0.5^n is no f64 any more. The normal approximation is within one rank, so take the next lower one.
        let n = n as f64;
        let k = (n - 1. - TAIL_DEVIATIONS * n.sqrt()) / 2.;
        return Some(k as usize - 1);
    }
    let mut pmf = 0.5f64.powi(n as i32);
    let mut at_most = pmf;
    let mut best = None;
    for k in 0..n.div_ceil(2) {
        if at_most > TAIL {
            break;
        }
        best = Some(k);
        pmf *= (n - k) as f64 / (k + 1) as f64;
        at_most += pmf;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_worked_out_by_hand() {
        let stats = Stats::of(&[4, 1, 3, 2]).unwrap();
        assert_eq!(
            (stats.runs, stats.min, stats.max, stats.mean),
            (4, 1., 4., 2.5)
        );
        assert_eq!(stats.p50, 2.5);
        assert!((stats.p90 - 3.7).abs() < 1e-12 && (stats.p99 - 3.97).abs() < 1e-12);
        assert!((stats.stddev - (5f64 / 3.).sqrt()).abs() < 1e-12);
        assert!((stats.cov - stats.stddev / 2.5).abs() < 1e-12);
        assert_eq!(Stats::of(&[]), None);
        let one = Stats::of(&[7]).unwrap();
        assert_eq!((one.p99, one.stddev, one.cov), (7., 0., 0.));
        assert_eq!(Stats::of(&[0, 0]).unwrap().cov, 0.);
    }

    #[test]
    fn ranks_are_those_of_the_binomial_distribution() {
        // P(none of 7 is below the median) = 0.0078, P(at most one of 7) = 0.0625.
        assert_eq!(rank(7), Some(0));
        assert_eq!(rank(6), None);
        assert_eq!(rank(0), None);
        // P(at most 4 of 20) = 0.0059, P(at most 5 of 20) = 0.0207.
        assert_eq!(rank(20), Some(4));
        let (exact, approximate) = (rank(1000).unwrap(), rank(1001).unwrap());
        assert!(
            (1..=2).contains(&(exact + 1 - approximate)),
            "{exact} {approximate}"
        );
    }

    #[test]
    fn a_ratio_has_an_interval_around_it() {
        let base: Vec<u64> = (0..101).map(|i| 2000 + i).collect();
        let fast: Vec<u64> = (0..101).map(|i| 1000 + i).collect();
        let ratio = Ratio::of(("a", &base), ("b", &fast));
        assert!((ratio.speedup - 2050. / 1050.).abs() < 1e-12);
        let interval = ratio.interval.unwrap();
        assert!(interval.low < ratio.speedup && ratio.speedup < interval.high);
        assert!(interval.low > 1.9 && interval.high < 2.);
        assert!(ratio.is_significant());
        assert!(!Ratio::of(("a", &base), ("a", &base)).is_significant());
        assert_eq!(Ratio::of(("a", &base[..6]), ("b", &fast)).interval, None);
    }

    #[test]
    fn the_interval_holds_as_often_as_it_says() {
        // A skewed distribution: one in ten runs is much slower.
        let mut state = 1u64;
        let mut sample = |median: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let uniform = (state >> 33) % 1000;
            let slow = if uniform >= 900 { 5000 } else { 0 };
            median * 10 + uniform * median / 100 + slow
        };
        let held = (0..400)
            .filter(|_| {
                let base: Vec<u64> = (0..41).map(|_| sample(200)).collect();
                let other: Vec<u64> = (0..41).map(|_| sample(100)).collect();
                let interval = Ratio::of(("a", &base), ("b", &other)).interval.unwrap();
                (interval.low..=interval.high).contains(&2.)
            })
            .count();
        assert!(held >= 380, "{held} of 400");
    }

    #[test]
    fn the_median_deviation_ignores_an_outlier() {
        assert_eq!(median_deviation(&[1., 2., 3., 4., 1000.]), 1.);
        assert_eq!(median_deviation(&[]), 0.);
    }
}
