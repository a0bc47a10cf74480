//! An engine on a GPU beside the list of kernels that its builder wrote.

use std::path::Path;

use super::super::BenchError;
use crate::bundle;
use crate::engine::inspected::{self, Compared};
use crate::engine::run::{RunOptions, Session};
use crate::manifest;

/// Opens the engine of a bundle, and compares its kernels with those of the manifest.
///
/// # Errors
/// When the bundle has no engine or no list, and when there is no GPU that the engine runs on.
pub fn opened(folder: &Path, options: &RunOptions) -> Result<Compared, BenchError> {
    let path = bundle::find_engine(folder)?;
    let listed = manifest::kernels(folder)?;
    let plan = std::fs::read(&path).map_err(|source| BenchError::Io {
        path: path.clone(),
        why: "the bundle's engine cannot be read",
        source,
    })?;
    let model = bundle::model_path(folder);
    let session = Session::open(&plan, Some(&model), options)?;
    Ok(inspected::compared(&listed.kernels, &session.inspected()?))
}
