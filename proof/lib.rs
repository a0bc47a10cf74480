//! Whether a model still computes the same, and at which sizes and on which inputs.
//!
//! [`shapes`] has the sizes that a model serves, [`parity`] inputs, metrics and tolerances, [`prove`] runs a reference
//! and candidates in ONNX Runtime and compares them, [`calibrate`] measures values on data.

pub mod calibrate;
pub mod engine_parity;
pub mod fixed;
pub mod judge;
mod made;
pub mod nearest;
pub mod parity;
pub mod prove;
pub mod shapes;
pub mod twin;
