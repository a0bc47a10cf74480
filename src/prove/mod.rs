//! Parity and latency through ONNX Runtime, and the sizes at which the original runs.

mod evidence;
mod judge;
mod margin;
mod noise;
mod ports;
mod reference;
mod sessions;

use std::path::{Path, PathBuf};

use kiln_graph::{DType, Graph, Model, Tensor};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::compile::CompileError;
use crate::parity::{self, Case, InputKind, InputSpec, Side};
use crate::runtime::{self, Chosen, DeviceRequest, Placement, Runtime, Session};
use crate::shapes::{self, Point, Shapes};
use crate::talk::Talk;

pub use reference::Proof;
pub(crate) use sessions::Alone;
pub use sessions::Candidate;

use evidence::Evidence;
use noise::Noise;
use sessions::{plain, session};

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
    /// Candidates have inputs and outputs of half precision where the reference has FP32, as was asked for.
    pub half_io: bool,
    /// What messages call candidates, if their files mean nothing to the user.
    pub result: Option<String>,
    pub device: DeviceRequest,
    pub ort_lib: Option<&'a Path>,
}

/// The reference in ONNX Runtime, with the inputs to compare candidates on.
#[derive(Debug)]
pub struct Reference {
    runtime: &'static Runtime,
    session: Session,
    original: Model,
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
    /// How far the reference is from itself, by case.
    noise: FxHashMap<usize, Noise>,
    evidence: Evidence,
    half_io: bool,
    /// Types of the last candidate's inputs, with `half_io`.
    asked: Vec<(String, DType)>,
    result: Option<String>,
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

const TYPICAL: &str = "typical";

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
    let any = shapes.points().pop().map(|(_, point)| point);
    let any = specs(&request.original.graph, shapes, &any.unwrap_or_default());
    let evidence = Evidence::new(&request.original.graph, any, request.seed);
    Ok(Reference {
        runtime,
        session: reference,
        original: request.original.clone(),
        path: request.reference.to_path_buf(),
        cases,
        made,
        typical: None,
        expected: FxHashMap::default(),
        held: 0,
        noise: FxHashMap::default(),
        evidence,
        half_io: request.half_io,
        asked: Vec::new(),
        result: request.result.clone(),
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
