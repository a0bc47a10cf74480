//! Folders that must not be left behind when the process is stopped from outside.
//!
//! A folder is held while it is written. Who stops the process calls [`abandon`], which removes what is held.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static HELD: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<PathBuf>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that [`abandon`] removes. Dropping this forgets the folder and leaves it.
#[derive(Debug)]
pub struct Held(PathBuf);

/// Holds a folder that will be made.
pub fn hold(folder: &Path) -> Held {
    held().push(folder.to_path_buf());
    Held(folder.to_path_buf())
}

impl Held {
    /// Runs what may not be cut in two by [`abandon`], such as the renames that put a folder in its place.
    pub fn whole<T>(&self, work: impl FnOnce() -> T) -> T {
        let _alone = held();
        work()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        held().retain(|f| *f != self.0);
    }
}

/// A folder of its own in the system's folder for temporary files, removed with this value or by [`abandon`].
#[derive(Debug)]
pub struct Temporary {
    // Dropped first: whoever is stopped before that removes the folder.
    folder: tempfile::TempDir,
    _held: Held,
}

impl Temporary {
    /// # Errors
    /// When the folder cannot be made.
    pub fn new() -> std::io::Result<Temporary> {
        let folder = tempfile::tempdir()?;
        let _held = hold(folder.path());
        Ok(Temporary { folder, _held })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// What [`abandon`] holds until the process ends.
#[derive(Debug)]
pub struct Abandoned(#[expect(dead_code)] MutexGuard<'static, Vec<PathBuf>>);

/// Removes what is held. Until the result is dropped, whoever wants to hold, finish or drop a folder waits: so the process
/// can end before another thread trips over the missing folder.
pub fn abandon() -> Abandoned {
    let folders = held();
    for folder in folders.iter() {
        // A thread that still writes may put a file into it meanwhile.
        for _ in 0..10 {
            if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
                break;
            }
        }
    }
    Abandoned(folders)
}
