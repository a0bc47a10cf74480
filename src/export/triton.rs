//! A model repository for Triton Inference Server.
//!
//! The fields are those of `model_config.proto`; which backend loads what is in the documents of its backends
//! (onnxruntime_backend, tensorrt_backend, python_backend).

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_graph::{DType, Dim, Tensor};

use super::facts::{Facts, Port};
use super::pbtxt::Message;
use super::{ExportError, Exported, Staged};
use crate::bench::{self, Axis, BenchOptions};
use crate::bundle;
use crate::parity::{INPUT_PREFIX, npz};
use crate::runtime::{DeviceRequest, GpuOptions};
use crate::talk::Talk;

/// How the tokens of a text become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooling {
    Mean,
    Cls,
}

impl Pooling {
    fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
        }
    }
}

/// What to export.
#[derive(Clone, Debug)]
pub struct Options {
    pub bundle: PathBuf,
    /// The repository.
    pub output: PathBuf,
    /// The model's name; the bundle's if none is given.
    pub name: Option<String>,
    pub version: u32,
    /// A `tokenizer.json`: texts are tokenized by the server.
    pub tokenizer: Option<PathBuf>,
    pub pooling: Option<Pooling>,
    /// The outputs to serve; all if none are given.
    pub outputs: Vec<String>,
    /// Measure the latency over batches.
    pub measure: bool,
    /// Let the server join requests into batches.
    pub batching: bool,
    pub force: bool,
    pub device: DeviceRequest,
    pub ort_lib: Option<PathBuf>,
}

/// A batch must compute this much more a second than single samples for requests to wait for each other.
const WORTH: f64 = 1.05;
/// A smaller batch is preferred where it computes nearly as much a second as the best.
const NEARLY: f64 = 0.95;
/// Requests wait for others at most this part of the time that a single one is computed in.
const WAIT: f64 = 0.25;
/// Lengths of texts are rounded up to a multiple, so that texts of about one length share a batch.
const PADDING: usize = 16;

/// What runs the model in Triton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    OrtCpu,
    OrtGpu,
    TensorRt,
}

/// Latencies in nanoseconds by batch.
type Curve = Vec<(usize, f64)>;

/// Writes the repository.
///
/// # Errors
/// When the bundle cannot be read, the model does not fit, the latency cannot be measured, or files cannot be written.
pub fn export(options: &Options, talk: &dyn Talk) -> Result<Exported, ExportError> {
    talk.stage("read");
    let facts = Facts::read(&options.bundle)?;
    let mut notes = Vec::new();
    let backend = backend(&facts, &mut notes);
    let outputs = served(&facts, &options.outputs, &mut notes)?;
    let name = name(options)?;
    let curve = match (options.measure && options.batching, &facts.batch) {
        (true, Some(batch)) if backend == Backend::OrtCpu => {
            talk.stage("latency over batches");
            curve(options, &facts, batch)?
        }
        (true, Some(_)) => {
            notes.push(
                "the latency over batches was not measured: the model serves on a GPU. Preferred batches are left to Triton"
                    .into(),
            );
            Vec::new()
        }
        _ => Vec::new(),
    };
    let batching = match options.batching {
        true => batching(&facts, &curve, &mut notes),
        false => None,
    };
    let mut files = encoder(options, &facts, backend, &outputs, &name, batching.as_ref())?;
    if let Some(tokenizer) = &options.tokenizer {
        files.extend(texts(options, &facts, &outputs, &name, tokenizer)?);
        notes.push(format!(
            "texts: the model {name}-text takes TEXT and gives {}",
            promised(options, &outputs)
        ));
    }
    Ok(Exported { files, notes })
}

fn promised(options: &Options, outputs: &[Port]) -> String {
    match options.pooling {
        Some(_) => "EMBEDDING".into(),
        None => {
            let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
            names.join(", ")
        }
    }
}

