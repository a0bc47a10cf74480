//! `manifest.json`: what was done to which model, and what was proved, for machines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::bench::{self, baseline::Verdict};
use crate::bundle::{self, BundleError};
use crate::cache::Note;
use crate::engine::{Attended, Kernels, Network, Otherwise, Paper, TensorInfo};
use crate::engine_parity::EngineParity;
use crate::environment::Environment;
use crate::judge::Judgement;
use crate::parity::{self, Placed};
use crate::recipe::Recipe;
use crate::runtime;
use crate::shapes::Range;
use crate::summary::{Attention, Found, Summary};

/// Everything about a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    pub kiln: String,
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
    pub attention: Vec<Attention>,
    pub passes: Vec<Applied>,
    /// Where passes came close, of those that were asked about.
    pub explain: Vec<Explained>,
    pub converted: usize,
    /// Linear layers that were quantized.
    pub quantized: usize,
    /// Activations that were quantized with a fixed range.
    pub activations: Vec<Ranged>,
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
    /// Where the nodes ran, if that was to be a GPU.
    pub placements: Vec<Placed>,
    pub environment: Environment,
    pub stages: Vec<Stage>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SourceFacts {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

/// The options as they were resolved.
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    pub fp16: bool,
    pub bf16: bool,
    /// `static` or `dynamic`; `null` without INT8.
    pub int8: Option<&'static str>,
    pub fp8: bool,
    /// Rows of a block of INT4 weights; `null` without INT4.
    pub int4_block: Option<usize>,
    pub standard: bool,
    pub half_io: bool,
    pub engine: bool,
    pub check: bool,
    pub passes: Option<String>,
    pub keep: Option<String>,
    pub keep_ops: Vec<String>,
    pub search: bool,
    pub inputs: Option<String>,
    pub seed: u64,
}

/// One pass of the pipeline.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    pub name: String,
    pub results: String,
    pub applications: usize,
    pub milliseconds: f64,
    pub nodes_before: usize,
    pub nodes_after: usize,
}

/// Where a pass applied, and where it came close.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    pub pass: String,
    /// Whether it was among the passes that ran.
    pub ran: bool,
    pub matched: usize,
    /// One for each root at which the pass began to match, in the graph's order, as of the pass's last run.
    pub missed: Vec<Missed>,
}

/// Where a match stopped, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Missed {
    pub root: String,
    /// Nodes that matched: those of the deepest match that was tried.
    pub depth: usize,
    pub stopped_at: String,
    pub why: String,
}

/// An activation with a fixed range.
#[derive(Clone, Debug, Serialize)]
pub struct Ranged {
    pub value: String,
    pub lo: f32,
    pub hi: f32,
    /// What chose the range.
    pub method: &'static str,
    /// Channels that are multiplied apart, in floats.
    pub outliers: usize,
    /// What divides it by the factors of SmoothQuant: `norm` or `mul`.
    pub smoothing: Option<&'static str>,
    /// The expected power of the error in the products that read it, over their power.
    pub noise: f64,
}

/// A weight that was rounded to INT4 on calibration data.
#[derive(Clone, Debug, Serialize)]
pub struct Rounded {
    pub layer: String,
    /// `nearest`, or `compensated` where errors make up for each other.
    pub method: &'static str,
    /// Its input is divided by factors that the weight takes.
    pub factors: bool,
    /// Of the products on the calibration data, in relative L2.
    pub error: f64,
}

/// A node that keeps FP32.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub node: String,
    pub why: String,
}

/// Nodes whose quantization was written as the target takes it.
#[derive(Clone, Debug, Serialize)]
pub struct Requantized {
    pub how: String,
    /// The same numbers, but for rounding of floats.
    pub exact: bool,
    pub nodes: Vec<String>,
}

