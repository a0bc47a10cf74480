//! kiln compiles Transformer models: it reads ONNX, rewrites the graph, converts its precision, builds a TensorRT
//! engine, and proves through ONNX Runtime that the result still computes the same.
//!
//! ```no_run
//! use kiln::compile::{Options, compile};
//!
//! let options = Options { fp16: true, ..Options::new("model.onnx") };
//! let outcome = compile(&options, &kiln::talk::Silent)?;
//! println!("{}", outcome.bundle.display());
//! # Ok::<(), kiln::compile::CompileError>(())
//! ```
//!
//! This crate is the driver: what a user meets and what touches the outside world. The graph is in `kiln-graph`, the
//! passes in `kiln-passes`.

pub mod attention;
pub mod bench;
pub mod bisect;
pub mod bundle;
pub mod check;
pub mod cli;
pub mod compile;
pub mod doctor;
mod engine_runner;
pub mod generate;
pub mod gpu_check;
pub mod manifest;
pub mod options;
pub mod pipeline;
pub mod precision;
pub mod recipe;
pub mod report;
pub mod schema;
pub mod summary;
pub mod targets;

pub use kiln_engine as engine;
pub use kiln_proof::{calibrate, engine_parity, fixed, judge, parity, prove, shapes, twin};
pub use kiln_runtime as runtime;
pub use kiln_runtime::{environment, fault, nvidia, pysite, scratch, talk};

use kiln_proof::nearest;
use kiln_runtime::mapped;
