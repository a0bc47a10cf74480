//! What the precision passes need to know of activations, and real inputs for the proof.

use kiln_graph::{Model, ValueId};
use kiln_passes::precision::{self, Grams, MIN_INT4_BLOCK, Plans, stats::Stats};

use super::Error;
use crate::calibrate::{self, Source, SourceOptions};
use crate::fixed::Fixed;
use crate::manifest::Calibrated;
use crate::options::{Calibration, Options};
use crate::parity::Case;
use crate::precision::{Floats, Linear, Scheme};
use crate::runtime::DeviceRequest;
use crate::setting::{CALIBRATE, INPUTS};
use crate::shapes::Shapes;
use crate::summary;
use crate::talk::Talk;
use crate::targets::Targets;

/// Samples that the proof takes and calibration does not, of data with enough of them.
const HELD_OUT: usize = 8;

/// What was measured on the data.
#[derive(Debug)]
pub(crate) struct Measured {
    pub stats: Stats,
    pub plans: Plans,
    pub grams: Grams,
    pub facts: Calibrated,
    /// Cases for the proof.
    pub cases: Vec<Case>,
}

fn made_up() -> String {
    format!(
        "the ranges of activations come from made-up inputs, which are not like real ones: give \
     real data with {CALIBRATE} before this model is used"
    )
}

/// FP16 has less range than FP32, and only real inputs show how much of it a model needs.
fn unmeasured() -> String {
    format!(
        "FP16 ends at 65504, and what the model reaches was seen on made-up inputs alone, which are not like \
     real ones: give real data with {CALIBRATE} or {INPUTS} before this model is used"
    )
}

/// A step of the original's own quantization is a few steps of half precision wide, so that one number in some falls to the
/// other side. How much a network makes of that, made inputs do not show.
fn requantized() -> String {
    format!(
        "the original rounds activations to integers, and half precision moves some of them to the next one: on \
     real inputs the result may differ by more than made-up ones show: give real data with {INPUTS} before this model is used"
    )
}

/// Half of the layers of a small encoder come out of tolerance so.
fn to_the_nearest() -> String {
    format!(
        "without {CALIBRATE}, weights go to the nearest of 16 steps, and layers for which that is not close enough \
     keep their precision (of a small model often half of them, and finding them takes minutes); real inputs let the errors of \
     weights make up for each other, and mostly no layer is kept"
    )
}

/// What a user of INT4 must know where nothing is measured for it.
pub(crate) fn nearest(options: &Options) -> Option<String> {
    let kept = by_weights(options) && options.check && options.search;
    (kept && options.calibration.data.is_none()).then(to_the_nearest)
}

/// What a user must know of the inputs that the result was made and proved with.
pub(crate) fn warning(
    options: &Options,
    original: &Model,
    calibrated: Option<&Calibrated>,
) -> Option<String> {
    let quantized = || summary::quantizes_activations(&original.graph);
    match calibrated {
        Some(c) if c.made => Some(made_up()),
        None if options.precision.half().is_some() && options.inputs.is_none() && quantized() => {
            Some(requantized())
        }
        None if options.precision.floats == Floats::Fp16 => Some(unmeasured()),
        _ => None,
    }
}

fn wanted(options: &Options, targets: &Targets, model: &Model) -> Vec<ValueId> {
    // Made-up inputs say nothing of the channels that dynamic quantization leaves apart.
    let ranges = match options.precision.linear.scheme() {
        Some(Scheme::Static) => true,
        Some(Scheme::Dynamic) => options.calibration.data.is_some(),
        Some(Scheme::Weights) | None => false,
    };
    let mut values = match (ranges, planned(options)) {
        (true, _) => precision::wanted(model),
        (_, true) => precision::wanted_by_int4(model).1,
        _ => Vec::new(),
    };
    // Only TensorRT's products write INT8.
    if ranges && options.precision.linear == Linear::Int8 && targets.is_engine() {
        values.extend(precision::wanted_results(model));
    }
    if let Some(half) = options
        .precision
        .half()
        .filter(|_| options.calibration.data.is_some())
    {
        values.extend(precision::wanted_by_half(model, half));
    }
    values.sort_unstable();
    values.dedup();
    values
}

/// Whether roundings to INT4 are planned.
fn planned(options: &Options) -> bool {
    by_weights(options) && options.calibration.data.is_some()
}

/// Whether roundings of weights in INT8 make up for each other on the data.
fn compensates(options: &Options) -> bool {
    let linear = options.precision.linear;
    let fixed = linear.scheme() == Some(Scheme::Static);
    fixed && linear == Linear::Int8 && options.calibration.data.is_some()
}

fn grams(
    fused: &Model,
    source: &Source,
    choices: &calibrate::Options<'_>,
    talk: &dyn Talk,
) -> Result<Grams, Error> {
    let mut all = Grams::default();
    let values = precision::wanted_to_compensate(fused);
    calibrate::grams(fused, &values, source, choices, talk, &mut |x, gram| {
        all.insert(x, gram);
        Ok::<(), Error>(())
    })?;
    Ok(all)
}

fn by_weights(options: &Options) -> bool {
    options.precision.linear.scheme() == Some(Scheme::Weights)
}

/// The options with blocks of INT4 half as long, if those may be.
pub(crate) fn halved(options: &Options) -> Option<Options> {
    let block = options.int4_block / 2;
    let may = planned(options) && options.search && !options.int4_fixed;
    (may && block >= MIN_INT4_BLOCK).then(|| {
        let mut options = options.clone();
        options.int4_block = block;
        options.recipe.precision.int4_block = Some(block);
        options
    })
}

