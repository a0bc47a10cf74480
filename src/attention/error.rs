//! Why maps cannot be made.

use std::path::PathBuf;

use kiln_graph::onnx::{ReadError, WriteError};
use kiln_passes::PassError;

use crate::bundle::BundleError;
use crate::calibrate::DataError;
use crate::fault::Fault;
use crate::parity::NpzError;
use crate::runtime;
use crate::setting::OUTPUT;

/// The maps cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AttentionError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },
    #[error("{} cannot be the inputs: give one .npz or .npy file", .0.display())]
    NotArrays(PathBuf),
    #[error("{} cannot be the page: give a name that ends in .html, as the arrays go beside it as .npz", .0.display())]
    NotPage(PathBuf),
    #[error("{} holds the inputs and would be overwritten by the arrays; give the page another name with {OUTPUT}", .0.display())]
    Overwrites(PathBuf),
    #[error("{}: {source}", model.display())]
    Pass { model: PathBuf, source: PassError },
    #[error("kiln finds no attention in {}{}", model.display(), reasons(.left))]
    NoAttention { model: PathBuf, left: Vec<String> },
    #[error("{} has no {what} {number}: {}", model.display(), numbers(*.count))]
    NoSuch {
        model: PathBuf,
        what: &'static str,
        number: usize,
        count: usize,
    },
    #[error("the model with its probabilities as outputs cannot be written: {0}")]
    Write(#[from] WriteError),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("{} does not run on {data}{hint}: {source}", model.display())]
    Run {
        model: PathBuf,
        data: String,
        source: runtime::Error,
        hint: String,
    },
    #[error("{}: the probabilities of {layer} are {found}, not [batch, heads, queries, keys]", model.display())]
    Shape {
        model: PathBuf,
        layer: String,
        found: String,
    },
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
}

fn reasons(left: &[String]) -> String {
    match left {
        [] => String::new(),
        some => format!("; left are: {}", some.join("; ")),
    }
}

fn numbers(count: usize) -> String {
    match count {
        1 => "the only one is 0".into(),
        n => format!("they are numbered 0 to {}", n.saturating_sub(1)),
    }
}

impl AttentionError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            AttentionError::Runtime(e) => e.fault(),
            AttentionError::Read(_)
            | AttentionError::Bundle(_)
            | AttentionError::Pass { .. }
            | AttentionError::NoAttention { .. }
            | AttentionError::Run { .. }
            | AttentionError::Shape { .. } => Fault::Model,
            _ => Fault::Request,
        }
    }
}
