//! What TensorRT found out and need not find out again: timings of kernels, compiled kernels.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// What was kept; nothing if there is no such file. TensorRT itself refuses what was made elsewhere.
pub(super) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

/// Written aside and renamed: two processes may end at once.
///
/// # Errors
/// When the folder cannot be written to.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels");
        assert!(read(&path).is_empty());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("no/such"), b"x").is_err());
    }
}
