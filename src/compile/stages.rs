//! The stages that touch files, passes and TensorRT.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use kiln_graph::onnx::{self, SourceFile, WriteOptions, Written};
use kiln_graph::{DType, INTERNAL_DOMAIN, Model, Tensor, text};
use kiln_passes::census::{AttentionBlock, census, packed_attentions};
use kiln_passes::precision::stats::Stats;
use kiln_passes::precision::{HalfFormat, Plans};
use kiln_passes::registry::UnknownPass;
use kiln_passes::{
    Application, Context, Evaluator, EvaluatorError, Exactness, MissReport, PassReport, Remark,
    Step, Target, registry,
};
use sha2::{Digest, Sha256};

use super::{CompileError, Int8, Options, Quantization};
use crate::bundle::{self, Partial};
use crate::engine::ComputeCapability;
use crate::engine_parity::{self, EngineParity};
use crate::fixed::{FixError, Fixed};
use crate::parity::{self, Preset, Tolerance};
use crate::prove::{self, Proof};
use crate::runtime::{self, DeviceChoice, DeviceRequest, Runtime};
use crate::shapes::Shapes;
use crate::summary::{self, Found};
use crate::talk::Talk;
use crate::targets::Targets;
use crate::twin;

pub(crate) fn targets(options: &Options, talk: &dyn Talk) -> Result<Targets, CompileError> {
    let (targets, why) = Targets::resolved(options.targets.as_ref())?;
    if let Some(why) = why.filter(|_| options.engine) {
        talk.warn(&why);
    }
    Ok(targets)
}

/// Where ONNX Runtime runs: what is compiled for the CPU is proved there unless another device is asked for.
pub(crate) fn device(options: &Options, targets: &Targets) -> DeviceRequest {
    match (options.device.choice, targets) {
        (DeviceChoice::Auto, Targets::Cpu) => DeviceRequest {
            choice: DeviceChoice::Cpu,
            ..options.device
        },
        _ => options.device,
    }
}

/// Whether the targets have what is asked for.
pub(super) fn fit(options: &Options, targets: &Targets) -> Result<(), CompileError> {
    let refuse = |what, why: String| Err(CompileError::Unsupported { what, why });
    let bf16 = options.half() == Some(HalfFormat::Bf16);
    let Targets::Engines(capabilities) = targets else {
        return match (bf16, options.fp8) {
            (true, _) => refuse(
                "--bf16",
                "ONNX Runtime's CPU provider has no BF16 kernels: give sm_80 or newer as --target, or --fp16".into(),
            ),
            (_, true) => refuse(
                "--fp8",
                "ONNX Runtime's CPU provider has no FP8 products: give sm_89 or newer as --target, or --int8".into(),
            ),
            _ => Ok(()),
        };
    };
    let without = |c: &&ComputeCapability| c.has_bf16() == Some(false);
    if let (true, Some(old)) = (bf16, capabilities.iter().find(without)) {
        return refuse(
            "--bf16",
            format!("{old} has no BF16: it takes sm_80 or newer, so give other targets or --fp16"),
        );
    }
    let old = |c: &&ComputeCapability| c.has_fp8() == Some(false);
    if let (true, Some(old)) = (options.fp8, capabilities.iter().find(old)) {
        return refuse(
            "--fp8",
            format!("{old} has no FP8: it takes sm_89 or newer, so give other targets or --int8"),
        );
    }
    // Plain ONNX without an engine is for any runtime.
    if options.int8 == Some(Int8::Dynamic) && (options.engine || !options.standard) {
        let why = "TensorRT has no dynamic quantization: give --int8 with data for --calibrate, or --target cpu";
        return refuse("--int8=dynamic", why.into());
    }
    Ok(())
}

pub(crate) fn read(options: &Options) -> Result<Model, CompileError> {
    let model = onnx::read(bundle::find_model(&options.model)?)?;
    let mut internal = None;
    model.graph.for_each_graph(&mut |g| {
        let mut nodes = g.nodes();
        let found = nodes.find(|(_, n)| n.op().domain() == INTERNAL_DOMAIN);
        internal = internal.take().or(found.map(|(id, _)| g.label(id)));
    });
    match internal {
        None => Ok(model),
        Some(node) => Err(CompileError::Read(onnx::ReadError {
            path: model.path,
            kind: onnx::ReadErrorKind::Node {
                node,
                why: format!("operators of the domain '{INTERNAL_DOMAIN}' are the compiler's own"),
            },
        })),
    }
}

