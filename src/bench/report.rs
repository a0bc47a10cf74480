//! A measurement.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::measured::{BenchOptions, SubjectReport};
use super::stats::Ratio;
use super::warning::Warning;

/// A measurement.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
pub struct BenchReport {
    pub options: BenchOptions,
    /// Threads that the machine runs at once, if that is known.
    pub cores: Option<usize>,
    pub subjects: Vec<SubjectReport>,
    /// Every other subject against the first.
    pub ratios: Vec<Ratio>,
    pub warnings: Vec<Warning>,
}
