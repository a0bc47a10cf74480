//! Parity and latency through ONNX Runtime, and the sizes at which the original runs.

use std::path::{Path, PathBuf};

use kiln_graph::onnx::WriteOptions;
use kiln_graph::{DType, Graph, Model, Tensor, infer, onnx};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::bench::{self, BenchOptions, BenchReport, Subject};
use crate::compile::CompileError;
use crate::engine_parity::{EngineParity, Runner};
use crate::parity::{self, Case, InputKind, InputSpec, Side, Tolerance};
use crate::runtime::{
    self, Chosen, Device, DeviceRequest, Optimization, Placement, Runtime, Session, SessionOptions,
};
use crate::shapes::{self, Point, Shapes};
use crate::talk::Talk;
use crate::twin;

/// What to compare with, and on what.
#[derive(Debug)]
pub struct Request<'a> {
    pub reference: &'a Path,
    /// The reference in memory, from whose graph inputs are made.
    pub original: &'a Model,
    /// A candidate's graph, from whose folded shapes sizes are found that exporters baked in.
    pub folded: &'a Graph,
    /// An `.npz` file with inputs.
    pub inputs: Option<&'a Path>,
    pub seed: u64,
    /// Candidates run as ONNX Runtime optimizes them, because that decides their numbers: its INT8 kernels saturate on some
    /// processors, and without optimization they are not used.
    pub optimized: bool,
    /// Cases beside the smallest, typical and largest sizes: several samples at once, and padding in every sample.
    pub thorough: bool,
    pub device: DeviceRequest,
    pub ort_lib: Option<&'a Path>,
}

/// The reference in ONNX Runtime, with the inputs to compare candidates on.
#[derive(Debug)]
pub struct Reference {
    runtime: &'static Runtime,
    session: Session,
    path: PathBuf,
    cases: Vec<Case>,
    /// The names of those that were made.
    made: Vec<String>,
    /// What the latency is measured on, where it is no case.
    typical: Option<Case>,
    /// The reference's outputs by case, so that it runs once for all candidates.
    expected: FxHashMap<usize, Vec<(String, Tensor)>>,
    /// Bytes of them.
    held: usize,
    /// Whether candidates are judged as ONNX Runtime optimizes them.
    optimized: bool,
    device: Chosen,
    /// Where the nodes of the reference, and of the last candidate, ran; empty on the CPU.
    placements: Vec<Placed>,
    /// Items served at once at the typical sizes.
    batch: usize,
    /// What had to change in the sizes.
    pub warnings: Vec<String>,
}

/// Where the nodes of one side ran.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Placed {
    pub side: Side,
    #[serde(flatten)]
    pub placement: Placement,
}

/// What of both sides did not run where it should, in one sentence; `None` if everything did.
pub fn fallen(placements: &[Placed]) -> Option<String> {
    let fallen = placements.iter().filter(|p| !p.placement.pass());
    let fallen = fallen.map(|p| format!("{}: {}", p.side, p.placement.describe()));
    let fallen: Vec<String> = fallen.collect();
    (!fallen.is_empty()).then(|| fallen.join("; "))
}

/// A candidate without a reference, whose roundings are kept.
#[derive(Debug)]
pub struct Candidate {
    runtime: &'static Runtime,
    pub session: Session,
    pub device: Chosen,
}

impl Candidate {
    /// Loads a model that is in memory and in its file.
    ///
    /// # Errors
    /// When the runtime is missing or the model does not load.
    pub fn open(
        path: &Path,
        model: &Model,
        device: DeviceRequest,
        ort_lib: Option<&Path>,
    ) -> Result<Candidate, CompileError> {
        let runtime = Runtime::load(ort_lib)?;
        let device = runtime.device(device)?;
        let session = session(runtime, path, model, &plain(device.device))?;
        Ok(Candidate {
            runtime,
            session,
            device,
        })
    }

    /// Where its nodes ran; empty on the CPU.
    ///
    /// # Errors
    /// When ONNX Runtime does not tell.
    pub fn placements(&mut self) -> Result<Vec<Placed>, CompileError> {
        let side = Side::Candidate;
        let placement = self.session.placement()?;
        Ok(placement
            .map(|placement| Placed { side, placement })
            .into_iter()
            .collect())
    }

