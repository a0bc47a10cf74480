//! `kiln bench`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::device::DeviceArgs;
use super::engine;
use super::generation_bench;
use super::progress::Terminal;
use super::{Export, Failure, Globals, help, print, print_json};
use crate::bench::baseline::{Baseline, Verdict};
use crate::bench::{Axis, BenchOptions, Benchmark, Request, benchmark};
use crate::generate;
use crate::gpu_check::{RESULTS, advice_for};
use crate::report;
use crate::runtime::{Device, GpuOptions};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// ONNX files or bundles; the others are compared with the first.
    #[arg(required_unless_present = "watch")]
    models: Vec<PathBuf>,
    /// What a model is called in tables and reports.
    ///
    /// In the order of the models [default: the shortest path that tells it from the others]. Can be given several times.
    #[arg(long, value_name = "NAME", conflicts_with = "engine", help_heading = help::INPUT)]
    name: Vec<String>,
    /// Fix an input in all models that have it: sr=16000, name=text.
    ///
    /// Forms: sr=16000, speed=1.0, flag=true, widths=320,640, name=text. Can be given several times.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "engine", help_heading = help::INPUT)]
    input: Vec<crate::fixed::InputValue>,
    /// Sizes of a symbolic dimension to measure at: batch=1,8.
    ///
    /// Several dimensions make a grid.
    #[arg(long, value_name = "NAME=SIZES", help_heading = help::SIZES)]
    grid: Vec<Axis>,
    /// Inputs, as .npz, instead of a grid.
    #[arg(long, value_name = "DATA.npz", conflicts_with = "grid", help_heading = help::DATA)]
    inputs: Option<PathBuf>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1, help_heading = help::DATA)]
    seed: u64,
    /// Runs of each model before the measurement.
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = help::MEASUREMENT)]
    warmup: usize,
    /// Runs of each model at least.
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = help::MEASUREMENT)]
    runs: usize,
    /// Seconds that each model is measured at least, at each point.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, help_heading = help::MEASUREMENT)]
    duration: f64,
    /// Time generations instead, in turns: prompt=512,new=128.
    ///
    /// The models are decoders, with a cache or without, and pairs of encoder and decoder by their generation.json; each is run token
    /// after token. --inputs holds a real prompt or source; --engine runs the engines of those that are bundles. Can be given several
    /// times.
    #[arg(long, value_name = "SIZES", conflicts_with_all = ["grid", "profile", "input"], help_heading = help::MEASUREMENT)]
    generate: Vec<generate::bench::Size>,
    /// Repetitions of a generation; with a baseline at least 7.
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = help::MEASUREMENT)]
    repetitions: usize,
    /// Show where the time goes: by operator and by block.
    #[arg(long, help_heading = help::MEASUREMENT)]
    profile: bool,
    /// Fail if a model is slower than this one.
    ///
    /// A model or bundle, which is measured first in the same run, or a .json that `kiln bench --json` printed.
    #[arg(long, value_name = "MODEL|FILE.json", help_heading = help::MEASUREMENT)]
    baseline: Option<PathBuf>,
    /// How much slower a model may be than the baseline.
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent, help_heading = help::MEASUREMENT)]
    max_regression: f64,
    /// Fail if a measurement is too noisy for a verdict.
    #[arg(long, help_heading = help::MEASUREMENT)]
    strict: bool,
    /// Write a report: .md, .html, .json, or .xml (JUnit).
    ///
    /// Can be given several times.
    #[arg(long, value_name = "FILE", value_parser = super::report_file(), help_heading = help::OUTPUT)]
    report: Vec<report::Target>,
    /// Write the numbers as CSV.
    ///
    /// To a file, or with `csv` alone to stdout instead of the tables.
    #[arg(long, value_name = "FILE.csv|csv", value_parser = OsStringValueParser::new().try_map(export),
          conflicts_with_all = ["json", "engine"], help_heading = help::OUTPUT)]
    export: Option<Export>,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Let FP32 products on the GPU round their factors to TF32.
    #[arg(long, help_heading = help::RUNTIME)]
    tf32: bool,
    /// Replay the kernels of a run as a CUDA graph.
    #[arg(long, help_heading = help::RUNTIME)]
    cuda_graph: bool,
    /// Count the copies of inputs to the GPU and of outputs from it.
    #[arg(long, conflicts_with = "cuda_graph", help_heading = help::RUNTIME)]
    include_copies: bool,
    #[command(flatten)]
    engine: engine::EngineArgs,
}

