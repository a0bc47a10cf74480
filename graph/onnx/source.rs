//! Mapped files, and whether they are still what was mapped.

#![allow(unsafe_code)]

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

/// A file that is mapped, as it was then.
#[derive(Clone, Debug)]
pub struct SourceFile {
    pub path: PathBuf,
    stamp: Stamp,
    /// `None` of an empty file.
    map: Option<Arc<Mmap>>,
}

/// The bytes of a mapping that is shared.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
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

    /// Gives the memory of pages that were read back to the system. They stay in its cache of the file, from where the next
    /// reader of them has them again.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: nobody writes to the mapping, so that its pages are those of the file whenever they are read. Where the
            // system refuses, the pages stay.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
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
    let source = |map| SourceFile {
        path: path.to_path_buf(),
        stamp: Stamp::of(&meta),
        map,
    };
    if meta.len() == 0 {
        return Ok((Bytes::new(), source(None)));
    }
    // SAFETY: the mapping is private and read-only. If another program makes the file shorter, reading what is gone raises
    // SIGBUS, which `kiln`'s command line answers; if it writes to the file, `SourceFile::is_unchanged` tells.
    let map = Arc::new(unsafe { Mmap::map(file)? });
    Ok((Bytes::from_owner(Mapped(map.clone())), source(Some(map))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_are_read_again() {
        let file = std::env::temp_dir().join(format!("kiln-source-{}", std::process::id()));
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&file, &content).unwrap();
        let (bytes, source) = map(&file).unwrap();
        assert!(bytes == content);
        source.release();
        assert!(bytes == content && source.is_unchanged());
        std::fs::remove_file(&file).unwrap();
        assert!(bytes == content && !source.is_unchanged());
        source.release();
        assert!(bytes == content);
    }
}
