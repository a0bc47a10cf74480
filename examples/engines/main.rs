//! TensorRT's engines of plain FP16 files and of kiln's results, by their kernels: `make engines`.
//!
//! Engines are built for fixed sizes, so that the bytes of all activations are known: batch 1, 64 tokens for the models of a folder,
//! 128 for the full-size ones. What was measured with this binary and the same file is kept.

mod table;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use kiln::compile::{Options, compile};
use kiln::engine::card;
use kiln::engine::{
    self, BuildRequest, ChildBuilder, ComputeCapability, EngineBuilder, Kernels, Sizes, price,
};
use kiln::precision::{Floats, Linear, Precision};
use kiln::shapes::{DimSpec, Shapes};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::Graph;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Models with the sizes that people use: where `make setup`, `make bench-peers` and `make precision` put them.
const FULL: [(&str, &str, &str); 6] = [
    ("MiniLM-L3", "", "make setup"),
    (
        "MiniLM-L6",
        "target/precision/minilm-l6/model.onnx",
        "make precision",
    ),
    (
        "BERT-base.ts",
        "target/peers/models/bert-base.ts.eager.onnx",
        "make bench-peers",
    ),
    (
        "BERT-base.dynamo",
        "target/peers/models/bert-base.dynamo.sdpa.onnx",
        "make bench-peers",
    ),
    (
        "GPT-2-base",
        "target/peers/models/gpt2-base.ts.sdpa.onnx",
        "make bench-peers",
    ),
    (
        "ViT-base",
        "target/peers/models/vit-base.dynamo.sdpa.onnx",
        "make bench-peers",
    ),
];
/// Cards that engines have a price on paper for, and the capability of each.
const CARDS: [(&str, &str); 2] = [
    ("NVIDIA L4", "sm_89"),
    ("NVIDIA GeForce RTX 5090", "sm_120"),
];
/// What converts files to plain FP16.
const PLAIN: &str = "tools/engines/plain.py";
const PYTHON: &str = ".venv-peers/bin/python";
const MADE: &str = "target/engines";

/// What engines are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Plain,
    Fp16,
    Int8,
    Fp8,
    Int4,
}

const KINDS: [Kind; 5] = [Kind::Plain, Kind::Fp16, Kind::Int8, Kind::Fp8, Kind::Int4];