/// Whether the files that are read later are there: whoever misspells one hears of it at once.
pub(super) fn data_is_there(options: &Options) -> Result<(), CompileError> {
    let data = &options.calibration;
    let given = [&options.inputs, &data.data, &data.tokenizer];
    for path in given.into_iter().flatten() {
        fs::metadata(path).map_err(|source| CompileError::Io {
            path: path.clone(),
            why: "the data cannot be read",
            source,
        })?;
    }
    Ok(())
}

/// Whether the bundle is written beside what is read, and not over it: the model with its external data, and what inputs and
/// calibration come from.
pub(super) fn spares_inputs(
    options: &Options,
    output: &Path,
    sources: &[SourceFile],
) -> Result<(), CompileError> {
    let model = bundle::model_path(&options.model);
    let data = &options.calibration;
    let given = [&options.inputs, &data.data, &data.tokenizer];
    let given = given.into_iter().flatten().map(PathBuf::as_path);
    let read = sources.iter().map(|s| s.path.as_path());
    Ok(bundle::spares(
        output,
        given.chain([model.as_path()]).chain(read),
    )?)
}

/// Makes constants of the inputs that the options fix.
pub(crate) fn fix(options: &Options, original: &mut Model) -> Result<Fixed, CompileError> {
    if options.drop_inputs && options.fixed.is_empty() {
        return Err(FixError::NothingToDrop.into());
    }
    let fixed = Fixed {
        dropped: options.drop_inputs,
        ..Fixed::of(&original.graph, &options.fixed, &options.dims)?
    };
    fixed.fold(&mut original.graph);
    Ok(fixed)
}

pub(crate) fn shapes(options: &Options, original: &Model) -> Result<Shapes, CompileError> {
    Ok(Shapes::new(
        &original.graph,
        &options.dims,
        &options.shapes,
    )?)
}

/// The model after the passes, and what they did.
#[derive(Debug)]
pub struct Rewritten {
    pub model: Model,
    pub passes: Vec<PassReport>,
    pub remarks: Vec<Remark>,
    pub misses: Vec<MissReport>,
    /// Applications that the limit counted, and the one that reached it.
    pub applied: usize,
    pub last: Option<Application>,
    pub blocks: Vec<Found>,
    pub attention: Vec<AttentionBlock>,
    pub ops_before: BTreeMap<String, usize>,
    /// Whether the original rounds activations to integers.
    pub quantized_before: bool,
    pub ops_after: BTreeMap<String, usize>,
}

impl Rewritten {
    /// What both did. Blocks are those before lowering, where each is one operator.
    fn following(mut self, before: &Rewritten) -> Rewritten {
        self.passes.splice(0..0, before.passes.iter().cloned());
        self.remarks.splice(0..0, before.remarks.iter().cloned());
        self.misses.splice(0..0, before.misses.iter().cloned());
        Rewritten {
            applied: before.applied + self.applied,
            blocks: before.blocks.clone(),
            attention: before.attention.clone(),
            ops_before: before.ops_before.clone(),
            quantized_before: before.quantized_before,
            ..self
        }
    }

    /// The layers that were quantized, or else the nodes that were converted, by their labels.
    pub fn converted(&self) -> Vec<String> {
        let quantized = self.remarks.iter().filter_map(|r| match r {
            Remark::Quantized { layer } => Some(layer.clone()),
            _ => None,
        });
        let quantized: Vec<String> = quantized.collect();
        if !quantized.is_empty() {
            return quantized;
        }
        let narrowed = self.remarks.iter().filter_map(|r| match r {
            Remark::Narrowed { node } => Some(node.clone()),
            _ => None,
        });
        narrowed.collect()
    }
}

impl Rewritten {
    /// Whether numbers may fall on another step of a quantization than in the original: it was written anew, or what is
    /// quantized is computed with other roundings.
    fn moves_steps(&self) -> bool {
        let anew = |r: &Remark| matches!(r, Remark::Requantized { exact: false, .. });
        let rounds = |p: &PassReport| p.applications > 0 && p.exactness > Exactness::Exact;
        self.remarks.iter().any(anew) || self.quantized_before && self.passes.iter().any(rounds)
    }
}

/// Computes constants with ONNX Runtime, which is loaded when the first is wanted.
pub(crate) struct OrtEvaluator<'a> {
    library: Option<&'a Path>,
    runtime: OnceCell<&'static Runtime>,
}

impl OrtEvaluator<'_> {
    /// With this library, or the one that is found.
    pub(crate) fn new(library: Option<&Path>) -> OrtEvaluator<'_> {
        OrtEvaluator {
            library,
            runtime: OnceCell::new(),
        }
    }
}

