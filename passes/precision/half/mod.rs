//! FP16 and BF16: which nodes compute in half precision, and how their values get there.

mod bodies;
mod control;
mod convert;
pub mod convert_bf16;
pub mod convert_fp16;
pub mod decisions;
mod flow;
pub mod format;
mod masks;
mod operands;
mod products;
mod range;
pub mod ranges;
mod rules;
mod touch;
