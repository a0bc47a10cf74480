//! Numbers in few bits: formats, rounding of weights, and constants of integers with their scales.

pub mod format;
pub mod quantized;
pub mod weights;
