//! Number formats.

pub mod calibrated;
pub mod eight;
pub mod four;
pub mod half;
mod linear;
pub mod numbers;

pub use calibrated::gram::{Gram, Grams};
pub use calibrated::plan::{Plan, Plans};
pub use calibrated::stats;
pub use eight::compensate::wanted as wanted_to_compensate;
pub use eight::quantize::wanted;
pub use eight::results::wanted as wanted_results;
pub use four::layer::MIN_BLOCK as MIN_INT4_BLOCK;
pub use four::plan::{plan as plan_int4, wanted as wanted_by_int4};
pub use half::decisions::decides;
pub use half::format::HalfFormat;
pub use half::ranges::wanted as wanted_by_half;
pub use numbers::{quantized, weights};
