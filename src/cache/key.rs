//! What a compilation depends on, as text by name, and the hash of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_graph::onnx;
use sha2::{Digest, Sha256};

use crate::bundle;
use crate::compile::CompileError;
use crate::engine;
use crate::environment::environment;
use crate::nvidia::driver;
use crate::options::{Calibration, Options};
use crate::pipeline;
use crate::runtime;
use crate::talk::Talk;
use crate::targets::Targets;

/// The facts and their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub sha256: String,
    pub facts: BTreeMap<String, String>,
}

/// What is not in the options, and matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The program: its version, and the hash of its file.
    pub kiln: String,
    /// Hashes of the libraries by their names; of one that is not there, nothing.
    pub libraries: BTreeMap<String, String>,
    /// Processor, threads and driver: what proves and times.
    pub machine: String,
}

impl Surroundings {
    /// Those of this process.
    ///
    /// # Errors
    /// When the program or a library cannot be read.
    pub fn here(options: &Options) -> Result<Surroundings, CompileError> {
        let program = std::env::current_exe().map_err(|e| unread(Path::new("this program"), e))?;
        let hash = |path: &Path| hash_file(path).map_err(|e| unread(path, e));
        let mut libraries = BTreeMap::new();
        if let Ok(found) = runtime::locate(options.ort_lib.as_deref()) {
            libraries.insert("onnxruntime".into(), hash(&found.path)?);
        }
        if let (true, Ok(found)) = (
            options.engine && options.targets.as_ref().is_none_or(Targets::is_engine),
            engine::locate(options.trt_lib.as_deref()),
        ) {
            libraries.insert("tensorrt".into(), hash(&found.core)?);
            libraries.insert("tensorrt parser".into(), hash(&found.parser)?);
        }
        let e = environment();
        let driver = driver::probe().map_or("none".into(), |d| {
            let gpus: Vec<&str> = d.gpus.iter().map(|g| g.name.as_str()).collect();
            format!(
                "{}, {}",
                d.release.as_deref().unwrap_or("unknown"),
                gpus.join(", ")
            )
        });
        Ok(Surroundings {
            kiln: format!("{} {}", env!("CARGO_PKG_VERSION"), hash(&program)?),
            libraries,
            machine: format!(
                "{}, {}, {} threads, driver {}",
                e.os, e.cpu, e.threads, driver
            ),
        })
    }
}

/// The key of a compilation.
///
/// # Errors
/// When the model or data cannot be read, or there is no such target here.
pub fn key(options: &Options, around: &Surroundings, talk: &dyn Talk) -> Result<Key, CompileError> {
    let targets = pipeline::targets(options, talk)?;
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: String| {
        facts.insert(name.to_string(), value);
    };
    fact("kiln", around.kiln.clone());
    fact("machine", around.machine.clone());
    for (name, hash) in &around.libraries {
        fact(&format!("library {name}"), hash.clone());
    }
    let path = bundle::find_model(&options.model)?;
    for (k, source) in onnx::read(&path)?.sources.iter().enumerate() {
        let hash = hash_file(&source.path).map_err(|e| unread(&source.path, e))?;
        fact(&format!("model {k}"), hash);
    }
    fact("target", targets.to_string());
    for (name, path) in [
        ("inputs", &options.inputs),
        ("calibration data", &options.calibration.data),
        ("calibration tokenizer", &options.calibration.tokenizer),
    ] {
        if let Some(path) = path {
            fact(name, hash_tree(path).map_err(|e| unread(path, e))?);
        }
    }
    settings(options, &mut fact);
    Ok(Key {
        sha256: hash_facts(&facts),
        facts,
    })
}

/// What the options say themselves.
fn settings(options: &Options, fact: &mut dyn FnMut(&str, String)) {
    // Without `..`: whoever adds an option decides here whether it changes the result.
    let Options {
        // By their contents, with all other files.
        model: _,
        // Where the bundle goes is not what it is.
        output: _,
        over: _,
        // Resolved below, with what this machine has.
        targets: _,
        precision,
        calibration,
        int4_block,
        int4_fixed,
        standard,
        half_io,
        dims,
        shapes,
        inputs: _,
        fixed,
        drop_inputs,
        max_length,
        growing,
        engine,
        check,
        proof,
        latency,
        form,
        tf32,
        passes,
        keep,
        keep_ops,
        keep_nodes,
        search,
        // With these two the cache is not asked.
        dump_after: _,
        judge: _,
        explain,
        device,
        // By their contents, in `around`.
        ort_lib: _,
        trt_lib: _,
        builder: _,
        seed,
        // What they ask for is checked by hashing the model itself.
        sha256,
        blake3,
        tolerance,
        limits,
        gates,
        // All of it is in the other fields, but for paths.
        recipe: _,
        cache_key: _,
    } = options;
    let Calibration {
        data: _,
        tokenizer: _,
        // Holds what was measured, under a key of its own.
        cache: _,
        samples,
        // Bundles of several models are not kept.
        generation: _,
    } = calibration;
    fact(
        "precision",
        format!("{precision:?}, half_io {half_io}, blocks {int4_block} fixed {int4_fixed}"),
    );
    fact("calibration samples", samples.to_string());
    fact("dialect", format!("standard {standard}"));
    fact("sizes", format!("{dims:?} {shapes:?}"));
    fact("caches", format!("{max_length:?} growing {growing}"));
    fact("fixed inputs", format!("{fixed:?} dropped {drop_inputs}"));
    fact(
        "stages",
        format!("engine {engine}, check {check} {proof:?}, latency {latency:?}, search {search}"),
    );
    fact("build", format!("{form:?} tf32 {tf32:?}"));
    fact("passes", format!("{passes:?}"));
    fact(
        "kept",
        format!(
            "{:?} {keep_ops:?} {keep_nodes:?}",
            keep.as_ref().map(|r| r.as_str())
        ),
    );
    fact("explain", format!("{explain:?}"));
    fact("device", format!("{device:?}"));
    fact("seed", seed.to_string());
    fact("asked hashes", format!("{sha256:?} {blake3:?}"));
    fact("tolerance", format!("{tolerance:?} {limits:?}"));
    fact("gates", format!("{gates:?}"));
}

/// Names and values with their lengths, so that no two lists of facts are written alike.
fn hash_facts(facts: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for text in facts.iter().flat_map(|(name, value)| [name, value]) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn hash_bytes(data: &[u8]) -> String {
    hex(Sha256::new_with_prefix(data))
}

pub(super) fn hash_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    add_file(&mut hash, path)?;
    Ok(hex(hash))
}

fn add_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// A file, or the files of a folder with their names.
fn hash_tree(path: &Path) -> io::Result<String> {
    if path.is_file() {
        return hash_file(path);
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in path.read_dir()? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut facts = BTreeMap::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        facts.insert(name.into_owned(), hash_file(&file)?);
    }
    Ok(hash_facts(&facts))
}

fn unread(path: &Path, source: io::Error) -> CompileError {
    CompileError::Io {
        path: path.to_path_buf(),
        why: "it cannot be read for the cache's key",
        source,
    }
}

#[cfg(test)]
mod tests;
