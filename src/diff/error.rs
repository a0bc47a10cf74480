//! Why models cannot be compared.

use kiln_graph::onnx::ReadError;

use crate::bundle::BundleError;
use crate::fault::Fault;
use crate::manifest::ManifestError;

/// A model could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl Error {
    pub fn fault(&self) -> Fault {
        match self {
            Error::Bundle(e) => e.fault(),
            Error::Read(_) | Error::Manifest(_) => Fault::Model,
        }
    }
}
