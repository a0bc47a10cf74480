//! Where the heads of a model look: the softmax probabilities of its attentions on given inputs, as a page and as arrays.
//!
//! The model goes through the passes that fuse attention, each attention is asked for its probabilities, and the rest is
//! lowered to plain ONNX and run in ONNX Runtime without its optimizations. So the maps are those of the model that was
//! given, whether an exporter or kiln wrote it.

mod error;
mod find;
pub mod flags;
mod page;
mod summary;
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::onnx;
use kiln_graph::{Model, Tensor};

use crate::bundle;
use crate::calibrate::{Batch, DataError, Source, SourceOptions};
use crate::parity;
use crate::runtime::{self, Device, DeviceRequest, Optimization, Runtime, Session, SessionOptions};
use crate::setting::MAX_LENGTH;
use crate::talk::Talk;
use crate::twin;
use tokens::Tokens;

pub use error::AttentionError;
pub use summary::{Kind, Layer, Summary};

/// What the model runs on.
#[derive(Clone, Debug)]
pub enum Data {
    /// An `.npz` file with an array for each input, called `NAME` or `in.NAME`; an `.npy` file for a model with one input.
    Arrays(PathBuf),
    /// Texts, each a sample; shorter ones are padded.
    Text(Vec<String>),
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// An ONNX file or a bundle.
    pub model: PathBuf,
    pub data: Data,
    /// A `tokenizer.json`: makes tokens of text, and words of token ids.
    pub tokenizer: Option<PathBuf>,
    /// The most tokens of a text; what is longer is cut.
    pub max_length: usize,
    /// Attentions by their number in the order of computation, from 0; empty for all.
    pub layers: Vec<usize>,
    /// Heads by their number, from 0; empty for all.
    pub heads: Vec<usize>,
    /// The page, an `.html` file; the arrays go beside it as `.npz`.
    pub page: PathBuf,
    pub device: DeviceRequest,
    pub ort_lib: Option<PathBuf>,
}

/// Runs the model and writes the page, and beside it the arrays `layer0`, `layer1`, …, each FP32 [samples, heads, queries,
/// keys] with the heads that were asked for. Both are written aside and renamed.
///
/// # Errors
/// When the model or the inputs cannot be read or do not fit, when the model has no attention, or none of those asked for,
/// when the runtime is missing or refuses the model, and when a file cannot be written.
pub fn attention(options: &Options, talk: &dyn Talk) -> Result<Summary, AttentionError> {
    let arrays = places(options)?;
    talk.stage("reading");
    let path = bundle::find_model(&options.model)?;
    let model = onnx::read(&path)?;
    let batch = batch(options, &model)?;
    let tokens = Tokens::of(&model.graph, &batch.inputs, options.tokenizer.as_deref())?;
    talk.stage("attention: finding");
    let found =
        find::find(model, options.ort_lib.as_deref()).map_err(|source| AttentionError::Pass {
            model: path.clone(),
            source,
        })?;
    if found.blocks.is_empty() {
        return Err(AttentionError::NoAttention {
            model: path,
            left: found.left,
        });
    }
    let count = found.blocks.len();
    check(&path, "attention", &options.layers, count)?;
    talk.stage("attention: running");
    let mut warnings: Vec<String> = (found.left.iter())
        .map(|why| format!("an attention is not shown: {why}"))
        .collect();
    let runtime = Runtime::load(options.ort_lib.as_deref())?;
    let device = runtime.device(options.device)?;
    let outputs = run(options, runtime, device.device, &found.model, &path, &batch)?;
    drop(found.model);
    talk.stage("attention: judging");
    let mut layers = Vec::new();
    for (number, (block, (_, weights))) in found.blocks.into_iter().zip(outputs).enumerate() {
        if !options.layers.is_empty() && !options.layers.contains(&number) {
            continue;
        }
        let layer = layer(&path, number, block, &weights, &tokens, &options.heads)?;
        layers.push(layer);
    }
    let mut summary = Summary {
        model: path.display().to_string(),
        data: batch.name,
        page: options.page.clone(),
        arrays,
        layers,
        device,
        warnings: Vec::new(),
    };
    talk.stage("attention: writing");
    let shown = page::samples(&summary.layers);
    let samples = summary.layers.iter().map(|l| l.samples).max().unwrap_or(0);
    if shown < samples {
        warnings.push(format!(
            "the page would be too large: it has the first {shown} of {samples} samples; the arrays have all"
        ));
    }
    for warning in &warnings {
        talk.warn(warning);
    }
    summary.warnings = warnings;
    write(&summary, &tokens, shown)?;
    Ok(summary)
}

/// Where the arrays go.
fn places(options: &Options) -> Result<PathBuf, AttentionError> {
    let html = options.page.extension();
    if !html.is_some_and(|e| e.eq_ignore_ascii_case("html")) || options.page.is_dir() {
        return Err(AttentionError::NotPage(options.page.clone()));
    }
    let arrays = options.page.with_extension("npz");
    if let Data::Arrays(inputs) = &options.data {
        let ends = |e: &str| {
            inputs
                .extension()
                .is_some_and(|x| x.eq_ignore_ascii_case(e))
        };
        if inputs.is_dir() || !(ends("npz") || ends("npy")) {
            return Err(AttentionError::NotArrays(inputs.clone()));
        }
        let same = fs::canonicalize(inputs)
            .ok()
            .zip(fs::canonicalize(&arrays).ok());
        if same.is_some_and(|(a, b)| a == b) {
            return Err(AttentionError::Overwrites(arrays));
        }
    }
    Ok(arrays)
}

