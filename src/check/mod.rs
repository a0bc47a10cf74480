//! The parity gate: comparing a model or bundle with its original, or with what the original gave before.

mod caches;
mod error;
mod golden;
mod layers;
mod options;
pub(crate) mod pieces;
mod precision;
mod replayed;
mod saved;
mod suspects;
mod written;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use kiln_graph::{DType, Graph, Model, infer, onnx};
use schemars::JsonSchema;
use serde::Serialize;

use crate::bisect::Bisection;
use crate::bundle;
use crate::engine_parity::{EngineParity, NotRun, Runner};
use crate::engine_runner;
use crate::environment::{Environment, environment};
use crate::fixed::Fixed;
use crate::judge::Judgement;
use crate::parity::{self, Placed, Report, Tolerance};
use crate::precision::Format;
use crate::prove::{self, Alone, Reference, Request};
use crate::recipe;
use crate::runtime::{Chosen, Device, DeviceChoice, DeviceRequest};
use crate::shapes::Shapes;
use crate::talk::Talk;

pub use caches::InPlace;
pub use error::Error;
pub use layers::{Divergence, Layer, Layers, Operand};
pub use options::{Against, Options, Suspects};
pub use pieces::Piece;
pub use precision::{Multiplication, PrecisionReport};
pub use saved::{SavedError, judge_again};

/// The outcome of a check.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Checked {
    pub kiln: String,
    pub candidate: String,
    pub against: String,
    pub parity: Report,
    pub precision: Option<PrecisionReport>,
    /// Whether the engine's steps leave caches where they are; `null` where that was not required.
    pub caches: Option<InPlace>,
    pub layers: Option<Layers>,
    /// What was run instead of the whole models; `null` if those were.
    pub pieces: Option<Vec<Piece>>,
    /// `null` where it was not asked for, or nothing differs.
    pub bisection: Option<Bisection>,
    /// Whether the bundle's engine gives the same; `null` if it has none and none is required.
    pub engine_parity: Option<EngineParity>,
    pub engine_parity_required: bool,
    /// Whether a CUDA graph of the candidate, replayed as it serves, gives the same; `null` if it was not asked for.
    pub cuda_graph: Option<EngineParity>,
    /// What the user's own judge said; `null`: there is none.
    pub judge: Option<Judgement>,
    pub runtime: String,
    /// Where both sides ran.
    pub device: Chosen,
    /// Where their nodes ran, if that was to be a GPU.
    pub placements: Vec<Placed>,
    pub environment: Environment,
}

impl Checked {
    /// Whether every gate passes.
    pub fn pass(&self) -> bool {
        self.parity.pass() && !self.failed()
    }

    /// Whether a gate fails. One that neither passes nor fails has nothing that could be compared.
    pub fn failed(&self) -> bool {
        let others = self.precision.as_ref().is_none_or(|p| p.present)
            && self.unproved_engine().is_none()
            && !self.cuda_graph.as_ref().is_some_and(EngineParity::failed)
            && self.judge.as_ref().is_none_or(|j| j.pass)
            && self.caches.as_ref().is_none_or(|c| c.pass)
            && (self.fallback().is_none() || !self.device.asked);
        self.parity.failed() || !others
    }

    /// What ran on the CPU and was to run on a GPU. It is a failure where the GPU was asked for by its name.
    pub fn fallback(&self) -> Option<String> {
        parity::fallen(&self.placements)
    }

    /// What is wrong with the engine's parity: the engine differs, or was required to run and did not.
    pub fn unproved_engine(&self) -> Option<String> {
        match &self.engine_parity {
            Some(parity) if parity.failed() => Some(format!("engine parity: {parity}")),
            Some(parity) if self.engine_parity_required && !parity.proved() => {
                let why = parity.not_run().unwrap_or_default();
                Some(format!("engine parity: not run, {why}"))
            }
            _ => None,
        }
    }
}

