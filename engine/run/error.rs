//! What can go wrong when an engine is run.

use std::path::PathBuf;

use super::{Misfit, Validity};
use crate::log;
use crate::{CudaError, EngineError, LIBRARY, LogLine, ParseFailure, Severity};
use kiln_runtime::fault::Fault;
use kiln_runtime::setting::{DIM, WEIGHT_STRIPPED};

/// Why an engine was not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineRunError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// TensorRT's libraries are missing, of the wrong version, or cannot make one of their objects.
    #[error(transparent)]
    Library(#[from] EngineError),
    /// The plan's header says that it does not run here.
    #[error("the engine does not run here: {validity}{}", beside(.validity, .log))]
    Invalid {
        validity: Validity,
        log: Vec<LogLine>,
    },
    /// The plan was refused when it was read.
    #[error("{LIBRARY} cannot read the engine{}", because(.log))]
    Deserialize { log: Vec<LogLine> },
    /// The plan was built without weights, and no model is there to take them from.
    #[error(
        "the engine was built without its {bytes} bytes of weights, and no model is there to take them from"
    )]
    WithoutWeights { bytes: u64 },
    /// The plan was built without weights, and the model has others than it wants.
    #[error("the weights of {} cannot be put into the engine{}", .model.display(), first(.failures, .log))]
    Refit {
        model: PathBuf,
        failures: Vec<ParseFailure>,
        log: Vec<LogLine>,
    },
    /// TensorRT refused a step of a run.
    #[error("{LIBRARY} could not {what}{}", because(.log))]
    Refused { what: String, log: Vec<LogLine> },
    #[error(transparent)]
    Inspected(crate::inspected::Unread),
    /// The inputs are not those of the engine.
    #[error("{0}")]
    Inputs(String),
    /// No profile takes inputs of these sizes.
    #[error(transparent)]
    Sizes(#[from] Misfit),
    /// The size of an output is known only after the run, and nobody can make room for it.
    #[error(
        "the size of the output `{0}` depends on the values of the inputs, which kiln does not run"
    )]
    DataDependent(String),
}

impl EngineRunError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            EngineRunError::Cuda(_) | EngineRunError::Library(_) => Fault::Machine,
            EngineRunError::Inputs(_) | EngineRunError::Sizes(_) => Fault::Request,
            _ => Fault::Model,
        }
    }

    /// What the user can do, in one sentence, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            EngineRunError::Cuda(e) => e.hint(),
            EngineRunError::Library(e) => e.hint(),
            EngineRunError::Invalid { validity, .. } => validity.hint(),
            EngineRunError::WithoutWeights { .. } => Some(format!(
                "keep the bundle's model.onnx beside its engine, or compile without {WEIGHT_STRIPPED}"
            )),
            EngineRunError::Refit { .. } => Some(
                "the model must be the one that the engine was built from: compile it again".into(),
            ),
            EngineRunError::Sizes(_) => Some(format!(
                "compile with {DIM} NAME=MIN:OPT:MAX that holds these sizes"
            )),
            _ => None,
        }
    }

    /// Whether there is no GPU at all: then an engine was not run, which is no failure of the engine.
    pub fn is_without_device(&self) -> bool {
        matches!(self, EngineRunError::Cuda(CudaError::NoDevice(_)))
    }
}

/// What the parser says first, or else the log.
fn first(failures: &[ParseFailure], log: &[LogLine]) -> String {
    failures
        .first()
        .map_or_else(|| because(log), |f| format!(": {f}"))
}

/// What the log says, where the header's bits say nothing.
fn beside(validity: &Validity, log: &[LogLine]) -> String {
    match validity.is_explained() {
        true => String::new(),
        false => because(log),
    }
}

/// The gravest of the last lines of the log: the first error, else the last warning.
fn because(log: &[LogLine]) -> String {
    let error = log.iter().find(|l| l.severity >= Severity::Error);
    match error.or(log.last()) {
        Some(line) => format!(": {}", log::clean(&line.text)),
        None => ", and does not say why".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_the_log_is_the_reason() {
        let line = |severity, text: &str| LogLine {
            severity,
            text: text.into(),
            count: 1,
        };
        let log = vec![
            line(Severity::Warning, "slow"),
            line(Severity::Error, "the cause"),
            line(Severity::Error, "the consequence"),
        ];
        let error = EngineRunError::Deserialize { log };
        assert!(error.to_string().ends_with("the cause"), "{error}");
        let silent = EngineRunError::Deserialize { log: Vec::new() };
        assert!(silent.to_string().contains("does not say why"));
    }
}
