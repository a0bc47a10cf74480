//! A model: a graph and what the file says about it.

use std::path::PathBuf;

use crate::Graph;
use crate::onnx::{SourceFile, proto};

/// A model as read from a file, or being compiled.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub graph: Graph,
    /// The file it came from; its folder is where external data lies.
    pub path: Option<PathBuf>,
    /// The mapped file itself, without external data.
    pub bytes: Option<bytes::Bytes>,
    /// The files that are mapped: this one and those of external data.
    pub sources: Vec<SourceFile>,
    /// Everything of the file's outermost message but the graph and the operator sets.
    pub(crate) header: proto::ModelProto,
}

impl Model {
    pub fn new(graph: Graph) -> Model {
        Model {
            graph,
            ..Model::default()
        }
    }

    pub fn ir_version(&self) -> i64 {
        self.header.ir_version.unwrap_or(0)
    }

    /// `name version` of the tool that made the file; empty if it does not say.
    pub fn producer(&self) -> String {
        let name = self.header.producer_name.as_deref().unwrap_or("");
        let version = self.header.producer_version.as_deref().unwrap_or("");
        format!("{name} {version}").trim().to_string()
    }

    /// Local functions as `(domain, name)`.
    pub fn functions(&self) -> impl Iterator<Item = (&str, &str)> {
        let functions = self.header.functions.iter();
        functions.map(|f| {
            (
                f.domain.as_deref().unwrap_or(""),
                f.name.as_deref().unwrap_or(""),
            )
        })
    }

    /// Whether both have the same local functions.
    pub fn same_functions(&self, other: &Model) -> bool {
        self.header.functions == other.header.functions
    }

    /// The file's `metadata_props`.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let props = self.header.metadata_props.iter();
        props.map(|p| {
            (
                p.key.as_deref().unwrap_or(""),
                p.value.as_deref().unwrap_or(""),
            )
        })
    }

    /// Bytes of all constants, nested graphs included.
    pub fn constant_bytes(&self) -> usize {
        let mut total = 0;
        self.graph.for_each_graph(&mut |g| {
            let constants = g.values().filter_map(|(_, v)| v.constant());
            total += constants.map(crate::Tensor::byte_len).sum::<usize>();
        });
        total
    }
}

/// A function: an operator defined by a body, such as the right side of a fusion.
///
/// Inside the body, attributes that are [`crate::Attr::Ref`] stand for the function's attributes.
#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub domain: String,
    pub attributes: Vec<String>,
    pub body: Graph,
}
