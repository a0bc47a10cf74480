//! Engines timed on the GPU: latency with its parts, throughput over streams, what the GPU drew and how far from its roof it is.

pub mod load;
mod opened;
pub mod telemetry;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_graph::{Model, Tensor, onnx};
use serde::Serialize;

use super::{Axis, BenchOptions, Stats};
use crate::bench::BenchError;
use crate::bundle;
use crate::engine::run::{EngineRunError, Facts, LayerTime, RunOptions, Session};
use crate::engine::{self, DataType, Paper};
use crate::engine::{Work, work};
use crate::environment::{Environment, environment};
use crate::manifest;
use crate::nvidia::gpus::Probe;
use crate::parity;
use crate::shapes::{self, Point, Shapes};
use crate::talk::Talk;

use crate::engine::card::{self, Card, Format};
use load::Load;
pub use opened::opened;
use telemetry::{Sampler, Telemetry};

/// What to time.
#[derive(Clone, Debug)]
pub struct Request {
    /// Bundles with an engine.
    pub bundles: Vec<PathBuf>,
    /// The grid; the typical sizes if it is empty.
    pub axes: Vec<Axis>,
    pub timing: BenchOptions,
    /// Numbers of streams to run at once; one is always timed.
    pub streams: Vec<usize>,
    /// The 99th percentile of the latency in milliseconds under which the throughput is to be as high as it can.
    pub bound_ms: Option<f64>,
    /// Runs to time the layers over; 0 for none.
    pub layers: usize,
    pub run: RunOptions,
    pub seed: u64,
}

/// What was timed.
#[derive(Clone, Debug, Serialize)]
pub struct GpuBenchmark {
    pub kiln: &'static str,
    pub environment: Environment,
    pub engines: Vec<EngineReport>,
}

/// One engine.
#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    pub name: String,
    pub facts: Facts,
    /// The format of its products, for the roofline.
    pub format: Format,
    /// The datasheet's peaks; `None` for a card that is not in the table.
    pub card: Option<Card>,
    pub points: Vec<EnginePoint>,
    /// The slowest layers first, at the last point.
    pub layers: Vec<LayerTime>,
    /// Of the points within the latency bound, the one with the highest throughput; `None` without a bound, or where no point
    /// keeps it.
    pub best: Option<Best>,
}

/// The highest throughput within a latency bound.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Best {
    pub bound_ms: f64,
    pub sizes: Point,
    pub streams: usize,
    pub throughput: f64,
    pub p99_ms: f64,
}

/// One engine at one point of the grid.
#[derive(Clone, Debug, Serialize)]
pub struct EnginePoint {
    pub sizes: Point,
    pub batch: usize,
    pub work: Work,
    /// Whether runs were launched as a CUDA graph.
    pub graph: bool,
    /// From the copy of the inputs to that of the outputs, on the host's clock, in nanoseconds.
    pub wall: Stats,
    /// Kernels alone, on the GPU's clock, in nanoseconds.
    pub compute: Stats,
    pub upload: Stats,
    pub download: Stats,
    /// Milliseconds to get ready for these sizes: to compile kernels, to make buffers, to run once, to capture the graph.
    pub prepare_ms: f64,
    /// Bytes of the GPU's memory that the engine and its buffers take, with one stream.
    pub memory: Option<u64>,
    pub loads: Vec<Load>,
    pub telemetry: Option<Telemetry>,
    /// The shortest time by the datasheet, in nanoseconds.
    pub limit: Option<f64>,
    /// What the engine's kernels take at least by their bytes, operations and launches, in nanoseconds; not measured.
    pub paper: Option<f64>,
    pub samples: Samples,
}

/// Every run of a point, in nanoseconds, in the order of measurement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Samples {
    pub wall: Vec<u64>,
    pub compute: Vec<u64>,
    pub upload: Vec<u64>,
    pub download: Vec<u64>,
}

/// How often the GPU is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Times the engines, one after the other.
///
/// # Errors
/// When a bundle has no engine, and when the engine does not run here: [`BenchError::Engine`].
pub fn benchmark(request: &Request, talk: &dyn Talk) -> Result<GpuBenchmark, BenchError> {
    let mut engines = Vec::new();
    for folder in &request.bundles {
        engines.push(engine_report(request, folder, talk)?);
    }
    Ok(GpuBenchmark {
        kiln: env!("CARGO_PKG_VERSION"),
        environment: environment(),
        engines,
    })
}

