//! The output folder: written aside, then renamed, so that there is a whole bundle or none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The optimized model's file in a bundle.
pub const MODEL: &str = "model.onnx";
/// The engine's file in a bundle.
pub const ENGINE: &str = "model.engine";
/// What was done, for machines.
pub const MANIFEST: &str = "manifest.json";
/// What was done, for people.
pub const REPORT: &str = "report.md";
/// The report as a page.
pub const REPORT_PAGE: &str = "report.html";
/// The inputs of the proof and the original's outputs.
pub const PROOF: &str = "parity.npz";

/// The bundle cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: io::Error,
    },
    #[error("{} exists and is no kiln bundle (it has no {MANIFEST}); choose another place with -o", .0.display())]
    NotOurs(PathBuf),
}

/// The ONNX file of a bundle, or the path itself if it is no folder.
pub fn model_path(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(MODEL),
        false => path.to_path_buf(),
    }
}

/// Where the bundle of a model goes unless told: `dir/model.onnx` → `dir/model.kiln`.
pub fn default_path(model: &Path) -> PathBuf {
    model.with_extension("kiln")
}

/// A bundle being written. Dropping it without [`Partial::finish`] removes what was written.
#[derive(Debug)]
pub struct Partial {
    target: PathBuf,
    folder: PathBuf,
    done: bool,
}

fn io_error<'a>(path: &'a Path, why: &'static str) -> impl FnOnce(io::Error) -> BundleError + 'a {
    move |source| BundleError::Io {
        path: path.to_path_buf(),
        why,
        source,
    }
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{suffix}", std::process::id()));
    target.with_file_name(name)
}

impl Partial {
    /// Makes an empty folder beside `target`.
    ///
    /// # Errors
    /// When the place cannot be written, or `target` exists and is no bundle.
    pub fn new(target: &Path) -> Result<Partial, BundleError> {
        if target.exists() && !target.join(MANIFEST).is_file() {
            return Err(BundleError::NotOurs(target.to_path_buf()));
        }
        let folder = beside(target, "part");
        fs::create_dir_all(&folder).map_err(io_error(&folder, "the bundle cannot be made here"))?;
        Ok(Partial {
            target: target.to_path_buf(),
            folder,
            done: false,
        })
    }

    /// Where a file of the bundle is written for now.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes one file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, name: &str, data: &[u8]) -> Result<(), BundleError> {
        let path = self.file(name);
        fs::write(&path, data).map_err(io_error(&path, "cannot be written"))
    }

    /// Puts the bundle in its place; an older one is replaced.
    ///
    /// # Errors
    /// When a rename fails; the older bundle is then where it was.
    pub fn finish(mut self) -> Result<PathBuf, BundleError> {
        let old = beside(&self.target, "old");
        let replaced = self.target.exists();
        if replaced {
            fs::rename(&self.target, &old).map_err(io_error(
                &self.target,
                "the older bundle cannot be moved away",
            ))?;
        }
        if let Err(source) = fs::rename(&self.folder, &self.target) {
            if replaced {
                // Back to what was; if that fails as well, it still lies beside.
                let _ = fs::rename(&old, &self.target);
            }
            return Err(io_error(
                &self.target,
                "the bundle cannot be put in its place",
            )(source));
        }
        self.done = true;
        if replaced {
            fs::remove_dir_all(&old)
                .map_err(io_error(&old, "the older bundle cannot be removed"))?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done about a folder that cannot be removed either.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.kiln");
        let partial = Partial::new(&target).unwrap();
        partial.write(MODEL, b"x").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        for round in ["one", "two"] {
            let partial = Partial::new(&target).unwrap();
            partial.write(MANIFEST, round.as_bytes()).unwrap();
            partial.finish().unwrap();
            assert_eq!(fs::read_to_string(target.join(MANIFEST)).unwrap(), round);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_folder_that_is_no_bundle_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::create_dir(&target).unwrap();
        assert!(matches!(
            Partial::new(&target),
            Err(BundleError::NotOurs(_))
        ));
    }
}
