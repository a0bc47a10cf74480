//! What users put into a bundle, and the files that a compilation reads: a new bundle takes the first along and is never
//! written over the second.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{BundleError, io_error};
use super::files::{CUDA_MODEL, ENGINE, MANIFEST, MODEL, PROOF, REPORT, REPORT_PAGE, ROLES};

/// External data of [`MODEL`].
const DATA: &str = "model.onnx.data";
/// External data of [`CUDA_MODEL`].
const CUDA_DATA: &str = "model.cuda.onnx.data";

/// All that a bundle has of its own.
const OURS: [&str; 10] = [
    MODEL,
    DATA,
    CUDA_MODEL,
    CUDA_DATA,
    ENGINE,
    MANIFEST,
    REPORT,
    REPORT_PAGE,
    PROOF,
    ROLES,
];

/// What may be where a bundle goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Over {
    /// An older bundle, or an empty folder.
    #[default]
    Bundles,
    /// Nothing.
    Nothing,
    /// Anything: a file is replaced, and other files in a folder stay.
    Anything,
}

/// # Errors
/// When what is at `target` must stay.
pub(super) fn allows(over: Over, target: &Path) -> Result<(), BundleError> {
    let there = fs::symlink_metadata(target).is_ok();
    match over {
        Over::Nothing if there => Err(BundleError::Exists(target.to_path_buf())),
        Over::Bundles if there && !is_ours(target) && !is_empty(target) => {
            Err(BundleError::NotOurs(target.to_path_buf()))
        }
        _ => Ok(()),
    }
}

/// A bundle of one model, or of several by their roles.
fn is_ours(folder: &Path) -> bool {
    [MANIFEST, ROLES].iter().any(|f| folder.join(f).is_file())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a bundle at `target` leaves these files where they are.
///
/// # Errors
/// When one of them is, or lies in, `target`.
pub fn spares<'a>(
    target: &Path,
    read: impl IntoIterator<Item = &'a Path>,
) -> Result<(), BundleError> {
    let Ok(place) = target.canonicalize() else {
        // Nothing is there.
        return Ok(());
    };
    let within = |file: &&Path| file.canonicalize().is_ok_and(|f| f.starts_with(&place));
    match read.into_iter().find(within) {
        None => Ok(()),
        Some(file) => Err(BundleError::Input {
            file: file.to_path_buf(),
            target: target.to_path_buf(),
        }),
    }
}

/// Takes along into `folder` what `target` holds beside a bundle's own files and what `folder` has anew; gives their names.
///
/// # Errors
/// When a file can be neither linked nor copied.
pub(super) fn take_along(target: &Path, folder: &Path) -> Result<Vec<OsString>, BundleError> {
    let Ok(entries) = fs::read_dir(target) else {
        return Ok(Vec::new());
    };
    let mut taken = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if OURS.iter().any(|ours| name == *ours) || folder.join(&name).exists() {
            continue;
        }
        match twin(&entry.path(), &folder.join(&name)) {
            Ok(()) => taken.push(name),
            // Another compilation replaces the bundle meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error(&entry.path(), "cannot be kept")(e)),
        }
    }
    taken.sort();
    Ok(taken)
}

/// The same file under another name: both are there until the older bundle is removed, so that nothing is lost whenever the
/// process ends.
fn twin(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            twin(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match fs::hard_link(from, to) {
        Err(_) if kind.is_symlink() => std::os::unix::fs::symlink(fs::read_link(from)?, to),
        // A file system without links.
        Err(_) if kind.is_file() => fs::copy(from, to).map(|_| ()),
        done => done,
    }
}

/// Removes what was replaced: a folder, or with [`Over::Anything`] a file.
pub(super) fn remove(path: &PathBuf) {
    // The bundle is in its place; what cannot be removed now is swept by the next compilation.
    let _ = match path.is_dir() && !path.is_symlink() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}
