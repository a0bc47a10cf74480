//! kiln's passes: rewrites of the graph, and the driver that runs them.
//!
//! A pass knows the graph and the target's properties; it knows no file, no protobuf and no runtime. What must be
//! computed goes through [`Evaluator`]. Adding a pass is one file and one line in [`registry`].

pub mod adopt;
pub mod analysis;
pub mod clean;
pub mod core;
pub mod fold;
pub mod fuse;
pub mod lower;
pub mod precision;
pub mod registry;
pub mod targets;

pub use self::analysis::census;
pub use self::core::driver::{PassError, PassReport, Step, run};
pub use self::core::options::{INT4_BLOCK, Options};
pub use self::core::pass::{
    Application, Context, Evaluator, EvaluatorError, Exactness, Pass, PassFailure,
};
pub use self::core::remark::{Activation, Clamped, Kept, Miss, MissReport, Remark, Rounded};
pub use self::core::target::{Facts, Target};
pub use self::core::{expand, fusion, patch, pattern, rule};
pub use self::targets::cuda_kernels;
