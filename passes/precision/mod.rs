//! Number formats.

pub mod convert_fp16;
mod half_rules;
pub mod stats;
