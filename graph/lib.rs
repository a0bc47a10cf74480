//! kiln's model in memory.
//!
//! An arena [`Graph`] with def-use edges, [`Tensor`]s that share the mapped file, typed views over ops ([`ops`]),
//! ONNX ([`onnx`]) and ONNX text ([`text`]) both ways, inference ([`infer`]) and the [`verify`] pass over the structure.
//! Nothing here knows a pass, a runtime or a target.

pub mod dtype;
pub mod tensor;

pub use dtype::DType;
pub use tensor::{Element, Tensor};
