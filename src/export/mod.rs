//! Hands a bundle over to the servers that people run: their folders and configuration files, from what kiln knows of the model.

mod facts;
pub mod genai;
mod pbtxt;
pub mod tei;
pub mod triton;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bench::BenchError;
use crate::bundle::BundleError;
use crate::fault::Fault;
use crate::generate::GenerateError;
use crate::parity::NpzError;
use crate::scratch;
use crate::setting::{FORCE, NO_MEASURE, Setting};

/// Nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Read(#[from] kiln_graph::onnx::ReadError),
    #[error(transparent)]
    Write(#[from] kiln_graph::onnx::WriteError),
    #[error("{}: the manifest cannot be read: {reason}", path.display())]
    Manifest { path: PathBuf, reason: String },
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: io::Error,
    },
    #[error("{} is there already; {FORCE} replaces it", .0.display())]
    There(PathBuf),
    #[error("{}: {why}", model.display())]
    Unfit { model: PathBuf, why: String },
    #[error("{option}: {why}")]
    Option { option: Setting, why: String },
    #[error(transparent)]
    Proof(#[from] NpzError),
    #[error("the latency over batches was not measured ({NO_MEASURE} leaves it out): {0}")]
    Measure(Box<BenchError>),
}

impl ExportError {
    pub fn fault(&self) -> Fault {
        match self {
            ExportError::Io { .. } | ExportError::There(_) | ExportError::Option { .. } => {
                Fault::Request
            }
            ExportError::Measure(e) => e.fault(),
            ExportError::Generate(e) => e.fault(),
            _ => Fault::Model,
        }
    }
}

/// What was written, and what its user should know.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Exported {
    pub files: Vec<PathBuf>,
    pub notes: Vec<String>,
}

/// A folder that is written beside its place, and takes it when all of it is there.
struct Staged {
    folder: PathBuf,
    place: PathBuf,
    held: scratch::Held,
    files: Vec<PathBuf>,
}

impl Staged {
    fn new(place: &Path, force: bool) -> Result<Staged, ExportError> {
        if place.exists() && !force {
            return Err(ExportError::There(place.to_path_buf()));
        }
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let folder = place.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let held = scratch::hold(&folder);
        fs::create_dir_all(&folder).map_err(|e| unwritten(&folder, e))?;
        Ok(Staged {
            folder,
            place: place.to_path_buf(),
            held,
            files: Vec::new(),
        })
    }

    /// A path in the folder, whose own folder is made.
    fn file(&mut self, name: &str) -> Result<PathBuf, ExportError> {
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| unwritten(parent, e))?;
        }
        self.files.push(self.place.join(name));
        Ok(path)
    }

    fn write(&mut self, name: &str, text: impl AsRef<[u8]>) -> Result<(), ExportError> {
        let path = self.file(name)?;
        fs::write(&path, text).map_err(|e| unwritten(&path, e))
    }

    fn copy(&mut self, from: &Path, name: &str) -> Result<(), ExportError> {
        let to = self.file(name)?;
        let copied = fs::copy(from, to);
        copied.map(drop).map_err(|source| ExportError::Io {
            path: from.to_path_buf(),
            why: "it cannot be copied",
            source,
        })
    }

    /// Puts the folder in its place, and gives its files.
    fn finish(self) -> Result<Vec<PathBuf>, ExportError> {
        let moved = self.held.whole(|| {
            if self.place.exists() {
                fs::remove_dir_all(&self.place)?;
            }
            fs::rename(&self.folder, &self.place)
        });
        moved.map_err(|e| unwritten(&self.place, e))?;
        Ok(self.files.clone())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After `finish` there is none.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn unwritten(path: &Path, source: io::Error) -> ExportError {
    ExportError::Io {
        path: path.to_path_buf(),
        why: "it cannot be written",
        source,
    }
}
