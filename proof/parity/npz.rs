//! NumPy's `.npz`: named arrays in a zip archive.
//!
//! Types that NumPy does not know follow the package `ml_dtypes`: BF16 is `V2`; FP8, FP6 and FP4 are `V1` with one element
//! per byte. The file does not say which of them it is, so reading such an array needs the wanted dtype. Integers of less
//! than 8 bits are written as 8-bit integers.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use kiln_graph::{DType, Tensor, limits};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::npy::{self, header};

#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not an .npz file: {reason}", path.display())]
    NotNpz { path: PathBuf, reason: String },
    #[error("{}: the array \"{array}\" cannot be read: {reason}", path.display())]
    Read {
        path: PathBuf,
        array: String,
        reason: String,
    },
    #[error("{}: the array \"{array}\" cannot be written: {reason}", path.display())]
    Write {
        path: PathBuf,
        array: String,
        reason: String,
    },
}

/// An open `.npz` file.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// The arrays, by their place in the archive.
    names: Vec<(usize, String)>,
    /// Bytes that may still be unpacked.
    left: usize,
}

impl Npz {
    /// Opens a file and reads the names of its arrays.
    ///
    /// # Errors
    /// When the file cannot be opened or is no zip archive.
    pub fn open(path: &Path) -> Result<Npz, NpzError> {
        let file = File::open(path).map_err(|source| NpzError::Io {
            path: path.to_owned(),
            source,
        })?;
        let not_npz = |reason| NpzError::NotNpz {
            path: path.to_owned(),
            reason,
        };
        let length = file.metadata().map_or(0, |m| m.len());
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|e| not_npz(e.to_string()))?;
        if archive.len() > limits::ARRAYS {
            return Err(not_npz(format!("it has {} entries", archive.len())));
        }
        let names = (0..archive.len())
            .filter_map(|i| {
                let name = archive.name_for_index(i)?.ok()?;
                Some((i, name.strip_suffix(".npy")?.to_owned()))
            })
            .collect();
        Ok(Npz {
            path: path.to_owned(),
            archive,
            names,
            left: may_unpack_to(length),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the arrays, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(_, name)| name.as_str())
    }

    /// Reads one array, or `None` if there is none of this name. `wanted` says what an array of a type that NumPy
    /// does not know holds; other arrays keep their own dtype.
    ///
    /// # Errors
    /// When the array is malformed, of a type that a tensor cannot have, longer or shorter than its header says, or
    /// when the file unpacks to more than [`limits::UNPACKED`] and its neighbours allow.
    pub fn read(&mut self, name: &str, wanted: Option<DType>) -> Result<Option<Tensor>, NpzError> {
        let Some(&(index, _)) = self.names.iter().find(|(_, n)| n == name) else {
            return Ok(None);
        };
        let tensor = self.read_at(index, wanted);
        tensor.map(Some).map_err(|reason| NpzError::Read {
            path: self.path.clone(),
            array: name.to_owned(),
            reason,
        })
    }

    fn read_at(&mut self, index: usize, wanted: Option<DType>) -> Result<Tensor, String> {
        let entry = self.archive.by_index(index).map_err(|e| e.to_string())?;
        read_array(entry, wanted, &mut self.left)
    }
}

/// The most bytes that a file of this length is unpacked to.
fn may_unpack_to(length: u64) -> usize {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let grown = length.saturating_mul(limits::UNPACKED_RATIO);
    grown.clamp(limits::UNPACKED_FREE, limits::UNPACKED)
}

