//! Why a bundle cannot be written or used.

use std::io;
use std::path::{Path, PathBuf};

use super::files::{MANIFEST, MODEL};
use crate::fault::Fault;
use crate::setting::{FORCE, NO_CLOBBER, NO_ENGINE, OUTPUT, TARGET};

/// The bundle cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: io::Error,
    },
    #[error("{} exists and is not a kiln bundle (it has no {MANIFEST}): choose another place with {OUTPUT}, or {FORCE} to write a bundle there", .0.display())]
    NotOurs(PathBuf),
    #[error("{} exists, and {NO_CLOBBER} does not overwrite", .0.display())]
    Exists(PathBuf),
    #[error("{} is read, and a bundle at {} would be written over it: choose another place with {OUTPUT}", file.display(), target.display())]
    Input { file: PathBuf, target: PathBuf },
    #[error("{} is not a kiln bundle: it has no {MODEL}{}", path.display(), holds(.models))]
    NoBundle { path: PathBuf, models: Vec<String> },
    #[error("{} has no engine: compile it for a GPU ({TARGET} sm_89) and without {NO_ENGINE}", .0.display())]
    NoEngine(PathBuf),
    #[error("{} is not a kiln bundle, and engines are in bundles: `kiln compile` makes one", .0.display())]
    NoFolder(PathBuf),
}

impl BundleError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            BundleError::NoBundle { .. } => Fault::Model,
            _ => Fault::Request,
        }
    }
}

fn holds(models: &[String]) -> String {
    match models.is_empty() {
        true => String::new(),
        false => format!("; it holds {}: name one of them", models.join(", ")),
    }
}

pub(super) fn io_error<'a>(
    path: &'a Path,
    why: &'static str,
) -> impl FnOnce(io::Error) -> BundleError + 'a {
    move |source| BundleError::Io {
        path: path.to_path_buf(),
        why,
        source,
    }
}