    /// The runtime's name and version.
    pub fn version(&self) -> String {
        version(self.runtime)
    }
}

fn version(runtime: &Runtime) -> String {
    format!(
        "ONNX Runtime {}",
        runtime.version().unwrap_or("of unknown version")
    )
}

/// A reference and a candidate.
#[derive(Debug)]
pub struct Proof {
    pub reference: Reference,
    candidate: Session,
    path: PathBuf,
    /// Whether the models hold convolutions.
    convolves: bool,
}

/// Bytes of the reference's outputs that are kept.
const HELD: usize = 256 << 20;

const TYPICAL: &str = "typical";

/// The optimizer would hide what FP16 does: it takes roundings out. On a GPU products stay in FP32 where the model has them
/// so, and nobody falls back unseen.
fn plain(device: Device) -> SessionOptions {
    SessionOptions {
        optimization: Optimization::Disabled,
        ..seated(device)
    }
}

fn seated(device: Device) -> SessionOptions {
    SessionOptions {
        device,
        watched: !device.is_cpu(),
        ..SessionOptions::default()
    }
}

/// What stands for a model where the device has no kernels for its roundings: a GPU has those of FP16.
fn stand_in(model: &Model, device: Device) -> Option<Model> {
    let native = !device.is_cpu() && !twin::formats(model).contains(&DType::BF16);
    (!native).then(|| twin::rounding(model)).flatten()
}

/// A model in memory and in its file, as it computes; ONNX Runtime must not take out what it rounds.
fn session(
    runtime: &'static Runtime,
    path: &Path,
    model: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    let mut session = match stand_in(model, options.device) {
        Some(twin) => {
            let plain = SessionOptions {
                optimization: Optimization::Disabled,
                ..*options
            };
            twin_session(runtime, &path.display().to_string(), &twin, &plain)?
        }
        None if is_large(model, options) => {
            twin_session(runtime, &path.display().to_string(), model, options)?
        }
        None => Session::from_path(runtime, path, options)?,
    };
    if options.watched {
        session.excuse(shapes::derived(model));
    }
    Ok(session)
}

/// Whether ONNX Runtime is given the weights where kiln has them mapped: from a file it would copy them, and its optimizer
/// would want to read the file.
fn is_large(model: &Model, options: &SessionOptions) -> bool {
    let plain = matches!(options.optimization, Optimization::Disabled);
    plain && model.constant_bytes() as u64 > WriteOptions::default().inline_limit
}

/// Opens the reference and settles the sizes: `shapes` shrinks to what it runs at.
///
/// # Errors
/// When the runtime is missing, the model does not load, the inputs do not fit, or it runs at no size.
pub fn open(
    request: &Request<'_>,
    shapes: &mut Shapes,
    talk: &dyn Talk,
) -> Result<Reference, CompileError> {
    let runtime = Runtime::load(request.ort_lib)?;
    let device = runtime.device(request.device)?;
    // What the original rounds, and ONNX Runtime does not, belongs to its function.
    let how = plain(device.device);
    let mut reference = session(runtime, request.reference, request.original, &how)?;
    let mut cases = Vec::new();
    if let Some(path) = request.inputs {
        let mut npz = parity::Npz::open(path)?;
        cases.push(Case {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            inputs: parity::from_npz(&mut npz, reference.inputs())?,
        });
    }
    let fixed = shapes.clone();
    let mut probe = |point: &Point| {
        let made = parity::make(&specs(&request.original.graph, &fixed, point), request.seed);
        let inputs = made.map_err(|e| e.to_string())?;
        reference.run(&inputs).map(drop).map_err(|e| match e {
            runtime::Error::Run { reason, .. } => reason,
            other => other.to_string(),
        })
    };
    let settled = shapes::settle(&request.original.graph, request.folded, shapes, &mut probe)
        .map_err(|why| CompileError::Sizes {
            model: request.reference.to_path_buf(),
            why,
        })?;
    for warning in &settled.warnings {
        talk.warn(warning);
    }
    let mut batch = 1;
    let mut made = Vec::new();
    for (name, point) in shapes.points() {
        if name == TYPICAL {
            batch = shapes.batch(&point);
        }
        made.push(name.to_string());
        cases.push(Case {
            name: name.to_string(),
            inputs: parity::make(
                &specs(&request.original.graph, shapes, &point),
                request.seed,
            )?,
        });
    }
    if request.thorough {
        for (name, inputs) in more(request, shapes)? {
            made.push(name.to_string());
            let name = name.to_string();
            cases.push(Case { name, inputs });
        }
    }
    Ok(Reference {
        runtime,
        session: reference,
        path: request.reference.to_path_buf(),
        cases,
        made,
        typical: None,
        expected: FxHashMap::default(),
        held: 0,
        optimized: request.optimized,
        device,
        placements: Vec::new(),
        batch,
        warnings: settled.warnings,
    })
}

