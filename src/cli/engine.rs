//! `kiln bench --engine` and `--watch`: what takes a GPU.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::progress::Terminal;
use super::{Failure, Globals, help, print_json};
use crate::bench::gpu::telemetry::Sampler;
use crate::bench::gpu::{self, Request};
use crate::bench::{Axis, BenchOptions};
use crate::engine::CudaError;
use crate::engine::run::{EngineRunError, RunOptions, unavailable};
use crate::nvidia::driver;
use crate::nvidia::gpus::{Probe, State};
use crate::report;

#[derive(clap::Args, Debug)]
#[command(next_help_heading = help::ENGINE)]
pub(super) struct EngineArgs {
    /// Time the engines of the bundles on the GPU.
    ///
    /// Instead of their models in ONNX Runtime.
    #[arg(long, conflicts_with_all = ["inputs", "profile", "baseline", "tf32", "include_copies", "report"])]
    pub(super) engine: bool,
    /// Numbers of runs at once, each in a CUDA stream of its own: 1,2,4.
    #[arg(
        long,
        value_name = "N[,N…]",
        value_delimiter = ',',
        requires = "engine"
    )]
    streams: Vec<usize>,
    /// Find the highest throughput within this latency.
    ///
    /// The 99th percentile of the latency is within so many milliseconds, over grid and streams.
    #[arg(long, value_name = "MS", requires = "engine")]
    latency_bound: Option<f64>,
    /// Show the time of each layer of the engines.
    #[arg(long, requires = "engine")]
    layers: bool,
    /// Queue the kernels of a run one by one, not as a CUDA graph.
    #[arg(long, requires = "engine")]
    no_graph: bool,
    /// Keep the kernels that TensorRT for RTX compiles when an engine is opened.
    #[arg(long, value_name = "FILE", requires = "engine")]
    runtime_cache: Option<PathBuf>,
    /// Print the GPU's power, clocks, temperature and memory.
    ///
    /// While something runs, or without models until it is stopped.
    #[arg(long)]
    pub(super) watch: bool,
    /// Seconds between readings.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 1.0,
        requires = "watch"
    )]
    interval: f64,
}

/// Runs of an engine to time its layers over.
const LAYER_RUNS: usize = 20;
/// Layers that are shown; `--json` has all.
const SHOWN: usize = 20;

/// The arguments that engines share with models.
pub(super) struct Common {
    pub(super) bundles: Vec<PathBuf>,
    pub(super) axes: Vec<Axis>,
    pub(super) timing: BenchOptions,
    pub(super) device: u32,
    pub(super) seed: u64,
    pub(super) json: bool,
}

pub(super) fn run(globals: &Globals, args: &EngineArgs, common: Common) -> Result<u8, Failure> {
    let _watch = (args.watch)
        .then(|| args.beside(common.device))
        .transpose()?;
    let request = Request {
        bundles: common.bundles,
        axes: common.axes,
        timing: common.timing,
        streams: args.streams.clone(),
        bound_ms: args.latency_bound,
        layers: if args.layers { LAYER_RUNS } else { 0 },
        run: RunOptions {
            device: common.device as usize,
            graph: !args.no_graph,
            cache: args.runtime_cache.clone(),
            libraries: globals.trt_lib.clone(),
        },
        seed: common.seed,
    };
    let terminal = Terminal::new(globals.quiet);
    let done = gpu::benchmark(&request, &terminal);
    terminal.clear();
    let result = done?;
    if common.json {
        print_json(&result)?;
        return Ok(0);
    }
    for (title, header, rows) in report::gpu::tables(&result, SHOWN) {
        globals.show(&format!("\n{title}\n\n{}", globals.table(&header, &rows)))?;
    }
    for line in report::gpu::notes(&result) {
        globals.show(&format!("  {line}\n"))?;
    }
    Ok(0)
}

impl EngineArgs {
    fn every(&self) -> Result<Duration, Failure> {
        Duration::try_from_secs_f64(self.interval).map_err(Failure::usage)
    }

    /// Watches in a thread of its own, on stderr, until it is dropped.
    pub(super) fn beside(&self, device: u32) -> Result<Beside, Failure> {
        let (probe, start, every) = (probe(device)?, Instant::now(), self.every()?);
        Ok(Beside(Some(Sampler::start(every, move || {
            let sample = probe.state().ok()?;
            eprintln!("{}", line(start.elapsed(), &sample));
            Some(sample)
        }))))
    }

    /// Watches until the process is stopped, or the GPU is gone.
    pub(super) fn watch(&self, device: u32) -> Result<u8, Failure> {
        let (probe, start, every) = (probe(device)?, Instant::now(), self.every()?);
        let gone = |e: String| Failure::usage(anyhow::anyhow!("the GPU cannot be watched: {e}"));
        loop {
            let sample = probe.state().map_err(gone)?;
            let mut out = io::stdout().lock();
            // Whoever reads has seen enough.
            if writeln!(out, "{}", line(start.elapsed(), &sample)).is_err() {
                return Ok(0);
            }
            std::thread::sleep(every);
        }
    }
}

/// A watch that ends when it is dropped.
pub(super) struct Beside(Option<Sampler>);

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(sampler) = self.0.take() {
            sampler.stop();
        }
    }
}

/// Looks at a CUDA device, without taking memory of it.
fn probe(device: u32) -> Result<Probe, Failure> {
    let missing = |e: CudaError| Failure::from(EngineRunError::Cuda(e));
    if let Some(why) = unavailable() {
        return Err(missing(why));
    }
    let gpus = driver::probe().map_err(|e| missing(e.into()))?.gpus;
    let (asked, count) = (device as usize, gpus.len());
    let gpu = gpus.get(asked);
    let gpu = gpu.ok_or_else(|| missing(CudaError::NoSuchDevice { asked, count }))?;
    Probe::new(gpu.uuid.as_deref()).map_err(|reason| {
        missing(CudaError::Call {
            what: "be watched by NVML (libnvidia-ml.so.1)",
            reason,
        })
    })
}

fn line(since: Duration, s: &State) -> String {
    let figure = |value: Option<f64>, unit: &str| match value {
        Some(v) => format!("{v:.0} {unit}"),
        None => format!("? {unit}"),
    };
    let held = match s.held.is_empty() {
        true => String::new(),
        false => format!("  held by {}", s.held.join(", ")),
    };
    format!(
        "{:>7.1} s  {:>6}  {:>9}  {:>5}  {:>10}  busy {:>5}{held}",
        since.as_secs_f64(),
        figure(s.power, "W"),
        figure(s.clock.map(f64::from), "MHz"),
        figure(s.temperature.map(f64::from), "°C"),
        figure(s.used.map(|b| b as f64 / (1 << 20) as f64), "MiB"),
        figure(s.busy.map(|b| b * 100.0), "%"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let sample = State {
            power: Some(312.4),
            clock: Some(1980),
            used: Some(3 << 30),
            held: vec!["power limit"],
            ..State::default()
        };
        let text = line(Duration::from_millis(1500), &sample);
        for part in [
            "1.5 s",
            "312 W",
            "1980 MHz",
            "? °C",
            "3072 MiB",
            "held by power limit",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
