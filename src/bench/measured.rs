//! One measurement, and how long to measure.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stats::Stats;
use crate::runtime::SessionOptions;

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct BenchOptions {
    /// Runs of each subject before the measurement; they are not kept.
    pub warmup: usize,
    /// Runs of each subject at least.
    pub min_runs: usize,
    /// Runs of each subject at most, whatever the duration.
    pub max_runs: usize,
    /// The measured runs of every subject add up to this at least, unless `max_runs` are reached before.
    pub min_duration: Duration,
    /// The wall time of all of it, whatever the runs; warm-up takes a fifth of it at most. `None`: no end.
    #[serde(default)]
    pub max_duration: Option<Duration>,
    /// Runs go on until each ratio is known to this part of itself. `None`: the runs and the duration alone say how long.
    #[serde(default)]
    pub within: Option<f64>,
    /// Items that one run computes, for the throughput.
    pub batch: usize,
}

impl Default for BenchOptions {
    fn default() -> BenchOptions {
        BenchOptions {
            warmup: 10,
            min_runs: 30,
            max_runs: 10_000,
            min_duration: Duration::from_secs(3),
            max_duration: None,
            within: None,
            batch: 1,
        }
    }
}

impl BenchOptions {
    /// As many runs as a verdict needs, and 5 seconds at most: ratios are known to 4 %, below what other work on a machine moves
    /// them by.
    pub fn verdict() -> BenchOptions {
        BenchOptions {
            min_duration: Duration::ZERO,
            max_duration: Some(Duration::from_secs(5)),
            within: Some(0.04),
            ..BenchOptions::default()
        }
    }
}

/// One subject of a measurement.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct SubjectReport {
    pub name: String,
    /// Threads, optimization and device, if the subject is a session.
    pub settings: Option<SessionOptions>,
    pub stats: Stats,
    /// Items per second: the batch over the mean latency.
    pub throughput: f64,
    /// Every latency in nanoseconds, in the order of measurement.
    pub samples: Vec<u64>,
}

/// One model.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Measured {
    pub name: String,
    pub path: String,
    /// Of the ONNX file, with its external data.
    pub bytes: u64,
    pub nodes: usize,
    /// What the process holds more after it was loaded, in bytes, where the system tells.
    pub resident: Option<u64>,
    /// The same after it ran at all sizes; ONNX Runtime keeps the memory of the largest.
    pub running: Option<u64>,
}
