//! kiln's passes: rewrites of the graph, and the driver that runs them.
//!
//! A pass knows the graph and the target's properties; it knows no file, no protobuf and no runtime. What must be
//! computed goes through [`Evaluator`]. Adding a pass is one file and one line in [`registry`].

pub mod attention;
mod broadcast;
pub mod census;
pub mod clean;
pub mod driver;
pub mod expand;
pub mod fold;
pub mod fuse;
pub mod fusion;
pub mod kernels;
pub mod lower;
pub mod mask;
pub mod pass;
pub mod patch;
pub mod pattern;
pub mod precision;
pub mod registry;
pub mod rule;
mod target;
pub mod view;

pub use driver::{PassError, PassReport, Step, run};
pub use pass::{
    Activation, Application, Clamped, Context, Evaluator, EvaluatorError, Exactness, INT4_BLOCK,
    Kept, Miss, MissReport, Options, Pass, PassFailure, Remark, Rounded, kept_by,
};
pub use target::{Dialect, Target};
