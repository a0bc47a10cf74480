//! Attention, from the ways exporters spell it.

pub mod keyless;
pub mod scores;
pub mod weights;
