//! The pipeline: read → canonical → fused → typed → built → proved → reported.

mod build;
pub(crate) mod calibration;
mod error;
mod gates;
mod generation;
pub(crate) mod named;
mod plan;
pub(crate) mod stages;

use std::cell::LazyCell;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kiln_graph::{DType, Model, Op};
use kiln_passes::precision::HalfFormat;
use kiln_passes::registry;
use regex::Regex;

pub use calibration::{Calibrated, Calibration, SAMPLES};
pub use error::CompileError;
pub use gates::Judged;
pub use plan::{Plan, plan};
pub use stages::{Rewritten, Source};

use crate::bundle::{self, Over, Partial};
use crate::check::Precision;
use crate::engine::Form;
use crate::engine_parity::{EngineParity, NotRun};
use crate::fixed::InputValue;
use crate::manifest::{Manifest, Stage};
use crate::parity::Tolerance;
use crate::prove;
use crate::recipe::Recipe;
use crate::report;
use crate::runtime::DeviceRequest;
use crate::search;
use crate::shapes::{DimSpec, ShapeSpec};
use crate::talk::{Silent, Talk};
use crate::targets::Targets;
use crate::twin;

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
    pub fp16: bool,
    /// Instead of FP16.
    pub bf16: bool,
    /// Linear layers multiply in 8-bit integers.
    pub int8: Option<Int8>,
    /// Linear layers multiply in FP8 (E4M3).
    pub fp8: bool,
    pub calibration: Calibration,
    /// Weights of linear layers become INT4 in blocks of so many rows.
    pub int4: Option<usize>,
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
    pub engine: bool,
    pub check: bool,
    /// Time the original and the result, as part of the check.
    pub latency: bool,
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
    /// The one of the precision if it is not given.
    pub tolerance: Option<Tolerance>,
    /// Other limits: `OUTPUT:METRIC=LIMIT`.
    pub limits: Vec<String>,
    pub gates: Gates,
    /// What the options came from, for the manifest.
    pub recipe: Recipe,
}

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
    /// What the engine's products must multiply in.
    pub precision: Option<Precision>,
}

impl Options {
    /// The defaults for a model: no change of precision, an engine, a proof.
    pub fn new(model: impl Into<PathBuf>) -> Options {
        Options {
            model: model.into(),
            output: None,
            over: Over::default(),
            targets: None,
            fp16: false,
            bf16: false,
            int8: None,
            fp8: false,
            calibration: Calibration::default(),
            int4: None,
            int4_fixed: true,
            standard: false,
            half_io: false,
            dims: Vec::new(),
            shapes: Vec::new(),
            inputs: None,
            fixed: Vec::new(),
            drop_inputs: false,
            engine: true,
            check: true,
            latency: true,
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
            tolerance: None,
            limits: Vec::new(),
            gates: Gates::default(),
            recipe: Recipe::default(),
        }
    }
}

impl Options {
    /// What weights and activations of linear layers become, if they are quantized.
    pub fn quantization(&self) -> Option<Quantization> {
        match (self.int8, self.fp8, self.int4) {
            (Some(form), ..) => Some(Quantization::Int8(form)),
            (None, true, _) => Some(Quantization::Fp8),
            (None, false, Some(block)) => Some(Quantization::Int4(block)),
            (None, false, None) => None,
        }
    }

    /// What the numbers become, in one word: `fp32`, `fp16`, `int8`, `int8+fp16`, …
    pub fn precision(&self) -> String {
        let rest = self.half().map(HalfFormat::name).map(str::to_lowercase);
        match (self.quantization(), rest) {
            (None, rest) => rest.unwrap_or("fp32".into()),
            (Some(q), None) => q.name().into(),
            (Some(q), Some(rest)) => format!("{}+{rest}", q.name()),
        }
    }

    /// What FP32 becomes where it can.
    pub fn half(&self) -> Option<HalfFormat> {
        match (self.bf16, self.fp16) {
            (true, _) => Some(HalfFormat::Bf16),
            (false, true) => Some(HalfFormat::Fp16),
            (false, false) => None,
        }
    }
}

