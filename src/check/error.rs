//! What can stop a check.

use std::path::PathBuf;

use kiln_graph::onnx::ReadError;

use crate::bisect;
use crate::bundle::BundleError;
use crate::fault::Fault;
use crate::fixed::FixError;
use crate::parity::{InputError, NpzError, OUTPUT_PREFIX, ParityError, ToleranceError};
use crate::pipeline;
use crate::prove;
use crate::recipe::RecipeError;
use crate::setting::{RECORD, REFERENCE};
use crate::shapes::SpecError;

/// A check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Fix(#[from] FixError),
    #[error(transparent)]
    Tolerance(#[from] ToleranceError),
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Prove(#[from] prove::Error),
    #[error(transparent)]
    Bisect(#[from] bisect::Error),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("{what}: {why}")]
    Unsupported { what: String, why: String },
    /// A file of recorded outputs cannot be used.
    #[error(
        "{} holds no outputs ({OUTPUT_PREFIX}NAME): record some with `kiln check MODEL {REFERENCE} ORIGINAL {RECORD} {}`",
        path.display(), path.display()
    )]
    NoOutputs { path: PathBuf },
}

impl Error {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Read(_) => Fault::Model,
            Error::Bundle(e) => e.fault(),
            Error::Spec(e) => e.fault(),
            Error::Pipeline(e) => e.fault(),
            Error::Prove(e) => e.fault(),
            Error::Bisect(e) => e.fault(),
            Error::Fix(_)
            | Error::Tolerance(_)
            | Error::Recipe(_)
            | Error::Unsupported { .. }
            | Error::NoOutputs { .. } => Fault::Request,
        }
    }
}

impl From<ParityError> for Error {
    fn from(e: ParityError) -> Error {
        Error::Prove(e.into())
    }
}

impl From<InputError> for Error {
    fn from(e: InputError) -> Error {
        Error::Prove(e.into())
    }
}

impl From<NpzError> for Error {
    fn from(e: NpzError) -> Error {
        Error::Prove(e.into())
    }
}
