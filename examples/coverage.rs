//! What kiln fuses of the models in a folder, and whether the results still compute the same: `make coverage`.
//!
//! Each model is compiled twice: for ONNX Runtime's CPU provider in FP32, and for TensorRT in FP16 with engines for four
//! compute capabilities. Both are compared with the original on the example's inputs (`NAME.io.npz` beside it, if there),
//! and on made inputs around batch 3, at other lengths, with masks that pad every sample but the first.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiln::compile::{CompileError, Options, compile};
use kiln::engine::ComputeCapability;
use kiln::manifest::Manifest;
use kiln::parity::Comparison;
use kiln::precision::{Floats, Precision};
use kiln::shapes::{DimSpec, Shapes};
use kiln::summary::Found;
use kiln::talk::Silent;
use kiln::targets::Targets;

const KINDS: [&str; 5] = [
    "attention",
    "norms",
    "activations",
    "rotary",
    "packed projections",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: coverage FOLDER")?;
    let mut models: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    let scratch = tempfile::tempdir()?;
    let output = scratch.path().join("model.kiln");

    let mut cpu = Table::new("`--target cpu`, FP32", "max abs");
    let mut engines = Table::new("`--target sm_75,sm_86,sm_89,sm_120 --fp16`", "cosine");
    for model in &models {
        let name = model
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        eprintln!("{name}");
        cpu.add(&name, run(model, &output, Targets::Cpu, false));
        let capabilities = ["75", "86", "89", "120"]
            .iter()
            .filter_map(|n| format!("sm_{n}").parse::<ComputeCapability>().ok());
        engines.add(
            &name,
            run(
                model,
                &output,
                Targets::Engines(capabilities.collect()),
                true,
            ),
        );
    }
    println!("# Coverage\n");
    println!(
        "Written by `make coverage`: what kiln {} fuses of {} models, each as fused / found. An attention, a norm, an \
         activation or a rotary embedding is found by its most telling node, whether or not a fusion knows its form. \
         `example` and `others` are the worst number over all outputs, against the original in FP32 on ONNX Runtime, on \
         the example's inputs and on batches of 1 to 4 at other lengths with padded masks.\n",
        env!("CARGO_PKG_VERSION"),
        models.len(),
    );
    println!("{}\n{}", cpu.render(), engines.render());
    Ok(())
}

/// Compiles at batch 3 and another length than the example's. If that fails, at the sizes kiln finds, or else without a
/// proof, and keeps what went wrong.
fn run(model: &Path, output: &Path, targets: Targets, fp16: bool) -> Result<Row, CompileError> {
    let stem = model
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let example = stem
        .split('.')
        .next()
        .map(|n| model.with_file_name(format!("{n}.io.npz")));
    let options = Options {
        output: Some(output.to_path_buf()),
        targets: Some(targets),
        precision: Precision {
            floats: if fp16 { Floats::Fp16 } else { Floats::Fp32 },
            ..Precision::default()
        },
        dims: dims(model),
        inputs: example.filter(|p| p.exists()),
        latency: Some(false),
        ..Options::new(model)
    };
    let first = match compile(&options, &Silent) {
        Ok(done) => {
            return Ok(Row {
                manifest: done.manifest,
                note: None,
            });
        }
        Err(first) => first,
    };
    let found = Options {
        dims: Vec::new(),
        ..options.clone()
    };
    let made = Options {
        inputs: None,
        ..found.clone()
    };
    let unproved = Options {
        check: false,
        ..options
    };
    for other in [found, made, unproved] {
        if let Ok(done) = compile(&other, &Silent) {
            return Ok(Row {
                manifest: done.manifest,
                note: Some(first.to_string()),
            });
        }
    }
    Err(first)
}

/// A compiled model, and what went wrong at the sizes that were wanted.
struct Row {
    manifest: Manifest,
    note: Option<String>,
}

/// Around 3 for a batch, and lengths that differ from each other.
fn dims(model: &Path) -> Vec<DimSpec> {
    let Ok(original) = kiln_graph::onnx::read(model) else {
        return Vec::new();
    };
    let Ok(shapes) = Shapes::new(&original.graph, &[], &[]) else {
        return Vec::new();
    };
    let lengths = (0..).map(|k| 24 + 5 * k);
    let sizes = shapes.ranges.keys().zip(lengths).map(|(name, length)| {
        let batch = name.to_ascii_lowercase().contains("batch");
        match batch {
            true => format!("{name}=1:3:4"),
            false => format!("{name}=8:{length}:64"),
        }
    });
    sizes.filter_map(|spec| spec.parse().ok()).collect()
}

