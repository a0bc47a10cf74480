//! `manifest.json`: what was done to which model, and what was proved, for machines.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_passes::census::AttentionBlock;
use kiln_passes::{Activation, Clamped, Kept, Rounded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bench::{self, baseline::Verdict};
use crate::engine::{Aliased, Attended, Kernels, Network, Otherwise, Paper, TensorInfo};
use crate::engine_parity::EngineParity;
use crate::environment::Environment;
use crate::judge::Judgement;
use crate::options::Extent;
use crate::parity::{self, Placed};
use crate::precision::Precision;
use crate::prove;
use crate::recipe::Recipe;
use crate::runtime::{self, Optimization};
use crate::shapes::Range;
use crate::summary::{Found, Summary};

mod read;

pub(crate) use read::is_known;
pub use read::{ManifestError, kernels, parse, read};

/// The format of manifests that this kiln writes, and the newest that it reads. A key that is added leaves it as it is: who does
/// not know a key passes over it, and a key that is absent has its default. It counts up when a key goes or means something else.
pub const FORMAT: u32 = 1;

/// Everything about a bundle. What a report says, it says of this alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct Manifest {
    pub kiln: String,
    /// See [`FORMAT`]; 0 where the kiln that wrote it had no formats yet.
    pub format: u32,
    pub source: SourceFacts,
    pub target: String,
    pub precision: String,
    pub options: Chosen,
    /// What `kiln compile -c manifest.json` compiles again.
    pub recipe: Recipe,
    /// The ranges of the symbolic dimensions that were proved and built for.
    pub sizes: BTreeMap<String, Range>,
    pub before: Summary,
    pub after: Summary,
    pub ops_before: BTreeMap<String, usize>,
    pub ops_after: BTreeMap<String, usize>,
    /// Blocks of a Transformer: found, and fused into one operator each.
    pub blocks: Vec<Found>,
    pub attention: Vec<AttentionBlock>,
    pub passes: Vec<Applied>,
    /// Where passes came close, of those that were asked about.
    pub explain: Vec<Explained>,
    pub converted: usize,
    /// Linear layers that were quantized.
    pub quantized: usize,
    /// Activations that were quantized with a fixed range.
    pub activations: Vec<Activation>,
    /// Weights that were rounded to INT4 on calibration data.
    pub rounded: Vec<Rounded>,
    /// What the ranges were measured on; `null` if none was.
    pub calibration: Option<Calibrated>,
    pub kept: Vec<Kept>,
    /// What became of the quantization that the model came with.
    pub requantized: Vec<Requantized>,
    pub clamped: Vec<Clamped>,
    pub warnings: Vec<String>,
    pub model: Files,
    pub engine: Option<EngineFacts>,
    /// What the bundle has for other targets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Also>,
    /// The gates that were set, but for that on parity.
    pub gates: Vec<Judged>,
    /// `null`: no cache was asked.
    pub cache: Option<Note>,
    /// What the user's own judge said; `null`: there is none.
    pub judge: Option<Judgement>,
    /// `passes`, `not-proved` or `fails`; `null`: not run.
    pub parity_outcome: Option<parity::Outcome>,
    /// `None`: not run.
    pub parity: Option<parity::Report>,
    /// Of a decoder with a cache that runs alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<crate::generate::proof::Proof>,
    /// `None`: not run.
    pub latency: Option<bench::BenchReport>,
    /// Why the latency was not measured, if it was not.
    pub latency_not_run: Option<String>,
    /// How layers were chosen that keep their precision; `null` if all could be converted.
    pub search: Option<Search>,
    /// Whether the engine gives the same, or why none was compared.
    pub engine_parity: EngineParity,
    pub runtime: Option<String>,
    /// Where ONNX Runtime ran; `null` if nothing was proved.
    pub device: Option<runtime::Chosen>,
    /// What ONNX Runtime did to the result's graph before it ran it for the proof; `null` if nothing was proved. Of the original's
    /// graph it is nothing, always.
    pub optimization: Option<Optimization>,
    /// Where the nodes ran, if that was to be a GPU.
    pub placements: Vec<Placed>,
    /// What the largest sizes were proved by; `null` if they ran whole, or nothing was proved.
    pub parted: Option<String>,
    /// How often which model ran for the proof, by stages.
    pub ran: Vec<prove::Ran>,
    pub environment: Environment,
    pub stages: Vec<Stage>,
}

/// A result for another target in the same bundle.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct Also {
    /// The model's name in the bundle; external data is beside it as `NAME.data`.
    pub file: String,
    /// What was done and proved for that target.
    pub manifest: Manifest,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct SourceFacts {
    pub path: String,
    pub bytes: u64,
    /// The BLAKE3 hash of the ONNX file.
    pub blake3: Option<String>,
    /// The SHA-256 of the ONNX file, where a proof ran or the recipe asked for it.
    pub sha256: Option<String>,
}

/// The options as they were resolved.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct Chosen {
    pub precision: Precision,
    /// Rows of a block of INT4 weights; `null` without INT4.
    pub int4_block: Option<usize>,
    pub standard: bool,
    pub half_io: bool,
    pub engine: bool,
    pub check: bool,
    /// `null` in a bundle of an older kiln, whose proofs were full.
    pub proof: Option<Extent>,
    pub passes: Option<String>,
    pub keep: Option<String>,
    pub keep_ops: Vec<String>,
    pub search: bool,
    pub inputs: Option<String>,
    pub seed: u64,
}

