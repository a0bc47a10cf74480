//! What calibration found of values, and what follows from it: ranges, outliers, factors between channels.

pub(in crate::precision) mod gptq;
pub mod gram;
pub mod plan;
pub mod ranges;
pub(in crate::precision) mod smooth;
pub mod stats;
