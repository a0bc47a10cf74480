//! Latency of several subjects on the same inputs, measured in turns.
//!
//! Turns make subjects comparable: whatever slows the machine for a while slows all of them. All raw samples are
//! kept, and what casts doubt on them is part of the result ([`Warning`]).

mod axis;
pub mod baseline;
pub(crate) mod error;
pub mod gpu;
pub mod grid;
mod loaded;
mod machine;
mod measured;
pub(crate) mod names;
mod nodes;
mod pin;
mod profile;
mod report;
mod stats;
mod warning;

use std::fmt;
use std::time::{Duration, Instant};

use kiln_graph::Tensor;

use crate::runtime::{self, Session, SessionOptions};
use pin::Pinned;

pub use crate::engine::{Work, work};
pub use axis::Axis;
pub use error::BenchError;
pub use grid::{Benchmark, PointReport, benchmark};
pub use loaded::Request;
pub use machine::Machine;
pub use measured::{BenchOptions, Measured, SubjectReport};
pub use profile::{Part, Profile, ProfileError};
pub use report::BenchReport;
pub use stats::{Interval, Ratio, Stats};
pub use warning::Warning;

/// Something to measure.
pub struct Subject<'a> {
    name: String,
    settings: Option<SessionOptions>,
    run: Run<'a>,
}

type Run<'a> = Box<dyn FnMut() -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a>;

impl<'a> Subject<'a> {
    /// A subject that runs a session; the inputs are handed over once, the outputs are dropped unread. On a GPU both stay
    /// there, unless the session's options count copies.
    ///
    /// # Errors
    /// When the session refuses the inputs.
    pub fn session<S: AsRef<str>>(
        name: impl Into<String>,
        session: &'a mut Session,
        inputs: &[(S, Tensor)],
    ) -> Result<Subject<'a>, runtime::Error> {
        let settings = Some(*session.options());
        let options = session.options();
        let mut bound = match options.device.is_cpu() || options.gpu.copies {
            true => session.bind(inputs)?,
            false => session.bind_resident(inputs)?,
        };
        Ok(Subject {
            name: name.into(),
            settings,
            run: Box::new(move || Ok(bound.run_discarding()?)),
        })
    }

    /// A subject that does anything else, for example run an engine.
    pub fn new<E: std::error::Error + Send + Sync + 'static>(
        name: impl Into<String>,
        mut run: impl FnMut() -> Result<(), E> + 'a,
    ) -> Subject<'a> {
        Subject {
            name: name.into(),
            settings: None,
            run: Box::new(move || Ok(run()?)),
        }
    }

    fn run(&mut self) -> Result<(), BenchError> {
        (self.run)().map_err(|source| BenchError::Run {
            subject: self.name.clone(),
            source,
        })
    }
}

impl fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subject").field(&self.name).finish()
    }
}

