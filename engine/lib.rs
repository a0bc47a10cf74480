//! Engines: TensorRT for RTX, driven through its bindings.
//!
//! # What TensorRT needs of the model
//!
//! * **Standard ops only.** The parser goes by an op's name and ignores its domain: `com.microsoft:Attention` meets the
//!   importer of the standard `Attention`. An op it does not know is a [`ParseFailure`] with `unknown_op`. All unknown ops
//!   are reported at once; of the other failures, only the first.
//! * **Types written out.** The network is strongly typed: the precision of every tensor is the one the graph gives it,
//!   and the float inputs of a node share one type. FP32 products use TF32 where the GPU has it.
//! * **Attention** with one output, without past key and value, with `softcap` 0. In FP32 it needs the attribute
//!   `TRT_decomposable = 1`; without it, an engine that was built has a dedicated kernel.
//! * **Symmetric quantization**: every zero point is 0 and written out as INT8.
//! * **FP16 for `sm_75`**, which has no FP32 matrix products.
//! * **A profile** for the dynamic inputs, which the graph can keep at its smallest, usual and largest sizes. Inputs whose
//!   *values* are shapes cannot be given one here.
//! * **A sound graph.** The parser survives garbage, truncated files, cycles and dangling names, but a node without outputs
//!   ends the process with a segmentation fault, and so does the builder on an `Attention` whose query, key and value are
//!   one tensor. [`refusals`] finds these, and what the parser would refuse or misread, beforehand. What nobody foresaw ends a child process only, with
//!   [`ChildBuilder`].
//!
//! # What a build does
//!
//! [`locate`] finds the libraries, [`RtxBuilder::new`] loads them, and [`EngineBuilder::build`] reads the model, checks the
//! request against it, and builds. No GPU is needed, except for [`ComputeCapability::Current`]. What TensorRT logs is kept
//! and returned; its kernel compiler and its parser write a few lines of their own to stderr, which cannot be caught. A
//! build runs on the calling thread, one at a time in a process; draw its progress from another thread.
//!
//! [`RtxBuilder`] builds in this process. [`ChildBuilder`] builds in one of its own, and tells the same.

// What only the bindings of TensorRT use.
#![cfg_attr(not(feature = "tensorrt"), allow(dead_code))]

mod aliased;
mod attention;
#[cfg(not(feature = "tensorrt"))]
#[path = "absent.rs"]
mod backend;
pub mod blocks;
mod capability;
pub mod card;
mod child;
mod cuda;
mod datatype;
mod dialect;
mod error;
mod explain;
mod hints;
pub mod inspected;
mod kept;
mod kernels;
mod locate;
mod log;
mod multiplied;
mod network;
mod operands;
pub mod paper;
pub mod price;
mod product;
mod profile;
mod request;
pub mod run;
mod sizes;
#[cfg(feature = "tensorrt")]
mod tensorrt;
mod view;

pub use aliased::{Aliased, aliased};
pub use attention::{Attended, AttentionKernel, attended};
pub use backend::{RtxBuilder, serve};
pub use capability::{ComputeCapability, UnknownCapability};
pub use child::{ChildBuilder, SUBCOMMAND};
pub use cuda::{CudaError, Device, device_count};
pub use datatype::DataType;
pub use dialect::{Refusal, fp32_products, multiplies, refusals};
pub use error::{BuildFailure, EngineError, ParseFailure, Version};
pub use kernels::{Kernel, Kernels, Multiplied, Operand};
pub use kiln_runtime::talk::{NoProgress, Progress};
pub use kiln_runtime::work::{Work, work};
pub use locate::{Libraries, locate};
pub use log::{LogLine, Severity};
pub use multiplied::{Otherwise, otherwise};
pub use network::{Network, precisions};
pub use paper::Paper;
pub use product::{ENV_DIR, INSTALL, LIBRARY};
pub use profile::{Profile, ProfileError, ProfileInput};
pub use request::{BuildRequest, Built, EngineBuilder, Form, Hardware, Plan, TensorInfo};
pub use sizes::Sizes;

#[cfg(feature = "tensorrt")]
use tensorrt as backend;

/// Whether engines can be built and run: the feature `tensorrt`.
pub const AVAILABLE: bool = cfg!(feature = "tensorrt");

/// The phase that stands for TensorRT's reading of the ONNX bytes.
pub const PHASE_PARSE: &str = "parse";
/// The phase that stands for TensorRT's building of the engine.
pub const PHASE_BUILD: &str = "build";