/// Plans the roundings to INT4 anew, with the same data.
pub(crate) fn plans(
    options: &Options,
    targets: &Targets,
    device: DeviceRequest,
    fused: &Model,
    shapes: &Shapes,
    talk: &dyn Talk,
) -> Result<Plans, Error> {
    let source = source(options, fused, shapes, talk)?;
    plan(
        options,
        targets,
        fused,
        &source,
        &choices(options, device),
        talk,
    )
}

/// Plans the roundings of all layers, each as soon as what its activation was is complete.
fn plan(
    options: &Options,
    targets: &Targets,
    fused: &Model,
    source: &Source,
    choices: &calibrate::Options<'_>,
    talk: &dyn Talk,
) -> Result<Plans, Error> {
    let mut plans = Plans::default();
    let values = precision::wanted_by_int4(fused).0;
    let target = super::target(options, targets);
    let keep = |name: &str| options.keep.as_ref().is_some_and(|r| r.is_match(name));
    let passes = kiln_passes::Options {
        keep: &keep,
        keep_ops: &options.keep_ops,
        int4_block: options.int4_block,
        ..kiln_passes::Options::default()
    };
    calibrate::grams(fused, &values, source, choices, talk, &mut |x, gram| {
        let graph = &fused.graph;
        talk.stage(&format!(
            "rounding: layers that read {}",
            graph.value(x).name()
        ));
        let plan = precision::plan_int4(graph, x, &gram, &target, &passes);
        plans.extend(plan.map(|plan| (x, plan)));
        Ok::<(), Error>(())
    })?;
    Ok(plans)
}

/// The data, without the samples that are held out for the proof.
fn source(
    options: &Options,
    fused: &Model,
    shapes: &Shapes,
    talk: &dyn Talk,
) -> Result<Source, Error> {
    let Calibration {
        data,
        tokenizer,
        samples,
        ..
    } = &options.calibration;
    let reading = SourceOptions {
        tokenizer: tokenizer.clone(),
        samples: data.as_ref().map(|_| *samples),
        seed: options.seed,
        fixed: Fixed::known(&fused.graph, &options.fixed, &options.dims)?.values,
        ..SourceOptions::default()
    };
    let mut source = match data {
        Some(path) => Source::open(&fused.graph, path, &reading)?,
        None => {
            talk.warn(&made_up());
            Source::made(&fused.graph, shapes, &reading)?
        }
    };
    source.reserve(HELD_OUT)?;
    Ok(source)
}

fn choices(options: &Options, device: DeviceRequest) -> calibrate::Options<'_> {
    calibrate::Options {
        ort_lib: options.ort_lib.as_deref(),
        device,
        ..calibrate::Options::default()
    }
}

/// Measures what the options need on the fused model; `None` if they need nothing.
pub(crate) fn measure(
    options: &Options,
    targets: &Targets,
    device: DeviceRequest,
    fused: &Model,
    shapes: &Shapes,
    talk: &dyn Talk,
) -> Result<Option<Measured>, Error> {
    nearest(options).into_iter().for_each(|why| talk.warn(&why));
    let values = wanted(options, targets, fused);
    if values.is_empty() && options.calibration.data.is_none() {
        return Ok(by_inputs(options, device, fused, talk));
    }
    let source = source(options, fused, shapes, talk)?;
    let choices = choices(options, device);
    let (stats, cached) = match &options.calibration.cache {
        Some(path) => calibrate::calibrate_cached(fused, &values, &source, &choices, path, talk)?,
        None => (
            calibrate::calibrate(fused, &values, &source, &choices, talk)?,
            false,
        ),
    };
    let plans = match planned(options) {
        true => plan(options, targets, fused, &source, &choices, talk)?,
        false => Plans::default(),
    };
    let grams = match compensates(options) {
        true => grams(fused, &source, &choices, talk)?,
        false => Grams::default(),
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
            values: stats.len() + plans.len(),
            cached,
            held_out: cases.len(),
        },
        stats,
        plans,
        grams,
        cases,
    }))
}

/// What FP16 and BF16 need to know, measured on the inputs that were given for the proof, if there are any. Inputs that do not
/// serve for it are no failure, as the proof takes them in other forms, too.
fn by_inputs(
    options: &Options,
    device: DeviceRequest,
    fused: &Model,
    talk: &dyn Talk,
) -> Option<Measured> {
    let half = options.precision.half()?;
    let unmeasured = warning(options, fused, None);
    let Some(path) = &options.inputs else {
        unmeasured.iter().for_each(|why| talk.warn(why));
        return None;
    };
    let values = precision::wanted_by_half(fused, half);
    let measure = || {
        let source =
            Source::open(&fused.graph, path, &SourceOptions::default()).map_err(Error::from)?;
        let choices = choices(options, device);
        let stats = calibrate::calibrate(fused, &values, &source, &choices, talk)?;
        Ok::<_, Error>((stats, source.description()))
    };
    match measure() {
        Ok((stats, data)) => Some(Measured {
            facts: Calibrated {
                data,
                made: false,
                values: stats.len(),
                cached: false,
                held_out: 0,
            },
            stats,
            plans: Plans::default(),
            grams: Grams::default(),
            cases: Vec::new(),
        }),
        Err(e) => {
            talk.warn(&format!("ranges cannot be measured on these inputs: {e}"));
            unmeasured.iter().for_each(|why| talk.warn(why));
            None
        }
    }
}

/// Without the folders of a file.
fn short(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_string()
}
