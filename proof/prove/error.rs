//! What can stop a proof.

use std::path::PathBuf;

use kiln_graph::onnx::ReadError;

use crate::calibrate::DataError;
use crate::engine_parity::RunnerError;
use crate::parity::{InputError, NpzError, ParityError};
use kiln_runtime as runtime;
use kiln_runtime::fault::Fault;
use kiln_runtime::setting::DIM;

/// Models could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: the original does not run at these sizes; give others with {DIM}: {why}", model.display())]
    Sizes { model: PathBuf, why: String },
    #[error("{}: an engine has one profile of sizes, for which TensorRT builds all branches, and the model runs at others with each value of a control: {sizes}; no bundle was written. Choose one: {commands}", model.display())]
    Ways {
        model: PathBuf,
        sizes: String,
        commands: String,
    },
    #[error("{0}")]
    Runtime(#[from] runtime::Error),
    #[error(transparent)]
    Parity(#[from] ParityError),
    #[error(transparent)]
    Inputs(#[from] InputError),
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("ONNX Runtime runs {} but refuses kiln's result, which is a defect of kiln; no bundle was written: {source}", model.display())]
    Refused {
        model: PathBuf,
        source: runtime::Error,
    },
    #[error("{runner} did not run at the case {case}: {source}")]
    EngineRun {
        runner: String,
        case: String,
        source: RunnerError,
    },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{}: what the judge is given cannot be written: {source}", path.display())]
    Judge {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the list of the judge's cases cannot be written: {0}")]
    List(serde_json::Error),
}

impl Error {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Error::EngineRun { .. } => Fault::Result,
            Error::Sizes { .. } | Error::Inputs(_) | Error::Npz(_) => Fault::Request,
            Error::Data(_) | Error::Judge { .. } | Error::List(_) => Fault::Request,
            Error::Parity(ParityError::Tolerance(_)) => Fault::Request,
            Error::Read(_) | Error::Parity(_) => Fault::Model,
            Error::Ways { .. } => Fault::Target,
            Error::Refused { .. } => Fault::Defect,
            Error::Runtime(e) => e.fault(),
        }
    }
}
