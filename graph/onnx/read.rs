//! Reading a model.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::external::External;
use super::source::map;
use super::{import, proto, scan};
use crate::Model;
use crate::limits;
use crate::text;

/// A model cannot be read.
#[derive(Debug, thiserror::Error)]
pub struct ReadError {
    /// The file, if the model came from one.
    pub path: Option<PathBuf>,
    #[source]
    pub kind: ReadErrorKind,
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        self.kind.fmt(f)
    }
}

/// What is wrong with the model, naming the tensor, node or value.
#[derive(Debug, thiserror::Error)]
pub enum ReadErrorKind {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("this is no ONNX model: {0}")]
    NotOnnx(String),
    #[error(transparent)]
    Limit(#[from] limits::Crossed),
    #[error("{0}")]
    Text(#[from] text::ParseError),
    #[error("tensor '{name}': {why}")]
    Tensor { name: String, why: String },
    #[error("tensor '{tensor}': external data '{location}': {why}")]
    External {
        tensor: String,
        location: String,
        why: String,
    },
    #[error("{reader} reads the value '{value}', which nothing defines")]
    Undefined { reader: String, value: String },
    #[error("the value '{value}' is defined twice, the second time by {definer}")]
    Duplicate { value: String, definer: String },
    #[error(transparent)]
    Cycle(#[from] crate::graph::Cycle),
    #[error("{node}: {why}")]
    Node { node: String, why: String },
}

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
        if path.extension().is_some_and(|e| e == "onnxtxt") {
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

fn from_text(source: &str, folder: Option<PathBuf>) -> Result<Model, ReadErrorKind> {
    let message = text::parse_model(source)?;
    with_external(message, folder)
}

fn with_external(
    message: proto::ModelProto,
    folder: Option<PathBuf>,
) -> Result<Model, ReadErrorKind> {
    let mut external = External::new(folder);
    let mut model = import::model(message, &mut external)?;
    model.sources = external.sources;
    Ok(model)
}

fn decode(data: Bytes, folder: Option<PathBuf>) -> Result<Model, ReadErrorKind> {
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
