use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::measured::{BenchOptions, SubjectReport};
use super::stats::{median_deviation, quantile, sorted};

/// What casts doubt on a measurement. Times are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "snake_case", tag = "warning")]
pub enum Warning {
    /// Latencies vary by more than 10 % of their mean.
    Noisy { subject: String, cov: f64 },
    /// More than 1 % of the runs are slower than the median by ten times the median deviation: something else used
    /// the machine.
    Outliers {
        subject: String,
        runs: usize,
        slowest: f64,
    },
    /// The first measured run is such an outlier: more warm-up is needed.
    SlowStart {
        subject: String,
        first: f64,
        median: f64,
    },
    /// The medians of the first and the second half differ by more than 5 %: the machine changed its speed.
    Drift {
        subject: String,
        first_half: f64,
        second_half: f64,
    },
    /// The median is so short that taking the time is a part of it.
    TooShort { subject: String, median: f64 },
    /// The number of runs ended the measurement before its minimum duration.
    CutShort { subject: String, measured: f64 },
    /// The session has more threads than the machine has cores.
    TooManyThreads {
        subject: String,
        threads: usize,
        cores: usize,
    },
    /// The sessions do not have the same number of threads, so they do not compare.
    ThreadsDiffer,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: &f64| format!("{:.3} ms", ns / 1e6);
        match self {
            Warning::Noisy { subject, cov } => {
                write!(
                    f,
                    "{subject}: latencies vary by {:.0} % of their mean",
                    100.0 * cov
                )
            }
            Warning::Outliers {
                subject,
                runs,
                slowest,
            } => write!(
                f,
                "{subject}: outliers: {runs}, the slowest took {}",
                ms(slowest)
            ),
            Warning::SlowStart {
                subject,
                first,
                median,
            } => write!(
                f,
                "{subject}: the first run took {}, the median {}: more warm-up is needed",
                ms(first),
                ms(median)
            ),
            Warning::Drift {
                subject,
                first_half,
                second_half,
            } => write!(
                f,
                "{subject}: the machine changed its speed: {} in the first half, {} in the second",
                ms(first_half),
                ms(second_half)
            ),
            Warning::TooShort { subject, median } => {
                write!(
                    f,
                    "{subject}: {median:.0} ns are too short to be measured well"
                )
            }
            Warning::CutShort { subject, measured } => write!(
                f,
                "{subject}: the number of runs ended the measurement after {}",
                ms(measured)
            ),
            Warning::TooManyThreads {
                subject,
                threads,
                cores,
            } => write!(f, "{subject}: {threads} threads on {cores} cores"),
            Warning::ThreadsDiffer => f.write_str("the sessions have different numbers of threads"),
        }
    }
}

/// A coefficient of variation beyond which a comparison of a few percent means nothing.
const NOISY: f64 = 0.1;
const OUTLIER_DEVIATIONS: f64 = 10.;
const OUTLIER_FRACTION: f64 = 0.01;
const DRIFT: f64 = 0.05;
/// Taking the time twice costs about 50 ns; of this median it is 1 %.
const SHORT: f64 = 5_000.;
/// Fewer runs say nothing about drift.
const RUNS_FOR_DRIFT: usize = 20;

pub(super) fn warnings(
    subjects: &[SubjectReport],
    options: &BenchOptions,
    cores: Option<usize>,
) -> Vec<Warning> {
    let mut warnings: Vec<_> = subjects
        .iter()
        .flat_map(|subject| of_subject(subject, options, cores))
        .collect();
    let mut threads = subjects
        .iter()
        .filter_map(|s| s.settings)
        .map(|s| s.intra_threads);
    let first = threads.next();
    if threads.any(|t| Some(t) != first) {
        warnings.push(Warning::ThreadsDiffer);
    }
    warnings
}

