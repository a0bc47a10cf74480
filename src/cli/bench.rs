//! `kiln bench`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::device::DeviceArgs;
use super::engine;
use super::generation;
use super::progress::Terminal;
use super::{Failure, Globals, print_json};
use crate::bench::baseline::{Baseline, Verdict};
use crate::bench::{Axis, BenchOptions, Request, benchmark};
use crate::report;
use crate::runtime::GpuOptions;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// ONNX files or bundles; others are compared with the first.
    #[arg(required_unless_present = "watch")]
    models: Vec<PathBuf>,
    /// Sizes of a symbolic dimension to measure at: batch=1,8. Several make a grid.
    #[arg(long, value_name = "NAME=SIZES")]
    grid: Vec<Axis>,
    /// Inputs, as .npz, instead of a grid.
    #[arg(long, value_name = "DATA.npz", conflicts_with = "grid")]
    inputs: Option<PathBuf>,
    /// Give an input this value in all models that have it: sr=16000, speed=1.0, flag=true, widths=320,640, name=text. Can be
    /// given several times.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "engine")]
    input: Vec<crate::fixed::InputValue>,
    /// Runs of each model before the measurement.
    #[arg(long, value_name = "N", default_value_t = 10)]
    warmup: usize,
    /// Runs of each model at least.
    #[arg(long, value_name = "N", default_value_t = 30)]
    runs: usize,
    /// Seconds that each model is measured at least, at each point.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    duration: f64,
    /// Threads of each session [default: one for each core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Let FP32 products on the GPU round their operands to TF32.
    #[arg(long)]
    tf32: bool,
    /// Replay the kernels of a run as a CUDA graph.
    #[arg(long)]
    cuda_graph: bool,
    /// Count the copies of inputs to the GPU and of outputs from it.
    #[arg(long, conflicts_with = "cuda_graph")]
    include_copies: bool,
    #[command(flatten)]
    engine: engine::EngineArgs,
    /// Show where the time goes: by operator and by block.
    #[arg(long)]
    profile: bool,
    /// Fail if a model is slower than this one: a model or bundle, measured in the same run, or a .json that
    /// `kiln bench --json` printed.
    #[arg(long, value_name = "MODEL|FILE.json")]
    baseline: Option<PathBuf>,
    /// How much slower a model may be than the baseline.
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    max_regression: f64,
    /// A noisy measurement, which is neither slower nor fast enough for sure, fails too.
    #[arg(long)]
    strict: bool,
    /// Time generations instead, in turns: prompt=512,new=128. Models are decoders with a cache.
    #[arg(long, value_name = "SIZES", conflicts_with_all = ["grid", "inputs", "engine", "baseline", "profile"])]
    generate: Option<crate::generate::bench::Size>,
    /// Repetitions of a generation.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Write a report: .md, .html, .json, or .xml (JUnit). May be given several times.
    #[arg(long, value_name = "FILE")]
    report: Vec<report::Target>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `5%` or `5` as 0.05.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v / 100.0),
        _ => Err("write a percentage such as 5%".into()),
    }
}

/// Runs of each model for the profile: enough that a pause of the machine is a small part of them.
const PROFILED: usize = 20;

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    if let Some(size) = args.generate {
        return generation::bench(
            globals,
            generation::Bench {
                models: args.models,
                size,
                repetitions: args.repetitions,
                threads: args.threads,
                reports: args.report,
                json: args.json,
            },
        );
    }
    let duration = Duration::try_from_secs_f64(args.duration).map_err(Failure::usage)?;
    let timing = BenchOptions {
        warmup: args.warmup,
        min_runs: args.runs,
        max_runs: BenchOptions::default().max_runs.max(args.runs),
        min_duration: duration,
        batch: 1,
    };
    let device = args.device.request().choice.gpu();
    if args.models.is_empty() {
        return args.engine.watch(device);
    }
    if args.engine.engine {
        let common = engine::Common {
            bundles: args.models,
            axes: args.grid,
            timing,
            device,
            seed: args.seed,
            json: args.json,
        };
        return engine::run(globals, &args.engine, common);
    }
    let _watch = (args.engine.watch)
        .then(|| args.engine.beside(device))
        .transpose()?;
    let request = Request {
        models: args.models,
        axes: args.grid,
        inputs: args.inputs,
        fixed: args.input,
        timing,
        threads: args.threads,
        device: args.device.request(),
        gpu: GpuOptions {
            tf32: args.tf32,
            graph: args.cuda_graph,
            copies: args.include_copies,
        },
        profile: if args.profile { PROFILED } else { 0 },
        baseline: args.baseline.map(|path| Baseline {
            path,
            allowed: args.max_regression,
        }),
        seed: args.seed,
        ort_lib: globals.ort_lib.clone(),
    };
    let terminal = Terminal::new(globals.quiet);
    let done = benchmark(&request, &terminal);
    terminal.clear();
    let result = done?;
    for target in &args.report {
        target.write(&report::bench::Page(&result))?;
    }
    if args.json {
        print_json(&result)?;
    } else {
        for (title, header, rows) in report::bench::tables(&result) {
            globals.show(&format!("\n{title}\n\n{}", globals.table(&header, &rows)))?;
        }
    }
    let gate = result.gate.iter().flat_map(|g| &g.points);
    let failing = |v: Verdict| match v {
        Verdict::Pass => false,
        Verdict::Fail => true,
        Verdict::Unclear | Verdict::NotRun => args.strict,
    };
    let mut code = 0;
    for judged in gate.filter(|j| j.verdict != Verdict::Pass) {
        let sizes = report::bench::sizes(&judged.sizes);
        let line = format!("{} {sizes}: {}", judged.model, judged.why());
        match failing(judged.verdict) {
            true => globals.fail(line),
            false => globals.say(format!("kiln: {line}")),
        }
        code |= u8::from(failing(judged.verdict));
    }
    Ok(code)
}
