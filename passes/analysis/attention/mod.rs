//! Attention, from the ways exporters spell it.

pub mod keyless;
pub mod operand_bias;
pub mod output_projection;
pub mod projections;
pub mod scores;
pub mod weights;
