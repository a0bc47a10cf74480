//! What to compile, and how.

use std::path::PathBuf;

use kiln_graph::Op;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bundle::Over;
use crate::engine::Form;
use crate::fixed::InputValue;
use crate::generate::Roles;
use crate::judge::Asked;
use crate::parity::Tolerance;
use crate::precision::{Format, Precision};
use crate::recipe::Recipe;
use crate::runtime::DeviceRequest;
use crate::shapes::{self, DimSpec, ShapeSpec};
use crate::targets::Targets;

/// What to compile, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    /// The bundle; beside the model if it is not given.
    pub output: Option<PathBuf>,
    /// What may be there.
    pub over: Over,
    /// The local GPU's, or a portable engine's, if it is not given.
    pub targets: Option<Targets>,
    pub precision: Precision,
    pub calibration: Calibration,
    /// Rows of a block of INT4 weights.
    pub int4_block: usize,
    /// Blocks of this length or none: with calibration data they are halved else, if the result is out of tolerance.
    pub int4_fixed: bool,
    /// Plain ONNX, whatever operators the target has beside it.
    pub standard: bool,
    /// Graph inputs and outputs become FP16 or BF16 too.
    pub half_io: bool,
    pub dims: Vec<DimSpec>,
    pub shapes: Vec<ShapeSpec>,
    /// Inputs for the proof, and for the ranges of half precision; made from the graph if they are not given.
    pub inputs: Option<PathBuf>,
    /// Inputs that always have one value, which becomes a constant.
    pub fixed: Vec<InputValue>,
    /// These are no inputs of the result any more.
    pub drop_inputs: bool,
    /// Tokens that the caches of an engine hold.
    pub max_length: Option<usize>,
    /// Caches of an engine grow, as the model's do.
    pub growing: bool,
    pub engine: bool,
    pub check: bool,
    /// How much of the sizes the proof runs.
    pub proof: Extent,
    /// Time the original and the result, as part of the check; where the result serves if it is not given.
    pub latency: Option<bool>,
    /// What the engine can do beside running where it was built.
    pub form: Form,
    /// Let FP32 products round to TF32; only where the precision changes if it is not given.
    pub tf32: Option<bool>,
    /// A pass list such as `default,-fuse-gelu`.
    pub passes: Option<String>,
    /// Nodes that keep their precision.
    pub keep: Option<Regex>,
    /// Operators whose nodes keep their precision.
    pub keep_ops: Vec<Op>,
    /// Layers that are not quantized, or where nothing is quantized nodes that are not converted, by their labels.
    pub keep_nodes: Vec<String>,
    /// Where the result is out of tolerance, find nodes that must keep their precision.
    pub search: bool,
    /// A pass's name or `all`, and the folder that gets the model after it as ONNX text.
    pub dump_after: Option<(String, PathBuf)>,
    /// Passes, or `all`, of which to say where they came close and what stopped them.
    pub explain: Vec<String>,
    /// Where ONNX Runtime calibrates, proves and times.
    pub device: DeviceRequest,
    pub ort_lib: Option<PathBuf>,
    pub trt_lib: Option<PathBuf>,
    /// The `kiln` binary, which then builds the engine in a process of its own: TensorRT ends the process on some graphs.
    /// Without it, the engine is built in this process.
    pub builder: Option<PathBuf>,
    /// Of the inputs that are made.
    pub seed: u64,
    /// The SHA-256 that the model must have, in hexadecimal digits.
    pub sha256: Option<String>,
    /// The BLAKE3 hash that the model must have, in hexadecimal digits.
    pub blake3: Option<String>,
    /// The one of the precision if it is not given.
    pub tolerance: Option<Tolerance>,
    /// Other limits: `OUTPUT:METRIC=LIMIT`.
    pub limits: Vec<String>,
    pub gates: Gates,
    /// A command of the user's that judges the result's outputs.
    pub judge: Option<Asked>,
    /// Under which a cache will keep the bundle.
    pub cache_key: Option<String>,
    /// What the options came from, for the manifest.
    pub recipe: Recipe,
}

/// How much of the sizes a proof runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// Where the largest sizes are much work, a batch of two at them and the largest batch at a short length.
    #[default]
    Quick,
    /// The largest sizes whole, too.
    Full,
    /// Neither model whole, but one piece after another; `Quick` does so, too, where the weights do not fit into memory.
    Pieces,
}

impl Extent {
    /// Operations of a run from which on sizes stand in parts.
    pub fn enough(self) -> Option<u64> {
        match self {
            Extent::Quick => Some(shapes::ENOUGH),
            Extent::Full | Extent::Pieces => None,
        }
    }
}

/// Rows of a block of INT4 weights unless told otherwise.
pub const INT4_BLOCK: usize = 32;

/// What the result must be beside right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gates {
    /// The most that its median latency may be of the original's.
    pub latency_ratio: Option<f64>,
    /// The largest model.onnx, with its external data.
    pub bytes: Option<u64>,
    /// The same, of the original's size.
    pub bytes_ratio: Option<f64>,
    /// The engine must have run on a GPU, and be right.
    pub engine_parity: bool,
    /// The engine's steps must leave a decoder's caches where they are.
    pub in_place: bool,
    /// What the engine's products must multiply in.
    pub precision: Option<Format>,
}

impl Options {
    /// The defaults for a model: no change of precision, an engine, a proof.
    pub fn new(model: impl Into<PathBuf>) -> Options {
        Options {
            model: model.into(),
            output: None,
            over: Over::default(),
            targets: None,
            precision: Precision::default(),
            calibration: Calibration::default(),
            int4_block: INT4_BLOCK,
            int4_fixed: true,
            standard: false,
            half_io: false,
            dims: Vec::new(),
            shapes: Vec::new(),
            inputs: None,
            fixed: Vec::new(),
            drop_inputs: false,
            max_length: None,
            growing: false,
            engine: true,
            check: true,
            proof: Extent::default(),
            latency: None,
            form: Form::default(),
            tf32: None,
            passes: None,
            keep: None,
            keep_ops: Vec::new(),
            keep_nodes: Vec::new(),
            search: true,
            dump_after: None,
            explain: Vec::new(),
            device: DeviceRequest::default(),
            ort_lib: None,
            trt_lib: None,
            builder: None,
            seed: 1,
            sha256: None,
            blake3: None,
            tolerance: None,
            limits: Vec::new(),
            gates: Gates::default(),
            judge: None,
            cache_key: None,
            recipe: Recipe::default(),
        }
    }
}

/// Where calibration data comes from.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// An `.npz` or `.npy` file, a folder of them, or lines of text; made inputs if it is not given.
    pub data: Option<PathBuf>,
    /// A `tokenizer.json`, for text.
    pub tokenizer: Option<PathBuf>,
    /// A file that keeps what was measured.
    pub cache: Option<PathBuf>,
    /// The most samples to take.
    pub samples: usize,
    /// The models that the decoder generates with: data is then what an encoder reads, or prompts, and so are inputs for the proof.
    pub generation: Option<Roles>,
}

/// Samples that calibrate unless told otherwise: ranges of a sentence encoder change by less than 1 % beyond 64.
pub const SAMPLES: usize = 128;

impl Default for Calibration {
    fn default() -> Calibration {
        Calibration {
            data: None,
            tokenizer: None,
            cache: None,
            samples: SAMPLES,
            generation: None,
        }
    }
}
