//! What the precision passes need to know of activations, and real inputs for the proof.

use std::path::PathBuf;

use kiln_graph::{Model, ValueId};
use kiln_passes::precision::{self, stats::Stats};
use serde::Serialize;

use super::{CompileError, Options};
use crate::calibrate::{self, DataError, Source, SourceOptions};
use crate::parity::Case;
use crate::runtime::DeviceRequest;
use crate::shapes::Shapes;
use crate::talk::Talk;

/// Where calibration data comes from.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// An `.npz` or `.npy` file, a folder of them, or lines of text; made inputs if it is not given.
    pub data: Option<PathBuf>,
    /// A `tokenizer.json`, for text.
    pub tokenizer: Option<PathBuf>,
    /// A file that keeps what was measured.
    pub cache: Option<PathBuf>,
    /// The most samples to take.
    pub samples: usize,
}

/// Samples that calibrate unless told otherwise: ranges of a sentence encoder change by less than 1 % beyond 64.
pub const SAMPLES: usize = 128;

/// Samples that the proof takes and calibration does not, of data with enough of them.
const HELD_OUT: usize = 8;

impl Default for Calibration {
    fn default() -> Calibration {
        Calibration {
            data: None,
            tokenizer: None,
            cache: None,
            samples: SAMPLES,
        }
    }
}

/// What a calibration was made of, for the manifest.
#[derive(Clone, Debug, Serialize)]
pub struct Calibrated {
    pub data: String,
    /// The data is made up, so that ranges say little about real inputs.
    pub made: bool,
    /// Values that were measured.
    pub values: usize,
    /// Whether a cache had all that was to be measured.
    pub cached: bool,
    /// Samples of the data that only the proof has seen.
    pub held_out: usize,
}

/// What was measured on the data.
#[derive(Debug)]
pub(crate) struct Measured {
    pub stats: Stats,
    pub facts: Calibrated,
    /// Cases for the proof.
    pub cases: Vec<Case>,
}

pub(super) const MADE_UP: &str = "the ranges of activations come from made-up inputs, which are not like real ones: give \
     real data with --calibrate before this model is used";

fn wanted(options: &Options, model: &Model) -> Vec<ValueId> {
    let ranges = options.int8 == Some(super::Int8::Static) || options.fp8;
    let moments = options.int4.is_some() && options.calibration.data.is_some();
    let mut values = match ranges || moments {
        true => precision::wanted(model),
        false => Vec::new(),
    };
    if let Some(half) = options
        .half()
        .filter(|_| options.calibration.data.is_some())
    {
        values.extend(precision::wanted_by_half(model, half));
    }
    values.sort_unstable();
    values.dedup();
    values
}

/// Measures what the options need on the fused model; `None` if they need nothing.
pub(crate) fn measure(
    options: &Options,
    device: DeviceRequest,
    fused: &Model,
    shapes: &Shapes,
    talk: &dyn Talk,
) -> Result<Option<Measured>, CompileError> {
    let values = wanted(options, fused);
    let Calibration {
        data,
        tokenizer,
        cache,
        samples,
    } = &options.calibration;
    if values.is_empty() && data.is_none() {
        return Ok(None);
    }
    let graph = &fused.graph;
    let reading = SourceOptions {
        tokenizer: tokenizer.clone(),
        samples: data.as_ref().map(|_| *samples),
        seed: options.seed,
        ..SourceOptions::default()
    };
    let mut source = match data {
        Some(path) => Source::open(graph, path, &reading)?,
        None => {
            talk.warn(MADE_UP);
            Source::made(graph, shapes, &reading)?
        }
    };
    source.reserve(HELD_OUT)?;
    let choices = calibrate::Options {
        ort_lib: options.ort_lib.as_deref(),
        device,
        ..calibrate::Options::default()
    };
    let (stats, cached) = match cache {
        Some(path) => calibrate::calibrate_cached(fused, &values, &source, &choices, path, talk)?,
        None => (
            calibrate::calibrate(fused, &values, &source, &choices, talk)?,
            false,
        ),
    };
    let mut cases = Vec::new();
    for batch in source.held_out().take(HELD_OUT) {
        let batch = batch?;
        cases.push(Case {
            name: short(&batch.name),
            inputs: batch.inputs,
        });
    }
    Ok(Some(Measured {
        facts: Calibrated {
            data: source.description(),
            made: source.is_made(),
            values: stats.len(),
            cached,
            held_out: cases.len(),
        },
        stats,
        cases,
    }))
}

/// Without the folders of a file.
fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_string()
}

impl From<DataError> for CompileError {
    fn from(e: DataError) -> CompileError {
        CompileError::Calibrate(e.into())
    }
}
