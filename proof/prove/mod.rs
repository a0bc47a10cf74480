//! Parity and latency through ONNX Runtime, and the sizes at which the original runs.

mod error;
mod evidence;
mod handover;
mod judge;
mod margin;
mod noise;
mod ports;
mod reference;
mod request;
mod sessions;

use std::path::PathBuf;

use kiln_graph::{DType, Model, Tensor};
use rustc_hash::FxHashMap;

use crate::fixed::Fixed;
use crate::made::{self, TYPICAL};
use crate::parity::{self, Case, ParityError, Placed, Side};
use crate::shapes::Shapes;
use kiln_runtime::talk::Talk;
use kiln_runtime::{Chosen, Runtime, Session};

pub use error::Error;
pub use reference::{Proof, Timed};
pub use request::Request;
pub use sessions::Alone;
pub use sessions::Candidate;

use evidence::Evidence;
use noise::Noise;
use sessions::{plain, session};

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
    /// Inputs that always have one value; candidates may be without them.
    fixed: Fixed,
    /// What the latency is measured on, where it is no case.
    typical: Option<Case>,
    /// The reference's outputs by case, so that it runs once for all candidates.
    expected: FxHashMap<usize, Vec<(String, Tensor)>>,
    /// Bytes of them.
    held: usize,
    /// How far the reference is from itself, by case.
    noise: FxHashMap<usize, Noise>,
    /// Whether it rounds activations to integers.
    quantized: bool,
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
    /// Controls that the result has one value of.
    pub chosen: Fixed,
    /// Those that select branches of what is left, with their first values: `sr=16000`.
    pub selecting: Vec<String>,
    /// What had to change in the sizes.
    pub warnings: Vec<String>,
}

/// Opens the reference and settles the sizes: `shapes` shrinks to what it runs at.
///
/// # Errors
/// When the runtime is missing, the model does not load, the inputs do not fit, or it runs at no size.
pub fn open(
    request: &Request<'_>,
    shapes: &mut Shapes,
    talk: &dyn Talk,
) -> Result<Reference, Error> {
    let runtime = Runtime::load(request.ort_lib)?;
    let device = runtime.device(request.device)?;
    // What the original rounds, and ONNX Runtime does not, belongs to its function.
    let how = plain(device.device);
    let mut reference = session(runtime, request.reference, request.original, &how)?;
    let gathered = made::gather(request, &mut reference, shapes, talk)?;
    let any = shapes.points().pop().map(|(_, point)| point);
    let mut any = gathered.kinds.specs(shapes, &any.unwrap_or_default());
    any.retain(|spec| request.fixed.get(&spec.name).is_none());
    let selecting = gathered.selecting(request.fixed);
    let evidence = Evidence::new(&request.original.graph, any, request.seed);
    Ok(Reference {
        runtime,
        session: reference,
        original: request.original.clone(),
        path: request.reference.to_path_buf(),
        cases: gathered.cases,
        made: gathered.made,
        fixed: request.fixed.clone(),
        typical: None,
        expected: FxHashMap::default(),
        held: 0,
        noise: FxHashMap::default(),
        quantized: noise::quantizes(&request.original.graph),
        evidence,
        half_io: request.half_io,
        asked: Vec::new(),
        result: request.result.clone(),
        optimized: request.optimized,
        device,
        placements: Vec::new(),
        batch: gathered.batch,
        selecting,
        chosen: gathered.chosen,
        warnings: gathered.warnings,
    })
}

/// The outputs at a case, of whose inputs a session that is without fixed ones takes the others.
fn outputs(
    session: &mut Session,
    fixed: &Fixed,
    case: &Case,
    side: Side,
) -> Result<Vec<(String, Tensor)>, ParityError> {
    let case = Case {
        name: case.name.clone(),
        inputs: made::fed(session, fixed, &case.inputs),
    };
    parity::outputs(session, &case, side)
}