/// A table, such as a mask, with values beyond the range of FP16 or BF16 that stand for infinity, and were replaced.
#[derive(Clone, Debug, Serialize)]
pub struct Clamped {
    pub tensor: String,
    pub values: usize,
    pub abs_max: f32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Files {
    pub bytes: u64,
    /// The external data's name and bytes.
    pub external: Option<(String, u64)>,
}

/// The engine that was built.
#[derive(Clone, Debug, Serialize)]
pub struct EngineFacts {
    pub runtime: String,
    pub capabilities: Vec<String>,
    pub bytes: u64,
    pub parse_seconds: f64,
    pub build_seconds: f64,
    pub layers: usize,
    /// What TensorRT's parser made of the model, by kinds of layers and types of tensors.
    pub network: Network,
    /// The engine's kernels, in the order in which they run.
    pub kernels: Kernels,
    /// Quantized layers that it multiplies in another type.
    pub otherwise: Vec<Otherwise>,
    /// What computes each attention of the model.
    pub attention: Vec<Attended>,
    /// What the kernels move and cost on paper at typical sizes; `null` where the builder did not list them.
    pub paper: Option<Paper>,
    /// Attention was allowed to be taken apart, because TensorRT has no dedicated kernel for it.
    pub attention_decomposed: bool,
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub warnings: Vec<String>,
}

/// Why the kernels of a bundle's engine are not known.
#[derive(Debug, thiserror::Error)]
pub enum KernelsError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{}: the manifest cannot be read: {source}", path.display())]
    Unread { path: PathBuf, source: io::Error },
    #[error("{}: the manifest is not read: {source}", path.display())]
    Manifest {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: nothing is known of the engine's kernels; compile it again", .0.display())]
    Unlisted(PathBuf),
}

/// What a bundle says of its engine's kernels.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineKernels {
    /// In the order in which they run.
    #[serde(default)]
    pub kernels: Kernels,
    /// Quantized layers that they multiply in another type.
    #[serde(default)]
    pub otherwise: Vec<Otherwise>,
    /// What computes each attention of the model; empty where an older kiln made the bundle.
    #[serde(default)]
    pub attention: Vec<Attended>,
    /// What they move and cost on paper; `null` where an older kiln made the bundle.
    #[serde(default)]
    pub paper: Option<Paper>,
}

/// The kernels of a bundle's engine.
///
/// # Errors
/// When it is no bundle, has no engine, or nothing is known of the kernels.
pub fn kernels(folder: &Path) -> Result<EngineKernels, KernelsError> {
    #[derive(Deserialize)]
    struct Part {
        engine: Option<EngineKernels>,
    }
    bundle::find_engine(folder)?;
    let path = folder.join(bundle::MANIFEST);
    let text = fs::read(&path).map_err(|source| KernelsError::Unread {
        path: path.clone(),
        source,
    })?;
    let part: Part =
        serde_json::from_slice(&text).map_err(|source| KernelsError::Manifest { path, source })?;
    let folder = folder.to_path_buf();
    match part.engine {
        None => Err(BundleError::NoEngine(folder).into()),
        Some(listed) if listed.kernels.is_empty() => Err(KernelsError::Unlisted(folder)),
        Some(listed) => Ok(listed),
    }
}

/// A stage of the compilation and the wall time it took.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    pub name: String,
    pub seconds: f64,
}

impl Manifest {
    /// `FP16` or `BF16`, if FP32 became it.
    pub fn half(&self) -> Option<&'static str> {
        match (self.options.bf16, self.options.fp16) {
            (true, _) => Some("BF16"),
            (false, true) => Some("FP16"),
            (false, false) => None,
        }
    }

    /// Bytes of the optimized model with its external data.
    pub fn model_bytes(&self) -> u64 {
        self.model.bytes + self.model.external.as_ref().map_or(0, |(_, n)| *n)
    }
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub layers: Vec<String>,
    /// Largest relative L2 error of an output, at the case that was furthest off, when these alone are converted; `None` if it is not
    /// finite.
    pub error: Option<f64>,
}

/// One candidate.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    pub kept: usize,
    /// Largest relative L2 error of an output over all cases; `None` if it is not finite.
    pub error: Option<f64>,
    pub pass: bool,
}

/// What a calibration was made of, for the manifest.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// `latency`, `size`, `precision`, `engine parity` or `judge`.
    pub gate: &'static str,
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
