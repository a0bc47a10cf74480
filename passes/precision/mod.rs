//! Number formats.

pub mod convert_fp16;
mod half_rules;
pub mod int4;
pub mod quantize_int4;
pub mod quantized;
pub mod stats;
