//! Weights of linear layers in 4 bits.

mod awq;
pub mod layer;
pub mod plan;
pub mod quantize_int4;
