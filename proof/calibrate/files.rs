//! Files of arrays: which there are, and their rows.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_graph::Tensor;
use sha2::{Digest, Sha256};

use super::batch::{DataError, Port};
use crate::parity::{self, InputError, Npz};

pub(super) fn hash_file(hash: &mut Sha256, path: &Path) -> Result<(), DataError> {
    let fail = |source| DataError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut file = File::open(path).map_err(fail)?;
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0u64;
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    // Where one file ends and the next begins.
    hash.update(bytes.to_le_bytes());
    Ok(())
}

pub(super) fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(wanted))
}

pub(super) fn is_array(path: &Path) -> bool {
    has_extension(path, "npz") || has_extension(path, "npy")
}

/// The files behind a path, sorted by name, each with the arrays that the model wants.
pub(super) fn files(path: &Path, ports: &[Port]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let fail = |source| DataError::Io {
            path: path.to_path_buf(),
            source,
        };
        let entries = fs::read_dir(path).map_err(fail)?;
        let entries: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.path())).collect();
        files = entries.map_err(fail)?;
        files.retain(|p| is_array(p) && !p.is_dir());
        files.sort();
        if files.is_empty() {
            return Err(DataError::NoFiles {
                path: path.to_path_buf(),
            });
        }
    }
    for file in &files {
        if has_extension(file, "npy") {
            if ports.len() != 1 {
                let names: Vec<_> = ports.iter().map(|p| p.info.name.as_str()).collect();
                return Err(DataError::ManyInputs {
                    path: file.clone(),
                    inputs: names.join(", "),
                });
            }
            continue;
        }
        let npz = Npz::open(file)?;
        let has: Vec<String> = npz.names().map(str::to_owned).collect();
        for Port { info, .. } in ports {
            let prefixed = format!("{}{}", parity::INPUT_PREFIX, info.name);
            if !has.contains(&info.name) && !has.contains(&prefixed) {
                return Err(DataError::Input(InputError::Missing {
                    path: file.clone(),
                    input: info.name.clone(),
                    has,
                }));
            }
        }
    }
    Ok(files)
}

/// Rows `from` to `to` along the first axis; `None` where a row is not a whole number of bytes.
pub(super) fn slice(tensor: &Tensor, from: usize, to: usize) -> Option<Tensor> {
    let rows = *tensor.dims().first()?;
    let bytes = tensor.bytes();
    if tensor.strings().is_some() || tensor.dtype().bits() < 8 || to > rows || from > to {
        return None;
    }
    let row = bytes.len().checked_div(rows)?;
    let mut dims = tensor.dims().to_vec();
    dims[0] = to - from;
    Tensor::from_raw(tensor.dtype(), dims, bytes.slice(from * row..to * row)).ok()
}