/// Tensors by the names of inputs or outputs.
type Named = Vec<(String, Tensor)>;

/// The cases of a thorough comparison that others leave out.
fn more(
    request: &Request<'_>,
    shapes: &Shapes,
) -> Result<Vec<(&'static str, Named)>, CompileError> {
    let original = &request.original.graph;
    let mut cases = Vec::new();
    if let Some(point) = shapes.several() {
        let made = parity::make(&specs(original, shapes, &point), request.seed)?;
        cases.push(("several samples", made));
    }
    let points = shapes.points();
    let typical = points.iter().find(|(name, _)| *name == TYPICAL);
    let mut padded = typical.map_or_else(Vec::new, |(_, p)| specs(original, shapes, p));
    let long = |s: &InputSpec| s.shape.last().is_some_and(|&n| n > 1);
    let mut any = false;
    for spec in padded
        .iter_mut()
        .filter(|s| s.kind == InputKind::Mask && long(s))
    {
        spec.kind = InputKind::PaddedMask;
        any = true;
    }
    if any {
        cases.push(("padded", parity::make(&padded, request.seed)?));
    }
    Ok(cases)
}

/// A twin in ONNX Runtime, with its weights apart if it is too large for one message.
fn twin_session(
    runtime: &'static Runtime,
    name: &str,
    twin: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    match onnx::to_bytes(twin) {
        Ok(bytes) => Session::from_bytes(runtime, name, &bytes, options),
        Err(_) => mapped_session(runtime, name, twin, options),
    }
}

/// A model in ONNX Runtime, with its weights where they are.
fn mapped_session(
    runtime: &'static Runtime,
    name: &str,
    model: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    let parts = onnx::to_parts(model).map_err(|e| runtime::Error::Model {
        model: name.to_string(),
        reason: e.to_string(),
    })?;
    Session::from_parts(runtime, name, parts, options)
}

/// ONNX Runtime for models that are in no file, such as pieces of one.
#[derive(Debug)]
pub(crate) struct Alone {
    runtime: &'static Runtime,
    pub device: Chosen,
    /// Candidates are judged as ONNX Runtime optimizes them.
    optimized: bool,
}

impl Alone {
    /// # Errors
    /// When the runtime or the device is missing.
    pub fn new(
        device: DeviceRequest,
        ort_lib: Option<&Path>,
        optimized: bool,
    ) -> Result<Alone, CompileError> {
        let runtime = Runtime::load(ort_lib)?;
        Ok(Alone {
            runtime,
            device: runtime.device(device)?,
            optimized,
        })
    }

    /// A model as it computes, with what it rounds. Unless it is optimized, its weights stay where they are mapped.
    ///
    /// # Errors
    /// When the model does not load.
    pub fn open(&self, name: &str, model: &Model, side: Side) -> Result<Session, CompileError> {
        let device = self.device.device;
        let twin = stand_in(model, device);
        let optimized = self.optimized && side == Side::Candidate && twin.is_none();
        let options = SessionOptions {
            watched: false,
            ..match optimized {
                true => seated(device),
                false => plain(device),
            }
        };
        let model = twin.as_ref().unwrap_or(model);
        Ok(match optimized {
            true => twin_session(self.runtime, name, model, &options)?,
            false => mapped_session(self.runtime, name, model, &options)?,
        })
    }

    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        version(self.runtime)
    }
}

