//! Engines run: a plan is opened on a GPU, fed with tensors, and timed.
//!
//! [`Session::open`] checks whether the plan fits the GPU and the library, and says why where it does not. A plan that was built
//! without weights is given those of the ONNX model that it was built from. A session is one
//! execution context on one CUDA stream; [`Session::fork`] makes another one of the same engine, to run beside it.
//! For a comparison it is a [`Runner`](crate::engine_parity::Runner): named inputs to named outputs, with TensorRT for RTX and
//! TensorRT proper alike.
//!
//! TensorRT for RTX compiles an engine's kernels when a context is made. A [runtime cache](RunOptions::cache) keeps them in
//! a file. Kernels for a new size are compiled before its first run, not in the background, so that every run of a size is
//! by the same kernels: what is proved is what is timed.

mod choose;
mod error;
mod validity;

use std::path::PathBuf;

use serde::Serialize;

use super::CudaError;

pub use super::backend::Session;
pub use choose::{Misfit, choose};
pub use error::EngineRunError;
#[cfg(all(test, feature = "tensorrt", not(feature = "tensorrt-enterprise")))]
pub(crate) use validity::Reason;
pub use validity::Validity;

/// How to run an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The CUDA device, as `CUDA_VISIBLE_DEVICES` counts.
    pub device: usize,
    /// Launch all kernels of a run at once, as a CUDA graph.
    pub graph: bool,
    /// Keeps the kernels that TensorRT for RTX compiles. A file that is missing or was made elsewhere is written anew.
    pub cache: Option<PathBuf>,
    /// The folder of TensorRT's libraries, or where they are found.
    pub libraries: Option<PathBuf>,
}

impl Default for RunOptions {
    /// The first device, with a CUDA graph, without a cache.
    fn default() -> RunOptions {
        RunOptions {
            device: 0,
            graph: true,
            cache: None,
            libraries: None,
        }
    }
}

/// The time of one run, in milliseconds on the GPU's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// The copies of the inputs to the GPU.
    pub upload_ms: f64,
    /// The kernels.
    pub compute_ms: f64,
    /// The copies of the outputs from the GPU.
    pub download_ms: f64,
}

/// What an engine is, read from the engine itself.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub runtime: String,
    pub device: String,
    /// Of the device, as the driver's tools write it.
    pub uuid: Option<String>,
    /// Of the device: `sm_89`.
    pub capability: String,
    pub layers: usize,
    pub profiles: usize,
    /// GPU memory for activations at most, in bytes.
    pub activation_bytes: u64,
    /// Milliseconds to read the plan and to copy its weights.
    pub load_ms: f64,
    /// Milliseconds to put in the weights; `None` for a plan that has its own.
    pub refit_ms: Option<f64>,
    /// Milliseconds to make the first context: for TensorRT for RTX, to compile its kernels.
    pub prepare_ms: f64,
    /// Whether the kernels came from the cache; `None` without a cache.
    pub cached: Option<bool>,
    /// What the library says about the plan and this GPU; `None` where it cannot tell.
    pub validity: Option<Validity>,
}

/// The time of one layer of an engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerTime {
    /// TensorRT's name: those of the nodes that it fused, as a rule.
    pub layer: String,
    /// Milliseconds of the GPU, the mean of all runs.
    pub ms: f64,
    /// Of the time of all layers.
    pub share: f64,
}

/// Why no engine can be run on this machine, in the words of reports; `None` if one can be tried.
pub fn unavailable() -> Option<CudaError> {
    super::cuda::device_count().err()
}
