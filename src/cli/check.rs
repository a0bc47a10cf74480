//! `kiln check`

use std::path::PathBuf;

use super::progress::Terminal;
use super::{Failure, Globals, print, print_json, table::table};
use crate::check;
use crate::report;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// An ONNX file or a bundle.
    candidate: PathBuf,
    /// The model that is right.
    #[arg(long, value_name = "MODEL.onnx")]
    reference: PathBuf,
    /// Inputs, as .npz; otherwise they are made from the graph.
    #[arg(long, value_name = "DATA.npz")]
    inputs: Option<PathBuf>,
    /// fp32-exact, fp32-rewrite, fp16, bf16, int8, fp8 or int4 [default: by the candidate's types].
    #[arg(long, value_name = "NAME")]
    tolerance: Option<String>,
    /// Other limits for an output: logits:cosine=0.999,max_abs=1e-3.
    #[arg(long, value_name = "OUTPUT:METRIC=LIMIT")]
    limit: Vec<String>,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max) or seq=128.
    #[arg(long, value_name = "NAME=SIZES")]
    dim: Vec<crate::shapes::DimSpec>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let options = check::Options {
        candidate: args.candidate,
        reference: args.reference,
        inputs: args.inputs,
        tolerance: args.tolerance,
        limits: args.limit,
        dims: args.dim,
        seed: args.seed,
        ort_lib: globals.ort_lib.clone(),
    };
    let terminal = Terminal::new(globals.quiet);
    let done = check::check(&options, &terminal);
    terminal.clear();
    let result = done?;
    if args.json {
        print_json(&result)?;
    } else {
        let (header, rows) = report::parity_rows(&result);
        print(&table(&header, &rows))?;
        print(&format!("\n  parity   {}\n", report::verdict(&result)))?;
    }
    if !result.pass() {
        globals.say(format!("kiln: {}", report::failures(&result)));
    }
    Ok(if result.pass() { 0 } else { 1 })
}
