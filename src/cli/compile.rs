//! `kiln compile`

use std::cmp::Reverse;
use std::path::PathBuf;

use kiln_graph::Op;

use super::progress::Terminal;
use super::{Failure, Globals, known_pass, print, print_json, table::table};
use crate::compile::{self, Options, Outcome};
use crate::manifest::{Explained, Missed};
use crate::recipe::{
    self, Dialect, Floats, Gates, Latency, Linear, Parity, Precision, Recipe, Size, Sizes, operator,
};
use crate::report;
use crate::shapes::{DimSpec, ShapeSpec, SpecError};
use crate::summary::bytes;
use crate::targets::Targets;

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("half").args(["fp16", "bf16"])))]
pub(super) struct Args {
    /// The model: ONNX, with external data beside it if it has some.
    #[arg(required_unless_present = "recipe")]
    model: Option<PathBuf>,
    /// A recipe (.yaml), or the manifest.json of a bundle that is to be made again. Options lie over it.
    #[arg(short = 'c', long = "recipe", value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Where the bundle goes [default: MODEL.kiln beside the model].
    #[arg(short, long, value_name = "BUNDLE")]
    output: Option<PathBuf>,
    /// sm_75, sm_80, sm_86, sm_89, sm_120, sm_121 (several share one engine), or cpu
    /// [default: this machine's GPU, else sm_86,sm_89,sm_120].
    #[arg(long, value_name = "T[,T…]")]
    target: Option<Targets>,
    /// Operators to write: the target's own (ONNX Runtime's com.microsoft, TensorRT's operator set 23), or standard for
    /// plain ONNX that any runtime takes.
    #[arg(long, value_name = "DIALECT [default: target]", value_parser = ["target", "standard"])]
    dialect: Option<String>,
    /// Convert to FP16, with FP32 kept where it must be.
    #[arg(long)]
    fp16: bool,
    /// Convert to BF16, with FP32 kept where it must be (sm_80 and newer).
    #[arg(long, conflicts_with = "fp16")]
    bf16: bool,
    /// Multiply in 8-bit integers in linear layers, with ranges of activations from calibration (static), or of each run
    /// (dynamic, ONNX Runtime only).
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "static",
          value_parser = ["static", "dynamic"], conflicts_with_all = ["int4", "fp8"])]
    int8: Option<String>,
    /// Multiply in FP8 (E4M3) in linear layers (sm_89 and newer).
    #[arg(long, conflicts_with = "int4")]
    fp8: bool,
    /// Real inputs, to measure the ranges of activations: .npz, .npy, a folder of them, or lines of text with --tokenizer.
    /// Samples behind the last that is measured prove the result.
    #[arg(long, value_name = "DATA")]
    calibrate: Option<PathBuf>,
    /// The model's tokenizer.json, for --calibrate with text.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The most samples to measure on [default: 128].
    #[arg(long, value_name = "N")]
    calibration_samples: Option<usize>,
    /// Keep what was measured in this file, for the same model and data.
    #[arg(long, value_name = "FILE")]
    calibration_cache: Option<PathBuf>,
    /// Store the weights of linear layers in 4 bits, with a scale for each block of rows (a power of two from 16 on).
    #[arg(long, value_name = "BLOCK", num_args = 0..=1, require_equals = true, default_missing_value = "32")]
    int4: Option<usize>,
    /// Convert the graph's inputs and outputs too.
    #[arg(long, visible_aliases = ["fp16-io", "bf16-io"])]
    half_io: bool,
    /// Sizes of a symbolic dimension: batch=1:8:32 (min:opt:max) or seq=128.
    #[arg(long, value_name = "NAME=SIZES")]
    dim: Vec<DimSpec>,
    /// Shape of an input: NAME=1x128, or NAME=1x16:8x128:32x512 (min:opt:max).
    #[arg(long, value_name = "NAME=SHAPE", value_parser = shape)]
    shape: Vec<(String, String)>,
    /// Inputs for the proof, as .npz; otherwise they are made from the graph.
    #[arg(long, value_name = "DATA.npz")]
    inputs: Option<PathBuf>,
    /// Build no engine.
    #[arg(long)]
    no_engine: bool,
    /// Prove and time nothing.
    #[arg(long)]
    no_check: bool,
    /// Prove, but time nothing.
    #[arg(long)]
    no_latency: bool,
    /// Passes to run: default,-fuse-gelu or fold-constants,fuse-gelu.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    passes: Option<String>,
    /// Fail where the result is out of tolerance, instead of searching nodes that must keep their precision.
    #[arg(long)]
    no_search: bool,
    /// Keep the precision of nodes whose names match.
    #[arg(long, value_name = "REGEX")]
    keep: Option<regex::Regex>,
    /// Keep the precision of all nodes of these operators: Softmax, com.microsoft:Attention; can be given several times.
    #[arg(long, value_name = "OP[,OP…]", value_delimiter = ',', value_parser = operator)]
    keep_op: Vec<Op>,
    /// fp32-exact, fp32-rewrite, fp16, bf16, int8, fp8 or int4 [default: that of the precision].
    #[arg(long, value_name = "NAME")]
    tolerance: Option<String>,
    /// Fail if the median latency in ONNX Runtime is more than this part of the original's.
    #[arg(long, value_name = "RATIO")]
    max_latency_ratio: Option<f64>,
    /// Fail if model.onnx has more bytes than this part of the original.
    #[arg(long, value_name = "RATIO")]
    max_size_ratio: Option<f64>,
    /// Write the model after a pass (or all) into a folder, as ONNX text.
    #[arg(long, num_args = 2, value_names = ["PASS|all", "DIR"])]
    dump_after: Vec<String>,
    /// Say where a pass (or all) came close and what stopped it; can be given several times.
    #[arg(long, value_name = "PASS|all", value_parser = known_pass)]
    explain: Vec<String>,
    /// Seed of the inputs that are made [default: 1].
    #[arg(long)]
    seed: Option<u64>,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
}

