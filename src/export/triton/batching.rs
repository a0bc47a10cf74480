//! How requests are joined: from the latency over batches, measured in ONNX Runtime.

use std::time::Duration;

use super::Options;
use crate::bench::{self, Axis, BenchOptions};
use crate::export::ExportError;
use crate::export::facts::Facts;
use crate::runtime::GpuOptions;

/// A batch must compute this much more a second than single samples for requests to wait for each other.
const WORTH: f64 = 1.05;
/// A smaller batch is preferred where it computes nearly as much a second as the best.
const NEARLY: f64 = 0.95;
/// Requests wait for others at most this part of the time that a single one is computed in.
const WAIT: f64 = 0.25;

/// Latencies in nanoseconds by batch.
pub(super) type Curve = Vec<(usize, f64)>;

/// Measures the latency at each batch, at the typical other sizes, in ONNX Runtime.
pub(super) fn curve(options: &Options, facts: &Facts, batch: &str) -> Result<Curve, ExportError> {
    let most = facts.most().unwrap_or(1);
    let mut sizes: Vec<usize> = std::iter::successors(Some(1usize), |n| n.checked_mul(2))
        .take_while(|&n| n < most)
        .collect();
    sizes.push(most);
    let mut axes = vec![Axis {
        name: batch.to_string(),
        sizes,
    }];
    let others = facts.sizes.iter().filter(|(name, _)| *name != batch);
    axes.extend(others.map(|(name, range)| Axis {
        name: name.clone(),
        sizes: vec![range.opt],
    }));
    let request = bench::Request {
        models: vec![options.bundle.clone()],
        names: Vec::new(),
        axes,
        inputs: None,
        fixed: Vec::new(),
        timing: BenchOptions {
            warmup: 2,
            min_runs: 10,
            max_runs: 200,
            min_duration: Duration::from_millis(500),
            ..BenchOptions::default()
        },
        threads: None,
        device: options.device,
        gpu: GpuOptions::default(),
        profile: 0,
        baseline: None,
        seed: 1,
        ort_lib: options.ort_lib.clone(),
    };
    let measured = bench::benchmark(&request, &crate::talk::Silent)
        .map_err(|e| ExportError::Measure(Box::new(e)))?;
    let points = measured.points.iter().filter_map(|p| {
        let subject = p.measured.subjects.first()?;
        Some((*p.sizes.get(batch)?, subject.stats.p50))
    });
    Ok(points.collect())
}

/// How requests are joined.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Batching {
    pub preferred: Vec<usize>,
    pub microseconds: Option<u64>,
    pub why: String,
}

/// `None`: they are not.
pub(super) fn batching(facts: &Facts, curve: &Curve, notes: &mut Vec<String>) -> Option<Batching> {
    let most = facts.most().filter(|&most| most > 1)?;
    let Some(&(_, alone)) = curve.iter().find(|(batch, _)| *batch == 1) else {
        return Some(Batching {
            preferred: Vec::new(),
            microseconds: None,
            why: format!("up to {most} samples; the latency over batches was not measured"),
        });
    };
    let rate = |&(batch, latency): &(usize, f64)| batch as f64 / latency;
    let best = curve.iter().map(rate).fold(0.0, f64::max);
    let gain = best * alone;
    let table: Vec<String> = (curve.iter())
        .map(|(batch, latency)| format!("{batch}: {:.2} ms", latency / 1e6))
        .collect();
    let table = table.join(", ");
    if gain < WORTH {
        notes.push(format!(
            "requests are not joined: a batch computes at most {gain:.2} times as many samples a second ({table})"
        ));
        return None;
    }
    let good = |p: &&(usize, f64)| rate(p) >= NEARLY * best;
    let preferred = curve.iter().filter(good).map(|(batch, _)| *batch);
    let preferred: Vec<usize> = preferred.filter(|&batch| batch > 1).collect();
    Some(Batching {
        preferred,
        microseconds: Some((WAIT * alone / 1e3).round() as u64),
        why: format!("latency by batch, measured in ONNX Runtime: {table}"),
    })
}