/// All that was measured, as `benches/results/engines.json` has it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Results {
    /// The SHA-256 of what measured kiln's rows.
    binary: String,
    runtime: String,
    /// By model.
    models: BTreeMap<String, Model>,
    /// Full-size models that are not on this machine, with the command that makes them.
    absent: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Model {
    /// The SHA-256 of the file.
    file: String,
    tokens: usize,
    /// By capability and kind.
    engines: BTreeMap<String, BTreeMap<Kind, Outcome>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Built(Facts),
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Facts {
    kernels: usize,
    /// Bytes of activations that kernels read and write.
    bytes: Option<u64>,
    /// Microseconds on paper, by card.
    #[serde(default)]
    prices: BTreeMap<String, f64>,
    /// By what they multiply; attention kernels apart.
    products: BTreeMap<String, usize>,
    attention: usize,
    /// Quantized layers that are multiplied in another type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    otherwise: Vec<String>,
    /// Why the plain file is not the converter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Facts {
    /// `graph` is what the builder was handed, at fixed sizes.
    fn new(kernels: &Kernels, graph: &Graph, shapes: &Shapes) -> Facts {
        let sizes = Sizes::at(kernels, graph, &shapes.at(&shapes.typical()));
        let price = |name: &str| {
            let found = price::on_paper(kernels, &sizes, card::find(name)?).ok()?;
            Some((name.to_string(), found.microseconds))
        };
        Facts {
            kernels: kernels.launched().count(),
            bytes: sizes.traffic(kernels),
            prices: CARDS
                .into_iter()
                .filter_map(|(name, _)| price(name))
                .collect(),
            products: kernels.products(),
            attention: kernels.attention(),
            otherwise: Vec::new(),
            note: None,
        }
    }

    fn is_priced(&self) -> bool {
        CARDS
            .iter()
            .all(|(card, _)| self.prices.contains_key(*card))
    }
}

impl Outcome {
    /// Whether nothing of it is missing. What an older kiln could not price is measured again.
    fn is_whole(&self) -> bool {
        match self {
            Outcome::Built(facts) => facts.is_priced(),
            Outcome::Failed(_) => true,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A builder in a process of its own is this binary, too.
    if args.first().is_some_and(|a| a == engine::SUBCOMMAND) {
        kiln::cli::main(None);
        return Ok(());
    }
    let both = args.iter().any(|a| a == "--both");
    let kinds = kinds(&args)?;
    let mut args = args.iter().filter(|a| !a.starts_with("--"));
    let (Some(folder), Some(results), Some(page)) = (args.next(), args.next(), args.next()) else {
        return Err(
            "usage: engines [--both] [--kinds=plain,fp16,…] FOLDER RESULTS.json PAGE.md".into(),
        );
    };
    let results = Path::new(results);
    let binary = digest(&std::env::current_exe()?)?;
    let mut all: Results = match fs::read(results) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Results::default(),
    };
    if all.binary != binary {
        let engines = all.models.values_mut().flat_map(|m| m.engines.values_mut());
        engines.for_each(|e| e.retain(|kind, _| *kind == Kind::Plain));
        all.binary = binary;
    }
    let (models, absent) = models(Path::new(folder))?;
    all.models
        .retain(|name, _| models.iter().any(|(n, ..)| n == name));
    all.absent = absent;
    let bench = Bench::new()?;
    all.runtime = bench.runtime.clone();
    for (at, (name, path, tokens)) in models.iter().enumerate() {
        let file = digest(path)?;
        let model = all.models.entry(name.clone()).or_default();
        if model.file != file || model.tokens != *tokens {
            *model = Model {
                file,
                tokens: *tokens,
                ..Model::default()
            };
        }
        for &kind in &kinds {
            for target in targets(kind, both) {
                let model = all.models.entry(name.clone()).or_default();
                let done = model.engines.entry(target.to_string()).or_default();
                if done.get(&kind).is_some_and(Outcome::is_whole) {
                    continue;
                }
                let begun = Instant::now();
                let made = match kind {
                    Kind::Plain => bench.plain(name, path, *tokens, target),
                    _ => bench.kiln(path, *tokens, kind, target),
                };
                let failed = |e: Box<dyn Error>| Outcome::Failed(brief(&e.to_string()));
                done.insert(kind, made.map_or_else(failed, Outcome::Built));
                let (at, count) = (at + 1, models.len());
                let took = begun.elapsed().as_secs_f64();
                eprintln!("{at}/{count} {name}: {kind:?}, {target}: {took:.1} s");
                // What is interrupted goes on with the next engine.
                save(results, &all)?;
            }
        }
        save(results, &all)?;
        fs::write(page, table::page(&all))?;
    }
    Ok(())
}

/// Written whole or not at all.
fn save(results: &Path, all: &Results) -> Result<(), Box<dyn Error>> {
    let part = results.with_extension("part");
    fs::write(&part, serde_json::to_string_pretty(all)? + "\n")?;
    Ok(fs::rename(part, results)?)
}

/// What to build: all, or what `--kinds` names.
fn kinds(args: &[String]) -> Result<Vec<Kind>, Box<dyn Error>> {
    let Some(names) = args.iter().find_map(|a| a.strip_prefix("--kinds=")) else {
        return Ok(KINDS.to_vec());
    };
    let kind = |name: &str| Ok(serde_json::from_value(name.into())?);
    names.split(',').map(kind).collect()
}

/// The capabilities to build for. But for FP8, one builder's list is the other's.
fn targets(kind: Kind, both: bool) -> &'static [&'static str] {
    match both || kind == Kind::Fp8 {
        true => &["sm_89", "sm_120"],
        false => &["sm_89"],
    }
}

type Found = (Vec<(String, PathBuf, usize)>, BTreeMap<String, String>);

/// Name, file and tokens of each model, and the full-size models that are not there.
fn models(folder: &Path) -> Result<Found, Box<dyn Error>> {
    let stem = |p: &Path| {
        p.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "onnx") {
            found.push((stem(&path), path, 64));
        }
    }
    found.sort();
    let mut absent = BTreeMap::new();
    let demo = std::env::var_os("DEMO_MODEL")
        .map(PathBuf::from)
        .unwrap_or_default();
    for (name, path, command) in FULL {
        let path = if path.is_empty() {
            demo.clone()
        } else {
            path.into()
        };
        match path.is_file() {
            true => found.push((name.to_string(), path, 128)),
            false => {
                eprintln!("not run: {name} ({command} gets it)");
                absent.insert(name.to_string(), command.to_string());
            }
        }
    }
    Ok((found, absent))
}

/// What builds.
struct Bench {
    program: PathBuf,
    scratch: tempfile::TempDir,
    builder: ChildBuilder,
    runtime: String,
}

impl Bench {
    fn new() -> Result<Bench, Box<dyn Error>> {
        let program = std::env::current_exe()?;
        let scratch = tempfile::tempdir()?;
        let builder = ChildBuilder::new(&program, &engine::locate(None)?, scratch.path());
        let runtime = engine::LIBRARY.to_string();
        Ok(Bench {
            program,
            scratch,
            builder,
            runtime,
        })
    }

