//! What a compilation and a bisection start from: the model up to where its number formats change, and what was found out
//! about it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_graph::Model;
use kiln_passes::Step;
use kiln_passes::precision::{Grams, Plans, stats::Stats};

use super::calibration::{self, Measured};
use super::clock::Clock;
use super::prepare::{device, fix, held, narrowed, shapes};
use super::recorded::{self, Runs};
use super::rewrite::{Passes, proved_as_optimized, rewrite};
use super::written::{self, Portable};
use super::{Error, Rewritten, named, source};
use crate::bundle;
use crate::fixed::Fixed;
use crate::options::Options;
use crate::prove::{self, Reference};
use crate::runtime::DeviceRequest;
use crate::shapes::Shapes;
use crate::targets::Targets;

/// What was asked for, read. Nothing has run yet.
pub(crate) struct Input {
    pub targets: Targets,
    /// Where ONNX Runtime calibrates, proves and times.
    pub device: DeviceRequest,
    /// With its fixed inputs as constants.
    pub original: Model,
    pub fixed: Fixed,
    pub shapes: Shapes,
    /// What stands for the original where an engine is to have other caches.
    pub portable: Option<Portable>,
    /// What a decoder reads in generations from what was given.
    runs: Option<Runs>,
}

/// How to prepare.
pub(crate) struct How<'a, E> {
    /// The passes before the first that changes number formats.
    pub steps: &'a [Step],
    /// Run the original: find the sizes, and open it for comparisons.
    pub opens: bool,
    /// An engine has one profile of sizes.
    pub one_profile: bool,
    /// What messages call candidates.
    pub result: String,
    /// Tell the user which sizes were found.
    pub tells: bool,
    /// Looks at the fused model before anything runs.
    pub admit: &'a dyn Fn(&Model) -> Result<(), E>,
}

/// The model up to where its number formats change.
pub(crate) struct Prepared {
    pub targets: Targets,
    pub device: DeviceRequest,
    pub original: Model,
    /// The original with the sizes at which alone it runs; what the passes get.
    pub narrowed: Option<Model>,
    pub shapes: Shapes,
    /// Symbols that have one size.
    pub held: BTreeMap<String, usize>,
    pub fused: Rewritten,
    /// The original in ONNX Runtime; `None` if nothing is to be compared.
    pub reference: Option<Reference>,
    /// Controls that select branches of what is left, as `--input` takes them.
    pub selecting: Vec<String>,
    pub measured: Option<Measured>,
    /// Data of a decoder.
    runs: Option<Runs>,
    /// What stood for the original, whose file is opened again for latencies.
    _portable: Option<Portable>,
}

impl Input {
    /// Reads the model.
    ///
    /// # Errors
    /// When it cannot be read, or the options do not fit it.
    pub fn read(
        options: &Options,
        targets: Targets,
        clock: &mut Clock<'_>,
    ) -> Result<Input, Error> {
        let clock_talk = clock.talk;
        let mut original = clock.time("read", || source::read(options))?;
        named::outputs(options, &original)?;
        let portable = clock.time("KV caches", || {
            written::portable(options, &targets, &mut original, clock_talk)
        })?;
        let runs = recorded::runs(options, &original, portable.as_ref(), clock_talk)?;
        Ok(Input {
            runs,
            portable,
            device: device(options, &targets),
            fixed: fix(options, &mut original)?,
            shapes: shapes(options, &original)?,
            targets,
            original,
        })
    }

    /// Fuses, finds the sizes and calibrates.
    ///
    /// # Errors
    /// When a pass fails, the fused model is not admitted, the original does not run, or calibration fails.
    pub fn prepare<E>(
        self,
        options: &Options,
        how: &How<'_, E>,
        clock: &mut Clock<'_>,
    ) -> Result<Prepared, E>
    where
        E: From<Error> + From<prove::Error>,
    {
        let talk = clock.talk;
        let Input {
            targets,
            device,
            original,
            fixed,
            mut shapes,
            portable,
            runs,
        } = self;
        let options = &*Runs::within(runs.as_ref(), options);
        let held = held(&targets, &shapes);
        let passes = Passes::of(how.steps, &held);
        let fuse = |clock: &mut Clock<'_>, model: Model| {
            clock.time("passes", || {
                rewrite(options, &targets, &passes, model, talk)
            })
        };
        let mut fused = fuse(clock, original.clone())?;
        named::kept(options, &original, &fused.model)?;
        (how.admit)(&fused.model)?;
        let given = bundle::model_path(&options.model);
        let request = prove::Request {
            reference: portable
                .as_ref()
                .map_or(given.as_path(), |p| p.path.as_path()),
            original: &original,
            folded: &fused.model.graph,
            inputs: options.inputs.as_deref(),
            fixed: &fixed,
            seed: options.seed,
            optimized: proved_as_optimized(options, &targets),
            thorough: false,
            enough: options.proof.enough(),
            half_io: options.half_io || written::are_narrowed(&targets, &original),
            one_profile: how.one_profile,
            result: Some(how.result.clone()),
            device,
            ort_lib: options.ort_lib.as_deref(),
        };
        let mut open = || prove::open(&request, &mut shapes, talk);
        let mut reference = match how.opens {
            true => Some(clock.time("sizes", &mut open)?),
            false => None,
        };
        if how.tells {
            shapes.told().iter().for_each(|why| talk.warn(why));
            let sizes = shapes.describe().into_iter();
            sizes.for_each(|sizes| talk.note(&format!("sizes: {sizes}")));
            let parted = reference.as_ref().and_then(|r| r.parted.as_ref());
            parted.iter().for_each(|parted| talk.note(parted));
        }
        let (chosen, selecting) = reference.as_ref().map_or_else(Default::default, |r| {
            (r.chosen.clone(), r.selecting.clone())
        });
        let narrowed = narrowed(&original, &shapes, &chosen);
        if let Some(narrowed) = &narrowed {
            fused = fuse(clock, narrowed.clone())?;
        }
        let mut measured = clock.time("calibration", || {
            calibration::measure(options, &targets, device, &fused.model, &shapes, talk)
        })?;
        if let (Some(measured), Some(told)) = (
            &mut measured,
            runs.as_ref().and_then(|r| r.described.as_ref()),
        ) {
            measured.facts.data.clone_from(told);
        }
        if let (Some(reference), Some(measured)) = (&mut reference, &mut measured) {
            reference.prefer(std::mem::take(&mut measured.cases));
        }
        Ok(Prepared {
            targets,
            device,
            original,
            narrowed,
            shapes,
            held,
            fused,
            reference,
            selecting,
            measured,
            runs,
            _portable: portable,
        })
    }
}

impl Prepared {
    /// Of values of the fused model.
    pub fn stats(&self) -> Option<&Stats> {
        self.measured.as_ref().map(|m| &m.stats)
    }

    /// Of layers of the fused model.
    pub fn plans(&self) -> Option<&Plans> {
        self.measured.as_ref().map(|m| &m.plans)
    }

    /// Of values of the fused model.
    pub fn grams(&self) -> Option<&Grams> {
        self.measured.as_ref().map(|m| &m.grams)
    }

    /// The options with data that the decoder reads, where what was given is without.
    pub fn data<'a>(&self, options: &'a Options) -> Cow<'a, Options> {
        Runs::within(self.runs.as_ref(), options)
    }

    /// The model that passes begin with.
    pub fn start(&self) -> &Model {
        self.narrowed.as_ref().unwrap_or(&self.original)
    }
}