/// One pass of the pipeline.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    pub name: String,
    pub results: String,
    pub applications: usize,
    pub milliseconds: f64,
    pub nodes_before: usize,
    pub nodes_after: usize,
    /// Results of the original's nodes that no node of the same operator computes any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// Where a pass applied, and where it came close.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    pub pass: String,
    /// Whether it was among the passes that ran.
    pub ran: bool,
    pub matched: usize,
    /// One for each root at which the pass began to match, in the graph's order, as of the pass's last run.
    pub missed: Vec<Missed>,
}

/// Where a match stopped, and why.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Missed {
    pub root: String,
    /// Nodes that matched: those of the deepest match that was tried.
    pub depth: usize,
    pub stopped_at: String,
    pub why: String,
}

/// Nodes whose quantization was written as the target takes it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Requantized {
    pub how: String,
    /// The same numbers, but for rounding of floats.
    pub exact: bool,
    pub nodes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct Files {
    pub bytes: u64,
    /// The external data's name and bytes.
    pub external: Option<(String, u64)>,
}

/// The engine that was built.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
pub struct EngineFacts {
    pub runtime: String,
    pub capabilities: Vec<String>,
    pub bytes: u64,
    pub parse_seconds: f64,
    pub build_seconds: f64,
    pub layers: usize,
    /// What TensorRT's parser made of the model, by kinds of layers and types of tensors.
    pub network: Network,
    #[serde(flatten)]
    pub listed: EngineKernels,
    /// Attention was allowed to be taken apart, because TensorRT has no dedicated kernel for it.
    pub attention_decomposed: bool,
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub warnings: Vec<String>,
}

/// What a bundle says of its engine's kernels.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct EngineKernels {
    /// In the order in which they run.
    #[serde(default)]
    pub kernels: Kernels,
    /// Those of a decoder's steps of one token, for which the engine has a profile of its own.
    #[serde(default)]
    pub steps: Kernels,
    /// Quantized layers that they multiply in another type.
    #[serde(default)]
    pub otherwise: Vec<Otherwise>,
    /// Whether a decoder's caches are updated in place; `null` where none are written into.
    #[serde(default)]
    pub aliased: Option<Aliased>,
    /// What computes each attention of the model; empty where an older kiln made the bundle.
    #[serde(default)]
    pub attention: Vec<Attended>,
    /// What they move and cost on paper at typical sizes; `null` where the builder did not list them, or an older kiln made the
    /// bundle.
    #[serde(default)]
    pub paper: Option<Paper>,
}

/// A stage of the compilation and the wall time it took.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    pub name: String,
    pub seconds: f64,
}

impl Manifest {
    /// Bytes of the optimized model with its external data.
    pub fn model_bytes(&self) -> u64 {
        self.model.bytes + self.model.external.as_ref().map_or(0, |(_, n)| *n)
    }
}

/// What a search found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// Layers that could be converted.
    pub layers: usize,
    /// Models that were compared with the original.
    pub compared: usize,
    /// By sensitivity, the most sensitive first.
    pub groups: Vec<Group>,
    /// Numbers of kept layers that were tried, in the order of the search, and the error.
    pub curve: Vec<Tried>,
    /// Layers that keep their precision.
    pub kept: Vec<String>,
}

/// Layers that are kept or converted together.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    pub layers: Vec<String>,
    /// Largest relative L2 error of a value that these make of the original's numbers, at the case that was furthest off; where that is
    /// not known, of an output when these alone are converted. `None` if it is not finite.
    pub error: Option<f64>,
}

/// One candidate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tried {
    pub kept: usize,
    /// Largest relative L2 error of an output over all cases; `None` if it is not finite.
    pub error: Option<f64>,
    pub pass: bool,
}

/// What a calibration was made of, for the manifest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Calibrated {
    pub data: String,
    /// The data is made up, so that ranges say little about real inputs.
    pub made: bool,
    /// Values that were measured.
    pub values: usize,
    /// Whether a cache had all that was to be measured.
    pub cached: bool,
    /// Samples of the data that only the proof has seen.
    pub held_out: usize,
}

/// A gate that was set, and what it says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Judged {
    /// `latency`, `size`, `precision`, `engine parity` or `judge`.
    pub gate: Cow<'static, str>,
    pub verdict: Verdict,
    /// What was found, and the limit; or why nothing was held against it.
    pub why: String,
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.verdict {
            Verdict::Pass => write!(f, "passes: {}", self.why),
            Verdict::Fail => write!(f, "FAILS: {}", self.why),
            Verdict::Unclear => write!(f, "unclear: {}", self.why),
            Verdict::NotRun => write!(f, "not run: {}", self.why),
        }
    }
}

/// What a manifest says of the cache that was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Note {
    /// The SHA-256 of all that the bundle depends on.
    pub key: String,
    /// The bundle was made before, and its files were verified by their hashes.
    pub hit: bool,
}