    /// kiln's engine of a model.
    fn kiln(
        &self,
        path: &Path,
        tokens: usize,
        kind: Kind,
        target: &str,
    ) -> Result<Facts, Box<dyn Error>> {
        let options = Options {
            output: Some(self.scratch.path().join("model.kiln")),
            targets: Some(Targets::Engines(vec![target.parse::<ComputeCapability>()?])),
            precision: Precision {
                floats: Floats::Fp16,
                linear: match kind {
                    Kind::Int8 => Linear::Int8,
                    Kind::Fp8 => Linear::Fp8,
                    Kind::Int4 => Linear::Int4,
                    _ => Linear::Floats,
                },
            },
            dims: dims(path, tokens)?,
            check: false,
            latency: Some(false),
            builder: Some(self.program.clone()),
            ..Options::new(path)
        };
        let made = compile(&options, &Silent)?;
        let engine = made.manifest.engine.ok_or("no engine was built")?;
        let otherwise = engine
            .listed
            .otherwise
            .iter()
            .map(|o| o.layer.clone())
            .collect();
        // What is written may have the sizes in place of their names.
        let original = kiln_graph::onnx::read(path)?;
        let shapes = Shapes::new(&original.graph, &options.dims, &[])?;
        let mut written = kiln_graph::onnx::read(made.bundle.join("model.onnx"))?;
        shapes.fix_inputs(&mut written.graph);
        Ok(Facts {
            otherwise,
            ..Facts::new(&engine.listed.kernels, &written.graph, &shapes)
        })
    }

    /// The engine of the plain FP16 file: the converter's if TensorRT takes it.
    fn plain(
        &self,
        name: &str,
        path: &Path,
        tokens: usize,
        target: &str,
    ) -> Result<Facts, Box<dyn Error>> {
        fs::create_dir_all(MADE)?;
        let files =
            ["converter", "plain"].map(|form| Path::new(MADE).join(format!("{name}.{form}.onnx")));
        let done = Command::new(PYTHON)
            .arg(PLAIN)
            .arg(path)
            .args(&files)
            .output()?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into());
        }
        let built = match files[0].is_file() {
            true => self.build(&files[0], tokens, target),
            false => Err(String::from_utf8_lossy(&done.stderr).into()),
        };
        let facts = built.or_else(|why| {
            let note = Some(brief(&why.to_string()));
            Ok::<_, Box<dyn Error>>(Facts {
                note,
                ..self.build(&files[1], tokens, target)?
            })
        });
        files.iter().for_each(|file| drop(fs::remove_file(file)));
        facts
    }

    /// The engine of a file as it is, apart from its inputs' sizes.
    fn build(&self, path: &Path, tokens: usize, target: &str) -> Result<Facts, Box<dyn Error>> {
        let mut model = kiln_graph::onnx::read(path)?;
        let shapes = Shapes::new(&model.graph, &dims(path, tokens)?, &[])?;
        shapes.fix_inputs(&mut model.graph);
        let bytes = kiln_graph::onnx::to_bytes(&model)?;
        let request = BuildRequest {
            profiles: kiln::compile::profile(&shapes).into_iter().collect(),
            detailed: true,
            ..BuildRequest::new(&bytes, target.parse()?)
        };
        let built = self.builder.build(&request, &engine::NoProgress)?;
        Ok(Facts::new(&built.kernels, &model.graph, &shapes))
    }
}

/// One batch, and all other sizes at so many tokens, or as many as the model has positions for.
fn dims(path: &Path, tokens: usize) -> Result<Vec<DimSpec>, Box<dyn Error>> {
    let model = kiln_graph::onnx::read(path)?;
    let shapes = Shapes::new(&model.graph, &[], &[])?;
    let spec = |name: &str, tokens: usize| match name.to_ascii_lowercase().contains("batch") {
        true => format!("{name}=1").parse(),
        false => format!("{name}={tokens}").parse(),
    };
    let free = shapes
        .ranges
        .iter()
        .filter(|(name, _)| !shapes.relations.contains_key(*name));
    let free: Vec<_> = free.collect();
    let wanted = free
        .iter()
        .map(|(name, range)| spec(name, tokens.min(range.max)));
    let wanted: Vec<DimSpec> = wanted.collect::<Result<_, _>>()?;
    if Shapes::new(&model.graph, &wanted, &[]).is_ok() {
        return Ok(wanted);
    }
    // The exporter wrote the sizes of its example into the graph: a proof finds them.
    let options = Options {
        engine: false,
        latency: Some(false),
        ..Options::new(path)
    };
    let scratch = tempfile::tempdir()?;
    let output = Some(scratch.path().join("model.kiln"));
    let targets = Some(Targets::Cpu);
    let found = compile(
        &Options {
            output,
            targets,
            ..options
        },
        &Silent,
    )?
    .manifest
    .sizes;
    let baked = found.iter().map(|(name, range)| spec(name, range.opt));
    Ok(baked.collect::<Result<_, _>>()?)
}

fn digest(path: &Path) -> Result<String, Box<dyn Error>> {
    let hash = Sha256::digest(fs::read(path)?);
    Ok(hash.iter().map(|b| format!("{b:02x}")).collect())
}

/// An error on one line, without where files lie.
fn brief(why: &str) -> String {
    let words = why.split_whitespace().filter(|w| !w.starts_with('/'));
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}
