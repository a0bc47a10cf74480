//! What `--target cuda` makes of the models in a folder, without a GPU: `make cuda-table`.
//!
//! Each model is compiled to FP16 and to BF16 and proved on the CPU by its twin. Of the file that was written: which operators its
//! attention is, and which nodes have no kernel in ONNX Runtime's CUDA provider, by the table of its registry.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiln::bundle;
use kiln::compile::{Options, compile};
use kiln::manifest::Manifest;
use kiln::parity::{Comparison, Outcome};
use kiln::precision::{Floats, Precision};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::{infer, onnx};
use kiln_passes::cuda_kernels::{self, Fallen};

type Failure = Box<dyn std::error::Error>;

/// Operators, or what stands for them, and how many there are.
type Counts = BTreeMap<String, usize>;

/// One model in one precision.
struct Row {
    model: String,
    result: Result<Found, String>,
}

struct Found {
    attention: Counts,
    /// Blocks of attention that the model has.
    blocks: usize,
    nodes: usize,
    /// Nodes without a kernel on numbers that the model computes.
    data: Counts,
    /// Nodes without a kernel on sizes and constants alone.
    sizes: Counts,
    outcome: Outcome,
    /// The least cosine of all outputs at all sizes.
    cosine: Option<f64>,
}

fn main() -> Result<(), Failure> {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    let mut models: Vec<PathBuf> = Vec::new();
    for folder in &folders {
        let files = std::fs::read_dir(folder)?.filter_map(|e| Some(e.ok()?.path()));
        models.extend(files.filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    if models.is_empty() {
        return Err("usage: cuda FOLDER…, with models (.onnx)".into());
    }
    models.sort_by_key(|p| name(p));
    println!("# ONNX Runtime's CUDA provider\n");
    println!(
        "Written by `make cuda-table`, without a GPU: what kiln {} writes with `--target cuda` for {} models. *Attention* counts the \
         operators in the file that was written; `products` are MatMul, Softmax, MatMul. Nodes fall to the CPU by the table of the \
         kernels that onnxruntime-gpu {} registers; those on sizes and constants alone belong there. Parity is by a twin on the CPU, \
         whose results are rounded where the file's are, at all sizes; the CUDA kernels themselves did not run.",
        env!("CARGO_PKG_VERSION"),
        models.len(),
        cuda_kernels::release(),
    );
    for (title, floats) in [("FP16", Floats::Fp16), ("BF16", Floats::Bf16)] {
        let rows: Vec<Row> = (models.iter())
            .map(|path| {
                eprintln!("{title} {}", path.display());
                Row {
                    model: name(path),
                    result: found(path, floats).map_err(|e| e.to_string()),
                }
            })
            .collect();
        println!("\n## {title}\n\n{}", render(&rows));
    }
    Ok(())
}

fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn found(model: &Path, floats: Floats) -> Result<Found, Failure> {
    let scratch = tempfile::tempdir()?;
    let output = scratch.path().join("model.kiln");
    let options = Options {
        output: Some(output.clone()),
        targets: Some(Targets::Cuda),
        precision: Precision {
            floats,
            ..Precision::default()
        },
        latency: Some(false),
        ..Options::new(model)
    };
    let manifest = compile(&options, &Silent)?.manifest;
    let mut written = onnx::read(output.join(bundle::MODEL))?;
    infer::annotate(&mut written.graph);
    let fallen = cuda_kernels::fallen(&written);
    let (sizes, data): (Vec<_>, Vec<_>) = fallen.iter().partition(|f| f.sizes);
    let attention = manifest.blocks.iter().find(|b| b.kind == "attention");
    Ok(Found {
        attention: attention.map_or_else(Counts::new, |b| b.written.clone()),
        blocks: attention.map_or(0, |b| b.found),
        nodes: manifest.after.nodes,
        data: counts(&data),
        sizes: counts(&sizes),
        outcome: manifest
            .parity
            .as_ref()
            .map_or(Outcome::NotProved, |p| p.outcome()),
        cosine: cosine(&manifest),
    })
}

fn counts(fallen: &[&Fallen]) -> Counts {
    let mut counts = Counts::new();
    for one in fallen {
        *counts.entry(one.op.to_string()).or_default() += 1;
    }
    counts
}

fn cosine(manifest: &Manifest) -> Option<f64> {
    let cases = manifest.parity.iter().flat_map(|p| &p.cases);
    let floats = cases
        .flat_map(|c| &c.outputs)
        .filter_map(|o| match &o.comparison {
            Comparison::Compared { metrics, .. } => metrics.float.as_ref(),
            _ => None,
        });
    floats.map(|f| f.cosine).min_by(f64::total_cmp)
}

fn told(counts: &Counts) -> String {
    let each = counts.iter().map(|(op, n)| format!("{n} {op}"));
    each.collect::<Vec<_>>().join(", ")
}

fn join(into: &mut Counts, counts: &Counts) {
    for (op, n) in counts {
        *into.entry(op.clone()).or_default() += n;
    }
}

fn render(rows: &[Row]) -> String {
    let mut out = String::from(
        "| model | nodes | attention | falls on data | on sizes alone | parity | least cosine |\n|---|---|---|---|---|---|---|\n",
    );
    let [mut attention, mut data, mut sizes] = [Counts::new(), Counts::new(), Counts::new()];
    let (mut passed, mut blocks) = (0, 0);
    for row in rows {
        match &row.result {
            Err(why) => {
                let why = why.replace(['\n', '|'], " ");
                let _ = writeln!(out, "| {} | | | | | {why} | |", row.model);
            }
            Ok(f) => {
                passed += usize::from(f.outcome == Outcome::Passes);
                blocks += f.blocks;
                join(&mut attention, &f.attention);
                join(&mut data, &f.data);
                join(&mut sizes, &f.sizes);
                let outcome = match f.outcome {
                    Outcome::Passes => "passes",
                    Outcome::Fails => "fails",
                    Outcome::NotProved => "not proved",
                };
                let cosine = f.cosine.map_or(String::new(), |c| format!("{c:.6}"));
                let (a, d, s) = (told(&f.attention), told(&f.data), told(&f.sizes));
                let _ = writeln!(
                    out,
                    "| {} | {} | {a} | {d} | {s} | {outcome} | {cosine} |",
                    row.model, f.nodes
                );
            }
        }
    }
    let operators: usize = (attention.iter())
        .filter(|(op, _)| *op != "products")
        .map(|(_, n)| n)
        .sum();
    let none = |counts: &Counts| match told(counts) {
        told if told.is_empty() => "none".to_string(),
        told => told,
    };
    let _ = writeln!(
        out,
        "| **{} models** | | **{operators} of {blocks} blocks: {}** | **{}** | {} | **{passed} pass** | |",
        rows.len(),
        none(&attention),
        none(&data),
        none(&sizes)
    );
    out
}