/// Measures the subjects in turns. The order within a round changes from round to round, so that none always runs
/// after the same other or on the caches that it left.
///
/// # Errors
/// When a subject fails, without subjects, and when the options contradict each other.
pub fn measure(
    subjects: &mut [Subject<'_>],
    options: &BenchOptions,
) -> Result<BenchReport, BenchError> {
    let start = Instant::now();
    let clock = || start.elapsed().as_nanos() as u64;
    measure_by(&clock, cores(), subjects, options)
}

/// As [`measure`], with the calling thread on a core of its own: then it may run on one, and the machine has more.
fn measure_pinned(
    subjects: &mut [Subject<'_>],
    options: &BenchOptions,
) -> Result<BenchReport, BenchError> {
    let cores = cores();
    let _pinned = Pinned::new();
    let start = Instant::now();
    let clock = || start.elapsed().as_nanos() as u64;
    measure_by(&clock, cores, subjects, options)
}

/// Threads that may run at once, if that is known.
fn cores() -> Option<usize> {
    std::thread::available_parallelism().ok().map(usize::from)
}

fn measure_by(
    clock: &dyn Fn() -> u64,
    cores: Option<usize>,
    subjects: &mut [Subject<'_>],
    options: &BenchOptions,
) -> Result<BenchReport, BenchError> {
    if subjects.is_empty() {
        return Err(BenchError::NoSubjects);
    }
    let BenchOptions {
        min_runs, max_runs, ..
    } = *options;
    if max_runs == 0 || min_runs > max_runs {
        return Err(BenchError::Runs { min_runs, max_runs });
    }
    let began = clock();
    let spent = |part: u32| {
        let end = options.max_duration.map(|d| nanoseconds(d / part));
        end.is_some_and(|end| clock() - began >= end)
    };
    for _ in 0..options.warmup {
        subjects.iter_mut().try_for_each(Subject::run)?;
        if spent(WARMUP_PART) {
            break;
        }
    }
    let samples = rounds(clock, subjects, options, &|| spent(1))?;
    let reports: Vec<SubjectReport> = subjects
        .iter()
        .zip(samples)
        .filter_map(|(subject, samples)| {
            let stats = Stats::of(&samples)?;
            Some(SubjectReport {
                name: subject.name.clone(),
                settings: subject.settings,
                stats,
                throughput: options.batch as f64 * 1e9 / stats.mean,
                samples,
            })
        })
        .collect();
    let (base, others) = reports.split_first().ok_or(BenchError::NoSubjects)?;
    let ratios = others
        .iter()
        .map(|r| Ratio::of((&base.name, &base.samples), (&r.name, &r.samples)))
        .collect();
    Ok(BenchReport {
        options: *options,
        cores,
        ratios,
        warnings: warning::warnings(&reports, options, cores),
        subjects: reports,
    })
}

/// The part of the whole duration that warm-up may take: one over this.
const WARMUP_PART: u32 = 5;

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the ratio of each other subject to the first is known well enough.
fn is_known(samples: &[Vec<u64>], within: f64) -> bool {
    let Some((base, others)) = samples.split_first() else {
        return true;
    };
    others.iter().all(|other| {
        let ratio = Ratio::of(("", base), ("", other));
        let width = ratio.interval.map(|i| i.high - i.low);
        width.is_some_and(|width| width <= within * ratio.speedup)
    })
}

/// The latencies of every subject.
fn rounds(
    clock: &dyn Fn() -> u64,
    subjects: &mut [Subject<'_>],
    options: &BenchOptions,
    is_spent: &dyn Fn() -> bool,
) -> Result<Vec<Vec<u64>>, BenchError> {
    let min_duration = nanoseconds(options.min_duration);
    // Room for the usual number of runs, so that the vectors do not grow between two runs.
    let room = options.max_runs.min(1 << 16);
    let mut samples = vec![Vec::with_capacity(room); subjects.len()];
    let mut totals = vec![0u64; subjects.len()];
    // Each look at the ratios sorts all samples, and looks that are rare choose no lucky moment.
    let mut next_look = options.min_runs.max(1);
    for round in 0..options.max_runs {
        let long_enough = totals.iter().all(|&total| total >= min_duration);
        if round >= next_look && long_enough {
            next_look = round + round / 4 + 1;
            if options.within.is_none_or(|w| is_known(&samples, w)) {
                break;
            }
        }
        if round > 0 && is_spent() {
            break;
        }
        for place in 0..subjects.len() {
            let i = turn(round, place, subjects.len());
            let start = clock();
            subjects[i].run()?;
            let latency = clock() - start;
            samples[i].push(latency);
            totals[i] = totals[i].saturating_add(latency);
        }
    }
    Ok(samples)
}

/// Who runs at this place of a round: every other round is reversed, every second one starts one later.
fn turn(round: usize, place: usize, subjects: usize) -> usize {
    let place = if round.is_multiple_of(2) {
        place
    } else {
        subjects - 1 - place
    };
    (place + round / 2) % subjects
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::num::NonZeroUsize;

    use super::*;
    use crate::runtime::testing;

    fn options(min_runs: usize, max_runs: usize, min_nanos: u64) -> BenchOptions {
        BenchOptions {
            warmup: 2,
            min_runs,
            max_runs,
            min_duration: Duration::from_nanos(min_nanos),
            batch: 4,
            ..BenchOptions::default()
        }
    }

    /// Measures subjects of fixed latencies by a clock that only they move; tells the order of all runs, too.
    fn simulate(latencies: &[u64], options: &BenchOptions) -> (BenchReport, String) {
        let now = Cell::new(0);
        let order = RefCell::new(String::new());
        let mut subjects: Vec<_> = latencies
            .iter()
            .zip('a'..)
            .map(|(latency, name)| {
                let (now, order) = (&now, &order);
                Subject::new(name, move || {
                    now.set(now.get() + latency);
                    order.borrow_mut().push(name);
                    Ok::<(), fmt::Error>(())
                })
            })
            .collect();
        let report = measure_by(&|| now.get(), None, &mut subjects, options).unwrap();
        drop(subjects);
        (report, order.into_inner())
    }

    #[test]
    fn subjects_take_turns_in_changing_order() {
        let (_, order) = simulate(&[10, 20], &options(4, 4, 0));
        assert_eq!(order, "abab abba baab".replace(' ', ""));
        let (_, order) = simulate(&[1, 1, 1], &options(6, 6, 0));
        assert_eq!(&order[6..], "abccbabcaacbcabbac");
    }

    #[test]
    fn warm_up_runs_are_not_kept() {
        let (report, order) = simulate(&[1000, 500], &options(3, 3, 0));
        assert_eq!(order.len(), 2 * (2 + 3));
        assert_eq!(report.subjects[0].samples, [1000; 3]);
        assert_eq!(report.subjects[1].samples, [500; 3]);
        assert_eq!(report.subjects[1].throughput, 4. * 1e9 / 500.);
        assert_eq!(report.ratios[0].speedup, 2.);
        assert_eq!(
            (&*report.ratios[0].baseline, &*report.ratios[0].subject),
            ("a", "b")
        );
    }

    #[test]
    fn the_fastest_subject_reaches_the_duration_too() {
        let runs = |options| simulate(&[1000, 100], &options).0.subjects[0].stats.runs;
        assert_eq!(runs(options(1, 100, 1000)), 10);
        assert_eq!(runs(options(20, 100, 1000)), 20);
        assert_eq!(runs(options(1, 5, 1000)), 5);
        assert_eq!(runs(options(0, 5, 0)), 1);
    }

    #[test]
    fn runs_end_with_the_verdict_or_the_time() {
        // Steady latencies: seven runs know the ratio, and no more than asked for are made.
        let known = BenchOptions {
            within: Some(0.04),
            ..options(10, 1000, 0)
        };
        assert_eq!(simulate(&[100, 50], &known).0.subjects[0].stats.runs, 10);
        // Nothing is known of a few runs, so they go on until the time is over: 1000 of 150 each, warm-up included.
        let timed = BenchOptions {
            max_duration: Some(Duration::from_nanos(1000)),
            within: Some(0.0),
            ..options(10, 1000, 0)
        };
        let (report, order) = simulate(&[100, 50], &timed);
        assert_eq!(order.len(), 2 * 7, "{order}");
        assert_eq!(report.subjects[0].stats.runs, 5);
        assert!(report.ratios[0].interval.is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        let none = measure(&mut [], &BenchOptions::default());
        assert!(matches!(none, Err(BenchError::NoSubjects)));
        let mut failing = [Subject::new("broken", || Err(fmt::Error))];
        let failed = measure(&mut failing, &BenchOptions::default()).unwrap_err();
        assert!(failed.to_string().starts_with("broken failed"), "{failed}");
        let contradiction = measure(&mut failing, &options(5, 4, 0));
        assert!(matches!(contradiction, Err(BenchError::Runs { .. })));
    }

    #[test]
    fn sessions_are_measured_and_their_threads_told() {
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let session_options = SessionOptions {
            intra_threads: NonZeroUsize::new(1),
            ..SessionOptions::default()
        };
        let model = testing::matmul_add();
        let mut session = Session::from_bytes(runtime, "m", &model, &session_options).unwrap();
        let x = Tensor::from_values(vec![1, 2], &[1f32, 2.]).unwrap();
        let subject = Subject::session("m", &mut session, &[("x", x)]).unwrap();
        let report = measure(&mut [subject], &options(20, 20, 0)).unwrap();
        assert_eq!(report.subjects[0].samples.len(), 20);
        assert!(report.subjects[0].stats.min > 0. && report.ratios.is_empty());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["subjects"][0]["settings"]["intra_threads"], 1);
        assert_eq!(json["subjects"][0]["settings"]["device"], "cpu");
    }
}
