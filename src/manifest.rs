//! `manifest.json`: what was done to which model, and what was proved, for machines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use kiln_graph::Model;
use kiln_graph::onnx::Written;
use kiln_passes::{MissReport, PassReport, Remark};
use serde::{Deserialize, Serialize};

use crate::bench;
use crate::bundle::{self, BundleError};
use crate::compile::{Calibrated, Int8, Judged, Options, Rewritten, Source};
use crate::engine::{Attended, Kernels, Network, Otherwise, Paper, TensorInfo};
use crate::engine_parity::{EngineParity, NotRun};
use crate::parity;
use crate::prove::Placed;
use crate::recipe::Recipe;
use crate::runtime;
use crate::search::Search;
use crate::shapes::Range;
use crate::summary::{self, Attention, Found, Summary};
use crate::targets::Targets;

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

/// What became of the passes of these names; `all` names every pass that ran.
fn explained(names: &[String], passes: &[PassReport], misses: &[MissReport]) -> Vec<Explained> {
    let mut wanted: Vec<&str> = Vec::new();
    for name in names {
        let ran = passes.iter().map(|p| p.name).filter(|_| name == "all");
        let named = Some(name.as_str()).filter(|&name| name != "all");
        for name in ran.chain(named) {
            if !wanted.contains(&name) {
                wanted.push(name);
            }
        }
    }
    let explain = |name: &str| {
        let runs: Vec<_> = passes.iter().filter(|p| p.name == name).collect();
        let misses = misses.iter().filter(|m| m.pass == name);
        let missed = misses.map(|m| Missed {
            root: m.root.clone(),
            depth: m.depth,
            stopped_at: m.at.clone(),
            why: m.why.clone(),
        });
        Explained {
            pass: name.into(),
            ran: !runs.is_empty(),
            matched: runs.iter().map(|p| p.applications).sum(),
            missed: missed.collect(),
        }
    };
    wanted.into_iter().map(explain).collect()
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

/// Where it was compiled.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Environment {
    pub os: String,
    pub cpu: String,
    pub threads: usize,
}

/// A stage of the compilation and the wall time it took.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    pub name: String,
    pub seconds: f64,
}

