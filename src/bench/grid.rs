//! Models side by side over a grid of sizes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::Serialize;

use super::BenchError;
use super::Subject;
use super::axis::{shapes_of, spread};
use super::baseline::{self, Judged};
use super::loaded::{Loaded, Request, bytes, inputs, load, session_options};
use super::machine::Machine;
use super::measured::{BenchOptions, Measured};
use super::nodes::{Nodes, Placed};
use super::profile::Profile;
use super::report::BenchReport;
use crate::engine::{Work, work};
use crate::environment::{Environment, environment};
use crate::runtime::{self, Chosen, Runtime, Session, SessionOptions};
use crate::shapes::Point;
use crate::talk::Talk;

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
    let nodes = Nodes {
        request,
        runtime,
        options: &options,
        loaded: &loaded,
        talk,
    };
    let placements = match points.first().filter(|_| !device.device.is_cpu()) {
        Some(point) => nodes.placements(&point.sizes)?,
        None => Vec::new(),
    };
    let profiles = match points.last().filter(|_| request.profile > 0) {
        Some(point) => nodes.profiles(&point.sizes)?,
        None => Vec::new(),
    };
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

/// What the process holds more than before, in bytes.
fn grown(before: Option<u64>) -> Option<u64> {
    Some(resident()?.saturating_sub(before?))
}

/// The memory that the process holds, in bytes.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