fn engine_report(
    request: &Request,
    folder: &Path,
    talk: &dyn Talk,
) -> Result<EngineReport, BenchError> {
    let name = folder.file_stem().unwrap_or_default().to_string_lossy();
    let plan_path = bundle::find_engine(folder)?;
    let failed = |source| BenchError::Io {
        path: plan_path.clone(),
        why: "the bundle's engine cannot be read",
        source,
    };
    let plan = std::fs::read(&plan_path).map_err(failed)?;
    let model_path = bundle::model_path(folder);
    let model = onnx::read(&model_path)?;
    talk.stage(&format!("open {name}"));
    let before = memory_before(request.run.device);
    let mut session = Session::open(&plan, Some(&model_path), &request.run)?;
    let facts = session.facts().clone();
    let card = card::find(&facts.device);
    let kernels = manifest::kernels(folder).ok().map(|engine| engine.kernels);
    let format = format(&model);
    let mut points = Vec::new();
    let mut last = None;
    for point in grid(request, &model)? {
        let label: Vec<String> = point.iter().map(|(k, v)| format!("{k}={v}")).collect();
        talk.stage(&format!("measure {name} {}", label.join(" ")));
        let shapes = Shapes::new(&model.graph, &[], &[])?;
        let specs = shapes::specs(&model.graph, &shapes, &point);
        let inputs = parity::make(&specs, request.seed)?;
        let sizes = inputs.iter().map(|(n, t)| (n.clone(), t.dims().to_vec()));
        let sizes: Vec<_> = sizes.collect();
        let work = work(&model.graph, &sizes);
        let paper = card.zip(kernels.as_ref()).and_then(|(card, kernels)| {
            let paper = Paper::new(kernels, &model.graph, &point, &sizes, &[card]);
            Some(paper.told()?.microseconds * 1e3)
        });
        let batch = shapes.batch(&point);
        let limit = card.and_then(|c| c.limit_ms(&work, format));
        let mut measured = measure(request, &mut session, &inputs, batch, before)?;
        measured.sizes = point;
        measured.work = work;
        measured.limit = limit.map(|ms| ms * 1e6);
        measured.paper = paper;
        points.push(measured);
        last = Some(inputs);
    }
    let layers = match last {
        Some(inputs) if request.layers > 0 => session.layers(&inputs, request.layers)?,
        _ => Vec::new(),
    };
    session.save_cache()?;
    Ok(EngineReport {
        name: name.into_owned(),
        facts,
        format,
        card: card.copied(),
        best: request.bound_ms.and_then(|bound| best(&points, bound)),
        points,
        layers,
    })
}

/// Bytes of the GPU's memory that are free before the engine is opened.
fn memory_before(device: usize) -> Option<usize> {
    let device = engine::Device::open(device).ok()?;
    Some(device.memory().ok()?.0)
}

/// The fastest format that the model's products are written in.
fn format(model: &Model) -> Format {
    let types = engine::precisions(model);
    let has = |t| types.contains(&t);
    if has(DataType::Float8) {
        Format::Fp8
    } else if has(DataType::Int8) {
        Format::Int8
    } else if has(DataType::Float16) || has(DataType::Bfloat16) {
        Format::Fp16
    } else {
        Format::Fp32
    }
}

fn grid(request: &Request, model: &Model) -> Result<Vec<Point>, BenchError> {
    let shapes = super::axis::shapes_of(model, &request.axes)?;
    let typical: Point = (shapes.ranges.iter())
        .map(|(name, r)| (name.clone(), r.opt))
        .collect();
    let mut points = super::axis::spread(typical, &request.axes);
    points.iter_mut().for_each(|p| shapes.complete(p));
    Ok(points)
}

fn measure(
    request: &Request,
    session: &mut Session,
    inputs: &[(String, Tensor)],
    batch: usize,
    before: Option<usize>,
) -> Result<EnginePoint, BenchError> {
    let timing = &request.timing;
    let start = Instant::now();
    session.bind(inputs)?;
    let prepare_ms = start.elapsed().as_secs_f64() * 1e3;
    for _ in 0..timing.warmup {
        session.run_bound()?;
    }
    let free = session.memory()?.0;
    let memory = before.map(|b| b.saturating_sub(free) as u64);
    // No telemetry rather than that of another GPU.
    let probe = Probe::new(session.facts().uuid.as_deref());
    let sampler = (probe.ok()).map(|p| Sampler::start(INTERVAL, move || p.state().ok()));
    let samples = latencies(timing, &mut || session.run_bound())?;
    let mut loads = Vec::new();
    let mut counts = vec![1];
    counts.extend(request.streams.iter().copied().filter(|&n| n > 1));
    for count in counts {
        let mut lanes = Vec::with_capacity(count);
        for _ in 0..count {
            let mut lane = session.fork()?;
            lane.bind(inputs)?;
            lanes.push(lane);
        }
        let start = Instant::now();
        let clock = || start.elapsed().as_nanos() as u64;
        let nanos = u64::try_from(timing.min_duration.as_nanos()).unwrap_or(u64::MAX);
        loads.extend(load::measure(
            &mut lanes,
            batch,
            nanos,
            timing.min_runs,
            &clock,
        )?);
    }
    let telemetry = sampler.map(Sampler::stop);
    let stats = |samples: &[u64]| {
        let nothing = EngineRunError::Inputs("nothing was measured".into());
        Stats::of(samples).ok_or(nothing)
    };
    Ok(EnginePoint {
        sizes: Point::new(),
        batch,
        work: Work::default(),
        graph: session.uses_graph(),
        wall: stats(&samples.wall)?,
        compute: stats(&samples.compute)?,
        upload: stats(&samples.upload)?,
        download: stats(&samples.download)?,
        prepare_ms,
        memory,
        loads,
        telemetry,
        limit: None,
        paper: None,
        samples,
    })
}