/// The command line as a recipe.
fn given(args: Args) -> Recipe {
    let (int8, fp8, int4) = (args.int8.as_deref(), args.fp8, args.int4);
    Recipe {
        model: args.model,
        sha256: None,
        output: args.output,
        target: args.target.map(|t| recipe::Targets::One(t.to_string())),
        dialect: args.dialect.map(|dialect| match dialect.as_str() {
            "standard" => Dialect::Standard,
            _ => Dialect::Target,
        }),
        precision: Precision {
            floats: match (args.fp16, args.bf16) {
                (true, _) => Some(Floats::Fp16),
                (_, true) => Some(Floats::Bf16),
                _ => None,
            },
            linear: match (int8, fp8, int4) {
                (Some("dynamic"), ..) => Some(Linear::Int8Dynamic),
                (Some(_), ..) => Some(Linear::Int8),
                (_, true, _) => Some(Linear::Fp8),
                (.., Some(_)) => Some(Linear::Int4),
                _ => None,
            },
            int4_block: int4,
            half_io: args.half_io.then_some(true),
            keep: args.keep.map(|k| k.to_string()),
            keep_ops: args.keep_op.iter().map(operator_text).collect(),
            search: args.no_search.then_some(false),
        },
        calibration: recipe::Calibration {
            data: args.calibrate,
            tokenizer: args.tokenizer,
            cache: args.calibration_cache,
            samples: args.calibration_samples,
        },
        dims: (args.dim.into_iter())
            .map(|d| (d.name, Sizes::Range(d.range.to_string())))
            .collect(),
        shapes: args.shape.into_iter().collect(),
        inputs: args.inputs,
        seed: args.seed,
        passes: args.passes,
        engine: args.no_engine.then_some(false),
        check: args.no_check.then_some(false),
        latency: args.no_latency.then_some(false),
        gates: Gates {
            parity: Parity {
                tolerance: args.tolerance,
                ..Parity::default()
            },
            latency: Latency {
                max_ratio: args.max_latency_ratio,
            },
            size: Size {
                max_ratio: args.max_size_ratio,
                ..Size::default()
            },
        },
    }
}

/// As [`operator`] reads it.
fn operator_text(op: &Op) -> String {
    match op.domain() {
        "" => op.name().to_string(),
        domain => format!("{domain}:{}", op.name()),
    }
}

