//! A model repository for Triton Inference Server.
//!
//! The fields are those of `model_config.proto`; which backend loads what is in the documents of its backends
//! (onnxruntime_backend, tensorrt_backend, python_backend).

mod batching;
mod config;
mod texts;
mod warmup;

use std::path::{Path, PathBuf};

use super::facts::{Facts, Port};
use super::pbtxt::Message;
use super::{ExportError, Exported, Staged};
use crate::bundle;
use crate::runtime::DeviceRequest;
use crate::setting::{NAME, OUTPUT_NAME};
use crate::talk::Talk;

use batching::{Batching, batching, curve};
use config::ports;
use texts::texts;
use warmup::{warm, warmup};

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

/// What runs the model in Triton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    OrtCpu,
    OrtGpu,
    TensorRt,
}

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
            option: NAME,
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
                option: OUTPUT_NAME,
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
        Backend::OrtGpu => model(&facts.on_cuda(), &mut staged, version)?,
        Backend::OrtCpu => model(&facts.path, &mut staged, version)?,
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
fn model(path: &Path, staged: &mut Staged, version: u32) -> Result<(), ExportError> {
    let mut data = path.as_os_str().to_os_string();
    data.push(".data");
    let data = PathBuf::from(data);
    match data.is_file() {
        false => staged.copy(path, &format!("{version}/model.onnx")),
        true => {
            staged.copy(path, &format!("{version}/model.onnx/model.onnx"))?;
            let name = data.file_name().unwrap_or_default().to_string_lossy();
            staged.copy(&data, &format!("{version}/model.onnx/{name}"))
        }
    }
}

#[cfg(test)]
mod tests;
