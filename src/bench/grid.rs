//! Models side by side over a grid of sizes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kiln_graph::{Model, onnx};
use schemars::JsonSchema;
use serde::Serialize;

use super::BenchError;
use super::Subject;
use super::baseline::{self, Baseline, Judged};
use super::machine::Machine;
use super::measured::{BenchOptions, Measured};
use super::names;
use super::profile::Profile;
use super::report::BenchReport;
use crate::bundle;
use crate::engine::{Work, work};
use crate::environment::{Environment, environment};
use crate::fixed::{Fixed, InputValue};
use crate::parity;
use crate::runtime::{
    self, Chosen, DeviceRequest, GpuOptions, Placement, Runtime, Session, SessionOptions,
    TensorInfo,
};
use crate::scratch::Temporary;
use crate::shapes::{self, DimSpec, Point, Range, Shapes, SpecError};
use crate::talk::Talk;

/// `NAME=1,8,32`: the sizes of a dimension to measure at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub name: String,
    pub sizes: Vec<usize>,
}

impl FromStr for Axis {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Axis, SpecError> {
        let fail = |why: &str| SpecError::Syntax {
            what: "list of sizes",
            text: text.to_string(),
            why: format!("{why}; write batch=1,8 or seq=32,128"),
        };
        let (name, sizes) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| fail("it names no dimension"))?;
        let sizes = sizes.split(',').map(|s| s.trim().parse().ok());
        let sizes: Option<Vec<usize>> = sizes.map(|s| s.filter(|&s| s > 0)).collect();
        Ok(Axis {
            name: name.to_string(),
            sizes: sizes.ok_or_else(|| fail("sizes are numbers above 0"))?,
        })
    }
}

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

/// What was measured.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Benchmark {
    pub kiln: &'static str,
    pub runtime: String,
    /// Where all models ran.
    pub device: Chosen,
    pub environment: Environment,
    /// Threads of each session, each bound to a core of its own.
    pub threads: usize,
    pub machine: Machine,
    pub models: Vec<Measured>,
    /// Where the nodes of each model ran, at the first point, if that was to be a GPU.
    pub placements: Vec<Placed>,
    pub points: Vec<PointReport>,
    pub profiles: Vec<Profile>,
    /// The verdicts of the gate, if there is a baseline.
    pub gate: Option<baseline::Gate>,
}

/// Where the nodes of one model ran.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Placed {
    pub model: String,
    #[serde(flatten)]
    pub placement: Placement,
}

/// All models at one point of the grid.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PointReport {
    pub sizes: Point,
    /// Of each model.
    pub work: Vec<Work>,
    /// The shortest time that this machine could take for each model's work in FP32, in nanoseconds.
    pub limits: Vec<f64>,
    pub measured: BenchReport,
}

impl PointReport {
    /// `batch=1 seq=128`, or nothing for a model of fixed sizes.
    pub fn label(&self) -> String {
        let sizes = self.sizes.iter().map(|(name, n)| format!("{name}={n}"));
        sizes.collect::<Vec<_>>().join(" ")
    }

    /// Whether a model is faster than the machine was when it was measured.
    pub fn is_beyond(&self) -> bool {
        let subjects = self.measured.subjects.iter().zip(&self.limits);
        subjects.into_iter().any(|(s, limit)| s.stats.p50 < *limit)
    }

    fn hold_against(&mut self, machine: &Machine) {
        self.limits = self.work.iter().map(|w| machine.limit(w)).collect();
    }
}

struct Loaded {
    name: String,
    path: PathBuf,
    model: Model,
}

