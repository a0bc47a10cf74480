//! What can stop a generation.

use std::path::PathBuf;

use crate::bundle::BundleError;
use crate::engine::run::EngineRunError;
use crate::fault::Fault;
use crate::parity::NpzError;
use crate::runtime;
use crate::setting::MAX_LENGTH;
use crate::shapes::SpecError;

/// A generation did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Read(#[from] kiln_graph::onnx::ReadError),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("{source}{}", hinted(.source))]
    Engine { source: EngineRunError },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("{}: {why}", model.display())]
    NoDecoder { model: PathBuf, why: String },
    /// Models that do not fit each other, or one that is missing.
    #[error("{why}")]
    Pair { why: String },
    #[error("{}: {why}", path.display())]
    Tokenizer { path: PathBuf, why: String },
    #[error("the prompt has {tokens} tokens, and {model} holds {capacity}{}: give a shorter one{}", beside(*.new), longer(*.written))]
    TooLong {
        model: String,
        tokens: usize,
        new: usize,
        capacity: usize,
        /// Whether the capacity is the length of a buffer that the user can choose.
        written: bool,
    },
    #[error("{what}")]
    Usage { what: String },
    #[error("{model} gave {found}: {why}")]
    Output {
        model: String,
        found: String,
        why: String,
    },
}

impl From<EngineRunError> for GenerateError {
    fn from(source: EngineRunError) -> GenerateError {
        GenerateError::Engine { source }
    }
}

fn hinted(e: &EngineRunError) -> String {
    e.hint().map_or(String::new(), |hint| format!(" ({hint})"))
}

fn beside(new: usize) -> String {
    match new {
        0 => String::new(),
        n => format!(", of which {n} are for new ones"),
    }
}

fn longer(written: bool) -> String {
    if written {
        format!(", or a larger {MAX_LENGTH}")
    } else {
        String::new()
    }
}

impl GenerateError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            GenerateError::Runtime(e) => e.fault(),
            GenerateError::Bundle(e) => e.fault(),
            GenerateError::Engine { source } => source.fault(),
            GenerateError::Tokenizer { .. }
            | GenerateError::Usage { .. }
            | GenerateError::TooLong { .. }
            | GenerateError::Npz(_)
            | GenerateError::Spec(_) => Fault::Request,
            GenerateError::Read(_)
            | GenerateError::NoDecoder { .. }
            | GenerateError::Pair { .. }
            | GenerateError::Output { .. } => Fault::Model,
        }
    }
}
