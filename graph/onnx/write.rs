//! Writing a model: weights are streamed, larger models get an external data file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::export::{self, Exported};
use super::proto::{
    self, GraphProto, NodeProto, StringStringEntryProto, TensorProto, tensor_proto,
};
use crate::{Model, Tensor};

/// A model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{path}: cannot be written: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the model takes {bytes} bytes, more than one protobuf message can hold; write it to a file, with external data"
    )]
    TooLarge { bytes: u64 },
    #[error(transparent)]
    Cycle(#[from] crate::graph::Cycle),
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Largest file written without external data, in bytes. Protobuf ends at 2^31 - 1.
    pub inline_limit: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            inline_limit: (1 << 31) - 1,
        }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Bytes of the model file.
    pub bytes: u64,
    /// The external data file and its bytes.
    pub external: Option<(PathBuf, u64)>,
    /// Nodes of the file that the graph has not: Identity, where an output cannot bear its name otherwise.
    pub relays: usize,
}

/// Smaller than the chunks in which weights come, so that those are written without being copied once more.
const BUFFER: usize = 64 << 10;
/// Tensors smaller than this stay in the model file, where a runtime's shape inference can read them.
const EXTERNAL_MIN: usize = 1024;
/// External tensors start at multiples of this, so that a runtime can map them.
const ALIGN: u64 = 4096;

/// Writes the model to `path`, by way of a temporary file that is renamed, so that a failure leaves what was there.
/// A model over the limit gets its weights in `path` + `.data`.
///
/// # Errors
/// When the graph has a cycle or the disk refuses.
pub fn write(
    model: &Model,
    path: impl AsRef<Path>,
    options: &WriteOptions,
) -> Result<Written, WriteError> {
    let path = path.as_ref();
    let fail = |source| WriteError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut exported = export::model(model)?;
    let mut external = None;
    if encoded_len(&exported) > options.inline_limit {
        let data_path = sibling(path, ".data");
        let location = data_path.file_name().unwrap_or_default().to_string_lossy();
        let moved = externalize(&mut exported, &location);
        let partial = Partial::new(&data_path);
        let size = (write_external(&partial.path, &moved)).map_err(fail)?;
        external = Some((partial, data_path, size));
    }
    let partial = Partial::new(path);
    let bytes = File::create(&partial.path)
        .and_then(|file| {
            let mut out = BufWriter::with_capacity(BUFFER, file);
            stream(&exported, &mut out)?;
            out.into_inner().map_err(|e| e.into_error())?.metadata()
        })
        .map_err(fail)?
        .len();
    let external = match external {
        None => None,
        Some((data, data_path, size)) => {
            data.rename(&data_path).map_err(fail)?;
            Some((data_path, size))
        }
    };
    partial.rename(path).map_err(fail)?;
    let mut inside = 0;
    (model.graph).for_each_graph(&mut |g| inside += g.node_count());
    Ok(Written {
        bytes,
        external,
        relays: nodes(&exported.graph).saturating_sub(inside),
    })
}

/// All nodes of a graph, those of bodies included.
fn nodes(graph: &GraphProto) -> usize {
    let bodies = |node: &NodeProto| -> usize {
        let graphs = node.attribute.iter();
        graphs
            .flat_map(|a| a.graphs.iter().chain(a.g.as_deref()))
            .map(nodes)
            .sum()
    };
    graph.node.iter().map(|node| 1 + bodies(node)).sum()
}

/// A file that is removed again unless it is renamed to where it belongs.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn new(target: &Path) -> Partial {
        let path = sibling(target, &format!(".{}.part", std::process::id()));
        Partial { path }
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Nothing more can be done about a file that cannot be removed either.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

/// The encoded model in memory, weights inline.
///
/// # Errors
/// When the graph has a cycle or the model is too large for one message.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, WriteError> {
    let exported = export::model(model)?;
    let bytes = encoded_len(&exported);
    if bytes > WriteOptions::default().inline_limit {
        return Err(WriteError::TooLarge { bytes });
    }
    let mut out = Vec::with_capacity(bytes as usize);
    stream(&exported, &mut out).map_err(|source| WriteError::Io {
        path: PathBuf::from("memory"),
        source,
    })?;
    Ok(out)
}

/// A model without its large weights, for a runtime that takes them from memory.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The encoded model. It calls the weights external data in the file [`Parts::LOCATION`], which is not written.
    pub model: Vec<u8>,
    /// By the names of the initializers.
    pub weights: Vec<(String, Tensor)>,
}