/// Runs both on the same inputs and compares their outputs.
///
/// # Errors
/// When a model cannot be read or run. Outputs that differ are in the report.
pub fn check(options: &Options, talk: &dyn Talk) -> Result<Checked, Error> {
    talk.stage("read");
    let path = bundle::find_model_for(&options.candidate, options.device)?;
    let candidate = onnx::read(&path)?;
    let options = &Options {
        device: device(options, &candidate),
        ..options.clone()
    };
    let tolerance = tolerance(options, &candidate)?;
    let precision = (options.require).map(|p| precision::find(p, &options.candidate, &candidate));
    let engine = engine(options);
    let (mut pieces, mut judge, mut cuda_graph) = (None, None, None);
    let (parity, layers, bisection, against, proved) = match &options.against {
        Against::Golden(file) => {
            talk.stage("parity");
            limits_fit(&tolerance, &candidate)?;
            let golden = golden::compare(options, file, &path, &candidate, &tolerance)?;
            let why = "recorded outputs are compared with the model, not with the engine";
            let engine = engine.map(|_| NotRun(why.into()).into());
            let proved = (golden.runtime, golden.device, golden.placements, engine);
            (golden.report, None, None, file, proved)
        }
        Against::Reference(given) if options.pieces => {
            let (_, mut original) = original(given, &tolerance)?;
            fix(options, &mut original, &candidate)?;
            let (report, found, alone) = in_pieces(options, original, candidate, &tolerance, talk)?;
            pieces = Some(found);
            let why = "the models were run in pieces, which an engine cannot be";
            let engine = engine.map(|_| NotRun(why.into()).into());
            let proved = (alone.runtime_version(), alone.device, Vec::new(), engine);
            (report, None, None, given, proved)
        }
        Against::Reference(given) => {
            let (reference, mut original) = original(given, &tolerance)?;
            let form = written::same_form(options, &reference, &mut original, &candidate, talk)?;
            let run = form.as_ref().map_or(&reference, |form| &form.path);
            let fixed = fix(options, &mut original, &candidate)?;
            let mut opened = open(
                options,
                (run, form.is_some()),
                &original,
                &fixed,
                &candidate,
                talk,
            )?;
            if let Some(file) = &options.record {
                opened.save(file)?;
            }
            talk.stage("parity");
            let report = opened.compare(&path, &tolerance, talk)?;
            let layers = options.layers.then(|| {
                talk.stage("layers");
                layers::find(&opened, &original, &candidate, &report, &tolerance)
            });
            let layers = layers.transpose()?;
            let placements = opened.placements().to_vec();
            if options.cuda_graph {
                let found = replayed::open(options, &path, &candidate, opened.device());
                let found = compared("CUDA graph", found, &mut opened, &tolerance, talk);
                cuda_graph = Some(found?);
            }
            let engine =
                engine.map(|e| compared("engine parity", e, &mut opened, &tolerance, talk));
            let engine = engine.transpose()?;
            if let Some(asked) = &options.judge {
                talk.stage("judge");
                judge = Some(opened.ask(&path, asked, talk)?);
            }
            let runtime = opened.runtime_version();
            let proved = (runtime, opened.device().clone(), placements, engine);
            let suspects = options.bisect.as_ref().filter(|_| report.failed());
            let bisection = suspects
                .map(|suspects| suspects::search(options, suspects, &reference, &tolerance, talk));
            (report, layers, bisection.transpose()?, given, proved)
        }
    };
    let (runtime, device, placements, engine_parity) = proved;
    // ONNX Runtime's CUDA provider ran the model where it serves.
    let served = matches!(device.device, Device::Cuda(_));
    let engine_parity = engine_parity.filter(|_| !served || has_engine(options));
    Ok(Checked {
        kiln: env!("CARGO_PKG_VERSION").to_string(),
        candidate: options.candidate.display().to_string(),
        against: against.display().to_string(),
        parity: broken_first(parity),
        precision,
        caches: (options.require_in_place).then(|| caches::find(&options.candidate)),
        layers,
        pieces,
        bisection,
        engine_parity,
        engine_parity_required: options.require_engine_parity,
        cuda_graph,
        judge,
        runtime,
        device,
        placements,
        environment: environment(),
    })
}

/// The reference's file and what it holds, which has the outputs that limits are for.
fn original(given: &Path, tolerance: &Tolerance) -> Result<(PathBuf, Model), Error> {
    let file = bundle::find_model(given)?;
    let model = onnx::read(&file)?;
    limits_fit(tolerance, &model)?;
    Ok((file, model))
}

/// Holds what runs against the reference.
fn compared(
    stage: &str,
    found: Result<Box<dyn Runner>, NotRun>,
    opened: &mut Reference,
    tolerance: &Tolerance,
    talk: &dyn Talk,
) -> Result<EngineParity, Error> {
    talk.stage(stage);
    match found {
        Err(not_run) => Ok(not_run.into()),
        Ok(mut runner) => Ok(opened.compare_engine(runner.as_mut(), tolerance, talk)?),
    }
}

/// The tolerance that was asked for or fits the candidate, with the limits given.
fn tolerance(options: &Options, candidate: &Model) -> Result<Tolerance, Error> {
    let mut tolerance = match &options.tolerance {
        Some(name) => Tolerance::named(name)?,
        None => Tolerance::from(Format::coarsest(candidate).tolerance()),
    };
    for limit in &options.limits {
        tolerance = tolerance.with_override(limit)?;
    }
    Ok(tolerance)
}

/// Whether limits are for outputs that the model has.
fn limits_fit(tolerance: &Tolerance, model: &Model) -> Result<(), Error> {
    let outputs = model.graph.outputs().iter().map(|o| &*o.name);
    Ok(tolerance.names_outputs_of(outputs)?)
}

