//! `kiln compile`

use std::path::PathBuf;

use super::progress::Terminal;
use super::{Failure, Globals, print, print_json, table::table};
use crate::compile::{self, Options, Outcome};
use crate::report;
use crate::shapes::{DimSpec, ShapeSpec};
use crate::summary::bytes;
use crate::targets::Targets;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The model: ONNX, with external data beside it if it has some.
    model: PathBuf,
    /// Where the bundle goes [default: MODEL.kiln beside the model].
    #[arg(short, long, value_name = "BUNDLE")]
    output: Option<PathBuf>,
    /// sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 (several share one engine), or cpu
    /// [default: this machine's GPU, else sm_86,sm_89,sm_120].
    #[arg(long, value_name = "T[,T…]")]
    target: Option<Targets>,
    /// Convert to FP16, with FP32 kept where it must be.
    #[arg(long)]
    fp16: bool,
    /// Convert the graph's inputs and outputs too.
    #[arg(long, requires = "fp16")]
    fp16_io: bool,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max) or seq=128.
    #[arg(long, value_name = "NAME=SIZES")]
    dim: Vec<DimSpec>,
    /// Shape of an input: NAME=1x128, or NAME=1x16:8x128:32x512 (min:opt:max).
    #[arg(long, value_name = "NAME=SHAPE")]
    shape: Vec<ShapeSpec>,
    /// Inputs for the proof, as .npz; otherwise they are made from the graph.
    #[arg(long, value_name = "DATA.npz")]
    inputs: Option<PathBuf>,
    /// Build no engine.
    #[arg(long)]
    no_engine: bool,
    /// Prove and time nothing.
    #[arg(long)]
    no_check: bool,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    passes: Option<String>,
    /// Keep the precision of nodes whose names match.
    #[arg(long, value_name = "REGEX")]
    keep: Option<regex::Regex>,
    /// Write the model after a pass (or all) into a folder, as ONNX text.
    #[arg(long, num_args = 2, value_names = ["PASS|all", "DIR"])]
    dump_after: Vec<String>,
    /// Say why a pass did not apply where it came close.
    #[arg(long, value_name = "PASS")]
    explain: Option<String>,
    /// Seed of the inputs that are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    if let Some(pass) = &args.explain {
        kiln_passes::registry::find(pass).map_err(Failure::usage)?;
    }
    let dump_after = match args.dump_after.as_slice() {
        [pass, folder] => {
            if pass != "all" {
                kiln_passes::registry::find(pass).map_err(Failure::usage)?;
            }
            Some((pass.clone(), PathBuf::from(folder)))
        }
        _ => None,
    };
    let options = Options {
        output: args.output,
        targets: args.target,
        fp16: args.fp16,
        fp16_io: args.fp16_io,
        dims: args.dim,
        shapes: args.shape,
        inputs: args.inputs,
        engine: !args.no_engine,
        check: !args.no_check,
        passes: args.passes,
        keep: args.keep,
        dump_after,
        explain: args.explain.is_some(),
        ort_lib: globals.ort_lib.clone(),
        trt_lib: globals.trt_lib.clone(),
        seed: args.seed,
        ..Options::new(args.model)
    };
    let terminal = Terminal::new(globals.quiet);
    let done = compile::compile(&options, &terminal);
    terminal.clear();
    let outcome = done?;
    if let Some(pass) = &args.explain {
        explain(pass, &outcome)?;
    }
    match args.json {
        true => print_json(&outcome.manifest)?,
        false => print(&render(&outcome))?,
    }
    Ok(0)
}

fn explain(pass: &str, outcome: &Outcome) -> Result<(), Failure> {
    let mut misses: Vec<_> = outcome.misses.iter().filter(|m| m.pass == pass).collect();
    misses.sort_by_key(|m| std::cmp::Reverse(m.depth));
    let rows: Vec<Vec<String>> = (misses.iter().take(40))
        .map(|m| {
            vec![
                m.root.clone(),
                m.depth.to_string(),
                m.at.clone(),
                m.why.clone(),
            ]
        })
        .collect();
    print(&format!(
        "{pass}: {} near misses, deepest first\n",
        misses.len()
    ))?;
    print(&table(&["root", "depth", "stopped at", "why"], &rows))
}

fn render(outcome: &Outcome) -> String {
    let m = &outcome.manifest;
    let mut out = String::new();
    let applied: Vec<Vec<String>> = (m.passes.iter())
        .filter(|p| p.applications > 0)
        .map(|p| {
            vec![
                p.name.clone(),
                p.applications.to_string(),
                format!("{:.1}", p.milliseconds),
                p.nodes_after.to_string(),
            ]
        })
        .collect();
    out += &table(&["pass", "applied", "ms", "nodes"], &applied);
    if let Some(parity) = &m.parity {
        let (header, rows) = report::parity_rows(parity);
        out.push('\n');
        out += &table(&header, &rows);
    }
    if let Some(latency) = &m.latency {
        let (header, rows) = report::latency_rows(latency);
        out.push('\n');
        out += &table(&header, &rows);
    }
    out.push('\n');
    let sizes = format!(
        "{} → {}",
        bytes(m.source.bytes as usize),
        bytes(report::model_bytes(m) as usize)
    );
    out += &format!(
        "  model    {} nodes → {}, {sizes}\n",
        m.before.nodes, m.after.nodes
    );
    if m.precision == "fp16" {
        out += &format!(
            "  fp16     {} nodes converted, {} kept in FP32\n",
            m.converted,
            m.kept.len()
        );
    }
    match &m.engine {
        Some(e) => {
            out += &format!(
                "  engine   {} for {}: {} in {:.1} s\n",
                e.runtime,
                e.capabilities.join(", "),
                bytes(e.bytes as usize),
                e.parse_seconds + e.build_seconds
            );
        }
        None => out += "  engine   not built\n",
    }
    match &m.parity {
        Some(parity) => out += &format!("  parity   {}\n", report::verdict(parity)),
        None => out += "  parity   not run\n",
    }
    if m.engine.is_some() {
        out += &format!("  engine parity   {}\n", m.engine_parity);
    }
    out += &format!("  bundle   {}\n", outcome.bundle.display());
    out
}
