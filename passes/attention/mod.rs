//! Attention, from the ways exporters spell it.

pub mod scores;
pub mod weights;
