//! Engine parity: whether an engine, run on a GPU, gives what the original gives in ONNX Runtime.

use std::fmt;
use std::path::Path;

use kiln_graph::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::engine::run::{EngineRunError, RunOptions, Session};
use crate::nvidia::driver;
use crate::parity;
use crate::parity::Report;

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
        NotRun("there is no engine".into())
    }

    /// It was not asked for.
    pub fn unchecked() -> NotRun {
        NotRun("nothing is checked (--no-check)".into())
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

/// What runs the engine of a bundle, which is this file, on a GPU of this machine, counted as CUDA counts them.
///
/// # Errors
/// Why nothing does. An engine that ought to run here and cannot be opened is opened all the same, and fails when it is run:
/// it is a broken one, not one that was left out.
pub fn open(plan: &Path, device: usize, trt_lib: Option<&Path>) -> Result<Box<dyn Runner>, NotRun> {
    // Before anything else: without a device there is nothing to say about the engine.
    driver::probe().map_err(|_| NotRun::no_device())?;
    let options = RunOptions {
        device,
        libraries: trt_lib.map(Path::to_owned),
        ..RunOptions::default()
    };
    let not_read = |e: std::io::Error| NotRun(format!("the engine cannot be read: {e}"));
    let bytes = std::fs::read(plan).map_err(not_read)?;
    // A bundle's engine and model are one folder.
    let model = plan.with_file_name(bundle::MODEL);
    match Session::open(
        &bytes,
        Some(&model).filter(|m| m.is_file()).map(|m| m.as_path()),
        &options,
    ) {
        Ok(session) => Ok(Box::new(session)),
        Err(
            error @ (EngineRunError::Deserialize { .. }
            | EngineRunError::Refit { .. }
            | EngineRunError::Refused { .. }),
        ) => Ok(Box::new(Broken(error.to_string()))),
        Err(error) => Err(NotRun(error.to_string())),
    }
}

impl Runner for Session {
    fn describe(&self) -> String {
        Session::describe(self)
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        Session::run(self, inputs).map_err(|e| RunnerError(e.to_string()))
    }
}

/// An engine that TensorRT refuses, though it was built for this GPU and this version.
struct Broken(String);

impl Runner for Broken {
    fn describe(&self) -> String {
        "an engine that cannot be opened".into()
    }

    fn run(&mut self, _: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        Err(RunnerError(self.0.clone()))
    }
}