struct Table {
    title: &'static str,
    metric: &'static str,
    rows: Vec<(String, Result<Row, CompileError>)>,
}

impl Table {
    fn new(title: &'static str, metric: &'static str) -> Table {
        Table {
            title,
            metric,
            rows: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, result: Result<Row, CompileError>) {
        self.rows.push((name.to_string(), result));
    }

    fn render(&self) -> String {
        let engine = self.metric == "cosine";
        let mut out = format!("## {}\n\n| model | nodes |", self.title);
        for kind in KINDS {
            let _ = write!(out, " {kind} |");
        }
        let _ = write!(out, " {0}, example | {0}, others |", self.metric);
        out += if engine {
            " engine | attention kernel |\n"
        } else {
            "\n"
        };
        out += &format!("|{}\n", "---|".repeat(9 + if engine { 2 } else { 0 }));
        let mut totals = [(0, 0); 5];
        let (mut failed, mut notes) = (0, Vec::new());
        for (name, result) in &self.rows {
            let _ = write!(out, "| {name} |");
            match result {
                Err(e) => {
                    failed += 1;
                    let _ = writeln!(out, " {} |", e.to_string().replace(['\n', '|'], " "));
                }
                Ok(Row { manifest: m, note }) => {
                    if let Some(note) = note {
                        notes.push(format!("- {name}: {}", brief(note, name)));
                    }
                    let _ = write!(out, " {} → {} |", m.before.nodes, m.after.nodes);
                    for (kind, total) in KINDS.iter().zip(&mut totals) {
                        let block = m.blocks.iter().find(|b| b.kind == *kind);
                        out += &cell(block);
                        total.0 += block.map_or(0, |b| b.fused);
                        total.1 += block.map_or(0, |b| b.found);
                    }
                    out += &self.numbers(m);
                }
            }
        }
        let _ = write!(out, "| **{} models, {failed} failed** | |", self.rows.len());
        for (fused, found) in totals {
            let _ = write!(out, " **{fused} / {found}** |");
        }
        out += "\n";
        if !notes.is_empty() {
            let _ = write!(
                out,
                "\nNot so at the sizes of this table; the row shows what came at those kiln finds by itself:\n\n{}\n",
                notes.join("\n")
            );
        }
        out
    }

    fn numbers(&self, m: &Manifest) -> String {
        let worst = |example: bool| {
            let cases = m
                .parity
                .iter()
                .flat_map(|p| &p.cases)
                .filter(|c| c.name.ends_with(".npz") == example);
            let floats = cases
                .flat_map(|c| &c.outputs)
                .filter_map(|o| match &o.comparison {
                    Comparison::Compared { metrics, .. } => metrics.float.as_ref(),
                    _ => None,
                });
            let all: Vec<f64> = match self.metric {
                "cosine" => floats.map(|f| f.cosine).collect(),
                _ => floats.map(|f| f.max_abs).collect(),
            };
            match (all.is_empty(), self.metric) {
                (true, _) => "not run".to_string(),
                (_, "cosine") => format!("{:.6}", all.iter().fold(1f64, |a, b| a.min(*b))),
                _ => format!("{:.1e}", all.iter().fold(0f64, |a, b| a.max(*b))),
            }
        };
        let mut out = format!(" {} | {} |", worst(true), worst(false));
        if self.metric == "cosine" {
            out += &match &m.engine {
                None => " not built | |".to_string(),
                Some(e) => {
                    let kernel = match (e.attention_decomposed, m.attention.is_empty()) {
                        (_, true) => "none",
                        (true, _) => "decomposed",
                        (false, _) => "dedicated",
                    };
                    format!(" {:.1} MB | {kernel} |", e.bytes as f64 / 1e6)
                }
            };
        }
        out + "\n"
    }
}

/// The first sentence or so of an error, on one line.
fn brief(note: &str, name: &str) -> String {
    // Where the models lie is nobody's business.
    let note = note
        .find(&format!("{name}.onnx"))
        .map_or(note, |at| &note[at..]);
    let line = note.replace('\n', " ");
    match line.char_indices().nth(260) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

fn cell(block: Option<&Found>) -> String {
    match block.filter(|b| b.found > 0) {
        Some(b) => format!(" {} / {} |", b.fused, b.found),
        None => " |".to_string(),
    }
}
