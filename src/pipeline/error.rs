//! What can stop a pipeline.

use std::path::PathBuf;

use kiln_graph::onnx::{ReadError, WriteError};
use kiln_passes::registry::UnknownPass;
use kiln_passes::{PassError, PassFailure};

use crate::bundle::BundleError;
use crate::calibrate::{CalibrateError, DataError};
use crate::fault::Fault;
use crate::fixed::FixError;
use crate::generate::GenerateError;
use crate::parity::ToleranceError;
use crate::shapes::SpecError;
use crate::targets::TargetError;

/// A model could not be read, prepared or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    UnknownPass(#[from] UnknownPass),
    #[error("{}: {source}", model.display())]
    Pass { model: PathBuf, source: PassError },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    Fix(#[from] FixError),
    #[error(transparent)]
    Tolerance(#[from] ToleranceError),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error("{} has the {hash} hash {found}, and the recipe asks for {asked}: it is not the model that the recipe was made for", model.display())]
    OtherModel {
        model: PathBuf,
        hash: &'static str,
        found: String,
        asked: String,
    },
    #[error("{} changed while it was compiled; no bundle was written", .0.display())]
    Changed(PathBuf),
    #[error("{option} matches no node whose precision it could keep{gone}; there are: {instead}")]
    Keep {
        option: String,
        gone: &'static str,
        instead: String,
    },
    /// What a generation reads could not be recorded.
    #[error(transparent)]
    Generation(#[from] GenerateError),
    #[error("{what}: {why}")]
    Unsupported { what: String, why: String },
}

impl From<DataError> for Error {
    fn from(e: DataError) -> Error {
        Error::Calibrate(e.into())
    }
}

impl Error {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Target(TargetError::NoGpu | TargetError::NoGpuToBuildOn) => Fault::Machine,
            Error::Bundle(e) => e.fault(),
            Error::Spec(e) => e.fault(),
            Error::Calibrate(e) => e.fault(),
            Error::Generation(e) => e.fault(),
            Error::Target(_)
            | Error::UnknownPass(_)
            | Error::Keep { .. }
            | Error::Unsupported { .. }
            | Error::Io { .. }
            | Error::Fix(_)
            | Error::Tolerance(_)
            | Error::Write(_) => Fault::Request,
            Error::Pass {
                source:
                    PassError::Broken { .. }
                    | PassError::Failed {
                        failure: PassFailure::Unsettled { .. },
                        ..
                    },
                ..
            } => Fault::Defect,
            Error::OtherModel { .. } | Error::Changed(_) | Error::Read(_) | Error::Pass { .. } => {
                Fault::Model
            }
        }
    }

    /// Whether a pass had nothing to do, and was to do something.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(
            self,
            Error::Pass {
                source: PassError::Failed {
                    failure: PassFailure::Nothing(_),
                    ..
                },
                ..
            }
        )
    }
}
