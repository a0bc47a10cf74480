//! Number formats.

mod awq;
pub mod convert_bf16;
pub mod convert_fp16;
mod convert_half;
mod half_format;
mod half_ranges;
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

pub use half_format::HalfFormat;
pub use half_ranges::wanted as wanted_by_half;
pub use quantize::wanted;
