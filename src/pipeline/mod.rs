//! From a model's file to the model after the passes. `compile`, `check` and `bisect` share it.

pub(crate) mod calibration;
mod error;
pub(crate) mod named;
mod prepare;
mod rewrite;
mod source;
mod tolerance;

pub use error::Error;
pub(crate) use prepare::{device, fit, fix, narrowed, shapes, targets};
pub use rewrite::Rewritten;
pub(crate) use rewrite::{Passes, print, proved_as_optimized, rewrite, split, steps, target};
pub use source::Source;
pub(crate) use source::{
    data_is_there, fingerprint, is_asked_for, is_unchanged, read, spares_inputs,
};
pub(crate) use tolerance::tolerance;