/// What can be loaded; what cannot is said.
fn backend(facts: &Facts, notes: &mut Vec<String>) -> Backend {
    let cpu = facts.target == "cpu";
    match &facts.engine {
        Some(runtime) if runtime.contains("RTX") => {
            notes.push(format!(
                "Triton has no backend for engines of {runtime}: the ONNX model is exported, for its ONNX Runtime backend"
            ));
            Backend::OrtGpu
        }
        Some(runtime) => {
            notes.push(format!(
                "the engine is of {runtime}, and Triton's own TensorRT must be of the same version, on the same kind of GPU"
            ));
            Backend::TensorRt
        }
        None if cpu => Backend::OrtCpu,
        None => {
            notes.push("the bundle has no engine: the ONNX model is exported".into());
            Backend::OrtGpu
        }
    }
}

fn name(options: &Options) -> Result<String, ExportError> {
    let stem = options.bundle.file_stem().unwrap_or_default();
    let name = match &options.name {
        Some(name) => name.clone(),
        None => stem.to_string_lossy().into_owned(),
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && !name.starts_with('.') && name.chars().all(fine) {
        true => Ok(name),
        false => Err(ExportError::Option {
            option: "--name",
            why: format!("\"{name}\" is no name of a model: use letters, digits, '-', '_' and '.'"),
        }),
    }
}

/// The outputs that Triton is told of.
fn served(
    facts: &Facts,
    wanted: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<Port>, ExportError> {
    for name in wanted {
        if facts.outputs.iter().all(|o| o.name != *name) {
            let known: Vec<&str> = facts.outputs.iter().map(|o| o.name.as_str()).collect();
            return Err(ExportError::Option {
                option: "--output-name",
                why: format!(
                    "the model has no output \"{name}\"; it has: {}",
                    known.join(", ")
                ),
            });
        }
    }
    let all = facts.outputs.iter();
    let all = all.filter(|o| wanted.is_empty() || wanted.contains(&o.name));
    let (fit, others): (Vec<_>, Vec<_>) =
        all.partition(|o| facts.batch.is_none() || facts.is_batched(o));
    for other in &others {
        let why = format!(
            "the output \"{}\" does not begin with the dimension of samples",
            other.name
        );
        match wanted.is_empty() {
            true => notes.push(format!("{why}, and is not served")),
            false => return Err(facts.unfit(why)),
        }
    }
    match fit.is_empty() {
        true => Err(facts.unfit("no output begins with the dimension of samples")),
        false => Ok(fit.into_iter().cloned().collect()),
    }
}

/// Triton's name of a type.
fn data_type(facts: &Facts, port: &Port) -> Result<&'static str, ExportError> {
    Ok(match port.dtype {
        DType::F32 => "TYPE_FP32",
        DType::F16 => "TYPE_FP16",
        DType::BF16 => "TYPE_BF16",
        DType::F64 => "TYPE_FP64",
        DType::I8 => "TYPE_INT8",
        DType::I16 => "TYPE_INT16",
        DType::I32 => "TYPE_INT32",
        DType::I64 => "TYPE_INT64",
        DType::U8 => "TYPE_UINT8",
        DType::U16 => "TYPE_UINT16",
        DType::U32 => "TYPE_UINT32",
        DType::U64 => "TYPE_UINT64",
        DType::Bool => "TYPE_BOOL",
        DType::String => "TYPE_STRING",
        other => {
            return Err(facts.unfit(format!(
                "\"{}\" is {other}, which Triton has not",
                port.name
            )));
        }
    })
}

/// Sizes without that of samples; -1 is open.
fn dims(facts: &Facts, port: &Port) -> Vec<i64> {
    let skip = usize::from(facts.batch.is_some());
    let size = |dim: &Dim| match facts.range(dim) {
        Some(range) if range.is_fixed() => i64::try_from(range.opt).unwrap_or(-1),
        _ => -1,
    };
    port.dims.iter().skip(skip).map(size).collect()
}

fn ports(m: &mut Message, field: &str, facts: &Facts, ports: &[Port]) -> Result<(), ExportError> {
    for port in ports {
        let ty = data_type(facts, port)?;
        let mut sizes = dims(facts, port);
        m.message(field, |m| {
            m.text("name", &port.name);
            m.plain("data_type", ty);
            if sizes.is_empty() {
                // Triton has no tensors without dimensions beside that of samples.
                sizes.push(1);
                m.list("dims", &sizes);
                m.plain("reshape", "{ shape: [ ] }");
            } else {
                m.list("dims", &sizes);
            }
        });
    }
    Ok(())
}

/// Measures the latency at each batch, at the typical other sizes, in ONNX Runtime.
fn curve(options: &Options, facts: &Facts, batch: &str) -> Result<Curve, ExportError> {
    let most = facts.most().unwrap_or(1);
    let mut sizes: Vec<usize> = std::iter::successors(Some(1usize), |n| n.checked_mul(2))
        .take_while(|&n| n < most)
        .collect();
    sizes.push(most);
    let mut axes = vec![Axis {
        name: batch.to_string(),
        sizes,
    }];
    let others = facts.sizes.iter().filter(|(name, _)| *name != batch);
    axes.extend(others.map(|(name, range)| Axis {
        name: name.clone(),
        sizes: vec![range.opt],
    }));
    let request = bench::Request {
        models: vec![options.bundle.clone()],
        names: Vec::new(),
        axes,
        inputs: None,
        fixed: Vec::new(),
        timing: BenchOptions {
            warmup: 2,
            min_runs: 10,
            max_runs: 200,
            min_duration: Duration::from_millis(500),
            ..BenchOptions::default()
        },
        threads: None,
        device: options.device,
        gpu: GpuOptions::default(),
        profile: 0,
        baseline: None,
        seed: 1,
        ort_lib: options.ort_lib.clone(),
    };
    let measured = bench::benchmark(&request, &crate::talk::Silent)
        .map_err(|e| ExportError::Measure(Box::new(e)))?;
    let points = measured.points.iter().filter_map(|p| {
        let subject = p.measured.subjects.first()?;
        Some((*p.sizes.get(batch)?, subject.stats.p50))
    });
    Ok(points.collect())
}

/// How requests are joined.
#[derive(Clone, Debug, PartialEq)]
struct Batching {
    preferred: Vec<usize>,
    microseconds: Option<u64>,
    why: String,
}

/// `None`: they are not.
fn batching(facts: &Facts, curve: &Curve, notes: &mut Vec<String>) -> Option<Batching> {
    let most = facts.most().filter(|&most| most > 1)?;
    let Some(&(_, alone)) = curve.iter().find(|(batch, _)| *batch == 1) else {
        return Some(Batching {
            preferred: Vec::new(),
            microseconds: None,
            why: format!("up to {most} samples; the latency over batches was not measured"),
        });
    };
    let rate = |&(batch, latency): &(usize, f64)| batch as f64 / latency;
    let best = curve.iter().map(rate).fold(0.0, f64::max);
    let gain = best * alone;
    let table: Vec<String> = (curve.iter())
        .map(|(batch, latency)| format!("{batch}: {:.2} ms", latency / 1e6))
        .collect();
    let table = table.join(", ");
    if gain < WORTH {
        notes.push(format!(
            "requests are not joined: a batch computes at most {gain:.2} times as many samples a second ({table})"
        ));
        return None;
    }
    let good = |p: &&(usize, f64)| rate(p) >= NEARLY * best;
    let preferred = curve.iter().filter(good).map(|(batch, _)| *batch);
    let preferred: Vec<usize> = preferred.filter(|&batch| batch > 1).collect();
    Some(Batching {
        preferred,
        microseconds: Some((WAIT * alone / 1e3).round() as u64),
        why: format!("latency by batch, measured in ONNX Runtime: {table}"),
    })
}

/// The model itself.
fn encoder(
    options: &Options,
    facts: &Facts,
    backend: Backend,
    outputs: &[Port],
    name: &str,
    batching: Option<&Batching>,
) -> Result<Vec<PathBuf>, ExportError> {
    let mut staged = Staged::new(&options.output.join(name), options.force)?;
    let version = options.version;
    match backend {
        Backend::TensorRt => {
            let engine = bundle::find_engine(&facts.bundle)?;
            staged.copy(&engine, &format!("{version}/model.plan"))?;
        }
        _ => model(facts, &mut staged, version)?,
    }
    let warmup = warmup(facts, &mut staged)?;
    let mut m = Message::default();
    m.comment(&format!(
        "Written by kiln {} for {}: parity {}.",
        env!("CARGO_PKG_VERSION"),
        facts.target,
        facts.parity
    ));
    m.text("name", name);
    match backend {
        Backend::TensorRt => m.text("platform", "tensorrt_plan"),
        _ => m.text("backend", "onnxruntime"),
    }
    m.plain("max_batch_size", facts.most().unwrap_or(0));
    ports(&mut m, "input", facts, &facts.inputs)?;
    ports(&mut m, "output", facts, outputs)?;
    if let Some(b) = batching {
        m.comment(&b.why);
        m.message("dynamic_batching", |m| {
            if !b.preferred.is_empty() {
                m.list("preferred_batch_size", &b.preferred);
            }
            if let Some(microseconds) = b.microseconds {
                m.plain("max_queue_delay_microseconds", microseconds);
            }
        });
    }
    m.message("instance_group", |m| {
        m.plain("count", 1);
        match backend {
            Backend::OrtCpu => m.plain("kind", "KIND_CPU"),
            _ => m.plain("kind", "KIND_GPU"),
        }
        if backend == Backend::TensorRt {
            m.text("profile", "0");
        }
    });
    m.plain("version_policy", "{ latest { num_versions: 1 } }");
    warm(&mut m, facts, &warmup)?;
    staged.write("config.pbtxt", m.finish())?;
    staged.finish()
}

/// The ONNX file; with external data, a folder of this name.
fn model(facts: &Facts, staged: &mut Staged, version: u32) -> Result<(), ExportError> {
    let folder = facts.path.parent().unwrap_or(Path::new("."));
    let data = folder.join(format!("{}.data", bundle::MODEL));
    match data.is_file() {
        false => staged.copy(&facts.path, &format!("{version}/model.onnx")),
        true => {
            staged.copy(&facts.path, &format!("{version}/model.onnx/model.onnx"))?;
            let name = data.file_name().unwrap_or_default().to_string_lossy();
            staged.copy(&data, &format!("{version}/model.onnx/{name}"))
        }
    }
}

/// One sample of the proof's inputs: its name, sizes, and file in `warmup`.
struct Warm {
    name: String,
    dims: Vec<usize>,
    file: String,
}

/// Inputs that the original is known to run on; none where the bundle was not proved, or an input is text.
fn warmup(facts: &Facts, staged: &mut Staged) -> Result<Vec<Warm>, ExportError> {
    let proof = facts.bundle.join(bundle::PROOF);
    if !proof.is_file() || facts.inputs.iter().any(|i| i.dtype == DType::String) {
        return Ok(Vec::new());
    }
    let arrays = npz::read(&proof)?;
    let mut all = Vec::new();
    for (k, port) in facts.inputs.iter().enumerate() {
        let wanted = format!("{INPUT_PREFIX}{}", port.name);
        let Some((_, tensor)) = arrays.iter().find(|(n, _)| *n == wanted) else {
            return Ok(Vec::new());
        };
        let Some((dims, bytes)) = sample(facts, port, tensor) else {
            return Ok(Vec::new());
        };
        let file = format!("input-{k}");
        staged.write(&format!("warmup/{file}"), bytes)?;
        all.push(Warm {
            name: port.name.clone(),
            dims,
            file,
        });
    }
    Ok(all)
}

/// Sizes without that of samples, and the bytes of the first sample; `None` if the type is not the model's.
fn sample(facts: &Facts, port: &Port, tensor: &Tensor) -> Option<(Vec<usize>, bytes::Bytes)> {
    if tensor.dtype() != port.dtype || tensor.strings().is_some() {
        return None;
    }
    let (dims, data) = (tensor.dims(), tensor.bytes());
    match facts.batch {
        None => Some((dims.to_vec(), data)),
        Some(_) => {
            let row = data.len().checked_div(*dims.first()?)?;
            Some((dims.get(1..)?.to_vec(), data.slice(..row)))
        }
    }
}

fn warm(m: &mut Message, facts: &Facts, warmup: &[Warm]) -> Result<(), ExportError> {
    if warmup.is_empty() {
        return Ok(());
    }
    let mut types = Vec::new();
    for port in &facts.inputs {
        types.push(data_type(facts, port)?);
    }
    m.message("model_warmup", |m| {
        m.text("name", "typical");
        m.plain("batch_size", usize::from(facts.batch.is_some()));
        for (input, ty) in warmup.iter().zip(types) {
            m.message("inputs", |m| {
                m.text("key", &input.name);
                m.message("value", |m| {
                    m.plain("data_type", ty);
                    m.list("dims", &input.dims);
                    m.text("input_data_file", &input.file);
                });
            });
        }
    });
    Ok(())
}

/// What a tokenizer gives.
const TOKENIZED: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

const TOKENIZER: &str = include_str!("tokenizer.py");
const POOLING: &str = include_str!("pooling.py");

/// Tokenizer, pooling, and the ensemble that joins them to the model.
fn texts(
    options: &Options,
    facts: &Facts,
    outputs: &[Port],
    name: &str,
    tokenizer: &Path,
) -> Result<Vec<PathBuf>, ExportError> {
    if let Some(other) = (facts.inputs.iter()).find(|i| !TOKENIZED.contains(&i.name.as_str())) {
        return Err(facts.unfit(format!(
            "a tokenizer gives {}, and the model has an input \"{}\" beside",
            TOKENIZED.join(", "),
            other.name
        )));
    }
    let (Some(most), Some(length)) = (facts.most(), facts.length()) else {
        return Err(facts.unfit("its inputs are not texts of one batch: their sizes are not known"));
    };
    let pooled = match options.pooling {
        None => None,
        Some(how) => Some((how, tokens(facts, outputs)?)),
    };
    let version = options.version;
    let mut files = Vec::new();

    let tokenizing = format!("{name}-tokenizer");
    let mut staged = Staged::new(&options.output.join(&tokenizing), options.force)?;
    let mut m = python(&tokenizing, most);
    text_port(&mut m, "input", "TEXT", "TYPE_STRING", &[1]);
    ports(&mut m, "output", facts, &facts.inputs)?;
    parameter(&mut m, "max_length", &length.max.to_string());
    let padding = match length.is_fixed() {
        true => "fixed".into(),
        false => PADDING.min(length.max).to_string(),
    };
    parameter(&mut m, "padding", &padding);
    staged.write("config.pbtxt", m.finish())?;
    staged.write(&format!("{version}/model.py"), TOKENIZER)?;
    staged.copy(tokenizer, &format!("{version}/tokenizer.json"))?;
    files.extend(staged.finish()?);

    let pooling = format!("{name}-pooling");
    if let Some((how, output)) = &pooled {
        let mut staged = Staged::new(&options.output.join(&pooling), options.force)?;
        let mut m = python(&pooling, most);
        let ty = data_type(facts, output)?;
        text_port(&mut m, "input", "TOKENS", ty, &dims(facts, output));
        let mask = mask(facts)?;
        let ty = data_type(facts, mask)?;
        text_port(&mut m, "input", "MASK", ty, &dims(facts, mask));
        let width = dims(facts, output).last().copied().unwrap_or(-1);
        text_port(&mut m, "output", "EMBEDDING", "TYPE_FP32", &[width]);
        parameter(&mut m, "pooling", how.name());
        staged.write("config.pbtxt", m.finish())?;
        staged.write(&format!("{version}/model.py"), POOLING)?;
        files.extend(staged.finish()?);
    }

    let whole = format!("{name}-text");
    let mut staged = Staged::new(&options.output.join(&whole), options.force)?;
    let mut m = Message::default();
    m.text("name", &whole);
    m.text("platform", "ensemble");
    m.plain("max_batch_size", most);
    text_port(&mut m, "input", "TEXT", "TYPE_STRING", &[1]);
    match &pooled {
        None => ports(&mut m, "output", facts, outputs)?,
        Some((_, output)) => {
            let width = dims(facts, output).last().copied().unwrap_or(-1);
            text_port(&mut m, "output", "EMBEDDING", "TYPE_FP32", &[width]);
        }
    }
    m.message("ensemble_scheduling", |m| {
        let inputs: Vec<&str> = facts.inputs.iter().map(|i| i.name.as_str()).collect();
        let same = |names: &[&str]| {
            names
                .iter()
                .map(|n| (n.to_string(), n.to_string()))
                .collect()
        };
        let into: Vec<(String, String)> = same(&inputs);
        step(m, &tokenizing, &[("TEXT".into(), "TEXT".into())], &into);
        match &pooled {
            None => {
                let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
                step(m, name, &into, &same(&names));
            }
            Some((_, output)) => {
                let tokens = [(output.name.clone(), "TOKENS".to_string())];
                step(m, name, &into, &tokens);
                let taken = [
                    ("TOKENS".to_string(), "TOKENS".to_string()),
                    ("MASK".into(), "attention_mask".into()),
                ];
                step(
                    m,
                    &pooling,
                    &taken,
                    &[("EMBEDDING".into(), "EMBEDDING".into())],
                );
            }
        }
    });
    staged.write("config.pbtxt", m.finish())?;
    // Triton wants a folder of the version, although an ensemble has no file.
    staged.write(&format!("{version}/.keep"), "")?;
    files.extend(staged.finish()?);
    Ok(files)
}

/// The output with an embedding for each token.
fn tokens(facts: &Facts, outputs: &[Port]) -> Result<Port, ExportError> {
    let mut found = outputs.iter().filter(|o| o.dims.len() == 3);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => {
            Err(facts.unfit("there is no output with an embedding for each token to pool"))
        }
        (Some(_), Some(_)) => Err(ExportError::Option {
            option: "--pooling",
            why: "several outputs have an embedding for each token: name one with --output-name"
                .into(),
        }),
    }
}

