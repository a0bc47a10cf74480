//! What to compare, and how closely.

use std::path::PathBuf;

use kiln_passes::Step;

use crate::fixed::InputValue;
use crate::judge::Asked;
use crate::precision::Format;
use crate::runtime::DeviceRequest;
use crate::shapes::DimSpec;

/// What to compare, and how closely.
#[derive(Clone, Debug)]
pub struct Options {
    /// An ONNX file or a bundle.
    pub candidate: PathBuf,
    pub against: Against,
    /// An `.npz` file that takes the inputs and the outputs of the reference, to be compared with later.
    pub record: Option<PathBuf>,
    pub inputs: Option<PathBuf>,
    /// Inputs of the reference that always have one value; those that a bundle was compiled with if none are given.
    pub fixed: Vec<InputValue>,
    /// A tolerance's name; by the candidate's types if it is not given.
    pub tolerance: Option<String>,
    /// `OUTPUT:METRIC=LIMIT`.
    pub limits: Vec<String>,
    /// A precision that the candidate must have.
    pub require: Option<Format>,
    /// Look for the first tensor that diverges.
    pub layers: bool,
    /// Run models that are too large to be run whole piece by piece. Takes a reference.
    pub pieces: bool,
    /// If outputs differ, look for the application of a pass that did it. Takes a bundle and a reference.
    pub bisect: Option<Suspects>,
    /// A command of the user's that judges the outputs. Takes a reference.
    pub judge: Option<Asked>,
    pub dims: Vec<DimSpec>,
    pub seed: u64,
    /// Fail unless the bundle's engine ran on a GPU and is right.
    pub require_engine_parity: bool,
    /// Compare a replayed CUDA graph of the candidate, too. Takes a reference.
    pub cuda_graph: bool,
    pub device: DeviceRequest,
    pub ort_lib: Option<PathBuf>,
    pub trt_lib: Option<PathBuf>,
}

/// What is right.
#[derive(Clone, Debug)]
pub enum Against {
    /// A model or bundle, which is run.
    Reference(PathBuf),
    /// Inputs and outputs that were recorded.
    Golden(PathBuf),
}

impl Options {
    /// A comparison by the tolerance that fits the candidate's types, and nothing else.
    pub fn new(candidate: impl Into<PathBuf>, against: Against) -> Options {
        Options {
            candidate: candidate.into(),
            against,
            record: None,
            inputs: None,
            fixed: Vec::new(),
            tolerance: None,
            limits: Vec::new(),
            require: None,
            layers: false,
            pieces: false,
            bisect: None,
            judge: None,
            dims: Vec::new(),
            seed: 1,
            require_engine_parity: false,
            cuda_graph: false,
            device: DeviceRequest::default(),
            ort_lib: None,
            trt_lib: None,
        }
    }
}

/// The pipeline that may have broken a candidate.
#[derive(Clone, Debug)]
pub enum Suspects {
    /// That of the recipe in the bundle's manifest.
    Recipe,
    /// These passes, with the rest of what the manifest says.
    Steps(Vec<Step>),
}
