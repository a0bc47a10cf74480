//! `kiln check`

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;

use super::device::DeviceArgs;
use super::generation;
use super::judge::JudgeArgs;
use super::progress::Terminal;
use super::{Failure, Globals, NOT_PROVED, help, print_json};
use crate::check::{self, Against, Checked, Suspects};
use crate::parity::{self, Outcome, Preset, Report, Tolerance};
use crate::precision::Format;
use crate::report;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The result: an ONNX file or a bundle.
    #[arg(required_unless_present = "saved")]
    candidate: Option<PathBuf>,
    /// The original, which is right.
    #[arg(long, value_name = "MODEL.onnx", required_unless_present_any = ["golden", "saved"], help_heading = help::INPUT)]
    reference: Option<PathBuf>,
    /// Inputs and right outputs that --record wrote, instead of --reference.
    #[arg(long, value_name = "DATA.npz", conflicts_with_all = ["reference", "record", "layers", "bisect", "inputs", "judge"],
          help_heading = help::INPUT)]
    golden: Option<PathBuf>,
    /// Judge a saved result again, without running anything.
    ///
    /// The result is what --json printed; --tolerance and --limit give other limits.
    #[arg(long, value_name = "RESULT.json", help_heading = help::INPUT,
          conflicts_with_all = ["candidate", "reference", "golden", "record", "layers", "bisect", "inputs", "require", "report", "judge"])]
    saved: Option<PathBuf>,
    /// Fix an input: sr=16000, flag=true, name=text.
    ///
    /// Forms: sr=16000, speed=1.0, flag=true, widths=320,640, name=text [default: what a bundle was compiled with]. Can be given
    /// several times.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with_all = ["golden", "saved"], help_heading = help::INPUT)]
    input: Vec<crate::fixed::InputValue>,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max) or seq=128.
    #[arg(long, value_name = "NAME=SIZES", help_heading = help::SIZES)]
    dim: Vec<crate::shapes::DimSpec>,
    /// Real inputs, as .npz; otherwise they are made from the graph.
    #[arg(long, value_name = "DATA.npz", help_heading = help::DATA)]
    inputs: Option<PathBuf>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1, help_heading = help::DATA)]
    seed: u64,
    /// Save the typical inputs and the outputs of the reference.
    #[arg(long, value_name = "DATA.npz", help_heading = help::DATA)]
    record: Option<PathBuf>,
    /// How close outputs must be.
    ///
    /// [default: by the candidate's types, or that of --saved]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Preset::names()), help_heading = help::PROOF)]
    tolerance: Option<String>,
    /// Other limits for an output: logits:cosine=0.999,max_abs=1e-3.
    #[arg(long, value_name = "OUTPUT:METRIC=LIMIT", help_heading = help::PROOF)]
    limit: Vec<String>,
    /// Fail unless products are computed in this precision, or the engine is right on a GPU.
    ///
    /// A precision (fp32, fp16, bf16, int8, fp8, int4): the engine, or else the model, computes products in it. engine-parity:
    /// the bundle's engine runs on a GPU of this machine and is right. Can be given for both.
    #[arg(long, value_name = "PRECISION|engine-parity", value_parser = required, help_heading = help::PROOF)]
    require: Vec<Required>,
    /// Prove a generation of N tokens instead.
    ///
    /// Scores at each step, tokens, caches, rows of unequal lengths, the end of the capacity. Both models are decoders with a
    /// cache, or pairs behind an encoder. --inputs has what the encoder reads, or the tokens of a prompt.
    #[arg(long, value_name = "N", help_heading = help::PROOF,
          conflicts_with_all = ["golden", "record", "saved", "layers", "bisect", "pieces", "judge"])]
    generate: Option<usize>,
    /// Run both models piece by piece, where they are too large to be run whole.
    ///
    /// Each piece, such as a layer of a decoder, is alone in memory and is given the original's numbers.
    #[arg(long, conflicts_with_all = ["golden", "record", "saved", "inputs", "layers", "bisect", "judge"], help_heading = help::PROOF)]
    pieces: bool,
    /// Compare a CUDA graph of the result, replayed as it serves, too.
    ///
    /// With all of ONNX Runtime's optimizations, and inputs and outputs in the GPU's memory.
    #[arg(long, conflicts_with_all = ["golden", "saved", "pieces", "generate"], help_heading = help::PROOF)]
    cuda_graph: bool,
    #[command(flatten)]
    judge: JudgeArgs,
    /// Write a report: .md, .html, .json, or .xml (JUnit).
    ///
    /// Can be given several times.
    #[arg(long, value_name = "FILE", value_parser = super::report_file(), help_heading = help::OUTPUT)]
    report: Vec<report::Target>,
    /// Print JSON.
    #[arg(long, help_heading = help::OUTPUT)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Find the first tensor that diverges.
    ///
    /// With its node and the ranges of what the node reads.
    #[arg(long, help_heading = help::DIAGNOSTICS)]
    layers: bool,
    /// If a bundle's outputs differ, find the application of a pass that did it.
    ///
    /// The bundle is made again, with ever fewer applications.
    #[arg(long, help_heading = help::DIAGNOSTICS)]
    bisect: bool,
}

