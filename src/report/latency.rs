//! Latencies as plots.

use super::page::{Axis, Form, Mark, Plot, Series};
use crate::bench::{BenchReport, SubjectReport};

/// More dots than these only make the page slow.
const DOTS: usize = 400;

/// Steps of the histogram, of which few runs fill few.
const BINS: std::ops::RangeInclusive<usize> = 10..=40;

/// Latencies beyond this many medians go into the last step, so that one pause of the machine does not flatten the rest.
const FAR: f64 = 3.0;

/// How often which latency was measured, with the median of each subject.
pub(super) fn distribution(title: &str, measured: &BenchReport) -> Plot {
    let all = || {
        measured
            .subjects
            .iter()
            .flat_map(|s| &s.samples)
            .map(|&ns| ns as f64 / 1e6)
    };
    let low = all().fold(f64::INFINITY, f64::min);
    let most = all().fold(0.0, f64::max);
    let median = measured
        .subjects
        .iter()
        .map(|s| s.stats.p50 / 1e6)
        .fold(0.0, f64::max);
    let high = most.min(FAR * median).max(low);
    let runs = measured.subjects.iter().map(|s| s.samples.len()).max();
    let bins = (1.5 * (runs.unwrap_or(0) as f64).sqrt()) as usize;
    let bins = bins.clamp(*BINS.start(), *BINS.end());
    let width = ((high - low) / bins as f64).max(low * 1e-6).max(1e-9);
    let cut = if most > high {
        ", last step: this and more"
    } else {
        ""
    };
    let steps = |s: &SubjectReport| {
        let mut counts = vec![0usize; bins];
        for &ns in &s.samples {
            let bin = (ns as f64 / 1e6 - low) / width;
            counts[(bin.max(0.0) as usize).min(bins - 1)] += 1;
        }
        let share = |n: usize| 100.0 * n as f64 / s.samples.len().max(1) as f64;
        let left = |k: usize| low + k as f64 * width;
        let steps = counts.iter().enumerate().map(|(k, &n)| (left(k), share(n)));
        steps.chain([(left(bins), 0.0)]).collect()
    };
    Plot {
        title: title.into(),
        x: Axis::new(format!("latency, ms{cut}")),
        y: Axis::new("% of runs").zero(),
        series: series(measured, Form::Steps, steps),
        marks: (measured.subjects.iter().enumerate())
            .map(|(colour, s)| Mark {
                x: s.stats.p50 / 1e6,
                name: format!("{}: median {:.3} ms", s.name, s.stats.p50 / 1e6),
                colour,
            })
            .collect(),
    }
}

/// The raw samples in the order of measurement.
pub(super) fn runs(title: &str, measured: &BenchReport) -> Plot {
    let dots = |s: &SubjectReport| {
        let step = s.samples.len().div_ceil(DOTS).max(1);
        let points = s.samples.iter().enumerate().step_by(step);
        points
            .map(|(k, &ns)| (k as f64 + 1.0, ns as f64 / 1e6))
            .collect()
    };
    Plot {
        title: title.into(),
        x: Axis::new("run"),
        y: Axis::new("latency, ms").zero(),
        series: series(measured, Form::Dots, dots),
        marks: Vec::new(),
    }
}

fn series(
    measured: &BenchReport,
    form: Form,
    points: impl Fn(&SubjectReport) -> Vec<(f64, f64)>,
) -> Vec<Series> {
    let all = measured.subjects.iter().enumerate();
    all.map(|(colour, s)| Series {
        name: s.name.clone(),
        points: points(s),
        form,
        colour,
    })
    .collect()
}
