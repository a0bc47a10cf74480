//! Number formats.

pub mod convert_fp16;
mod half_rules;
pub mod quantize_int4;
pub mod stats;
pub mod weights;
