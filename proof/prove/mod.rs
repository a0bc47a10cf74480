//! Parity and latency through ONNX Runtime, and the sizes at which the original runs.

mod error;
mod evidence;
mod handover;
mod judge;
mod margin;
mod noise;
mod original;
mod ports;
mod reference;
mod request;
mod sessions;
#[cfg(test)]
mod tests;

use kiln_graph::DType;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::fixed::Fixed;
use crate::made::{self, TYPICAL};
use crate::parity::{self, Case, Placed};
use crate::shapes::Shapes;
use kiln_runtime::talk::Talk;
use kiln_runtime::{Chosen, Runtime};

pub use error::Error;
pub(crate) use original::Original;
pub use original::{Ran, owned};
pub use reference::{Proof, Timed};
pub use request::Request;
pub use sessions::Alone;
pub use sessions::Candidate;

use evidence::Evidence;
use noise::Noise;
pub(crate) use noise::quantizes;
use sessions::plain;

/// The reference in ONNX Runtime, with the inputs to compare candidates on.
#[derive(Debug)]
pub struct Reference {
    original: Original,
    cases: Vec<Case>,
    /// The names of those that were made.
    made: Vec<String>,
    /// Inputs that always have one value; candidates may be without them.
    fixed: Fixed,
    /// What the latency is measured on, where it is no case.
    typical: Option<Case>,
    /// What candidates were found to be.
    judged: Vec<Judged>,
    /// Cases whose outputs were looked at for evidence.
    learned: FxHashSet<usize>,
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
    /// What the largest sizes were proved by, if not by a run at them.
    pub parted: Option<String>,
}

/// A candidate's file, and what it was found to be at all cases. The same bytes are the same function.
#[derive(Debug)]
struct Judged {
    hash: blake3::Hash,
    report: parity::Report,
    placements: Vec<Placed>,
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
    let mut reference = Original::open(
        runtime,
        request.reference.to_path_buf(),
        request.original.clone(),
        request.fixed.clone(),
        how,
    )?;
    let gathered = made::gather(request, &mut reference, shapes, talk)?;
    reference.keep_only(&gathered.cases);
    let any = shapes.points().pop().map(|(_, point)| point);
    let mut any = gathered.kinds.specs(shapes, &any.unwrap_or_default());
    any.retain(|spec| request.fixed.get(&spec.name).is_none());
    let selecting = gathered.selecting(request.fixed);
    let evidence = Evidence::new(&request.original.graph, any, request.seed);
    let mut reference = Reference {
        original: reference,
        cases: gathered.cases,
        made: gathered.made,
        fixed: request.fixed.clone(),
        typical: None,
        judged: Vec::new(),
        learned: FxHashSet::default(),
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
        parted: gathered.parted,
    };
    // While it is open: what follows may take as much memory.
    reference.ready(None, talk)?;
    Ok(reference)
}