pub(crate) fn environment() -> Environment {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|l| l.starts_with("model name"));
    let cpu = model
        .and_then(|l| l.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    Environment {
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpu.to_string(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    }
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

    /// What is known before anything is proved or built.
    pub fn new(
        options: &Options,
        targets: &Targets,
        source: &Source,
        original: &Model,
        rewritten: &Rewritten,
        written: &Written,
    ) -> Manifest {
        let mut ops_after = rewritten.ops_after.clone();
        if written.relays > 0 {
            *ops_after.entry("Identity".into()).or_default() += written.relays;
        }
        let mut manifest = Manifest {
            kiln: env!("CARGO_PKG_VERSION").into(),
            source: SourceFacts {
                path: source.path.display().to_string(),
                bytes: source.bytes,
                sha256: source.sha256.clone(),
            },
            target: targets.to_string(),
            precision: options.precision(),
            recipe: Recipe {
                model: Some(options.model.clone()),
                sha256: Some(source.sha256.clone()),
                ..options.recipe.clone()
            }
            .placed(Path::new(".")),
            options: Chosen {
                fp16: options.fp16,
                bf16: options.bf16,
                int8: options.int8.map(|form| match form {
                    Int8::Static => "static",
                    Int8::Dynamic => "dynamic",
                }),
                fp8: options.fp8,
                int4_block: options.int4,
                standard: options.standard,
                half_io: options.half_io,
                engine: options.engine,
                check: options.check,
                passes: options.passes.clone(),
                search: options.search,
                keep: options.keep.as_ref().map(|r| r.to_string()),
                keep_ops: options.keep_ops.iter().map(|op| op.to_string()).collect(),
                inputs: options.inputs.as_ref().map(|p| p.display().to_string()),
                seed: options.seed,
            },
            sizes: BTreeMap::new(),
            before: summary::of(original),
            after: summary::of(&rewritten.model).with_relays(written.relays),
            ops_before: rewritten.ops_before.clone(),
            ops_after,
            blocks: rewritten.blocks.clone(),
            attention: rewritten.attention.clone(),
            passes: Vec::new(),
            explain: explained(&options.explain, &rewritten.passes, &rewritten.misses),
            converted: 0,
            quantized: 0,
            activations: Vec::new(),
            rounded: Vec::new(),
            calibration: None,
            kept: Vec::new(),
            requantized: Vec::new(),
            clamped: Vec::new(),
            warnings: Vec::new(),
            model: Files {
                bytes: written.bytes,
                external: written.external.as_ref().map(|(path, bytes)| {
                    let name = path.file_name().unwrap_or_default();
                    (name.to_string_lossy().into_owned(), *bytes)
                }),
            },
            engine: None,
            gates: Vec::new(),
            parity_outcome: None,
            parity: None,
            generation: None,
            latency: None,
            latency_not_run: None,
            search: None,
            engine_parity: NotRun::no_engine().into(),
            runtime: None,
            device: None,
            placements: Vec::new(),
            environment: environment(),
            stages: Vec::new(),
        };
        for report in &rewritten.passes {
            match report.name {
                "convert-fp16" | "convert-bf16" => manifest.converted = report.applications,
                "quantize-int4" | "quantize-int8" | "quantize-fp8" => {
                    manifest.quantized = report.applications
                }
                _ => {}
            }
            manifest.passes.push(Applied {
                name: report.name.into(),
                results: report.exactness.to_string(),
                applications: report.applications,
                milliseconds: report.elapsed.as_secs_f64() * 1e3,
                nodes_before: report.nodes_before,
                nodes_after: report.nodes_after,
            });
        }
        for remark in &rewritten.remarks {
            manifest.note(remark);
        }
        // Whether projections are packed is the target's choice.
        let none = |b: &&Found| b.found > 0 && b.fused == 0 && b.kind != "packed projections";
        for block in rewritten.blocks.iter().filter(none) {
            let why = match &block.why {
                Some(why) => format!(": {why}"),
                None => "; --explain all says why".into(),
            };
            (manifest.warnings).push(format!(
                "none of {} {} was fused{why}",
                block.found, block.kind
            ));
        }
        manifest
    }

    fn note(&mut self, remark: &Remark) {
        match remark {
            Remark::Quantized { .. } | Remark::Narrowed { .. } => {}
            Remark::Rounded {
                layer,
                method,
                factors,
                error,
            } => self.rounded.push(Rounded {
                layer: layer.clone(),
                method,
                factors: *factors,
                error: *error,
            }),
            Remark::Ranged(a) => {
                if !self.activations.iter().any(|known| known.value == a.value) {
                    self.activations.push(Ranged {
                        value: a.value.clone(),
                        lo: a.lo,
                        hi: a.hi,
                        method: a.method,
                        outliers: a.outliers,
                        smoothing: a.smoothing,
                        noise: a.noise,
                    });
                }
            }
            Remark::Kept { node, why } => self.kept.push(Kept {
                node: node.clone(),
                why: why.clone(),
            }),
            Remark::Requantized { node, how, exact } => {
                let found = self.requantized.iter_mut().find(|r| r.how == *how);
                match found {
                    Some(same) => same.nodes.push(node.clone()),
                    None => self.requantized.push(Requantized {
                        how: (*how).into(),
                        exact: *exact,
                        nodes: vec![node.clone()],
                    }),
                }
            }
            Remark::Clamped {
                tensor,
                values,
                abs_max,
            } => self.clamped.push(Clamped {
                tensor: tensor.clone(),
                values: *values,
                abs_max: *abs_max,
            }),
            Remark::OverBudget { node, bytes } => self.warnings.push(format!(
                "{node} was not folded: its result takes {}",
                summary::bytes(*bytes)
            )),
            Remark::Skipped { why } => self.warnings.push(why.clone()),
        }
    }
}
