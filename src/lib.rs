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
pub mod cache;
pub mod calibrate;
pub mod check;
pub mod cli;
pub mod compile;
pub mod doctor;
pub mod engine;
pub mod engine_parity;
pub mod environment;
pub mod export;
pub mod fault;
pub mod fixed;
pub mod gpu_check;
pub mod judge;
mod loader;
mod made;
pub mod manifest;
mod mapped;
pub mod matrix;
mod nearest;
pub mod nvidia;
pub mod options;
pub mod parity;
pub mod pipeline;
pub mod prove;
pub mod pysite;
pub mod recipe;
pub mod report;
pub mod runtime;
pub mod schema;
pub mod scratch;
pub mod shapes;
pub mod summary;
pub mod talk;
pub mod targets;
pub mod twin;
