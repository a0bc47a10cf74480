//! Times and rates in a few numbers.

use schemars::JsonSchema;
use serde::Serialize;

/// Seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Quantiles {
    /// The smallest numbers that so many of all are not above.
    pub fn of(all: &[f64]) -> Quantiles {
        let mut sorted = all.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * sorted.len() as f64).ceil() as usize;
            let last = sorted.len().saturating_sub(1);
            sorted
                .get(rank.saturating_sub(1).min(last))
                .copied()
                .unwrap_or(0.0)
        };
        Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
        }
    }
}

/// Tokens a second: mean and standard deviation over the repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Rate {
    pub mean: f64,
    pub stddev: f64,
}

impl Rate {
    /// `None` without numbers, and of what took no time.
    pub fn of(all: &[f64]) -> Option<Rate> {
        if all.is_empty() || all.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let square = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        let stddev = (square / (n - 1.0).max(1.0)).sqrt();
        Some(Rate { mean, stddev })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numbers_that_were_measured() {
        let all: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let q = Quantiles::of(&all);
        assert_eq!((q.p50, q.p90, q.p99), (50.0, 90.0, 99.0));
        assert_eq!(Quantiles::of(&[3.0]).p99, 3.0);
        let stddev = 2f64.sqrt();
        assert_eq!(Rate::of(&[1.0, 3.0]), Some(Rate { mean: 2.0, stddev }));
        assert_eq!(Rate::of(&[]), None);
        assert_eq!(Rate::of(&[f64::INFINITY]), None);
    }
}
