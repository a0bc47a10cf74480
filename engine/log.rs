//! Lines of TensorRT's log.

use serde::{Deserialize, Serialize};

/// How grave TensorRT holds a log line to be. Lines below a warning are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Warning,
    Error,
    InternalError,
}

/// A line of TensorRT's log, with the number of times it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub severity: Severity,
    pub text: String,
    pub count: usize,
}
