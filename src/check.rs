//! Comparing a model or bundle with its original.

use std::path::PathBuf;

use kiln_graph::{DType, Model, onnx};

use crate::bundle;
use crate::compile::CompileError;
use crate::parity::{Preset, Report, Tolerance};
use crate::prove::{self, Request};
use crate::shapes::{DimSpec, Shapes};
use crate::talk::Talk;

/// What to compare, and how closely.
#[derive(Clone, Debug)]
pub struct Options {
    /// An ONNX file or a bundle.
    pub candidate: PathBuf,
    pub reference: PathBuf,
    pub inputs: Option<PathBuf>,
    /// A tolerance's name; by the candidate's types if it is not given.
    pub tolerance: Option<String>,
    /// `OUTPUT:METRIC=LIMIT`.
    pub limits: Vec<String>,
    pub dims: Vec<DimSpec>,
    pub seed: u64,
    pub ort_lib: Option<PathBuf>,
}

/// Runs both on the same inputs and compares their outputs.
///
/// # Errors
/// When a model cannot be read or run. Outputs that differ are in the report.
pub fn check(options: &Options, talk: &dyn Talk) -> Result<Report, CompileError> {
    talk.stage("read");
    let candidate = bundle::model_path(&options.candidate);
    let reference = bundle::model_path(&options.reference);
    let (original, result) = (onnx::read(&reference)?, onnx::read(&candidate)?);
    let mut tolerance = match &options.tolerance {
        Some(name) => Tolerance::named(name)?,
        None => Tolerance::from(preset(&result)),
    };
    for limit in &options.limits {
        tolerance = tolerance.with_override(limit)?;
    }
    let mut shapes = Shapes::new(&original.graph, &options.dims, &[])?;
    talk.stage("sizes");
    let request = Request {
        reference: &reference,
        original: &original,
        folded: &result.graph,
        inputs: options.inputs.as_deref(),
        seed: options.seed,
        optimized: false,
        ort_lib: options.ort_lib.as_deref(),
    };
    let mut opened = prove::open(&request, &mut shapes, talk)?;
    talk.stage("parity");
    opened.compare(&candidate, &result, &tolerance)
}

/// The tolerance that fits the narrowest float type among the model's constants.
fn preset(model: &Model) -> Preset {
    let mut preset = Preset::Fp32Rewrite;
    model.graph.for_each_graph(&mut |g| {
        for tensor in g.values().filter_map(|(_, v)| v.constant()) {
            match tensor.dtype() {
                DType::I4 => preset = Preset::Int4,
                DType::F16 if preset == Preset::Fp32Rewrite => preset = Preset::Fp16,
                DType::BF16 if preset != Preset::Int4 => preset = Preset::Bf16,
                _ => {}
            }
        }
    });
    preset
}