/// Measures all models in turns at each point.
///
/// # Errors
/// When a model cannot be read or does not run at a size, when the grid names unknown dimensions, or the runtime is missing.
pub fn benchmark(request: &Request, talk: &dyn Talk) -> Result<Benchmark, BenchError> {
    talk.stage("read");
    let loaded = load(request)?;
    let runtime = Runtime::load(request.ort_lib.as_deref())?;
    let device = runtime.device(request.device)?;
    graphs(request, &device, talk);
    let threads = request.threads.map_or_else(runtime::threads, usize::from);
    let options = SessionOptions {
        intra_threads: NonZeroUsize::new(threads),
        pinned: true,
        device: device.device,
        gpu: request.gpu,
        ..SessionOptions::default()
    };
    talk.stage("machine");
    let mut machine = Machine::measure(runtime, &options, threads)?;
    let mut models = Vec::new();
    let mut sessions = Vec::new();
    for l in &loaded {
        talk.stage(&format!("load {}", l.name));
        let before = resident();
        let options = session_options(&options, &l.model);
        let session = Session::from_path(runtime, &l.path, &options)?;
        models.push(Measured {
            name: l.name.clone(),
            path: l.path.display().to_string(),
            bytes: bytes(&l.path, &l.model),
            nodes: l.model.graph.nodes().count(),
            resident: grown(before),
            running: None,
        });
        sessions.push(session);
    }
    let mut points: Vec<PointReport> = Vec::new();
    let mut gate = request
        .baseline
        .as_ref()
        .map(|b| b.open(&machine))
        .transpose()?;
    let grid = grid(request, &loaded)?;
    for point in &grid {
        let label: Vec<String> = point.iter().map(|(k, v)| format!("{k}={v}")).collect();
        talk.stage(&format!("measure {}", label.join(" ")));
        talk.done(points.len(), grid.len());
        let report = measure(
            request,
            &loaded,
            &mut sessions,
            &machine,
            point,
            &mut models,
            gate.as_mut(),
        )?;
        for warning in &report.measured.warnings {
            talk.warn(&format!("{}: {warning}", label.join(" ")));
        }
        points.push(report);
    }
    if points.iter().any(PointReport::is_beyond) {
        talk.stage("machine, again");
        machine = machine.max(Machine::measure(runtime, &options, threads)?);
        points.iter_mut().for_each(|p| p.hold_against(&machine));
    }
    let placements = match points.first() {
        Some(point) if !device.device.is_cpu() => {
            placements(request, runtime, &options, &loaded, &point.sizes, talk)?
        }
        _ => Vec::new(),
    };
    let mut profiles = Vec::new();
    if request.profile > 0
        && let Some(point) = points.last()
    {
        if !options.device.is_cpu() {
            talk.warn(LAUNCHES);
        }
        for l in &loaded {
            talk.stage(&format!("profile {}", l.name));
            profiles.push(profile(request, runtime, &options, l, &point.sizes)?);
        }
    }
    Ok(Benchmark {
        kiln: env!("CARGO_PKG_VERSION"),
        runtime: format!(
            "ONNX Runtime {}",
            runtime.version().unwrap_or("of unknown version")
        ),
        device,
        environment: environment(),
        threads,
        machine,
        models,
        placements,
        points,
        profiles,
        gate: gate.map(|g| g.gate),
    })
}

/// Says where no CUDA graph can be recorded.
fn graphs(request: &Request, device: &Chosen, talk: &dyn Talk) {
    if request.gpu.graph && device.device.is_cpu() {
        talk.warn(&format!(
            "no CUDA graph is recorded: ONNX Runtime runs on {device}"
        ));
    }
}

/// Where the nodes of each model run at a point; what falls back is told.
fn placements(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    loaded: &[Loaded],
    point: &Point,
    talk: &dyn Talk,
) -> Result<Vec<Placed>, BenchError> {
    let mut placements = Vec::new();
    for l in loaded {
        talk.stage(&format!("placement of {}", l.name));
        let placement = placement(request, runtime, options, l, point)?;
        if !placement.pass() {
            talk.warn(&format!("{}: {}", l.name, placement.describe()));
        }
        placements.push(Placed {
            model: l.name.clone(),
            placement,
        });
    }
    Ok(placements)
}