/// A shape as it was written, if it is one.
fn shape(text: &str) -> Result<(String, String), SpecError> {
    text.parse::<ShapeSpec>()?;
    let (name, shape) = text.rsplit_once('=').unwrap_or((text, ""));
    Ok((name.to_string(), shape.to_string()))
}

pub(super) fn run(globals: &Globals, args: Args) -> Result<u8, Failure> {
    let dump_after = match args.dump_after.as_slice() {
        [pass, folder] => {
            let pass = known_pass(pass).map_err(Failure::usage)?;
            Some((pass, PathBuf::from(folder)))
        }
        _ => None,
    };
    let base = match &args.recipe {
        Some(path) => recipe::read(path).map_err(Failure::usage)?,
        None => Recipe::default(),
    };
    let explained = args.explain.clone();
    let json = args.json;
    let recipe = given(args).over(&base).map_err(Failure::usage)?;
    let options = Options {
        dump_after,
        explain: explained,
        ort_lib: globals.ort_lib.clone(),
        trt_lib: globals.trt_lib.clone(),
        ..recipe::resolve(&recipe).map_err(Failure::usage)?
    };
    let terminal = Terminal::new(globals.quiet);
    let done = compile::compile(&options, &terminal);
    terminal.clear();
    let outcome = done?;
    match json {
        true => print_json(&outcome.manifest)?,
        false => {
            for explained in &outcome.manifest.explain {
                print(&explain(explained))?;
            }
            print(&render(&outcome))?;
        }
    }
    Ok(0)
}

/// Misses shown of one pass; `--json` has all.
const SHOWN: usize = 40;

fn explain(explained: &Explained) -> String {
    let Explained { pass, missed, .. } = explained;
    if !explained.ran {
        return format!("{pass}: it is not among the passes that ran\n\n");
    }
    let matched = explained.matched;
    if missed.is_empty() {
        return format!("{pass}: {matched} matched, and nothing came close without matching\n\n");
    }
    // Where there are too many, the deepest say most.
    let mut shown: Vec<(usize, &Missed)> = missed.iter().enumerate().collect();
    shown.sort_by_key(|(_, m)| Reverse(m.depth));
    shown.truncate(SHOWN);
    shown.sort_by_key(|(place, _)| *place);
    let row = |(_, m): &(usize, &Missed)| {
        vec![
            m.root.clone(),
            m.depth.to_string(),
            match m.stopped_at == m.root {
                true => "the root".into(),
                false => m.stopped_at.clone(),
            },
            m.why.clone(),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    let header = ["root", "depth", "stopped at", "why"];
    let more = match missed.len() - rows.len() {
        0 => String::new(),
        n => format!("  and {n} more, none deeper; --json has them all\n"),
    };
    format!(
        "{pass}: {matched} matched, {} did not\n{}{more}\n",
        missed.len(),
        table(&header, &rows)
    )
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
    } else if let Some(why) = m.latency_not_run {
        out += &format!("\n  latency  not run: {why}\n");
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
    let blocks = m.blocks.iter().filter(|b| b.found > 0);
    let blocks: Vec<String> = blocks
        .map(|b| format!("{} {} of {}", b.kind, b.fused, b.found))
        .collect();
    if !blocks.is_empty() {
        out += &format!("  fused    {}\n", blocks.join(", "));
    }
    if let Some(block) = m.options.int4_block {
        out += &format!(
            "  int4     weights of {} linear layers, blocks of {block}\n",
            m.quantized
        );
    }
    if !m.activations.is_empty() || m.options.int8.is_some() {
        let outliers: usize = m.activations.iter().map(|a| a.outliers).sum();
        out += &format!(
            "  {:<8} {} linear layers, {} ranges, {outliers} channels apart\n",
            m.precision.split('+').next().unwrap_or_default(),
            m.quantized,
            m.activations.len()
        );
    }
    if let Some(search) = &m.search {
        out += &format!(
            "  search   {} of {} nodes keep their precision, found by comparing {} models\n",
            search.kept.len(),
            search.layers,
            search.compared
        );
    }
    if let Some(half) = m.half() {
        out += &format!(
            "  {}     {} nodes converted, {} kept as they are\n",
            half.to_lowercase(),
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