/// Reads one array in the `.npy` format; `left` are the bytes that it may still have.
fn read_array(
    mut entry: impl Read,
    wanted: Option<DType>,
    left: &mut usize,
) -> Result<Tensor, String> {
    let mut start = read_up_to(&mut entry, header::PREAMBLE)?;
    let (offset, len) = header::extent(&start)?;
    let rest = offset + len - start.len().min(offset + len);
    start.extend(read_up_to(&mut entry, rest)?);
    let text = start.get(offset..offset + len);
    let parsed = header::parse(text.ok_or("it ends within its header")?)?;
    let size = parsed.data_len().ok_or("its shape is too large")?;
    if size > *left {
        return Err(format!(
            "it has {size} bytes, and no more than {left} are read of a file of this size"
        ));
    }
    // A short header can reach into the data: what was read beyond it belongs there.
    let mut data = start.split_off(offset + len);
    // Grows with what is really there, so a header that promises too much costs nothing.
    let limit = (size + 1).saturating_sub(data.len()) as u64;
    let read = entry.take(limit).read_to_end(&mut data);
    read.map_err(|e| e.to_string())?;
    if data.len() != size {
        let (is, what) = (
            data.len().min(size),
            if data.len() > size { "more" } else { "less" },
        );
        return Err(format!(
            "its header says {size} bytes of data but has {what} ({is})"
        ));
    }
    *left -= size;
    npy::decode(&parsed, data, wanted)
}