/// The layout for convolutions is left out where there are none: see [`SessionOptions::without_nchwc`].
fn session_options(options: &SessionOptions, model: &Model) -> SessionOptions {
    let convolves = (model.graph.nodes()).any(|(_, n)| n.op().name().contains("Conv"));
    SessionOptions {
        without_nchwc: !convolves,
        ..*options
    }
}

/// The models, a baseline before the others.
fn load(request: &Request) -> Result<Vec<Loaded>, BenchError> {
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

fn bytes(path: &Path, model: &Model) -> u64 {
    let file = std::fs::metadata(path).map_or(0, |m| m.len());
    let constants = model.graph.values().filter_map(|(_, v)| v.constant());
    file.max(constants.map(|t| t.byte_len() as u64).sum())
}

/// The points of the grid: every combination, the last axis fastest.
fn grid(request: &Request, loaded: &[Loaded]) -> Result<Vec<Point>, BenchError> {
    let Some(first) = loaded.first() else {
        return Ok(Vec::new());
    };
    let shapes = shapes_of(&first.model, &request.axes)?;
    let typical: Point = (shapes.ranges.iter())
        .map(|(name, r)| (name.clone(), r.opt))
        .collect();
    if request.inputs.is_some() {
        return Ok(vec![BTreeMap::new()]);
    }
    let mut points = spread(typical, &request.axes);
    points.iter_mut().for_each(|p| shapes.complete(p));
    Ok(points)
}

/// The ranges of a model's sizes, with the axes as the user's.
pub(super) fn shapes_of(model: &Model, axes: &[Axis]) -> Result<Shapes, SpecError> {
    let shapes = Shapes::new(&model.graph, &dims(axes), &[]);
    shapes.map_err(|e| match e {
        SpecError::UnknownDim { name, known } => SpecError::UnknownAxis { name, known },
        other => other,
    })
}

/// The sizes of axes as the user's.
fn dims(axes: &[Axis]) -> Vec<DimSpec> {
    let dims = axes.iter().filter_map(|a| {
        let (&min, &max) = (a.sizes.iter().min()?, a.sizes.iter().max()?);
        Some(DimSpec {
            name: a.name.clone(),
            range: Range { min, opt: min, max },
        })
    });
    dims.collect()
}

/// The points of a grid around a typical one: every combination, the last axis fastest.
pub(super) fn spread(typical: Point, axes: &[Axis]) -> Vec<Point> {
    let mut points = vec![typical];
    for axis in axes {
        let grown = points.iter().flat_map(|p| {
            axis.sizes.iter().map(|&n| {
                let mut p = p.clone();
                p.insert(axis.name.clone(), n);
                p
            })
        });
        points = grown.collect();
    }
    points
}

type Named = Vec<(String, kiln_graph::Tensor)>;

fn inputs(
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

/// Measurements that end without a verdict are repeated so often, each time twice as long.
const RETRIES: usize = 2;

fn measure(
    request: &Request,
    loaded: &[Loaded],
    sessions: &mut [Session],
    machine: &Machine,
    point: &Point,
    models: &mut [Measured],
    mut gate: Option<&mut baseline::Opened>,
) -> Result<PointReport, BenchError> {
    let mut fed = Vec::new();
    let mut batch = 1;
    for (l, session) in loaded.iter().zip(sessions.iter()) {
        let (inputs, items) = inputs(request, &l.model, session, point)?;
        batch = items;
        fed.push(inputs);
    }
    let work: Vec<Work> = (loaded.iter().zip(&fed))
        .map(|(l, inputs)| {
            let shapes = inputs.iter().map(|(n, t)| (n.clone(), t.dims().to_vec()));
            work(&l.model.graph, &shapes.collect::<Vec<_>>())
        })
        .collect();
    let mut subjects = Vec::new();
    for ((l, session), inputs) in loaded.iter().zip(sessions.iter_mut()).zip(&fed) {
        subjects.push(Subject::session(&l.name, session, inputs)?);
    }
    // Memory grows in the first run at larger sizes than before.
    for (subject, model) in subjects.iter_mut().zip(models.iter_mut()) {
        let before = resident();
        subject.run().map_err(|e| e.at(point))?;
        let held = model.running.or(model.resident);
        model.running = held.zip(grown(before)).map(|(a, b)| a + b);
    }
    let mut timing = BenchOptions {
        batch,
        ..request.timing
    };
    let mut measured = super::measure_pinned(&mut subjects, &timing)?;
    if let Some(gate) = gate.as_mut() {
        let mut judged = gate.judge(point, &measured, models);
        for _ in 0..RETRIES {
            if !judged.iter().any(Judged::is_unclear) {
                break;
            }
            timing.min_duration *= 2;
            timing.min_runs *= 2;
            timing.max_runs = timing.max_runs.max(timing.min_runs);
            measured = super::measure_pinned(&mut subjects, &timing)?;
            judged = gate.judge(point, &measured, models);
        }
        gate.gate.points.extend(judged);
    }
    Ok(PointReport {
        sizes: point.clone(),
        limits: work.iter().map(|w| machine.limit(w)).collect(),
        work,
        measured,
    })
}

fn profile(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    l: &Loaded,
    point: &Point,
) -> Result<Profile, BenchError> {
    let folder = Temporary::new().map_err(|source| BenchError::Io {
        path: std::env::temp_dir(),
        why: "a folder for the profile cannot be made",
        source,
    })?;
    let options = nodewise(options, &l.model);
    let file = folder.path().join("profile");
    let mut session = Session::profiled(runtime, &l.path, &options, &file)?;
    let (inputs, _) = inputs(request, &l.model, &session, point)?;
    for _ in 0..request.profile {
        session.bind(&inputs)?.run_discarding()?;
    }
    let written = session.end_profile()?;
    let read = Profile::read(&l.name, Path::new(&written), request.profile);
    Ok(read?)
}

/// What the process holds more than before, in bytes.
fn grown(before: Option<u64>) -> Option<u64> {
    Some(resident()?.saturating_sub(before?))
}

/// What ONNX Runtime's profile of a GPU is.
const LAUNCHES: &str = "the profile has the time that the host takes to launch kernels, not that in which the GPU runs them";

/// A replayed graph has no nodes that could be watched.
fn nodewise(options: &SessionOptions, model: &Model) -> SessionOptions {
    let mut options = session_options(options, model);
    options.gpu.graph = false;
    options
}

/// Where the nodes of a model run at a point, from one run of a session of its own.
fn placement(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    l: &Loaded,
    point: &Point,
) -> Result<Placement, BenchError> {
    let options = SessionOptions {
        watched: true,
        ..nodewise(options, &l.model)
    };
    let mut session = Session::from_path(runtime, &l.path, &options)?;
    session.excuse(shapes::derived(&l.model));
    let (inputs, _) = inputs(request, &l.model, &session, point)?;
    session.bind(&inputs)?.run_discarding()?;
    let placement = session.placement()?;
    placement.ok_or_else(|| {
        BenchError::Runtime(runtime::Error::Run {
            model: l.name.clone(),
            reason: "ONNX Runtime does not say where its nodes ran".into(),
        })
    })
}

/// The memory that the process holds, in bytes.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_a_name_and_sizes() {
        let axis: Axis = "batch=1, 8".parse().unwrap();
        assert_eq!(
            (axis.name.as_str(), &axis.sizes[..]),
            ("batch", &[1, 8][..])
        );
        for bad in ["batch", "=1", "batch=", "batch=0", "batch=1,x"] {
            assert!(bad.parse::<Axis>().is_err(), "{bad}");
        }
    }
}