impl Parts {
    /// The file that the encoded model names.
    pub const LOCATION: &str = "weights";
}

/// The encoded model and its weights apart; none is copied.
///
/// # Errors
/// When the graph has a cycle.
pub fn to_parts(model: &Model) -> Result<Parts, WriteError> {
    let mut exported = export::model(model)?;
    let moved = externalize(&mut exported, Parts::LOCATION);
    let external = |header: &&(TensorProto, Option<Tensor>)| !header.0.external_data.is_empty();
    let names = exported.initializers.iter().filter(external);
    let names = names.map(|(header, _)| header.name.clone().unwrap_or_default());
    let weights = names.zip(moved).map(|(name, (_, tensor))| (name, tensor));
    let weights = weights.collect();
    let mut out = Vec::with_capacity(encoded_len(&exported) as usize);
    stream(&exported, &mut out).map_err(|source| WriteError::Io {
        path: PathBuf::from("memory"),
        source,
    })?;
    Ok(Parts {
        model: out,
        weights,
    })
}

/// The model as one message with all weights inside: what the text form prints.
///
/// # Errors
/// When the graph has a cycle.
pub fn to_proto(model: &Model) -> Result<proto::ModelProto, WriteError> {
    Ok(export::model(model)?.into_message())
}

const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;
const RAW_DATA: u32 = 9;

fn field_len(tag: u32, len: u64) -> u64 {
    key_len(tag) as u64 + encoded_len_varint(len) as u64 + len
}

fn tensor_len(header: &TensorProto, data: Option<&Tensor>) -> u64 {
    let raw = data.map_or(0, |t| field_len(RAW_DATA, t.byte_len() as u64));
    header.encoded_len() as u64 + raw
}

fn graph_len(exported: &Exported) -> u64 {
    let tensors = exported.initializers.iter();
    let tensors = tensors.map(|(h, t)| field_len(INITIALIZER, tensor_len(h, t.as_ref())));
    exported.graph.encoded_len() as u64 + tensors.sum::<u64>()
}

fn encoded_len(exported: &Exported) -> u64 {
    exported.model.encoded_len() as u64 + field_len(GRAPH, graph_len(exported))
}

/// Encodes field by field, so that no weight is copied into a message first. Protobuf lets fields come in any order.
fn stream(exported: &Exported, out: &mut dyn Write) -> io::Result<()> {
    let open = |out: &mut dyn Write, tag: u32, len: u64| {
        let mut head = Vec::with_capacity(16);
        encode_key(tag, WireType::LengthDelimited, &mut head);
        encode_varint(len, &mut head);
        out.write_all(&head)
    };
    out.write_all(&exported.model.encode_to_vec())?;
    open(out, GRAPH, graph_len(exported))?;
    out.write_all(&exported.graph.encode_to_vec())?;
    for (header, data) in &exported.initializers {
        open(out, INITIALIZER, tensor_len(header, data.as_ref()))?;
        out.write_all(&header.encode_to_vec())?;
        if let Some(tensor) = data {
            open(out, RAW_DATA, tensor.byte_len() as u64)?;
            tensor.write_to(out)?;
        }
    }
    Ok(())
}

/// Turns large initializers into references to `location`; gives them with their offsets.
fn externalize(exported: &mut Exported, location: &str) -> Vec<(u64, Tensor)> {
    let mut offset = 0u64;
    let mut moved = Vec::new();
    for (header, data) in &mut exported.initializers {
        let Some(tensor) = data.take_if(|t| t.byte_len() >= EXTERNAL_MIN) else {
            continue;
        };
        offset = offset.next_multiple_of(ALIGN);
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
        };
        header.data_location = Some(tensor_proto::DataLocation::External as i32);
        header.external_data = vec![
            entry("location", location.into()),
            entry("offset", offset.to_string()),
            entry("length", tensor.byte_len().to_string()),
        ];
        moved.push((offset, tensor.clone()));
        offset += tensor.byte_len() as u64;
    }
    moved
}

fn write_external(path: &Path, tensors: &[(u64, Tensor)]) -> io::Result<u64> {
    let mut out = BufWriter::with_capacity(BUFFER, File::create(path)?);
    let mut at = 0u64;
    for (offset, tensor) in tensors {
        io::copy(&mut io::Read::take(io::repeat(0), offset - at), &mut out)?;
        tensor.write_to(&mut out)?;
        at = offset + tensor.byte_len() as u64;
    }
    out.flush()?;
    Ok(at)
}
