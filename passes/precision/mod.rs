//! Number formats.

mod awq;
mod columns;
mod conv;
pub mod convert_bf16;
pub mod convert_fp16;
mod convert_half;
mod gptq;
mod gram;
mod half_bodies;
mod half_control;
mod half_decisions;
mod half_flow;
mod half_format;
mod half_masks;
mod half_products;
mod half_range;
mod half_ranges;
mod half_rules;
mod int4_plan;
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

pub use gram::Gram;
pub use half_format::HalfFormat;
pub use half_ranges::wanted as wanted_by_half;
pub use int4_plan::{Plan, Plans, plan as plan_int4, wanted as wanted_by_int4};
pub use quantize::wanted;
pub use quantize_int4::MIN_BLOCK as MIN_INT4_BLOCK;
