//! Calibration: what the values inside a model are on real data.
//!
//! [`calibrate`] runs a copy of the model in ONNX Runtime in which the wanted values are outputs, and folds them into
//! [`TensorStats`] batch by batch. Values that together are too large for the memory allowed are taken in groups, each with
//! all data. Statistics do not depend on the size of batches; what ONNX Runtime computes may, in the last bits.

pub mod cache;
mod data;
mod files;
mod run;
#[cfg(test)]
mod tests;
mod text;

use std::num::NonZeroUsize;
use std::path::Path;

use kiln_graph::onnx::WriteError;
use kiln_graph::{DType, Def, Graph, Model, ValueId, infer};
use kiln_passes::PassError;
use kiln_passes::precision::Gram;
use kiln_passes::precision::stats::Stats;

pub use cache::{CacheError, Key};
pub use data::{Batch, DataError, Source, SourceOptions};

use kiln_runtime::fault::Fault;
use kiln_runtime::talk::Talk;
use kiln_runtime::{self as runtime, DeviceRequest, Runtime};

/// How to calibrate.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Bytes that the values taken in one run may have together. One value alone may have more.
    pub memory: usize,
    pub ort_lib: Option<&'a Path>,
    /// Where the model runs.
    pub device: DeviceRequest,
    /// Threads of one operator, and threads that fold; `None` leaves it to the machine.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            memory: 256 << 20,
            ort_lib: None,
            device: DeviceRequest::default(),
            threads: None,
        }
    }
}

/// A calibration stopped.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    #[error("the value \"{value}\" cannot be calibrated: {why}")]
    Value { value: String, why: String },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("calibration data: {0} has no samples")]
    NoData(String),
    #[error("the model cannot be prepared for calibration: {0}")]
    Pass(#[from] PassError),
    #[error("the model cannot be prepared for calibration: {0}")]
    Write(#[from] WriteError),
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    #[error("calibration on {batch}: {source}")]
    Run {
        batch: String,
        source: runtime::Error,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl CalibrateError {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            CalibrateError::Data(_) | CalibrateError::NoData(_) | CalibrateError::Cache(_) => {
                Fault::Request
            }
            CalibrateError::Runtime(e) => e.fault(),
            _ => Fault::Model,
        }
    }
}

/// Statistics of `values`, which are FP32 or FP16 values of the model's outermost graph, over all data of `source`.
///
/// The model may hold internal operators. Every value that was asked for is in the result.
///
/// # Errors
/// When a value is of another type, the runtime is missing, the data cannot be read, or the model does not run on it.
pub fn calibrate(
    model: &Model,
    values: &[ValueId],
    source: &Source,
    options: &Options<'_>,
    talk: &dyn Talk,
) -> Result<Stats, CalibrateError> {
    let mut model = model.clone();
    infer::annotate(&mut model.graph);
    let mut wanted = values.to_vec();
    wanted.sort();
    wanted.dedup();
    for &v in &wanted {
        check(&model.graph, v)?;
    }
    if wanted.is_empty() {
        return Ok(Stats::default());
    }
    let runtime = Runtime::load(options.ort_lib)?;
    run::Runner {
        runtime,
        device: runtime.device(options.device)?.device,
        model: &model,
        source,
        options,
        talk,
    }
    .all(&wanted)
}

/// Gives `XᵀX` of the rows of each of `values`, which have a last axis of known length, over all data of `source` to `take`,
/// one value after the other. As many are held at once as the options' memory allows: of more, all data is run again.
///
/// With batches along the first axis of a value the sums do not depend on the size of the batches. Where it has another
/// first axis, they are sums of FP32 in another order: equal within 1e-5 of the largest.
///
/// # Errors
/// As [`calibrate`], and those of `take`.
pub fn grams<E: From<CalibrateError>>(
    model: &Model,
    values: &[ValueId],
    source: &Source,
    options: &Options<'_>,
    talk: &dyn Talk,
    take: &mut dyn FnMut(ValueId, Gram) -> Result<(), E>,
) -> Result<(), E> {
    let mut model = model.clone();
    infer::annotate(&mut model.graph);
    for &v in values {
        check(&model.graph, v)?;
    }
    if values.is_empty() {
        return Ok(());
    }
    let runtime = Runtime::load(options.ort_lib).map_err(CalibrateError::from)?;
    let device = runtime
        .device(options.device)
        .map_err(CalibrateError::from)?;
    let runner = run::Runner {
        runtime,
        device: device.device,
        model: &model,
        source,
        options,
        talk,
    };
    runner.grams(values, take)
}

/// As [`calibrate`], with a file that keeps the result: it is read if it was made for the same model, the same data, the same
/// values and by the same version of kiln, and written otherwise. Gives also whether it was read.
///
/// # Errors
/// As [`calibrate`], and when the file is something else, or cannot be written.
pub fn calibrate_cached(
    model: &Model,
    values: &[ValueId],
    source: &Source,
    options: &Options<'_>,
    path: &Path,
    talk: &dyn Talk,
) -> Result<(Stats, bool), CalibrateError> {
    let key = Key {
        model: cache::model_key(model)?,
        data: source.fingerprint()?,
    };
    if let Some(stats) = cache::read(path, &key, &model.graph, values)? {
        return Ok((stats, true));
    }
    let stats = calibrate(model, values, source, options, talk)?;
    cache::write(path, &key, &model.graph, &stats)?;
    Ok((stats, false))
}

fn check(graph: &Graph, v: ValueId) -> Result<(), CalibrateError> {
    let refuse = |value: &str, why: String| CalibrateError::Value {
        value: value.to_string(),
        why,
    };
    if v.index() >= graph.value_bound() {
        return Err(refuse(
            &format!("{v:?}"),
            "the graph has no such value".into(),
        ));
    }
    let value = graph.value(v);
    if matches!(value.def(), Def::Removed) {
        return Err(refuse(value.name(), "nothing computes it".into()));
    }
    match value.ty().dtype() {
        Some(DType::F32 | DType::F16) => Ok(()),
        Some(other) => Err(refuse(
            value.name(),
            format!("it is {other}; only float and float16 values have statistics"),
        )),
        None => Err(refuse(value.name(), "its type is unknown".into())),
    }
}
