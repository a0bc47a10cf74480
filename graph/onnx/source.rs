//! Mapped files, and whether they are still what was mapped.

#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// A file that is mapped, as it was then.
#[derive(Clone, Debug)]
pub struct SourceFile {
    pub path: PathBuf,
    stamp: Stamp,
}

/// What tells one state of a file from another: a program that writes to it changes one of these.
#[derive(Clone, Debug, PartialEq)]
struct Stamp {
    len: u64,
    modified: Option<std::time::SystemTime>,
    file: (u64, u64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        #[cfg(unix)]
        let file = {
            use std::os::unix::fs::MetadataExt;
            (meta.dev(), meta.ino())
        };
        #[cfg(not(unix))]
        let file = (0, 0);
        Stamp {
            len: meta.len(),
            modified: meta.modified().ok(),
            file,
        }
    }
}

impl SourceFile {
    /// Whether the path still leads to the file that was mapped, of the same size and time.
    pub fn is_unchanged(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|meta| Stamp::of(&meta) == self.stamp)
    }
}

/// Maps a file for reading; an empty file is empty bytes.
pub(super) fn map(path: &Path) -> io::Result<(Bytes, SourceFile)> {
    map_file(&open(path)?, path)
}

/// Opens a regular file. A pipe would block until somebody writes, so what a path leads to is looked at before it is opened, and
/// again afterwards, as it may have been replaced.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let regular = |meta: Metadata| match meta.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is not a regular file")),
    };
    regular(std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    regular(file.metadata()?)?;
    Ok(file)
}

/// Maps an open file, whose path is `path`.
pub(super) fn map_file(file: &File, path: &Path) -> io::Result<(Bytes, SourceFile)> {
    let meta = file.metadata()?;
    let source = SourceFile {
        path: path.to_path_buf(),
        stamp: Stamp::of(&meta),
    };
    if meta.len() == 0 {
        return Ok((Bytes::new(), source));
    }
    // SAFETY: the mapping is private and read-only. If another program makes the file shorter, reading what is gone raises
    // SIGBUS, which `kiln`'s command line answers; if it writes to the file, `SourceFile::is_unchanged` tells.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok((Bytes::from_owner(map), source))
}

/// Where an open file really is. Asking the descriptor leaves nobody the time to put a link in the path's place.
pub(super) fn place(file: &File, path: &Path) -> io::Result<PathBuf> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let _ = path;
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        path.canonicalize()
    }
}
