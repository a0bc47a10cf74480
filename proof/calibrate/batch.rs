//! Batches of calibration data, and what is asked of them.

use std::path::PathBuf;

use kiln_graph::{Dim, Tensor};
use kiln_runtime::TensorInfo;

use crate::parity::{InputError, InputKind, NpzError};

/// Calibration data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Npz(#[from] NpzError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} holds no .npz and no .npy file", path.display())]
    NoFiles { path: PathBuf },
    #[error("{} is one array, but the model has the inputs {inputs}; give an .npz file", path.display())]
    ManyInputs { path: PathBuf, inputs: String },
    #[error("{} is read as lines of text, for which a tokenizer is needed (a tokenizer.json)", path.display())]
    NoTokenizer { path: PathBuf },
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },
    #[error("the input \"{input}\" cannot be made from text: {reason}; give an .npz file")]
    NotText { input: String, reason: String },
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("{} holds no samples", path.display())]
    Empty { path: PathBuf },
    #[error("the input \"{input}\" of the model is {ty}, not a tensor of a known type")]
    NotTensor { input: String, ty: String },
}

/// How data is read.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// A `tokenizer.json`, for text.
    pub tokenizer: Option<PathBuf>,
    /// The most tokens of a line of text.
    pub max_length: usize,
    /// The most samples of a batch. With one, text is never padded. Arrays are split only along a first dimension that the
    /// model calls a batch in every input.
    pub batch: usize,
    /// The most samples to take.
    pub samples: Option<usize>,
    /// Of made inputs.
    pub seed: u64,
    /// Inputs that the data need not have: they always have these values.
    pub fixed: Vec<(String, Tensor)>,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            tokenizer: None,
            max_length: 128,
            batch: 1,
            samples: None,
            seed: 1,
            fixed: Vec::new(),
        }
    }
}

/// The inputs of one run.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The file, or the file and the lines or rows in it.
    pub name: String,
    /// By the model's names, in its order.
    pub inputs: Vec<(String, Tensor)>,
    pub samples: usize,
}

impl Batch {
    /// Bytes of all inputs.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().map(|(_, t)| t.byte_len()).sum()
    }
}

/// An input of the model.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub info: TensorInfo,
    /// `None` if the model does not tell the rank.
    pub dims: Option<Vec<Dim>>,
    pub kind: InputKind,
}