fn of_subject(
    report: &SubjectReport,
    options: &BenchOptions,
    cores: Option<usize>,
) -> Vec<Warning> {
    let subject = || report.name.clone();
    let stats = &report.stats;
    let samples = sorted(&report.samples);
    let mut found = Vec::new();
    if stats.cov > NOISY {
        found.push(Warning::Noisy {
            subject: subject(),
            cov: stats.cov,
        });
    }
    // A spread of zero would make an outlier of a single nanosecond.
    let spread = median_deviation(&samples).max(stats.p50 * 1e-3);
    let limit = stats.p50 + OUTLIER_DEVIATIONS * spread;
    let runs = samples.iter().filter(|s| **s > limit).count();
    if runs as f64 > OUTLIER_FRACTION * samples.len() as f64 {
        found.push(Warning::Outliers {
            subject: subject(),
            runs,
            slowest: stats.max,
        });
    }
    let first = report.samples.first().map_or(0., |&s| s as f64);
    if samples.len() > 1 && first > limit {
        found.push(Warning::SlowStart {
            subject: subject(),
            first,
            median: stats.p50,
        });
    }
    if samples.len() >= RUNS_FOR_DRIFT {
        let (early, late) = report.samples.split_at(samples.len() / 2);
        let [first_half, second_half] = [early, late].map(|half| quantile(&sorted(half), 0.5));
        if (first_half - second_half).abs() > DRIFT * stats.p50 {
            found.push(Warning::Drift {
                subject: subject(),
                first_half,
                second_half,
            });
        }
    }
    if stats.p50 < SHORT {
        found.push(Warning::TooShort {
            subject: subject(),
            median: stats.p50,
        });
    }
    let measured: f64 = samples.iter().sum();
    if measured < options.min_duration.as_nanos() as f64 {
        found.push(Warning::CutShort {
            subject: subject(),
            measured,
        });
    }
    let threads = report.settings.and_then(|s| s.intra_threads);
    if let (Some(threads), Some(cores)) = (threads, cores)
        && threads.get() > cores
    {
        found.push(Warning::TooManyThreads {
            subject: subject(),
            threads: threads.get(),
            cores,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::super::Stats;
    use super::*;
    use crate::runtime::SessionOptions;

    fn report(samples: Vec<u64>, threads: usize) -> SubjectReport {
        SubjectReport {
            name: "s".to_owned(),
            settings: Some(SessionOptions {
                intra_threads: NonZeroUsize::new(threads),
                ..SessionOptions::default()
            }),
            stats: Stats::of(&samples).unwrap(),
            throughput: 1.,
            samples,
        }
    }

    fn found(reports: &[SubjectReport]) -> Vec<Warning> {
        let options = BenchOptions {
            min_duration: Duration::from_micros(10),
            ..BenchOptions::default()
        };
        warnings(reports, &options, Some(4))
    }

    fn steady() -> Vec<u64> {
        (0..100).map(|i| 1_000_000 + i % 7 * 1000).collect()
    }

    #[test]
    fn a_steady_measurement_has_no_warnings() {
        assert_eq!(found(&[report(steady(), 1), report(steady(), 1)]), []);
        assert_eq!(found(&[report(vec![1_000_000; 100], 1)]), []);
    }

    #[test]
    fn noise_outliers_and_a_slow_start_are_told_apart() {
        let mut one_slow = steady();
        one_slow[0] = 1_500_000;
        let slow_start = Warning::SlowStart {
            subject: "s".to_owned(),
            first: 1_500_000.,
            median: 1_003_000.,
        };
        assert_eq!(found(&[report(one_slow, 1)]), [slow_start]);

        let mut some_slow = steady();
        some_slow[40] = 1_200_000;
        some_slow[60] = 1_300_000;
        let outliers = Warning::Outliers {
            subject: "s".to_owned(),
            runs: 2,
            slowest: 1_300_000.,
        };
        assert_eq!(found(&[report(some_slow, 1)]), [outliers]);

        let noisy = (0..100).map(|i| 1_000_000 + i * 7919 % 100 * 10_000);
        let noisy = found(&[report(noisy.collect(), 1)]);
        assert!(
            matches!(noisy[0], Warning::Noisy { cov, .. } if cov > 0.1),
            "{noisy:?}"
        );
    }

    #[test]
    fn drift_and_too_little_are_told() {
        let drifting = (0..100).map(|i| 1_000_000 + i * 2000).collect();
        let drifting = found(&[report(drifting, 1)]);
        assert!(matches!(drifting[0], Warning::Drift { .. }), "{drifting:?}");
        let short = found(&[report(vec![100; 10], 1)]);
        assert!(matches!(short[0], Warning::TooShort { .. }), "{short:?}");
        assert!(matches!(short[1], Warning::CutShort { .. }), "{short:?}");
    }

    #[test]
    fn threads_are_watched() {
        let found = found(&[report(steady(), 1), report(steady(), 8)]);
        let too_many = Warning::TooManyThreads {
            subject: "s".to_owned(),
            threads: 8,
            cores: 4,
        };
        assert_eq!(found, [too_many, Warning::ThreadsDiffer]);
    }
}
