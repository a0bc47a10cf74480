//! Engine parity: whether an engine, run on a GPU, gives what the original gives in ONNX Runtime.

use std::fmt;

use kiln_graph::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parity;
use crate::parity::Report;
use kiln_runtime::setting::NO_CHECK;

/// Runs a compiled engine on tensors in the host's memory.
pub trait Runner {
    /// What runs the engine, and on which device: `TensorRT for RTX 1.7.1 on NVIDIA RTX 4000 (cuda:0)`.
    fn describe(&self) -> String;

    /// The outputs by their names, for inputs by their names, in the dtypes that the engine declares.
    ///
    /// # Errors
    /// When the inputs fit no profile of the engine, and when it fails.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError>;
}

/// An engine did not run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunnerError(pub String);

/// Why there is nothing that could run an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun(pub String);

impl NotRun {
    /// There is no GPU to run it on.
    pub fn no_device() -> NotRun {
        NotRun("no CUDA device".into())
    }

    /// There is no engine to run.
    pub fn no_engine() -> NotRun {
        NotRun("no engine was built".into())
    }

    /// It was not asked for.
    pub fn unchecked() -> NotRun {
        NotRun(format!("nothing is checked ({NO_CHECK})"))
    }
}

/// The outcome of engine parity.
#[derive(Clone, Debug, Serialize, JsonSchema, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum EngineParity {
    NotRun {
        why: String,
    },
    Run {
        /// What ran the engine, and where.
        runner: String,
        report: Box<Report>,
    },
}

/// Of a manifest that says nothing about it.
impl Default for EngineParity {
    fn default() -> EngineParity {
        EngineParity::NotRun { why: String::new() }
    }
}

impl From<NotRun> for EngineParity {
    fn from(NotRun(why): NotRun) -> EngineParity {
        EngineParity::NotRun { why }
    }
}

impl EngineParity {
    /// Whether the engine ran and is right.
    pub fn proved(&self) -> bool {
        matches!(self, EngineParity::Run { report, .. } if report.pass())
    }

    /// Whether the engine ran and is wrong.
    pub fn failed(&self) -> bool {
        matches!(self, EngineParity::Run { report, .. } if report.failed())
    }

    /// Why the engine did not run, if it did not.
    pub fn not_run(&self) -> Option<&str> {
        match self {
            EngineParity::NotRun { why } => Some(why),
            EngineParity::Run { .. } => None,
        }
    }
}

impl fmt::Display for EngineParity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineParity::NotRun { why } => write!(f, "not run: {why}"),
            EngineParity::Run { runner, report } => {
                write!(f, "{}, {runner}", parity::verdict(report))
            }
        }
    }
}
