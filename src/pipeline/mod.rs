//! From a model's file to the model after the passes. `compile`, `check` and `bisect` share it.

pub(crate) mod calibration;
pub(crate) mod clock;
mod error;
pub(crate) mod named;
mod prepare;
pub(crate) mod prepared;
mod recorded;
mod rewrite;
mod source;
mod tolerance;
pub(crate) mod written;

pub use error::Error;
pub(crate) use prepare::{fit, targets};
pub use rewrite::Rewritten;
pub(crate) use rewrite::{Passes, print, proved_as_optimized, rewrite, split, steps, target};
pub use source::Source;
pub(crate) use source::{Fingerprint, data_is_there, is_unchanged, spares_inputs};
pub(crate) use tolerance::tolerance;
