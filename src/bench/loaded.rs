//! What is asked of a benchmark, and the models read for it.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use kiln_graph::{Model, onnx};

use super::BenchError;
use super::axis::Axis;
use super::baseline::Baseline;
use super::measured::BenchOptions;
use super::names;
use crate::bundle;
use crate::fixed::{Fixed, InputValue};
use crate::parity;
use crate::runtime::{DeviceRequest, GpuOptions, Session, SessionOptions, TensorInfo};
use crate::shapes::{self, Point, Shapes};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Request {
    /// ONNX files or bundles; the first is what others are compared with.
    pub models: Vec<PathBuf>,
    /// What the first models are called; the others are named by their paths.
    pub names: Vec<String>,
    /// The grid; the typical sizes if it is empty.
    pub axes: Vec<Axis>,
    /// Inputs as `.npz`, instead of the grid.
    pub inputs: Option<PathBuf>,
    /// Inputs that have one value in all models that have them.
    pub fixed: Vec<InputValue>,
    pub timing: BenchOptions,
    /// Threads of each session; one for each core if it is not given.
    pub threads: Option<NonZeroUsize>,
    pub device: DeviceRequest,
    pub gpu: GpuOptions,
    /// Runs of each model for the profile; 0 for none.
    pub profile: usize,
    pub baseline: Option<Baseline>,
    pub seed: u64,
    pub ort_lib: Option<PathBuf>,
}

/// A model to measure, as it was read.
pub(super) struct Loaded {
    pub name: String,
    pub path: PathBuf,
    pub model: Model,
}

/// The layout for convolutions is left out where there are none: see [`SessionOptions::without_nchwc`].
pub(super) fn session_options(options: &SessionOptions, model: &Model) -> SessionOptions {
    let convolves = (model.graph.nodes()).any(|(_, n)| n.op().name().contains("Conv"));
    SessionOptions {
        without_nchwc: !convolves,
        ..*options
    }
}

/// The models, a baseline before the others.
pub(super) fn load(request: &Request) -> Result<Vec<Loaded>, BenchError> {
    let names = request.names.iter().cloned().map(Some);
    let mut given: Vec<(PathBuf, Option<String>)> = (request.models.iter().cloned())
        .zip(names.chain(std::iter::repeat(None)))
        .collect();
    if let Some(baseline) = request.baseline.as_ref().filter(|b| b.is_model()) {
        // One that is one of several models is measured once.
        let among = given.iter().position(|(path, _)| *path == baseline.path);
        let first = match among.filter(|_| given.len() > 1) {
            Some(at) => given.remove(at),
            None => (baseline.path.clone(), None),
        };
        given.insert(0, first);
    }
    let (paths, names): (Vec<PathBuf>, Vec<Option<String>>) = given.into_iter().unzip();
    let named = names::named(&paths, &names).into_iter().zip(&paths);
    let load = |(name, given): (String, &PathBuf)| {
        let path = bundle::find_model_for(given, request.device)?;
        let model = onnx::read(&path)?;
        Ok(Loaded { name, path, model })
    };
    named.map(load).collect()
}

/// The bytes of a model's file, or of its weights where they are apart and more.
pub(super) fn bytes(path: &Path, model: &Model) -> u64 {
    let file = std::fs::metadata(path).map_or(0, |m| m.len());
    let constants = model.graph.values().filter_map(|(_, v)| v.constant());
    file.max(constants.map(|t| t.byte_len() as u64).sum())
}

type Named = Vec<(String, kiln_graph::Tensor)>;

/// Inputs of a model at a point, and how many items they are.
pub(super) fn inputs(
    request: &Request,
    model: &Model,
    session: &Session,
    point: &Point,
) -> Result<(Named, usize), BenchError> {
    let fixed = Fixed::known(&model.graph, &request.fixed, &[])?;
    if let Some(path) = &request.inputs {
        let mut npz = parity::Npz::open(path)?;
        let free: Vec<TensorInfo> = (session.inputs().iter())
            .filter(|i| fixed.get(&i.name).is_none())
            .cloned()
            .collect();
        let mut inputs = parity::from_npz(&mut npz, &free)?;
        fixed.complete(&mut inputs);
        let first = inputs.first().and_then(|(_, t)| t.dims().first());
        let batch = first.copied().unwrap_or(1);
        return Ok((inputs, batch));
    }
    let shapes = Shapes::new(&model.graph, &[], &[])?;
    let mut specs = shapes::specs(&model.graph, &shapes, point);
    specs.retain(|s| fixed.get(&s.name).is_none());
    let mut made = parity::make(&specs, request.seed)?;
    fixed.complete(&mut made);
    Ok((made, shapes.batch(point)))
}
