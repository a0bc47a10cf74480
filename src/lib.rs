//! kiln compiles Transformer models: it reads ONNX, rewrites the graph, converts its precision, builds a TensorRT
//! engine, and proves through ONNX Runtime that the result still computes the same.
//!
//! ```no_run
//! use kiln::precision::Floats;
//! use kiln::{Options, Precision};
//!
//! let precision = Precision { floats: Floats::Fp16, ..Precision::default() };
//! let options = Options { precision, ..Options::new("model.onnx") };
//! let outcome = kiln::compile(&options, &kiln::talk::Silent)?;
//! println!("{}", outcome.bundle.display());
//! # Ok::<(), kiln::Error>(())
//! ```
//!
//! [`compile()`] makes a bundle, [`check()`] compares two models, [`bench()`] times models in turns; each takes its options and
//! something that hears its progress ([`talk::Talk`]), and its error says what is at fault ([`fault::Fault`]). Messages name what
//! can be set ([`setting::Setting`]).
//! `examples/embed.rs` is a program that uses them.
//!
//! This crate is the driver: what a user meets. Under it are `kiln-runtime` (the machine and ONNX Runtime), `kiln-engine`
//! (TensorRT), `kiln-proof` (sizes, comparison, calibration), `kiln-passes` and `kiln-graph`. Modules that are not listed here
//! are the command line's own.

#[doc(hidden)]
pub mod attention;
pub mod bench;
#[doc(hidden)]
pub mod bisect;
pub mod bundle;
pub mod cache;
pub mod check;
#[doc(hidden)]
pub mod cli;
pub mod compile;
pub mod diff;
#[doc(hidden)]
pub mod doctor;
mod engine_runner;
#[doc(hidden)]
pub mod export;
#[doc(hidden)]
pub mod generate;
#[doc(hidden)]
pub mod gpu_check;
mod inner;
pub mod manifest;
#[doc(hidden)]
pub mod matrix;
pub mod options;
#[doc(hidden)]
pub mod pipeline;
pub mod precision;
pub mod recipe;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod schema;
#[doc(hidden)]
pub mod summary;
pub mod targets;

pub use kiln_engine as engine;
pub use kiln_proof::{calibrate, engine_parity, fixed, judge, parity, prove, shapes, twin};
pub use kiln_runtime as runtime;
pub use kiln_runtime::{environment, fault, nvidia, pysite, scratch, setting, talk};

use kiln_proof::nearest;
use kiln_runtime::mapped;

pub use bench::benchmark as bench;
pub use check::check;
pub use compile::{CompileError as Error, Outcome, compile};
pub use options::Options;
pub use precision::Precision;
pub use targets::Targets as Target;

/// The example in the documentation.
#[cfg(doctest)]
#[doc = include_str!("../docs/usage.md")]
struct Usage;