/// Runs one after the other, until there are enough.
fn latencies(
    timing: &BenchOptions,
    run: &mut dyn FnMut() -> Result<engine::run::Timing, EngineRunError>,
) -> Result<Samples, EngineRunError> {
    let mut samples = Samples::default();
    let nanos = |ms: f64| (ms * 1e6) as u64;
    let began = Instant::now();
    for done in 0..timing.max_runs.max(1) {
        if done >= timing.min_runs && began.elapsed() >= timing.min_duration {
            break;
        }
        let start = Instant::now();
        let timed = run()?;
        samples.wall.push(start.elapsed().as_nanos() as u64);
        samples.compute.push(nanos(timed.compute_ms));
        samples.upload.push(nanos(timed.upload_ms));
        samples.download.push(nanos(timed.download_ms));
    }
    Ok(samples)
}

/// Of all loads at all points, the one with the most items a second whose 99th percentile keeps the bound.
fn best(points: &[EnginePoint], bound_ms: f64) -> Option<Best> {
    let all = points
        .iter()
        .flat_map(|p| p.loads.iter().map(move |l| (p, l)));
    let within = all.filter(|(_, l)| l.latency.p99 <= bound_ms * 1e6);
    let best = within.max_by(|(_, a), (_, b)| a.throughput.total_cmp(&b.throughput));
    best.map(|(point, load)| Best {
        bound_ms,
        sizes: point.sizes.clone(),
        streams: load.streams,
        throughput: load.throughput,
        p99_ms: load.latency.p99 / 1e6,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engine::run::Timing;

    /// A point as a GPU would give it, from made samples.
    pub(crate) fn point(batch: usize, p99_ms: &[(usize, f64, f64)]) -> EnginePoint {
        let stats = |nanos| Stats::of(&[nanos]).unwrap();
        EnginePoint {
            sizes: Point::from([("batch".to_string(), batch)]),
            batch,
            work: Work {
                flops: 22_000_000_000,
                weight_bytes: 170_000_000,
                ..Work::default()
            },
            graph: true,
            wall: stats(400_000),
            compute: stats(300_000),
            upload: stats(20_000),
            download: stats(30_000),
            prepare_ms: 900.0,
            memory: Some(500 << 20),
            loads: (p99_ms.iter())
                .map(|&(streams, ms, throughput)| Load {
                    streams,
                    throughput,
                    latency: stats((ms * 1e6) as u64),
                    gpu: stats(300_000),
                })
                .collect(),
            telemetry: None,
            limit: Some(50_000.0),
            paper: Some(90_000.0),
            samples: Samples::default(),
        }
    }

    #[test]
    fn the_best_load_keeps_the_bound() {
        let points = [
            point(1, &[(1, 0.4, 2500.0), (4, 0.9, 6000.0)]),
            point(8, &[(1, 1.1, 9000.0), (4, 3.0, 20_000.0)]),
        ];
        let chosen = best(&points, 2.0).unwrap();
        assert_eq!((chosen.streams, chosen.throughput), (1, 9000.0));
        assert_eq!(chosen.sizes["batch"], 8);
        assert_eq!(best(&points, 0.1), None);
    }

    #[test]
    fn every_run_is_kept_with_its_parts() {
        let timing = BenchOptions {
            min_runs: 5,
            min_duration: Duration::ZERO,
            ..BenchOptions::default()
        };
        let mut run = || {
            Ok(Timing {
                upload_ms: 0.1,
                compute_ms: 0.5,
                download_ms: 0.2,
            })
        };
        let samples = latencies(&timing, &mut run).unwrap();
        assert_eq!(samples.compute, [500_000; 5]);
        assert_eq!((samples.upload[0], samples.download[4]), (100_000, 200_000));
        assert_eq!(samples.wall.len(), 5);
    }
}
