//! Number formats.

pub mod convert_fp16;
mod half_rules;
mod linear;
mod qdq;
mod quantize;
pub mod quantize_fp8;
pub mod quantize_int4;
pub mod quantize_int8;
pub mod quantized;
pub mod ranges;
mod smooth;
pub mod stats;
pub mod weights;

pub use quantize::wanted;