/// Reads the array of an `.npy` file. `wanted` is as in [`Npz::read`]; in messages the array is called `array`.
///
/// # Errors
/// As [`Npz::read`], and when the file cannot be opened.
pub fn read_npy(path: &Path, array: &str, wanted: Option<DType>) -> Result<Tensor, NpzError> {
    let file = File::open(path).map_err(|source| NpzError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut left = limits::UNPACKED;
    read_array(BufReader::new(file), wanted, &mut left).map_err(|reason| NpzError::Read {
        path: path.to_owned(),
        array: array.to_owned(),
        reason,
    })
}

fn read_up_to(from: &mut impl Read, len: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(len);
    let read = from.take(len as u64).read_to_end(&mut out);
    read.map_err(|e| e.to_string())?;
    Ok(out)
}

/// Reads every array of a file, in the file's order.
///
/// # Errors
/// Those of [`Npz::open`] and [`Npz::read`].
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>, NpzError> {
    let mut npz = Npz::open(path)?;
    let names: Vec<String> = npz.names().map(str::to_owned).collect();
    let mut arrays = Vec::with_capacity(names.len());
    for name in names {
        if let Some(tensor) = npz.read(&name, None)? {
            arrays.push((name, tensor));
        }
    }
    Ok(arrays)
}

/// Writes arrays to a new file, not compressed. The same arrays make the same bytes.
///
/// # Errors
/// When the file cannot be written, or when two arrays have the same name.
pub fn write<S: AsRef<str>>(path: &Path, arrays: &[(S, Tensor)]) -> Result<(), NpzError> {
    let io = |source| NpzError::Io {
        path: path.to_owned(),
        source,
    };
    let mut zip = ZipWriter::new(BufWriter::new(File::create(path).map_err(io)?));
    for (name, tensor) in arrays {
        let name = name.as_ref();
        write_array(&mut zip, name, tensor).map_err(|reason| NpzError::Write {
            path: path.to_owned(),
            array: name.to_owned(),
            reason,
        })?;
    }
    let mut file = zip.finish().map_err(|e| io(e.into()))?;
    file.flush().map_err(io)
}

fn write_array(
    zip: &mut ZipWriter<BufWriter<File>>,
    name: &str,
    tensor: &Tensor,
) -> Result<(), String> {
    let (header, data) = npy::encode(tensor)?;
    let len = header.len() + data.len();
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(u32::try_from(len).is_err());
    zip.start_file(format!("{name}.npy"), options)
        .map_err(|e| e.to_string())?;
    zip.write_all(&header).map_err(|e| e.to_string())?;
    zip.write_all(&data).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const NUMBERS: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
        DType::C64,
        DType::C128,
    ];

    fn array(dtype: DType) -> Tensor {
        let len = dtype.packed_len(6).unwrap();
        let data = (0..len).map(|i| (i % 2) as u8).collect();
        Tensor::from_raw(dtype, vec![2, 3], data).unwrap()
    }

    fn written(arrays: &[(&str, Tensor)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arrays.npz");
        write(&path, arrays).unwrap();
        (folder, path)
    }

    /// A file with one entry of these bytes.
    fn with_entry(content: &[u8], method: CompressionMethod) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arrays.npz");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file("x.npy", options).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        (folder, path)
    }

    #[test]
    fn every_dtype_comes_back() {
        for &dtype in NUMBERS {
            let (_folder, path) = written(&[("x", array(dtype))]);
            let back = read(&path).unwrap();
            assert_eq!(back[0].0, "x");
            assert!(back[0].1.same_bits(&array(dtype)), "{dtype}");
        }
        for dtype in [DType::F8E4M3FN, DType::F4E2M1] {
            let (_folder, path) = written(&[("x", array(dtype))]);
            assert!(read(&path).is_err());
            let back = Npz::open(&path).unwrap().read("x", Some(dtype)).unwrap();
            assert!(back.unwrap().same_bits(&array(dtype)), "{dtype}");
        }
        let (_folder, path) = written(&[("x", array(DType::I4))]);
        assert_eq!(read(&path).unwrap()[0].1.dtype(), DType::I8);
    }

    #[test]
    fn strings_scalars_and_empty_arrays_come_back() {
        let texts = ["", "kiln", "Öl"].map(|s| Bytes::from_static(s.as_bytes()));
        let bytes = [&b"\xff"[..], b"ab"].map(Bytes::from_static);
        let arrays = [
            (
                "texts",
                Tensor::from_strings(vec![3], texts.to_vec()).unwrap(),
            ),
            (
                "bytes",
                Tensor::from_strings(vec![2, 1], bytes.to_vec()).unwrap(),
            ),
            (
                "no.texts",
                Tensor::from_strings(vec![0], Vec::new()).unwrap(),
            ),
            ("scalar", Tensor::scalar(7i64)),
            ("none", Tensor::from_values::<f32>(vec![2, 0], &[]).unwrap()),
            ("in.a/b", Tensor::vector(&[true, false])),
        ];
        let (_folder, path) = written(&arrays);
        let back = read(&path).unwrap();
        assert_eq!(back.len(), arrays.len());
        for ((name, tensor), (back_name, back)) in arrays.iter().zip(&back) {
            assert_eq!(name, back_name);
            assert!(back.same_bits(tensor), "{name}");
        }
    }

    #[test]
    fn compressed_arrays_are_read() {
        let (header, data) = npy::encode(&array(DType::F32)).unwrap();
        let content = [&header[..], &data].concat();
        let (_folder, path) = with_entry(&content, CompressionMethod::Deflated);
        assert!(read(&path).unwrap()[0].1.same_bits(&array(DType::F32)));
    }

    #[test]
    fn a_length_that_is_not_the_headers_is_refused() {
        let (header, data) = npy::encode(&array(DType::F32)).unwrap();
        let content = [&header[..], &data, b"more"].concat();
        for len in [content.len(), content.len() - 5, 40, 9, 0] {
            let (_folder, path) = with_entry(&content[..len], CompressionMethod::Stored);
            let err = read(&path).unwrap_err().to_string();
            assert!(err.contains("arrays.npz") && err.contains("\"x\""), "{err}");
        }
    }

    #[test]
    fn a_header_that_promises_too_much_costs_nothing() {
        let refusal = |count: u64| {
            let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({count},)}}");
            let mut content = b"\x93NUMPY\x01\0".to_vec();
            content.extend((text.len() as u16).to_le_bytes());
            content.extend(text.bytes());
            let (_folder, path) = with_entry(&content, CompressionMethod::Stored);
            read(&path).unwrap_err().to_string()
        };
        let err = refusal(2_000_000);
        assert!(err.contains("has less (0)"), "{err}");
        let err = refusal(2_000_000_000);
        assert!(err.contains("no more than"), "{err}");
        let err = refusal(u64::MAX);
        assert!(err.contains("its shape is too large"), "{err}");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.npz");
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(read(&path), Err(NpzError::NotNpz { .. })));
        let missing = read(Path::new("/no/such.npz")).unwrap_err();
        assert!(missing.to_string().starts_with("/no/such.npz: "));
        let twice = [("x", Tensor::scalar(1i64)), ("x", Tensor::scalar(2i64))];
        assert!(matches!(write(&path, &twice), Err(NpzError::Write { .. })));
    }
}
