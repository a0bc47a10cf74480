//! Reading what a kiln wrote, this one or an older one.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use super::{EngineKernels, FORMAT, Manifest};
use crate::bundle::{self, BundleError, MANIFEST};
use crate::schema;

/// A bundle's manifest does not say what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{} cannot be read: {source}", path.display())]
    Unread { path: PathBuf, source: io::Error },
    #[error("{} cannot be read: {source}", path.display())]
    Syntax {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{}: the manifest has format {format}, of {made_by}; this is kiln {}, which reads manifests up to format {FORMAT}: update kiln, or compile the model again",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer {
        path: PathBuf,
        format: u32,
        /// `kiln 2.0.0`
        made_by: String,
    },
    #[error("{}: the engine's kernels are not recorded; compile it again", .0.display())]
    Unlisted(PathBuf),
}

impl Manifest {
    /// The JSON Schema of what is written: every key that is always there is required.
    pub fn schema() -> schemars::Schema {
        schema::written::<Manifest>()
    }
}

/// The manifest of a bundle.
///
/// # Errors
/// When there is none that can be read, or it has a newer format.
pub fn read(folder: &Path) -> Result<Manifest, ManifestError> {
    let path = folder.join(MANIFEST);
    match fs::read(&path) {
        Ok(text) => parse(&path, &text),
        Err(source) => Err(ManifestError::Unread { path, source }),
    }
}

/// The manifest that a file holds.
///
/// # Errors
/// When it is none, or has a newer format.
pub fn parse(path: &Path, text: &[u8]) -> Result<Manifest, ManifestError> {
    let syntax = |source| ManifestError::Syntax {
        path: path.to_path_buf(),
        source,
    };
    is_known(path, text)?;
    serde_json::from_slice(text).map_err(syntax)
}

/// Whether a manifest has a format that this kiln knows, whatever else it says.
///
/// # Errors
/// When it has a newer one, or is no JSON object.
pub(crate) fn is_known(path: &Path, text: &[u8]) -> Result<(), ManifestError> {
    #[derive(Deserialize)]
    struct Head {
        kiln: Option<String>,
        #[serde(default)]
        format: u32,
    }
    let head: Head = serde_json::from_slice(text).map_err(|source| ManifestError::Syntax {
        path: path.to_path_buf(),
        source,
    })?;
    if head.format <= FORMAT {
        return Ok(());
    }
    Err(ManifestError::Newer {
        path: path.to_path_buf(),
        format: head.format,
        made_by: head
            .kiln
            .map_or("another kiln".into(), |v| format!("kiln {v}")),
    })
}

/// The kernels of a bundle's engine.
///
/// # Errors
/// When it is no bundle, has no engine, or nothing is known of the kernels.
pub fn kernels(folder: &Path) -> Result<EngineKernels, ManifestError> {
    bundle::find_engine(folder)?;
    let folder = folder.to_path_buf();
    match read(&folder)?.engine {
        None => Err(BundleError::NoEngine(folder).into()),
        Some(engine) if engine.listed.kernels.is_empty() => Err(ManifestError::Unlisted(folder)),
        Some(engine) => Ok(engine.listed),
    }
}
