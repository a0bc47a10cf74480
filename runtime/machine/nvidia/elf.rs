//! What a shared library says of itself: its name and the libraries that it needs.

use std::fs::File;
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef};

/// The dynamic section of a library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// `DT_SONAME`: the name that others need it by.
    pub soname: Option<String>,
    /// `DT_NEEDED`, in the file's order.
    pub needed: Vec<String>,
}

/// A file is no shared library.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ElfError {
    pub path: PathBuf,
    pub reason: String,
}

/// Reads the dynamic section; of the file, only the parts that are wanted.
///
/// # Errors
/// When the file cannot be read or is no 64-bit ELF file.
pub fn dynamic(path: &Path) -> Result<Dynamic, ElfError> {
    let fail = |reason: String| ElfError {
        path: path.to_path_buf(),
        reason,
    };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let cache = ReadCache::new(file);
    read(&cache).map_err(fail)
}

fn read<'d, R: ReadRef<'d>>(data: R) -> Result<Dynamic, String> {
    let told = |e: object::read::Error| e.to_string();
    match FileKind::parse(data).map_err(told)? {
        FileKind::Elf64 => {}
        other => return Err(format!("it is {other:?}, not a 64-bit shared library")),
    }
    let header = elf::FileHeader64::<Endianness>::parse(data).map_err(told)?;
    let endian = header.endian().map_err(told)?;
    let segments = header.program_headers(endian, data).map_err(told)?;
    let mut found = Dynamic::default();
    for segment in segments {
        let Some(entries) = segment.dynamic(endian, data).map_err(told)? else {
            continue;
        };
        let of = |tag| {
            entries
                .iter()
                .find(|d| d.tag(endian) == tag)
                .map(|d| d.val(endian))
        };
        let (Some(address), Some(size)) = (of(elf::DT_STRTAB), of(elf::DT_STRSZ)) else {
            continue;
        };
        // The table is named by its address in memory; a loadable segment says where that is in the file.
        let place = segments.iter().find_map(|s| {
            let into = address.checked_sub(s.p_vaddr(endian))?;
            let holds = s.p_type(endian) == elf::PT_LOAD && into < s.p_filesz(endian);
            s.p_offset(endian).checked_add(into).filter(|_| holds)
        });
        let place = place.ok_or("its names are not in the file")?;
        let strings = data.read_bytes_at(place, size);
        let strings = strings.map_err(|()| "its names end behind the file")?;
        let name = |offset: u64| {
            let from = usize::try_from(offset)
                .ok()
                .and_then(|at| strings.get(at..))?;
            let end = from.iter().position(|&b| b == 0)?;
            Some(String::from_utf8_lossy(&from[..end]).into_owned())
        };
        for entry in entries {
            match entry.tag(endian) {
                elf::DT_NEEDED => found.needed.extend(name(entry.val(endian))),
                elf::DT_SONAME => found.soname = name(entry.val(endian)),
                _ => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_library_tells_what_it_needs() {
        let Ok(found) = crate::locate(None) else {
            println!("skipped: ONNX Runtime not found");
            return;
        };
        let dynamic = dynamic(&found.path).unwrap();
        assert_eq!(dynamic.soname.as_deref(), Some("libonnxruntime.so.1"));
        assert!(
            dynamic.needed.iter().any(|n| n.starts_with("libc.so")),
            "{dynamic:?}"
        );
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("text", b"hello"),
            ("cut", b"\x7fELF\x02\x01\x01\0\0\0"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = dynamic(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