impl Evaluator for OrtEvaluator<'_> {
    fn evaluate(&self, model: &Model) -> Result<Vec<Tensor>, EvaluatorError> {
        let failed = |e: &dyn std::fmt::Display| EvaluatorError(e.to_string());
        let runtime = match self.runtime.get() {
            Some(runtime) => *runtime,
            None => {
                let loaded = Runtime::load(self.library).map_err(|e| failed(&e))?;
                self.runtime.get_or_init(|| loaded)
            }
        };
        let bytes = onnx::to_bytes(model).map_err(|e| failed(&e))?;
        let none: [(&str, Tensor); 0] = [];
        let outputs = runtime::run_model_bytes(runtime, &bytes, &none).map_err(|e| failed(&e))?;
        Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
    }
}

/// The steps that the options name.
pub(crate) fn steps(options: &Options) -> Result<Vec<Step>, UnknownPass> {
    let mut default = registry::DEFAULT.to_vec();
    match options.quantization() {
        Some(Quantization::Int8(_)) => default.extend_from_slice(registry::INT8),
        Some(Quantization::Fp8) => default.extend_from_slice(registry::FP8),
        Some(Quantization::Int4(_)) => default.extend_from_slice(registry::INT4),
        None => {}
    }
    match options.half() {
        Some(HalfFormat::Fp16) => default.extend_from_slice(registry::FP16),
        Some(HalfFormat::Bf16) => default.extend_from_slice(registry::BF16),
        None => {}
    }
    match &options.passes {
        Some(list) => registry::select(list, &default),
        None => Ok(default),
    }
}

/// Whether the proof runs models as ONNX Runtime optimizes them: its integer products on the CPU are what is to be proved.
pub(crate) fn proved_as_optimized(options: &Options, targets: &Targets) -> bool {
    options.int8.is_some() && *targets == Targets::Cpu
}

/// The steps before the first that changes number formats, and the others: between them values are calibrated.
pub(crate) fn split(steps: &[Step]) -> (&[Step], &[Step]) {
    let lossy = |s: &Step| matches!(s, Step::Run(p) if p.exactness() == Exactness::Lossy);
    let at = steps.iter().position(lossy);
    steps.split_at(at.unwrap_or(steps.len()))
}

/// What to run, and how far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes<'a> {
    pub steps: &'a [Step],
    /// What ran before: its reports stand before those of `steps`.
    pub before: Option<&'a Rewritten>,
    /// Of values of the model.
    pub stats: Option<&'a Stats>,
    /// Of layers of the model.
    pub plans: Option<&'a Plans>,
    /// Nodes that keep their precision beside those of the options: from quantization if that is asked for, else from
    /// conversion to half precision.
    pub spared: &'a [String],
    /// The number of applications after which `steps` change nothing more.
    pub limit: Option<usize>,
    /// Runs afterwards, without limit.
    pub finish: &'a [Step],
}

/// What passes write for.
pub(super) fn target(options: &Options, targets: &Targets) -> Target {
    match options.standard {
        true => Target::standard(),
        false => targets.for_passes(),
    }
}

