//! ONNX files: read, write, external data.
//!
//! Reading maps the file and decodes it in place, so that weights are slices of the mapping. What kiln does not model
//! (local functions, training information, device configurations, metadata, doc strings, quantization annotations) is
//! carried along and written back; only doc strings of attributes and fields newer than [`proto`] are lost.

mod error;
mod export;
mod external;
mod import;
pub mod proto;
mod read;
mod scan;
mod source;
mod tensor;
mod write;

pub use error::{ReadError, ReadErrorKind};
pub use import::{attribute_defaults, function};
pub use read::{is_text, read, read_bytes, read_text};
pub use source::SourceFile;
pub use write::{Parts, WriteError, WriteOptions, Written, to_bytes, to_parts, to_proto, write};
