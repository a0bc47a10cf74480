//! Why a model cannot be read.

use std::path::PathBuf;

use crate::{limits, text};

pub(super) type Result<T, E = ReadErrorKind> = std::result::Result<T, E>;

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
    #[error("not an ONNX model: {0}")]
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

pub(super) fn bad(name: &str, why: impl Into<String>) -> ReadErrorKind {
    ReadErrorKind::Tensor {
        name: name.to_string(),
        why: why.into(),
    }
}