pub(crate) fn rewrite(
    options: &Options,
    targets: &Targets,
    passes: &Passes<'_>,
    mut model: Model,
    talk: &dyn Talk,
) -> Result<Rewritten, CompileError> {
    let target = target(options, targets);
    let ops_before = summary::op_counts(&model.graph);
    let quantized_before = summary::quantizes_activations(&model.graph);
    let census_before = census(&model);
    let keep = |name: &str| options.keep.as_ref().is_some_and(|r| r.is_match(name));
    // What is spared from quantization still becomes half precision.
    let quantizes = options.quantization().is_some();
    let spared = [options.keep_nodes.as_slice(), passes.spared].concat();
    let none = kiln_passes::Options::default();
    let choices = kiln_passes::Options {
        keep: &keep,
        keep_ops: &options.keep_ops,
        convert_io: options.half_io,
        spared: if quantizes { &spared } else { &[] },
        wide: if quantizes { &[] } else { &spared },
        int4_block: options.int4.unwrap_or(kiln_passes::INT4_BLOCK),
        dynamic: options.int8 == Some(Int8::Dynamic),
        stats: passes.stats.unwrap_or(none.stats),
        plans: passes.plans.unwrap_or(none.plans),
        ..none
    };
    let library = options.ort_lib.as_deref();
    let evaluator = OrtEvaluator::new(library);
    let mut cx = Context::new(&target, &choices);
    cx.explain = !options.explain.is_empty();
    cx.limit = passes.limit;
    // Without a check the runtime is not needed, so folding does without it where it is missing.
    if options.check || runtime::locate(library).is_ok() {
        cx.evaluator = Some(&evaluator);
    }
    let mut dumps = Vec::new();
    let mut number = passes.before.map_or(0, |b| b.passes.len());
    let mut after = |report: &PassReport, model: &Model| {
        talk.stage(&format!("passes: {}", report.name));
        if let Some((which, folder)) = &options.dump_after
            && (which == "all" || which == report.name)
        {
            dumps.push(dump(folder, number, report.name, model));
        }
        number += 1;
    };
    let failed = |source| CompileError::Pass {
        model: options.model.clone(),
        source,
    };
    let mut reports =
        kiln_passes::run(&mut model, passes.steps, &mut cx, &mut after).map_err(failed)?;
    // Between fusion and lowering, where each block is one operator.
    let census_after = census(&model);
    let (applied, last) = (cx.applied, cx.last.take());
    cx.limit = None;
    if !passes.finish.is_empty() {
        let finished = kiln_passes::run(&mut model, passes.finish, &mut cx, &mut after);
        reports.extend(finished.map_err(failed)?);
    }
    dumps.into_iter().collect::<Result<Vec<()>, _>>()?;
    let remarks = std::mem::take(&mut cx.remarks);
    let rewritten = Rewritten {
        blocks: summary::found(&census_before, &census_after),
        attention: census_after.blocks,
        ops_before,
        quantized_before,
        ops_after: summary::op_counts(&model.graph),
        remarks,
        misses: std::mem::take(&mut cx.misses),
        model,
        passes: reports,
        applied,
        last,
    };
    let mut rewritten = match passes.before {
        Some(before) => rewritten.following(before),
        None => rewritten,
    };
    summary::pack(&mut rewritten.blocks, packed_attentions(&rewritten.model));
    Ok(rewritten)
}

/// ONNX text, in which large constants are elided.
pub(crate) fn print(model: &onnx::proto::ModelProto) -> String {
    let options = text::PrintOptions {
        max_elements: Some(64),
    };
    text::print_model(model, &options)
}

/// The original for the sizes at which alone it runs, and the values of controls that alone are served; `None` if there is
/// nothing of this. All that was computed from those folds, and the result says what sizes it takes.
pub(crate) fn narrowed(original: &Model, shapes: &Shapes, chosen: &Fixed) -> Option<Model> {
    if shapes.baked.is_empty() && chosen.values.is_empty() {
        return None;
    }
    let mut model = original.clone();
    chosen.fold(&mut model.graph);
    let baked = !shapes.baked.is_empty() && shapes.fix_inputs(&mut model.graph);
    (baked || !chosen.values.is_empty()).then_some(model)
}

fn dump(folder: &Path, k: usize, pass: &str, model: &Model) -> Result<(), CompileError> {
    let path = folder.join(format!("{k:02}-{pass}.onnxtxt"));
    let write = || {
        fs::create_dir_all(folder)?;
        let message = onnx::to_proto(model).map_err(std::io::Error::other)?;
        fs::write(&path, print(&message))
    };
    write().map_err(|source| CompileError::Io {
        path: path.clone(),
        why: "the dump cannot be written",
        source,
    })
}

pub(crate) fn write(model: &Model, partial: &Partial) -> Result<Written, CompileError> {
    Ok(onnx::write(
        model,
        partial.file(bundle::MODEL),
        &WriteOptions::default(),
    )?)
}

/// What identifies the input.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub bytes: u64,
    pub sha256: String,
}

/// Hashes the mapping that was decoded already: a second one would count twice in memory. Another core does it, while
/// passes run that read no weights.
pub(super) fn fingerprint(options: &Options, original: &Model) -> JoinHandle<Source> {
    let bytes = original.bytes.clone().unwrap_or_default();
    let path = bundle::model_path(&options.model);
    thread::spawn(move || {
        let digest = Sha256::digest(&bytes);
        Source {
            path,
            bytes: bytes.len() as u64,
            sha256: digest.iter().map(|b| format!("{b:02x}")).collect(),
        }
    })
}