/// What a result must have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Required {
    Precision(Format),
    EngineParity,
}

impl Required {
    /// The precision among what is required.
    pub(super) fn precision(all: &[Required]) -> Option<Format> {
        all.iter().find_map(|r| match r {
            Required::Precision(p) => Some(*p),
            Required::EngineParity => None,
        })
    }

    pub(super) fn engine_parity(all: &[Required]) -> bool {
        all.iter().any(|r| matches!(r, Required::EngineParity))
    }
}

pub(super) fn required(text: &str) -> Result<Required, String> {
    if text == "engine-parity" {
        return Ok(Required::EngineParity);
    }
    let found = Format::from_str(text, true).map(Required::Precision);
    found.map_err(|_| {
        let names = Format::ALL.map(Format::name).join(", ");
        format!("one of: {names}, engine-parity")
    })
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    if let Some(path) = &args.saved {
        return again(globals, &args, path);
    }
    if let Some(steps) = args.generate {
        return generation::check(
            globals,
            generation::Check {
                candidate: args.candidate.unwrap_or_default(),
                reference: args.reference,
                steps,
                tolerance: args.tolerance,
                limits: args.limit,
                seed: args.seed,
                inputs: args.inputs,
                reports: args.report,
                json: args.json,
            },
        );
    }
    let against = match (args.reference, args.golden) {
        (Some(path), _) => Against::Reference(path),
        (None, Some(path)) => Against::Golden(path),
        (None, None) => {
            return Err(Failure::usage(anyhow::anyhow!(
                "--reference or --golden is needed"
            )));
        }
    };
    let options = check::Options {
        candidate: args.candidate.unwrap_or_default(),
        against,
        record: args.record,
        inputs: args.inputs,
        fixed: args.input,
        tolerance: args.tolerance,
        limits: args.limit,
        require: Required::precision(&args.require),
        require_engine_parity: Required::engine_parity(&args.require),
        cuda_graph: args.cuda_graph,
        device: args.device.request(),
        trt_lib: globals.trt_lib.clone(),
        layers: args.layers,
        pieces: args.pieces,
        bisect: args.bisect.then_some(Suspects::Recipe),
        judge: args.judge.asked(),
        dims: args.dim,
        seed: args.seed,
        ort_lib: globals.ort_lib.clone(),
    };
    let terminal = Terminal::new(globals.quiet);
    let done = check::check(&options, &terminal);
    terminal.clear();
    let result = done?;
    for target in &args.report {
        target.write(&report::check::Page(&result))?;
    }
    match args.json {
        true => print_json(&result)?,
        false => show(globals, &result)?,
    }
    say_parity(globals, &result.parity);
    if let Some(p) = result.precision.as_ref().filter(|p| !p.present) {
        globals.fail(p.describe());
    }
    if let Some(why) = result.unproved_engine() {
        globals.fail(why);
    }
    if let Some(graph) = result.cuda_graph.as_ref().filter(|g| g.failed()) {
        globals.fail(format!("CUDA graph: {graph}"));
    }
    if let Some(judge) = result.judge.as_ref().filter(|j| !j.pass) {
        globals.fail(format!("judge: {}", judge.why));
    }
    match (result.fallback(), result.device.asked) {
        (Some(why), true) => globals.fail(why),
        (Some(why), false) => globals.say(format!("kiln: {why}")),
        (None, _) => {}
    }
    Ok(match (result.pass(), result.failed()) {
        (true, _) => 0,
        (_, true) => 1,
        _ => NOT_PROVED,
    })
}

fn show(globals: &Globals, result: &Checked) -> Result<(), Failure> {
    show_parity(globals, &result.parity)?;
    let mut lines = report::check::facts(result);
    lines.extend((result.precision.iter()).map(|p| format!("precision {}", p.describe())));
    lines.extend(result.layers.iter().flat_map(report::check::layers));
    for line in lines {
        globals.show(&format!("  {line}\n"))?;
    }
    match &result.bisection {
        Some(found) => globals.show(&format!("\n{}", report::check::bisection(found))),
        None => Ok(()),
    }
}

fn show_parity(globals: &Globals, parity: &Report) -> Result<(), Failure> {
    globals.show(&globals.parity(parity))?;
    globals.show(&format!("\n  parity   {}\n", parity::verdict(parity)))
}

fn say_parity(globals: &Globals, parity: &Report) {
    if parity.failed() {
        globals.fail(parity::failures(parity));
    }
    for doubt in parity::doubts(parity) {
        match parity.pass() {
            true => globals.say(format!("kiln: {doubt}")),
            false => globals.fail(doubt),
        }
    }
}

fn again(globals: &Globals, args: &Args, path: &std::path::Path) -> Result<u8, Failure> {
    let named = args.tolerance.as_deref().map(Tolerance::named);
    let named = named.transpose().map_err(Failure::usage)?;
    let parity = check::judge_again(path, named, &args.limit).map_err(Failure::usage)?;
    match args.json {
        true => print_json(&parity)?,
        false => show_parity(globals, &parity)?,
    }
    say_parity(globals, &parity);
    Ok(match parity.outcome() {
        Outcome::Passes => 0,
        Outcome::Fails => 1,
        Outcome::NotProved => NOT_PROVED,
    })
}