fn mask(facts: &Facts) -> Result<&Port, ExportError> {
    let mask = facts.inputs.iter().find(|i| i.name == "attention_mask");
    mask.ok_or_else(|| facts.unfit("pooling takes an input \"attention_mask\""))
}

fn python(name: &str, most: usize) -> Message {
    let mut m = Message::default();
    m.text("name", name);
    m.text("backend", "python");
    m.plain("max_batch_size", most);
    m.message("instance_group", |m| {
        m.plain("count", 1);
        m.plain("kind", "KIND_CPU");
    });
    m
}

fn text_port(m: &mut Message, field: &str, name: &str, ty: &str, dims: &[i64]) {
    m.message(field, |m| {
        m.text("name", name);
        m.plain("data_type", ty);
        m.list("dims", dims);
    });
}

fn parameter(m: &mut Message, key: &str, value: &str) {
    m.message("parameters", |m| {
        m.text("key", key);
        m.message("value", |m| m.text("string_value", value));
    });
}

/// A step of an ensemble: maps are from the model's names to those of the ensemble.
fn step(m: &mut Message, model: &str, input: &[(String, String)], output: &[(String, String)]) {
    m.message("step", |m| {
        m.text("model_name", model);
        m.plain("model_version", -1);
        for (field, map) in [("input_map", input), ("output_map", output)] {
            for (key, value) in map {
                m.message(field, |m| {
                    m.text("key", key);
                    m.text("value", value);
                });
            }
        }
    });
}

#[cfg(test)]
mod tests;