fn export(text: OsString) -> Result<Export, &'static str> {
    let path = PathBuf::from(text);
    match path.extension() {
        _ if path.as_os_str() == "csv" => Ok(Export::Stdout),
        Some(e) if e.eq_ignore_ascii_case("csv") => Ok(Export::File(path)),
        _ => Err("write csv, or a file that ends in .csv"),
    }
}

/// Names of models are as many as these at most, and all different.
fn named(names: &[String], models: usize) -> Result<(), Failure> {
    let twice = (names.iter().enumerate()).find(|(k, name)| names[..*k].contains(name));
    match twice {
        Some((_, name)) => Err(Failure::usage(anyhow!("--name {name} is given twice"))),
        None if names.len() > models => Err(Failure::usage(anyhow!(
            "{} names are given for {models} models",
            names.len()
        ))),
        None => Ok(()),
    }
}

/// `5%` or `5` as 0.05.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v / 100.0),
        _ => Err("write a percentage such as 5%".into()),
    }
}

fn show(globals: &Globals, result: &Benchmark) -> Result<(), Failure> {
    for (title, header, rows) in report::bench::tables(result) {
        globals.show(&format!("\n{title}\n\n{}", globals.table(&header, &rows)))?;
    }
    for note in report::bench::notes(result) {
        globals.show(&format!("  {note}\n"))?;
    }
    Ok(())
}

/// Runs of each model for the profile: enough that a pause of the machine is a small part of them.
const PROFILED: usize = 20;

/// `--generate`
fn generated(globals: &Globals, args: Args) -> Result<u8, Failure> {
    named(&args.name, args.models.len())?;
    let request = args.device.request();
    let place = match args.engine.engine {
        true => generate::Place::Engine(generate::Gpu {
            device: request.choice.gpu() as usize,
            libraries: globals.trt_lib.clone(),
        }),
        false => generate::Place::Device(request),
    };
    let asked = generation_bench::Asked {
        request: generate::bench::Request {
            models: args.models,
            names: args.name,
            sizes: args.generate,
            repetitions: args.repetitions,
            inputs: args.inputs,
            baseline: args.baseline.map(|path| Baseline {
                path,
                allowed: args.max_regression,
            }),
            seed: args.seed,
            options: generate::Options {
                ort_lib: globals.ort_lib.clone(),
                threads: args.device.threads,
                place,
                ..generate::Options::default()
            },
        },
        strict: args.strict,
        reports: args.report,
        export: args.export,
        json: args.json,
    };
    generation_bench::run(globals, asked)
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    if !args.generate.is_empty() {
        return generated(globals, args);
    }
    let duration = Duration::try_from_secs_f64(args.duration).map_err(Failure::usage)?;
    let timing = BenchOptions {
        warmup: args.warmup,
        min_runs: args.runs,
        max_runs: BenchOptions::default().max_runs.max(args.runs),
        min_duration: duration,
        ..BenchOptions::default()
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
    named(&args.name, args.models.len())?;
    let request = Request {
        models: args.models,
        names: args.name,
        axes: args.grid,
        inputs: args.inputs,
        fixed: args.input,
        timing,
        threads: args.device.threads,
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
    advise(globals, &result);
    for target in &args.report {
        target.write(&report::bench::Page(&result))?;
    }
    let csv = || report::bench::Page(&result).csv().map_err(Failure::usage);
    if let Some(Export::File(path)) = &args.export {
        report::write(path, &csv()?)?;
    }
    match (args.json, &args.export) {
        (true, _) => print_json(&result)?,
        (_, Some(Export::Stdout)) => print(&csv()?)?,
        _ => show(globals, &result)?,
    }
    let gate = result.gate.iter().flat_map(|g| &g.points);
    let failing = |v: Verdict| match v {
        Verdict::Pass => false,
        Verdict::Fail => true,
        Verdict::Unclear | Verdict::NotRun => args.strict,
    };
    let mut code = 0;
    for judged in gate.filter(|j| j.found.verdict != Verdict::Pass) {
        let sizes = report::bench::sizes(&judged.sizes);
        let line = format!("{} {sizes}: {}", judged.model, judged.why());
        match failing(judged.found.verdict) {
            true => globals.fail(line),
            false => globals.say(format!("kiln: {line}")),
        }
        code |= u8::from(failing(judged.found.verdict));
    }
    Ok(code)
}

/// What forms of models were measured to give on the GPU at hand.
fn advise(globals: &Globals, result: &Benchmark) {
    if let Device::Cuda(_) = result.device.device
        && let Some(told) = advice_for(Path::new(RESULTS), &result.device.why)
    {
        globals.say(format!("kiln: {told}"));
    }
}
