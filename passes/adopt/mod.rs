//! Adopting what a model came with: older operator sets, quantization, and operators of another runtime are written as
//! the other passes and the target take them. These run early; `lower/` has what runs last.

pub mod absorb_offsets;
pub mod adopt_attention;
mod blocks;
pub mod dequantize_constants;
pub mod expand_attention;
pub mod expand_fused;
pub mod expand_grouped;
pub mod expand_qoperators;
pub mod expand_rotary;
pub mod lower_nbits;
mod moved;
pub mod raise_opset;
pub mod split_transposed_conv;
pub mod symmetrize_qdq;
pub mod written_caches;