/// All samples as one batch.
fn batch(options: &Options, model: &Model) -> Result<Batch, AttentionError> {
    let mut how = SourceOptions {
        tokenizer: options.tokenizer.clone(),
        max_length: options.max_length,
        ..SourceOptions::default()
    };
    let source = match &options.data {
        Data::Arrays(path) => {
            how.batch = usize::MAX;
            Source::open(&model.graph, path, &how)?
        }
        Data::Text(lines) => {
            how.batch = lines.len();
            Source::text(&model.graph, lines, &how)?
        }
    };
    let first = source.batches().next().transpose()?;
    let name = || PathBuf::from(source.description());
    let batch = first.ok_or_else(|| DataError::Empty { path: name() })?;
    Ok(batch)
}

fn check(
    model: &Path,
    what: &'static str,
    wanted: &[usize],
    count: usize,
) -> Result<(), AttentionError> {
    match wanted.iter().find(|&&number| number >= count) {
        None => Ok(()),
        Some(&number) => Err(AttentionError::NoSuch {
            model: model.to_path_buf(),
            what,
            number,
            count,
        }),
    }
}

/// The probabilities, in the order of the model's outputs.
fn run(
    options: &Options,
    runtime: &'static Runtime,
    device: Device,
    model: &Model,
    path: &Path,
    batch: &Batch,
) -> Result<Vec<(String, Tensor)>, AttentionError> {
    let hint = match &options.data {
        Data::Text(_) => {
            format!(
                "; if the text is longer than the model's positions, give a smaller {MAX_LENGTH}"
            )
        }
        Data::Arrays(_) => String::new(),
    };
    // Half precision is rounded as written, whatever kernels the CPU provider has.
    let twin = twin::rounding(model);
    let parts = onnx::to_parts(twin.as_ref().unwrap_or(model))?;
    drop(twin);
    let how = SessionOptions {
        optimization: Optimization::Disabled,
        device,
        ..SessionOptions::default()
    };
    let name = path.display().to_string();
    let mut session = Session::from_parts(runtime, name, parts, &how)?;
    session.run(&batch.inputs).map_err(|source| match source {
        source @ runtime::Error::Run { .. } => AttentionError::Run {
            model: path.to_path_buf(),
            data: batch.name.clone(),
            source,
            hint,
        },
        other => other.into(),
    })
}

/// One attention's heads, judged; those that were asked for.
fn layer(
    model: &Path,
    number: usize,
    block: find::Block,
    weights: &Tensor,
    tokens: &Tokens,
    wanted: &[usize],
) -> Result<Layer, AttentionError> {
    let shape = || AttentionError::Shape {
        model: model.to_path_buf(),
        layer: block.name.clone(),
        found: format!("{}{:?}", weights.dtype(), weights.dims()),
    };
    let [samples, heads, queries, keys] = *weights.dims() else {
        return Err(shape());
    };
    let values = weights.values::<f32>().ok_or_else(shape)?;
    check(model, "head", wanted, heads)?;
    let cross = block.cross.unwrap_or(queries != keys);
    let dims = [samples, heads, queries, keys];
    let padded = flags::padding(&values, dims, !cross);
    let mut shown = wanted.to_vec();
    shown.sort_unstable();
    shown.dedup();
    if shown.is_empty() {
        shown = (0..heads).collect();
    }
    let judged = shown
        .iter()
        .map(|&h| flags::judge(&values, dims, h, &padded));
    let judged = judged.collect();
    let weights = match shown.len() == heads {
        true => weights.clone(),
        false => {
            let map = queries * keys;
            let maps = (0..samples).flat_map(|s| shown.iter().map(move |h| (s * heads + h) * map));
            let part: Vec<f32> = maps
                .flat_map(|from| values.get(from..from + map).unwrap_or_default())
                .copied()
                .collect();
            let dims = vec![samples, shown.len(), queries, keys];
            Tensor::from_values(dims, &part).map_err(|_| shape())?
        }
    };
    let axis = |from: &[String], length| tokens.axis(from, samples, length).map(str::to_string);
    Ok(Layer {
        layer: number,
        kind: match cross {
            true => Kind::CrossAttention,
            false => Kind::SelfAttention,
        },
        samples,
        queries,
        keys,
        query_tokens: axis(&block.queries, queries),
        key_tokens: axis(&block.keys, keys),
        heads: judged,
        weights,
        name: block.name,
        mask: block.mask,
    })
}

/// Writes both files aside and renames them.
fn write(summary: &Summary, tokens: &Tokens, shown: usize) -> Result<(), AttentionError> {
    let fail = |path: &Path, why| {
        let path = path.to_path_buf();
        move |source| AttentionError::Io { path, why, source }
    };
    let folder = match summary.page.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let aside = tempfile::Builder::new()
        .prefix(".kiln-attention.")
        .tempdir_in(folder);
    let aside = aside.map_err(fail(&summary.page, "cannot be written here"))?;
    let (page, arrays) = (aside.path().join("page"), aside.path().join("arrays"));
    let named: Vec<(String, Tensor)> = (summary.layers.iter())
        .map(|l| (format!("layer{}", l.layer), l.weights.clone()))
        .collect();
    parity::npz::write(&arrays, &named)?;
    let html = page::render(summary, tokens, shown);
    fs::write(&page, html).map_err(fail(&summary.page, "cannot be written"))?;
    for (from, to) in [(&arrays, &summary.arrays), (&page, &summary.page)] {
        fs::rename(from, to).map_err(fail(to, "cannot be put in its place"))?;
    }
    Ok(())
}