/// Compares piece by piece, at the smallest, typical and largest sizes.
fn in_pieces(
    options: &Options,
    mut original: Model,
    mut candidate: Model,
    tolerance: &Tolerance,
    talk: &dyn Talk,
) -> Result<(Report, Vec<Piece>, Alone), Error> {
    let optimized = multiplies_bytes(&candidate.graph);
    let alone = Alone::new(options.device, options.ort_lib.as_deref(), optimized)?;
    infer::annotate(&mut original.graph);
    infer::annotate(&mut candidate.graph);
    let shapes = Shapes::new(&original.graph, &options.dims, &[])?;
    let points = shapes.points();
    let cases = pieces::cases(&original.graph, &shapes, &points, options.seed)?;
    let (report, pieces) = pieces::compare(&alone, &original, &candidate, &cases, tolerance, talk)?;
    Ok((report, pieces, alone))
}

/// Makes constants of the reference's inputs that are fixed. The candidate may be without them.
fn fix(options: &Options, original: &mut Model, candidate: &Model) -> Result<Fixed, Error> {
    let fixed = match options.fixed.is_empty() {
        false => Fixed::of(&original.graph, &options.fixed, &options.dims)?,
        true => {
            let recipe = recipe::of_bundle(&options.candidate)?;
            let known = recipe.map_or(Vec::new(), |r| r.fixed());
            Fixed::known(&original.graph, &known, &options.dims)?
        }
    };
    let inputs = candidate.graph.inputs();
    let names: Vec<&str> = inputs
        .iter()
        .map(|&v| candidate.graph.value(v).name())
        .collect();
    let absent = |(name, _): &(String, _)| !names.contains(&name.as_str());
    let fixed = Fixed {
        dropped: fixed.values.iter().any(absent),
        ..fixed
    };
    fixed.fold(&mut original.graph);
    Ok(fixed)
}

/// What has activations of bytes was compiled for ONNX Runtime's integer kernels on the CPU, and is proved there unless
/// another device is asked for.
fn device(options: &Options, candidate: &Model) -> DeviceRequest {
    match (options.device.choice, multiplies_bytes(&candidate.graph)) {
        (DeviceChoice::Auto, true) => DeviceRequest {
            choice: DeviceChoice::Cpu,
            ..options.device
        },
        _ => options.device,
    }
}

fn has_engine(options: &Options) -> bool {
    options.candidate.join(bundle::ENGINE).is_file()
}

/// What runs the engine of the candidate, or why nothing does; `None` where it is no matter.
fn engine(options: &Options) -> Option<Result<Box<dyn Runner>, NotRun>> {
    let plan = options.candidate.join(bundle::ENGINE);
    match plan.is_file() {
        true => Some(engine_runner::open(
            &plan,
            options.device.choice.gpu() as usize,
            options.trt_lib.as_deref(),
        )),
        false if options.require_engine_parity => Some(Err(NotRun::no_engine())),
        false => None,
    }
}

/// The reference comes with whether the candidate's caches may be of half precision where its own are not.
fn open(
    options: &Options,
    (reference, narrow): (&Path, bool),
    original: &Model,
    fixed: &Fixed,
    candidate: &Model,
    talk: &dyn Talk,
) -> Result<Reference, Error> {
    let mut shapes = Shapes::new(&original.graph, &options.dims, &[])?;
    talk.stage("sizes");
    let request = Request {
        reference,
        original,
        folded: &candidate.graph,
        inputs: options.inputs.as_deref(),
        fixed,
        seed: options.seed,
        optimized: multiplies_bytes(&candidate.graph),
        thorough: true,
        enough: None,
        half_io: half_io(options, narrow)?,
        one_profile: false,
        result: None,
        device: options.device,
        ort_lib: options.ort_lib.as_deref(),
    };
    Ok(prove::open(&request, &mut shapes, talk)?)
}

/// Whether the candidate is a bundle that was asked to have inputs and outputs of half precision, or has caches of it.
fn half_io(options: &Options, is_narrow: bool) -> Result<bool, Error> {
    let recipe = recipe::of_bundle(&options.candidate)?;
    Ok(is_narrow || recipe.is_some_and(|r| r.precision.half_io == Some(true)))
}

/// Outputs that failed before those that passed, in every case.
fn broken_first(mut report: Report) -> Report {
    for case in &mut report.cases {
        case.outputs.sort_by_key(|o| Reverse(o.outcome()));
    }
    report
}

/// Whether activations become bytes, as ONNX Runtime's kernels take them: then its integer products are what runs.
fn multiplies_bytes(g: &Graph) -> bool {
    g.nodes().any(|(_, n)| {
        let op = n.op();
        let quantizes = op.is("QuantizeLinear") || op.is("DynamicQuantizeLinear");
        let outputs = n.outputs().iter().flatten();
        let dtypes = outputs.map(|&v| g.value(v).ty().dtype());
        quantizes && dtypes.into_iter().any(|d| d == Some(DType::U8))
    })
}
