//! `kiln bisect`

use std::path::PathBuf;

use super::progress::Terminal;
use super::{Failure, Globals, print, print_json, table::table};
use crate::bisect::{self, Bisection, Culprit, Finding};
use crate::compile::{CompileError, Options, stages};
use crate::parity::{Report, Tolerance};
use crate::recipe::operator;
use crate::report;
use crate::shapes::{DimSpec, ShapeSpec};
use crate::targets::Targets;
use kiln_graph::Op;
use kiln_passes::registry;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The model: ONNX, with external data beside it if it has some.
    model: PathBuf,
    /// sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 (or several), or cpu [default: that of `kiln compile`].
    #[arg(long, value_name = "T[,T…]")]
    target: Option<Targets>,
    /// Convert to FP16 as `kiln compile --fp16` does. The conversion counts as one application.
    #[arg(long)]
    fp16: bool,
    /// Convert to BF16 as `kiln compile --bf16` does.
    #[arg(long, conflicts_with = "fp16")]
    bf16: bool,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max) or seq=128.
    #[arg(long, value_name = "NAME=SIZES")]
    dim: Vec<DimSpec>,
    /// Shape of an input: NAME=1x128, or NAME=1x16:8x128:32x512 (min:opt:max).
    #[arg(long, value_name = "NAME=SHAPE")]
    shape: Vec<ShapeSpec>,
    /// Inputs to compare on, as .npz, beside those that are made from the graph.
    #[arg(long, value_name = "DATA.npz")]
    inputs: Option<PathBuf>,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    passes: Option<String>,
    /// Keep the precision of nodes whose names match.
    #[arg(long, value_name = "REGEX")]
    keep: Option<regex::Regex>,
    /// Keep the precision of all nodes of these operators: Softmax, com.microsoft:Attention; can be given several times.
    #[arg(long, value_name = "OP[,OP…]", value_delimiter = ',', value_parser = operator)]
    keep_op: Vec<Op>,
    /// fp32-exact, fp32-rewrite, fp16, bf16, int8, fp8 or int4 [default: that of the precision asked for,
    /// else fp32-rewrite].
    #[arg(long, value_name = "NAME")]
    tolerance: Option<String>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let options = Options {
        targets: args.target,
        fp16: args.fp16,
        bf16: args.bf16,
        dims: args.dim,
        shapes: args.shape,
        inputs: args.inputs,
        passes: args.passes,
        keep: args.keep,
        keep_ops: args.keep_op,
        ort_lib: globals.ort_lib.clone(),
        seed: args.seed,
        ..Options::new(args.model)
    };
    let tolerance = match &args.tolerance {
        Some(name) => Tolerance::named(name).map_err(Failure::usage)?,
        None => stages::tolerance(&options, None)?,
    };
    let steps = stages::steps(&options).map_err(CompileError::from)?;
    let terminal = Terminal::new(globals.quiet);
    let done = bisect::bisect(&options, &steps, registry::LOWER, &tolerance, &terminal);
    terminal.clear();
    let bisection = done?;
    match args.json {
        true => print_json(&bisection)?,
        false => print(&render(&bisection))?,
    }
    Ok(match bisection.finding {
        Finding::Passes { .. } => 0,
        Finding::NotItself { .. } | Finding::Found(_) => 1,
    })
}

/// Lines of a diff that are shown; `--json` has all.
const SHOWN: usize = 120;

fn render(bisection: &Bisection) -> String {
    let all = bisection.applications;
    let runs = bisection.runs.iter();
    let rows: Vec<_> = runs
        .map(|run| {
            let verdict = if run.pass { "ok" } else { "FAIL" };
            vec![run.applications.to_string(), verdict.into()]
        })
        .collect();
    let mut out = table(&["applications", "parity"], &rows);
    out += &match &bisection.finding {
        Finding::Passes { parity } => format!(
            "\n{}\n  result   all {all} applications keep parity; there is nothing to find\n",
            measured(parity)
        ),
        Finding::NotItself { failure } => format!(
            "\n{}  result   the model differs from itself before any application\n  failure  {}\n",
            table_of(failure),
            worst(failure)
        ),
        Finding::Found(culprit) => found(culprit, all, bisection.runs.len()),
    };
    out
}

fn found(culprit: &Culprit, all: usize, runs: usize) -> String {
    let mut out = format!(
        "\n{}  result   parity breaks at application {} of {all}, found in {runs} runs\n",
        table_of(&culprit.failure),
        culprit.number
    );
    out += &format!("  pass     {}\n  node     {}\n", culprit.pass, culprit.node);
    out += &format!("  failure  {}\n\n", worst(&culprit.failure));
    let lines: Vec<&str> = culprit.diff.lines().collect();
    for line in lines.iter().take(SHOWN) {
        out += &format!("{line}\n");
    }
    if let Some(more @ 1..) = lines.len().checked_sub(SHOWN) {
        out += &format!("… and {more} lines more; --json has them all\n");
    }
    out
}

fn measured(parity: &Report) -> String {
    let (header, rows) = report::parity_rows(parity);
    table(&header, &rows)
}

/// The output that is furthest off, and how many fail besides.
fn worst(failure: &bisect::Failure) -> String {
    let bisect::Failure::Differs { parity } = failure else {
        return failure.to_string();
    };
    let Some(worst) = parity.worst() else {
        return failure.to_string();
    };
    let others = parity.cases.iter().flat_map(|c| &c.outputs);
    let failed = others.filter(|o| !o.comparison.pass()).count();
    let words = report::failed_output(worst.case, worst.output);
    match failed {
        0 | 1 => words,
        n => format!("{words}; and {} more", n - 1),
    }
}

fn table_of(failure: &bisect::Failure) -> String {
    match failure {
        bisect::Failure::Differs { parity } => measured(parity) + "\n",
        bisect::Failure::Refused { .. } => String::new(),
    }
}
