//! How a session runs its model.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::device::{Device, GpuOptions};

/// How a session runs its model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
pub struct SessionOptions {
    pub optimization: Optimization,
    /// Leaves out the optimizer of the blocked NCHW layout, which serves convolutions only. ONNX Runtime 1.31 crashes in
    /// it on some FP16 encoders that have none.
    pub without_nchwc: bool,
    /// Leaves weights as they are, where kernels would copy them into a layout of their own.
    #[serde(skip)]
    pub without_prepacking: bool,
    /// Threads within one operator; `None` leaves the number to ONNX Runtime, which takes one per physical core.
    pub intra_threads: Option<NonZeroUsize>,
    /// Each of those threads but the calling one stays on a core of its own.
    pub pinned: bool,
    pub device: Device,
    /// How a GPU is used; means nothing on the CPU.
    pub gpu: GpuOptions,
    /// ONNX Runtime writes down where each node runs, for [`placement`](crate::Session::placement). Costs time in every run.
    #[serde(skip)]
    pub watched: bool,
}

/// What ONNX Runtime may do to the graph before it runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimization {
    /// Nothing. For parity: the optimizer keeps FP16 values in FP32 between the nodes of the CPU provider, which
    /// hides what FP16 does to them.
    Disabled,
    /// Everything it knows. For latency.
    #[default]
    All,
}
