use std::path::PathBuf;

use kiln_graph::DType;

use super::device::Device;
use super::locate::NotFound;
use crate::fault::Fault;

/// Why ONNX Runtime could not be used. Messages of ONNX Runtime itself are kept whole: they name the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    NotFound(#[from] NotFound),
    #[error("ONNX Runtime cannot be loaded from {}: {reason}", library.display())]
    Load { library: PathBuf, reason: String },
    #[error(
        "ONNX Runtime is loaded from {} already; a process cannot load {} as well",
        loaded.display(),
        asked.display()
    )]
    OtherLibrary { loaded: PathBuf, asked: PathBuf },
    #[error("the device {device} cannot be used: {reason}; {mend}")]
    Device {
        device: Device,
        reason: String,
        /// The command that mends it.
        mend: String,
    },
    #[error("ONNX Runtime cannot load {model}: {reason}")]
    Model { model: String, reason: String },
    #[error("{port} \"{name}\" of {model} is {found}; only tensors can be passed")]
    NotTensor {
        model: String,
        port: &'static str,
        name: String,
        found: String,
    },
    #[error("{model} needs the input \"{name}\" ({expected}), which is not given; given: {given}")]
    MissingInput {
        model: String,
        name: String,
        expected: String,
        given: String,
    },
    #[error("{model} has no input \"{name}\"; its inputs: {inputs}")]
    UnknownInput {
        model: String,
        name: String,
        inputs: String,
    },
    #[error("the input \"{name}\" of {model} is given twice")]
    RepeatedInput { model: String, name: String },
    #[error("the input \"{name}\" of {model} is {expected}, but {found} is given")]
    InputType {
        model: String,
        name: String,
        expected: DType,
        found: DType,
    },
    #[error("the input \"{name}\" of {model} cannot be passed to ONNX Runtime: {reason}")]
    Input {
        model: String,
        name: String,
        reason: String,
    },
    #[error("the weight \"{weight}\" of {model} cannot be passed to ONNX Runtime: {reason}")]
    Weight {
        model: String,
        weight: String,
        reason: String,
    },
    #[error("ONNX Runtime failed to run {model}: {reason}")]
    Run { model: String, reason: String },
    #[error("the output \"{name}\" of {model} cannot be taken from ONNX Runtime: {reason}")]
    Output {
        model: String,
        name: String,
        reason: String,
    },
}

impl Error {
    /// The same about a model under another name than its path.
    pub fn about(mut self, path: &str, name: &str) -> Error {
        if let Error::Model { model, reason } | Error::Run { model, reason } = &mut self {
            *model = model.replace(path, name);
            *reason = reason.replace(path, name);
        }
        self
    }

    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self.is_missing_runtime() {
            true => Fault::Machine,
            false => Fault::Model,
        }
    }

    /// Whether the runtime itself is missing or unusable, rather than a model or its inputs.
    pub fn is_missing_runtime(&self) -> bool {
        matches!(
            self,
            Error::NotFound(_)
                | Error::Load { .. }
                | Error::OtherLibrary { .. }
                | Error::Device { .. }
        )
    }
}
