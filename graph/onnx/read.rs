//! Reading a model.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::error::{ReadError, ReadErrorKind, Result};
use super::external::External;
use super::source::map;
use super::{import, proto, scan};
use crate::Model;
use crate::text;

/// Reads an ONNX file, or ONNX text if the name ends in `.onnxtxt`. Weights stay in the mapped file.
///
/// # Errors
/// When the file cannot be opened, is no ONNX, or is malformed; the error names the file and the part at fault.
pub fn read(path: impl AsRef<Path>) -> Result<Model, ReadError> {
    let path = path.as_ref();
    let load = || {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let (data, source) = map(path)?;
        if is_text(path) {
            let text = std::str::from_utf8(&data)
                .map_err(|e| ReadErrorKind::NotOnnx(format!("ONNX text must be UTF-8: {e}")))?;
            let mut model = from_text(text, Some(folder))?;
            model.sources.push(source);
            return Ok(model);
        }
        let mut model = decode(data.clone(), Some(folder))?;
        model.bytes = Some(data);
        model.sources.push(source);
        Ok(model)
    };
    match load() {
        Ok(mut model) => {
            model.path = Some(path.to_path_buf());
            Ok(model)
        }
        Err(kind) => Err(ReadError {
            path: Some(path.to_path_buf()),
            kind,
        }),
    }
}

/// Whether a file of this name is ONNX text, which kiln alone reads.
pub fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "onnxtxt")
}

/// Reads an encoded model from memory; external data is looked for in `folder`.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(data: Bytes, folder: Option<&Path>) -> Result<Model, ReadError> {
    decode(data, folder.map(Path::to_path_buf)).map_err(|kind| ReadError { path: None, kind })
}

/// Reads a model from ONNX text.
///
/// # Errors
/// As [`read`]; syntax errors carry line and column.
pub fn read_text(source: &str) -> Result<Model, ReadError> {
    from_text(source, None).map_err(|kind| ReadError { path: None, kind })
}

fn from_text(source: &str, folder: Option<PathBuf>) -> Result<Model> {
    let message = text::parse_model(source)?;
    with_external(message, folder)
}

fn with_external(message: proto::ModelProto, folder: Option<PathBuf>) -> Result<Model> {
    let mut external = External::new(folder);
    let mut model = import::model(message, &mut external)?;
    model.sources = external.sources;
    Ok(model)
}

fn decode(data: Bytes, folder: Option<PathBuf>) -> Result<Model> {
    if data.is_empty() {
        return Err(ReadErrorKind::Empty);
    }
    let looks_like_text = data[..data.len().min(256)]
        .iter()
        .all(|b| (32..127).contains(b) || b"\t\r\n".contains(b));
    let damaged = |e: &dyn std::fmt::Display| {
        ReadErrorKind::NotOnnx(if looks_like_text {
            "it looks like a text file (ONNX text must be named .onnxtxt)".into()
        } else {
            format!("the file is damaged or truncated ({e})")
        })
    };
    scan::check(&data).map_err(|fault| match fault {
        scan::Fault::Limit(crossed) => crossed.into(),
        scan::Fault::Malformed(why) => damaged(&why),
    })?;
    let message = proto::ModelProto::decode(data).map_err(|e| damaged(&e))?;
    if message.graph.is_none() {
        let why = "it decodes, but holds no graph";
        return Err(ReadErrorKind::NotOnnx(why.into()));
    }
    with_external(message, folder)
}