/// What to make for each input at a point of the sizes.
pub(crate) fn specs(original: &Graph, shapes: &Shapes, point: &Point) -> Vec<InputSpec> {
    let kind = |name: &str| {
        let mut inputs = original.inputs().iter();
        let found = inputs.find(|&&v| original.value(v).name() == name);
        found.map_or(InputKind::Zeros, |&v| shapes::input_kind(original, v))
    };
    (shapes.inputs.iter().zip(shapes.at(point)))
        .map(|(input, (name, shape))| InputSpec {
            kind: kind(&name),
            dtype: input.dtype,
            name,
            shape,
        })
        .collect()
}

type Candidates<'a> = dyn FnMut(&Case) -> Result<Vec<(String, Tensor)>, CompileError> + 'a;

impl Reference {
    /// Compares at these cases, which are real inputs, instead of those that were made.
    pub fn prefer(&mut self, cases: Vec<Case>) {
        if cases.is_empty() {
            return;
        }
        self.typical = self.typical().cloned();
        self.cases.retain(|c| !self.made.contains(&c.name));
        self.cases.extend(cases);
        self.expected.clear();
        self.held = 0;
    }

    /// The model as it was written: of one in memory, the weights may still have to be computed, and would all be held.
    fn candidate(&self, path: &Path) -> Result<Session, CompileError> {
        let mut written = onnx::read(path)?;
        infer::annotate(&mut written.graph);
        let device = self.device.device;
        let options = match self.optimized {
            true => seated(device),
            false => plain(device),
        };
        Ok(session(self.runtime, path, &written, &options)?)
    }

    /// Compares one candidate, as it is in its file, at every case.
    ///
    /// # Errors
    /// [`CompileError::Read`] and [`CompileError::Runtime`] when the candidate does not load, [`CompileError::Parity`] when a model does not run.
    pub fn compare(
        &mut self,
        path: &Path,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let mut candidate = self.candidate(path)?;
        self.judge(&mut candidate, None, tolerance)
    }

    /// Compares one candidate at one case.
    ///
    /// # Errors
    /// As [`Reference::compare`].
    pub fn compare_case(
        &mut self,
        path: &Path,
        case: &str,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let mut candidate = self.candidate(path)?;
        self.judge(&mut candidate, Some(case), tolerance)
    }

    fn judge(
        &mut self,
        candidate: &mut Session,
        only: Option<&str>,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let report = self.judge_by(
            &mut |case| Ok(parity::outputs(candidate, case, Side::Candidate)?),
            only,
            tolerance,
        )?;
        self.placements.clear();
        for (side, session) in [
            (Side::Reference, &mut self.session),
            (Side::Candidate, candidate),
        ] {
            let placement = session.placement()?;
            let placed = placement.map(|placement| Placed { side, placement });
            self.placements.extend(placed);
        }
        Ok(report)
    }

    /// Holds an engine, run on a GPU, against the reference at every case.
    ///
    /// # Errors
    /// When the reference or the engine does not run.
    pub fn compare_engine(
        &mut self,
        engine: &mut dyn Runner,
        tolerance: &Tolerance,
    ) -> Result<EngineParity, CompileError> {
        let mut run = |case: &Case| {
            let outputs = engine.run(&case.inputs);
            outputs.map_err(|source| CompileError::EngineRun {
                case: case.name.clone(),
                source,
            })
        };
        let report = self.judge_by(&mut run, None, tolerance)?;
        Ok(EngineParity::Run {
            runner: engine.describe(),
            report: Box::new(report),
        })
    }

    fn judge_by(
        &mut self,
        candidate: &mut Candidates<'_>,
        only: Option<&str>,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let mut cases = Vec::new();
        for (place, case) in self.cases.iter().enumerate() {
            if only.is_some_and(|name| name != case.name) {
                continue;
            }
            let fresh = match self.expected.get(&place) {
                Some(_) => None,
                None => Some(parity::outputs(&mut self.session, case, Side::Reference)?),
            };
            if let Some(outputs) = &fresh {
                let bytes: usize = outputs.iter().map(|(_, t)| t.byte_len()).sum();
                if self.held + bytes <= HELD {
                    self.held += bytes;
                    self.expected.insert(place, outputs.clone());
                }
            }
            let Some(expected) = fresh.as_ref().or(self.expected.get(&place)) else {
                continue;
            };
            let found = candidate(case)?;
            cases.push(parity::compare_outputs(
                &case.name,
                &case.inputs,
                expected,
                &found,
                tolerance,
            ));
        }
        Ok(parity::Report {
            tolerance: tolerance.clone(),
            cases,
        })
    }