/// How activations of INT8 layers are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int8 {
    /// By ranges from calibration.
    Static,
    /// By the range of each run.
    Dynamic,
}

/// What linear layers become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    Int8(Int8),
    Fp8,
    /// Weights only, in blocks of so many rows.
    Int4(usize),
}

impl Quantization {
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Int8(_) => "int8",
            Quantization::Fp8 => "fp8",
            Quantization::Int4(_) => "int4",
        }
    }
}

/// A finished compilation.
#[derive(Debug)]
pub struct Outcome {
    pub bundle: PathBuf,
    pub manifest: Manifest,
}

/// Compiles a model into a bundle. On failure nothing is left behind, and an older bundle stays as it was.
///
/// # Errors
/// Each stage has its variant of [`CompileError`], which knows its exit code.
pub fn compile(options: &Options, talk: &dyn Talk) -> Result<Outcome, CompileError> {
    let mut clock = Clock {
        stages: Vec::new(),
        talk,
    };
    let targets = stages::targets(options, talk)?;
    stages::fit(options, &targets)?;
    gates::possible(options, &targets)?;
    let device = stages::device(options, &targets);
    stages::data_is_there(options)?;
    let output = output_path(options);
    stages::spares_inputs(options, &output, &[])?;
    let mut original = clock.time("read", || stages::read(options))?;
    stages::spares_inputs(options, &output, &original.sources)?;
    named::outputs(options, &original)?;
    let fixed = stages::fix(options, &mut original)?;
    let mut shapes = stages::shapes(options, &original)?;
    let partial = Partial::new(&output, options.over)?;
    for swept in &partial.swept {
        talk.warn(&swept.to_string());
    }

    let steps = stages::steps(options)?;
    let (exact, lossy) = stages::split(&steps);
    let fusing = stages::Passes {
        steps: exact,
        before: None,
        stats: None,
        plans: None,
        spared: &[],
        limit: None,
        finish: &[],
    };
    let builder = match targets {
        Targets::Engines(_) if options.engine => Some(build::builder(options, &partial)?),
        _ => None,
    };
    let hash = stages::fingerprint(options, &original);
    let source = LazyCell::new(|| hash.join().unwrap_or_else(|panic| resume_unwind(panic)));
    if options.sha256.is_some() {
        stages::is_asked_for(options, &source)?;
    }
    let mut fused = clock.time("passes", || {
        stages::rewrite(options, &targets, &fusing, original.clone(), talk)
    })?;
    named::kept(options, &original, &fused.model)?;
    if builder.is_some() {
        build::readable(&fused.model)?;
    }
    let mut reference = match options.check {
        true => Some(clock.time("sizes", || {
            let request = prove::Request {
                reference: &bundle::model_path(&options.model),
                original: &original,
                folded: &fused.model.graph,
                inputs: options.inputs.as_deref(),
                fixed: &fixed,
                seed: options.seed,
                optimized: stages::proved_as_optimized(options, &targets),
                thorough: false,
                half_io: options.half_io,
                one_profile: builder.is_some(),
                result: Some(result_name(options)),
                device,
                ort_lib: options.ort_lib.as_deref(),
            };
            prove::open(&request, &mut shapes, talk)
        })?),
        false => None,
    };
    for warning in shapes.told() {
        talk.warn(&warning);
    }
    if let Some(sizes) = shapes.describe() {
        talk.note(&format!("sizes: {sizes}"));
    }
    let (chosen, selecting) = reference.as_ref().map_or_else(Default::default, |r| {
        (r.chosen.clone(), r.selecting.clone())
    });
    if let Some(baked) = stages::narrowed(&original, &shapes, &chosen) {
        fused = clock.time("passes", || {
            stages::rewrite(options, &targets, &fusing, baked, talk)
        })?;
    }
    let measured = clock.time("calibration", || {
        calibration::measure(options, &targets, device, &fused.model, &shapes, talk)
    })?;
    let (stats, plans, calibrated) = match measured {
        None => (None, None, None),
        Some(m) => {
            if let Some(reference) = &mut reference {
                reference.prefer(m.cases);
            }
            (Some(m.stats), Some(m.plans), Some(m.facts))
        }
    };
    let typing = stages::Passes {
        steps: lossy,
        before: Some(&fused),
        stats: stats.as_ref(),
        plans: plans.as_ref(),
        // Whatever was chosen, no internal operator may be left.
        finish: registry::LOWER,
        ..fusing
    };
    let mut rewritten = clock.time("precision", || {
        stages::rewrite(options, &targets, &typing, fused.model.clone(), talk)
    })?;
    let halved = match (&mut reference, calibration::halved(options)) {
        (Some(reference), Some(halved)) => clock.time("blocks", || {
            let hold = search::hold(options, reference, &rewritten, &partial);
            let hold = hold.map_err(|e| e.in_search(options))?;
            Ok((!hold).then_some(halved))
        })?,
        _ => None,
    };
    let (options, shorter) = match &halved {
        None => (options, None),
        Some(halved) => {
            let plans = clock.time("calibration", || {
                calibration::plans(halved, &targets, device, &fused.model, &shapes, talk)
            })?;
            (halved, Some(plans))
        }
    };
    let typing = stages::Passes {
        plans: shorter.as_ref().or(plans.as_ref()),
        ..typing
    };
    if halved.is_some() {
        rewritten = clock.time("precision", || {
            stages::rewrite(options, &targets, &typing, fused.model.clone(), talk)
        })?;
    }
    let engine_for = match (&targets, &builder) {
        (Targets::Engines(capabilities), Some(builder)) => {
            build::has_kernels(options, capabilities, &rewritten)?;
            Some((capabilities.as_slice(), builder.as_ref()))
        }
        _ => None,
    };
    let engine_of = |model: &Model| {
        engine_for.map(|(capabilities, builder)| {
            build::build(
                options,
                builder,
                capabilities,
                model,
                &shapes,
                &partial,
                talk,
            )
            .map_err(|e| e.beside(&selecting))
        })
    };
    let mut search = None;
    if let (Some(reference), true) = (&mut reference, !lossy.is_empty() && options.search) {
        let candidates = search::Candidates {
            sparing: &|spared: &[String]| {
                let passes = stages::Passes { spared, ..typing };
                stages::rewrite(options, &targets, &passes, fused.model.clone(), &Silent)
            },
            bound: build::bound(
                engine_for.map(|(capabilities, _)| capabilities),
                &fused.model,
            ),
            builds: &|model| engine_of(model).transpose().map(|_| ()),
        };
        (rewritten, search) = clock.time("search", || {
            let found = search::run(options, reference, rewritten, &candidates, &partial, talk);
            found.map_err(|e| e.in_search(options))
        })?;
    }
    let written = clock.time("write", || stages::write(&rewritten.model, &partial))?;
    let mut proof = match reference {
        Some(reference) => Some(reference.against(&partial.file(bundle::MODEL), &rewritten.model)?),
        None => None,
    };
    let engine = match engine_for {
        Some(_) => clock.time("engine", || engine_of(&rewritten.model).transpose())?,
        None => None,
    };
    let fixed = (engine.as_ref()).and_then(|built| build::fixed_inputs(built, &original));
    if let Some(why) = &fixed {
        talk.warn(why);
    }
    let (mut parity, mut latency, mut latency_not_run) = (None, None, None);
    let mut engine_parity = EngineParity::from(match &engine {
        Some(_) => NotRun::unchecked(),
        None => NotRun::no_engine(),
    });
    let (mut fallback, mut generation) = (None, None);
    if let Some(proof) = &mut proof {
        parity = Some(clock.time("parity", || {
            stages::prove(options, &rewritten, proof, &partial)
        })?);
        generation = clock.time("generation", || {
            generation::prove(options, &rewritten, &partial, talk)
        })?;
        fallback = stages::fallback(options, proof, talk)?;
        if engine.is_some() {
            engine_parity = clock.time("engine parity", || {
                stages::prove_engine(options, &rewritten, proof, &partial)
            })?;
        }
        match (
            options.latency,
            twin::formats(&rewritten.model).contains(&DType::BF16),
        ) {
            (false, _) => {}
            (true, true) => latency_not_run = Some(NO_BF16.to_string()),
            // What was proved is right, whether or not it can be timed here.
            (true, false) => match clock.time("latency", || proof.latency()) {
                Ok(measured) => latency = Some(measured),
                Err(e) => {
                    let why = bundle::public(&e.to_string()).into_owned();
                    talk.warn(&format!("the result was not timed: {why}"));
                    latency_not_run = Some(why);
                }
            },
        }
    }

    clock.time("hash", || {
        LazyCell::force(&source);
        Ok(())
    })?;
    let mut manifest = Manifest {
        sizes: shapes.ranges.clone(),
        runtime: proof.as_ref().map(|s| s.runtime_version()),
        device: proof.as_ref().map(|s| s.reference.device().clone()),
        placements: (proof.as_ref()).map_or(Vec::new(), |s| s.reference.placements().to_vec()),
        engine_parity,
        engine,
        parity_outcome: parity.as_ref().map(|p| p.outcome()),
        parity,
        generation,
        latency,
        latency_not_run,
        search,
        calibration: calibrated,
        stages: clock.stages,
        ..Manifest::new(options, &targets, &source, &original, &rewritten, &written)
    };
    if let Some(proof) = &proof {
        manifest
            .warnings
            .extend(proof.reference.warnings.iter().cloned());
    }
    manifest.warnings.extend(fallback);
    manifest.warnings.extend(fixed);
    if let Some(search) = &manifest.search {
        let kept = search.kept.iter().cloned();
        manifest.recipe.precision.keep_nodes.extend(kept);
    }
    let doubts = manifest.parity.as_ref().map_or(Vec::new(), report::doubts);
    for doubt in &doubts {
        talk.warn(doubt);
    }
    manifest.warnings.extend(doubts);
    if let (Some(_), Some(block)) = (&halved, options.int4) {
        manifest.warnings.push(format!(
            "INT4 has a scale for each {block} rows: with {} the result was out of tolerance",
            2 * block
        ));
    }
    let ranges = calibration::warning(options, &original, manifest.calibration.as_ref());
    let nearest = calibration::nearest(options);
    let told = ranges.into_iter().chain(nearest).map(String::from);
    manifest.warnings.extend(told);
    manifest.gates = gates::judge(options, &targets, &manifest);
    let manifest = gates::pass(options, manifest)?;
    stages::is_unchanged(&original)?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(CompileError::Manifest)?;
    partial.write(bundle::MANIFEST, &json)?;
    partial.write(bundle::REPORT, report::markdown(&manifest).as_bytes())?;
    partial.write(bundle::REPORT_PAGE, report::html(&manifest).as_bytes())?;
    let (bundle, kept) = partial.finish()?;
    if !kept.is_empty() {
        let kept: Vec<_> = kept.iter().map(|name| name.to_string_lossy()).collect();
        talk.note(&format!("kept in the bundle: {}", kept.join(", ")));
    }
    Ok(Outcome { bundle, manifest })
}

const NO_BF16: &str =
    "ONNX Runtime's CPU provider has no BF16 kernels, and its CUDA provider not all";

/// What messages call the model in the bundle that is being written.
pub(crate) fn result_name(options: &Options) -> String {
    format!("the result of compiling {}", options.model.display())
}

/// Where the bundle goes.
pub(crate) fn output_path(options: &Options) -> PathBuf {
    let chosen = options.output.clone();
    chosen.unwrap_or_else(|| bundle::default_path(Path::new(&options.model)))
}

/// Names each stage to the user and keeps its time.
struct Clock<'a> {
    stages: Vec<Stage>,
    talk: &'a dyn Talk,
}

impl Clock<'_> {
    fn time<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T, CompileError>,
    ) -> Result<T, CompileError> {
        self.talk.stage(name);
        let start = Instant::now();
        let done = work()?;
        self.stages.push(Stage {
            name: name.into(),
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(done)
    }
}
