//! kiln's model in memory.
//!
//! An arena [`Graph`] with def-use edges, [`Tensor`]s that share the mapped file, typed views over ops ([`ops`]),
//! ONNX ([`onnx`]) and ONNX text ([`text`]) both ways, inference ([`infer`]) and the [`verify`] pass over the structure.
//! Nothing here knows a pass, a runtime or a target.

mod attr;
pub mod caches;
pub mod dtype;
pub mod graph;
pub mod infer;
pub mod limits;
mod model;
pub mod onnx;
mod op;
pub mod ops;
pub mod opset;
mod rearrange;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use dtype::DType;
pub use graph::{Def, Graph, Node, NodeId, Use, Value, ValueId};
pub use model::{Function, Model};
pub use op::{INTERNAL_DOMAIN, Op};
pub use tensor::{Element, Tensor};
pub use types::{Dim, Shape, Type};