    /// The proof of one candidate.
    ///
    /// # Errors
    /// When the candidate does not load.
    pub fn against(self, path: &Path, model: &Model) -> Result<Proof, CompileError> {
        let mut nodes = model.graph.nodes();
        Ok(Proof {
            candidate: self.candidate(path)?,
            path: path.to_path_buf(),
            convolves: nodes.any(|(_, n)| n.op().name().contains("Conv")),
            reference: self,
        })
    }

    /// The case of this name, else the typical one.
    pub fn case(&self, name: Option<&str>) -> Option<&Case> {
        let named = name.and_then(|name| self.cases.iter().find(|c| c.name == name));
        named.or(self.typical())
    }

    /// The outputs of another model at a case, with what it rounds.
    ///
    /// # Errors
    /// When the model does not load or run.
    pub fn run(&self, model: &Model, case: &Case) -> Result<Vec<(String, Tensor)>, CompileError> {
        let device = self.device.device;
        let twin = stand_in(model, device);
        let model = twin.as_ref().unwrap_or(model);
        let unwatched = SessionOptions {
            watched: false,
            ..plain(device)
        };
        let name = self.path.display().to_string();
        let mut session = twin_session(self.runtime, &name, model, &unwatched)?;
        Ok(session.run(&case.inputs)?)
    }

    /// Saves the typical inputs and the outputs.
    ///
    /// # Errors
    /// When the reference does not run or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), CompileError> {
        if let Some(case) = self.typical().cloned() {
            let outputs = self.session.run(&case.inputs)?;
            parity::save(path, &case.inputs, &outputs)?;
        }
        Ok(())
    }

    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        version(self.runtime)
    }

    /// Where both sides run.
    pub fn device(&self) -> &Chosen {
        &self.device
    }

    /// Where the nodes ran in the last comparison; empty on the CPU.
    pub fn placements(&self) -> &[Placed] {
        &self.placements
    }

    fn typical(&self) -> Option<&Case> {
        if self.typical.is_some() {
            return self.typical.as_ref();
        }
        let typical = self.cases.iter().find(|c| c.name == TYPICAL);
        typical.or(self.cases.first())
    }
}

impl Proof {
    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        self.reference.runtime_version()
    }

    /// Compares the outputs at every case.
    ///
    /// # Errors
    /// When a model does not run.
    pub fn compare(&mut self, tolerance: &Tolerance) -> Result<parity::Report, CompileError> {
        self.reference.judge(&mut self.candidate, None, tolerance)
    }

    /// Saves the typical inputs and the reference's outputs.
    ///
    /// # Errors
    /// When the reference does not run or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), CompileError> {
        self.reference.save(path)
    }

    /// Times both at the typical sizes, with all of ONNX Runtime's own optimizations.
    ///
    /// # Errors
    /// When a model does not load or run.
    pub fn latency(&self) -> Result<BenchReport, CompileError> {
        let optimized = SessionOptions {
            without_nchwc: !self.convolves,
            device: self.reference.device.device,
            ..SessionOptions::default()
        };
        let (runtime, reference) = (self.reference.runtime, &self.reference.path);
        let mut original = Session::from_path(runtime, reference, &optimized)?;
        let mut result = Session::from_path(runtime, &self.path, &optimized)?;
        let inputs = self
            .reference
            .typical()
            .map(|c| c.inputs.clone())
            .unwrap_or_default();
        let mut subjects = [
            Subject::session("original", &mut original, &inputs)?,
            Subject::session("result", &mut result, &inputs)?,
        ];
        let options = BenchOptions {
            batch: self.reference.batch,
            ..BenchOptions::default()
        };
        Ok(bench::measure(&mut subjects, &options)?)
    }
}
