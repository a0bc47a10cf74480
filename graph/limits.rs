//! What a file may make kiln do: every limit that stands between a small hostile file and memory, stack or time. Each is far
//! beyond what real models need, and none depends on the machine. Crossing one is an error that names it.
//!
//! Limits of how far a pass or the arithmetic on sizes looks are no defence but a choice, and stand where they are used.

/// Levels of graphs, types and literals within each other that ONNX text may have. A protobuf decoder stops at
/// [`MESSAGE_NESTING`], and a graph within a graph is three messages, so a deeper model could not be read back from a file.
pub const TEXT_NESTING: usize = 24;

/// Levels of messages within each other that a protobuf file may have; `prost` has the same limit. A graph within a node is three.
pub const MESSAGE_NESTING: usize = 100;

/// Nodes of a model, those of nested graphs and functions included. Exports of large models have some 100 000.
pub const NODES: usize = 1 << 21;

/// Tensors of a model, attributes included.
pub const TENSORS: usize = 1 << 21;

/// Bytes that a model's messages take decoded, without what tensors hold. An empty node has two bytes in a file and some 300 in
/// memory.
pub const DECODED: usize = 6 << 30;

/// What a model has, counted while it is read.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    nodes: usize,
    tensors: usize,
    bytes: usize,
}

/// A model has more of something than kiln reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} {what}, which is kiln's limit")]
pub struct Crossed {
    pub what: &'static str,
    pub most: usize,
}

impl Counts {
    /// Adds nodes, tensors, and the bytes that messages take in memory.
    ///
    /// # Errors
    /// When there are too many now.
    pub fn add(&mut self, nodes: usize, tensors: usize, bytes: usize) -> Result<(), Crossed> {
        self.nodes += nodes;
        self.tensors += tensors;
        self.bytes = self.bytes.saturating_add(bytes);
        within(self.nodes, "nodes", NODES)?;
        within(self.tensors, "tensors", TENSORS)?;
        within(self.bytes, "bytes of decoded messages", DECODED)
    }
}

/// # Errors
/// When there are more than `most`.
pub(crate) fn within(count: usize, what: &'static str, most: usize) -> Result<(), Crossed> {
    match count > most {
        true => Err(Crossed { what, most }),
        false => Ok(()),
    }
}

/// Elements of a constant that a pass makes as long as an axis that the file declares: the scale of ones of a norm, the bias of
/// zeros of a projection, the pieces of a Split. Hidden sizes are below 2¹⁶.
pub const DECLARED_AXIS: usize = 1 << 20;

/// Bytes by which one folded node may exceed the constants that it replaces. Folding a shape computation never needs more;
/// folding a mask of 1024 × 1024 floats just fits.
pub const FOLDED_NODE: usize = 4 << 20;

/// The same, of all nodes that are folded at once.
pub const FOLDED_TOTAL: usize = 256 << 20;

/// Elements of one input that is made to run a model on.
pub const MADE_ELEMENTS: usize = 1 << 28;

/// Arrays of an `.npz` file.
pub const ARRAYS: usize = 1 << 16;

/// Bytes that an `.npz` file may unpack to, whatever its size.
pub const UNPACKED: usize = 16 << 30;

/// Bytes that any `.npz` file may unpack to.
pub const UNPACKED_FREE: usize = 256 << 20;

/// Times its own size that a larger one may unpack to. Masks of zeros and ones pack about 100 times, and deflate at most 1032.
pub const UNPACKED_RATIO: usize = 128;

/// Bytes of the header of an array. NumPy itself refuses more than 10 000 unless it is told to trust the file.
pub const ARRAY_HEADER: usize = 64 << 10;

/// Strings of no length in an array: they take no bytes in a file but some in memory.
pub const EMPTY_STRINGS: usize = 1 << 20;

/// Bytes of a recipe or manifest. That of a model with a hundred thousand nodes has some 30 MB.
pub const RECIPE: usize = 256 << 20;

/// Parts of a recipe in YAML that aliases repeat.
pub const REPLAYED: usize = 10_000;

/// Bytes of a calibration cache: a value has some 50 KB, and 20 bytes for each channel.
pub const CACHE: usize = 256 << 20;

/// Bytes of a `tokenizer.json`; the largest in use have some 35 MB.
pub const TOKENIZER: usize = 512 << 20;
