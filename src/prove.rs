//! Parity and latency through ONNX Runtime, and the sizes at which the original runs.

use std::path::{Path, PathBuf};

use kiln_graph::{Graph, Model, Tensor, onnx};
use rustc_hash::FxHashMap;

use crate::bench::{self, BenchOptions, BenchReport, Subject};
use crate::compile::CompileError;
use crate::parity::{self, Case, InputKind, InputSpec, Side, Tolerance};
use crate::runtime::{self, Optimization, Runtime, Session, SessionOptions};
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
    /// Items served at once at the typical sizes.
    batch: usize,
    /// What had to change in the sizes.
    pub warnings: Vec<String>,
}

/// A candidate without a reference, whose roundings are kept.
#[derive(Debug)]
pub struct Candidate {
    runtime: &'static Runtime,
    pub session: Session,
}

impl Candidate {
    /// Loads a model that is in memory and in its file.
    ///
    /// # Errors
    /// When the runtime is missing or the model does not load.
    pub fn open(
        path: &Path,
        model: &Model,
        ort_lib: Option<&Path>,
    ) -> Result<Candidate, CompileError> {
        let runtime = Runtime::load(ort_lib)?;
        let session = match twin::rounding(model) {
            Some(twin) => twin_session(runtime, &path.display().to_string(), &twin)?,
            None => Session::from_path(runtime, path, &plain())?,
        };
        Ok(Candidate { runtime, session })
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

/// The optimizer would hide what FP16 does: it takes roundings out.
fn plain() -> SessionOptions {
    SessionOptions {
        optimization: Optimization::Disabled,
        ..SessionOptions::default()
    }
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
    // What the original rounds, and ONNX Runtime does not, belongs to its function.
    let mut reference = match twin::rounding(request.original) {
        Some(twin) => twin_session(runtime, &request.reference.display().to_string(), &twin)?,
        None => Session::from_path(runtime, request.reference, &plain())?,
    };
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
    let settled =
        shapes::settle(request.folded, shapes, &mut probe).map_err(|why| CompileError::Sizes {
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
        batch,
        warnings: settled.warnings,
    })
}

/// The cases of a thorough comparison that others leave out.
fn more(
    request: &Request<'_>,
    shapes: &Shapes,
) -> Result<Vec<(&'static str, Vec<(String, Tensor)>)>, CompileError> {
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
) -> Result<Session, runtime::Error> {
    if let Ok(bytes) = onnx::to_bytes(twin) {
        return Session::from_bytes(runtime, name, &bytes, &plain());
    }
    let parts = onnx::to_parts(twin).map_err(|e| runtime::Error::Model {
        model: name.to_string(),
        reason: e.to_string(),
    })?;
    Session::from_parts(runtime, name, parts, &plain())
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

    fn candidate(&self, path: &Path, model: &Model) -> Result<Session, runtime::Error> {
        match twin::rounding(model) {
            Some(twin) => twin_session(self.runtime, &path.display().to_string(), &twin),
            None if self.optimized => {
                Session::from_path(self.runtime, path, &SessionOptions::default())
            }
            None => Session::from_path(self.runtime, path, &plain()),
        }
    }

    /// Compares one candidate, as it is in memory and in its file, at every case.
    ///
    /// # Errors
    /// [`CompileError::Runtime`] when the candidate does not load, [`CompileError::Parity`] when a model does not run.
    pub fn compare(
        &mut self,
        path: &Path,
        model: &Model,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let mut candidate = self.candidate(path, model)?;
        self.judge(&mut candidate, None, tolerance)
    }

    /// Compares one candidate at one case.
    ///
    /// # Errors
    /// As [`Reference::compare`].
    pub fn compare_case(
        &mut self,
        path: &Path,
        model: &Model,
        case: &str,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, CompileError> {
        let mut candidate = self.candidate(path, model)?;
        self.judge(&mut candidate, Some(case), tolerance)
    }

    fn judge(
        &mut self,
        candidate: &mut Session,
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
            let found = parity::outputs(candidate, case, Side::Candidate)?;
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
            candidate: self.candidate(path, model)?,
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
        let twin = twin::rounding(model);
        let model = twin.as_ref().unwrap_or(model);
        let mut session = twin_session(self.runtime, &self.path.display().to_string(), model)?;
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