/// Whether the model is the one that the recipe names.
pub(super) fn is_asked_for(options: &Options, source: &Source) -> Result<(), CompileError> {
    match &options.sha256 {
        Some(asked) if !asked.eq_ignore_ascii_case(&source.sha256) => {
            Err(CompileError::OtherModel {
                model: options.model.clone(),
                found: source.sha256.clone(),
                asked: asked.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// Whether the model's files are still those that were read: ONNX Runtime opens them by their names, and so may have proved
/// the result against another model.
pub(super) fn is_unchanged(original: &Model) -> Result<(), CompileError> {
    match original.sources.iter().find(|s| !s.is_unchanged()) {
        Some(changed) => Err(CompileError::Changed(changed.path.clone())),
        None => Ok(()),
    }
}

/// The tolerance that was asked for, with its limits.
pub(crate) fn tolerance(
    options: &Options,
    rewritten: Option<&Rewritten>,
) -> Result<Tolerance, CompileError> {
    let named = options.tolerance.clone();
    let mut tolerance = named.unwrap_or_else(|| fitting(options, rewritten));
    for limit in &options.limits {
        tolerance = tolerance.with_override(limit)?;
    }
    Ok(tolerance)
}

/// The tolerance that fits the precision asked for, and the quantization that the original has.
fn fitting(options: &Options, rewritten: Option<&Rewritten>) -> Tolerance {
    Tolerance::from(match options.quantization() {
        Some(Quantization::Int8(_)) => Preset::Int8,
        Some(Quantization::Fp8) => Preset::Fp8,
        Some(Quantization::Int4(_)) => Preset::Int4,
        None if rewritten.is_some_and(Rewritten::moves_steps) => Preset::Int8,
        None => match options.half().or(rewritten.and_then(written)) {
            Some(HalfFormat::Fp16) => Preset::Fp16,
            Some(HalfFormat::Bf16) => Preset::Bf16,
            None => Preset::Fp32Rewrite,
        },
    })
}

/// The shorter of the formats that a model rounds to, which it may have come with.
fn written(rewritten: &Rewritten) -> Option<HalfFormat> {
    let formats = twin::formats(&rewritten.model);
    let (bf16, fp16) = (
        formats.contains(&DType::BF16),
        formats.contains(&DType::F16),
    );
    let shorter = bf16.then_some(HalfFormat::Bf16);
    shorter.or(fp16.then_some(HalfFormat::Fp16))
}

/// The result differs from the original, and what can be done about it.
pub(crate) fn not_the_same(
    options: &Options,
    parity: parity::Report,
    engine: Option<String>,
) -> CompileError {
    CompileError::NotTheSame {
        model: options.model.clone(),
        engine,
        parity: Box::new(parity),
        advice: match (options.quantization(), options.half()) {
            (Some(_), _) => {
                "Layers can be kept from quantization with --keep; `kiln bisect` finds the pass"
            }
            (None, Some(_)) => {
                "Nodes can be kept in FP32 with --keep; `kiln bisect` finds the pass"
            }
            (None, None) => "`kiln bisect` finds the pass",
        },
    }
}

/// Compares with the original and saves the typical case.
pub(super) fn prove(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
) -> Result<parity::Report, CompileError> {
    let report = proof.compare(&tolerance(options, Some(rewritten))?)?;
    if report.failed() {
        return Err(not_the_same(options, report, None));
    }
    proof.save(&partial.file(bundle::PROOF))?;
    Ok(report)
}

/// What ran on the CPU and was to run on a GPU: a warning, or a failure where the GPU was asked for by its name.
pub(super) fn fallback(
    options: &Options,
    proof: &Proof,
    talk: &dyn Talk,
) -> Result<Option<String>, CompileError> {
    let Some(why) = prove::fallen(proof.reference.placements()) else {
        return Ok(None);
    };
    if proof.reference.device().asked {
        let model = options.model.clone();
        return Err(CompileError::Fallback { model, why });
    }
    talk.warn(&why);
    Ok(Some(why))
}

/// Holds the engine against the original, where there is a GPU to run it on.
pub(super) fn prove_engine(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
) -> Result<EngineParity, CompileError> {
    let plan = partial.file(bundle::ENGINE);
    let mut runner = match engine_parity::open(
        &plan,
        options.device.choice.gpu() as usize,
        options.trt_lib.as_deref(),
    ) {
        Ok(runner) => runner,
        Err(not_run) => return Ok(not_run.into()),
    };
    let tolerance = tolerance(options, Some(rewritten))?;
    let parity = proof
        .reference
        .compare_engine(runner.as_mut(), &tolerance)?;
    match parity {
        EngineParity::Run { report, runner } if report.failed() => {
            Err(not_the_same(options, *report, Some(runner.to_string())))
        }
        _ => Ok(parity),
    }
}
