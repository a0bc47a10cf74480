//! A benchmark as rows of numbers.

use std::collections::BTreeSet;

use crate::bench::{Benchmark, PointReport, SubjectReport};

/// A row for each model at each point, the first of all models with what the columns are called. Sizes have a column for each
/// dimension; times are in milliseconds.
///
/// # Errors
/// When memory cannot be written to, which does not happen.
pub(super) fn csv(b: &Benchmark) -> Result<String, csv::Error> {
    let axes: BTreeSet<&String> = b.points.iter().flat_map(|p| p.sizes.keys()).collect();
    let mut out = csv::Writer::from_writer(Vec::new());
    let header = ["model", "path"].into_iter().map(String::from);
    let numbers = NUMBERS.iter().map(|s| (*s).to_string());
    out.write_record(
        header
            .chain(axes.iter().map(|a| a.to_string()))
            .chain(numbers),
    )?;
    for p in &b.points {
        for (k, s) in p.measured.subjects.iter().enumerate() {
            let path = b.models.iter().find(|m| m.name == s.name);
            let path = path.map(|m| m.path.clone()).unwrap_or_default();
            let sizes = axes
                .iter()
                .map(|a| p.sizes.get(*a).map_or(String::new(), usize::to_string));
            let row = [s.name.clone(), path].into_iter().chain(sizes);
            out.write_record(row.chain(numbers_of(p, k, s)))?;
        }
    }
    let bytes = out.into_inner().map_err(|e| e.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const NUMBERS: [&str; 16] = [
    "runs",
    "min_ms",
    "mean_ms",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "max_ms",
    "stddev_ms",
    "items_per_s",
    "gflop",
    "limit_ms",
    "baseline",
    "speedup",
    "speedup_low",
    "speedup_high",
];

fn numbers_of(p: &PointReport, k: usize, s: &SubjectReport) -> Vec<String> {
    let t = &s.stats;
    let ms = |ns: f64| (ns / 1e6).to_string();
    let times = [t.min, t.mean, t.p50, t.p90, t.p95, t.p99, t.max, t.stddev];
    let mut row = vec![t.runs.to_string()];
    row.extend(times.map(ms));
    row.push(s.throughput.to_string());
    let flops = p.work.get(k).map(|w| w.flops as f64 / 1e9);
    row.push(flops.map_or(String::new(), |f| f.to_string()));
    row.push(p.limits.get(k).copied().map_or(String::new(), ms));
    let ratio = p.measured.ratios.iter().find(|r| r.subject == s.name);
    row.push(ratio.map(|r| r.baseline.clone()).unwrap_or_default());
    row.push(ratio.map_or(String::new(), |r| r.speedup.to_string()));
    let interval = ratio.and_then(|r| r.interval);
    row.push(interval.map_or(String::new(), |i| i.low.to_string()));
    row.push(interval.map_or(String::new(), |i| i.high.to_string()));
    row
}
