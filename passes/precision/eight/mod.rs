//! Linear layers and convolutions in 8 bits, between QuantizeLinear and DequantizeLinear.

mod columns;
pub mod compensate;
mod conv;
mod level;
mod levelling;
mod projections;
mod qdq;
pub mod quantize;
pub mod quantize_fp8;
pub mod quantize_int8;
mod reading;
pub mod results;
mod weighed;
