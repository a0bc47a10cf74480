//! The pipeline: read → canonical → fused → typed → built → proved → reported.

mod beside;
mod build;
mod cuda;
mod error;
mod gates;
mod generation;
mod job;
mod pieces;
mod plan;
mod proof;
mod proved;
mod record;
pub mod search;
mod typed;

use std::path::{Path, PathBuf};

pub use build::profile;
pub use error::CompileError;
pub use plan::{Plan, plan};

use crate::bundle::{self, Partial};
pub use crate::manifest::Calibrated;
use crate::manifest::Manifest;
pub use crate::options::{Calibration, Gates, Options, SAMPLES};
use crate::pipeline::clock::Clock;
use crate::pipeline::prepared::{How, Input};
use crate::pipeline::{self, Fingerprint};
pub use crate::pipeline::{Rewritten, Source};
use crate::prove;
use crate::report;
use crate::talk::Talk;
use crate::targets::Targets;
use job::Job;
use record::Done;
use typed::{Typed, typed};

/// A finished compilation.
#[derive(Debug)]
pub struct Outcome {
    pub bundle: PathBuf,
    pub manifest: Manifest,
}

/// Compiles a model into a bundle. On failure nothing is left behind, and an older bundle stays as it was.
///
/// # Errors
/// Each stage has its variant of [`CompileError`], which says what is at fault.
pub fn compile(options: &Options, talk: &dyn Talk) -> Result<Outcome, CompileError> {
    let parts = options.targets.as_ref().and_then(Targets::parts);
    let (partial, manifest) = match parts {
        Some(parts) => beside::written(options, parts, talk, &written)?,
        None => written(options, talk)?,
    };
    finish(partial, manifest, talk)
}

/// The model, and what was found, in a folder that is no bundle yet.
fn written(options: &Options, talk: &dyn Talk) -> Result<(Partial, Manifest), CompileError> {
    let mut clock = Clock::new(talk);
    let input = read(options, &mut clock)?;
    let partial = Partial::new(&output_path(options), options.over)?;
    (partial.swept.iter()).for_each(|swept| talk.warn(&swept.to_string()));
    let steps = pipeline::steps(options)?;
    let (exact, lossy) = pipeline::split(&steps);
    let builder = build::builder(options, &input.targets, &partial)?;
    let source = Fingerprint::begin(options, &input.original)?;
    let in_pieces = pieces::needed(options, &input.original, talk);
    let how = How {
        steps: exact,
        opens: options.check && in_pieces.is_none(),
        one_profile: builder.is_some(),
        result: result_name(options),
        tells: true,
        admit: &|fused| match builder {
            Some(_) => Ok(build::readable(fused)?),
            None => Ok(()),
        },
    };
    let mut prepared = input.prepare::<CompileError>(options, &how, &mut clock)?;
    let mut reference = prepared.reference.take();
    let job = Job {
        options,
        prepared: &prepared,
        partial: &partial,
        builder: builder.as_deref(),
        in_pieces: in_pieces.as_deref(),
    };
    let typed = typed(&job, lossy, reference.as_mut(), &mut clock)?;
    let Typed {
        rewritten, halved, ..
    } = &typed;
    let job = Job {
        options: halved.as_ref().unwrap_or(options),
        ..job
    };
    let written = match typed.written.clone() {
        Some(written) => written,
        None => clock.time("write", || proof::write(&rewritten.model, &partial))?,
    };
    let against = |r: prove::Reference| r.against(&partial.file(bundle::MODEL), &rewritten.model);
    let proof = reference.map(against);
    let mut build = || clock.time("engine", || job.engine(&rewritten.model, talk));
    let engine = job.builder.and_then(|_| build().transpose()).transpose()?;
    let proved = proof::all(&job, rewritten, proof, engine.as_ref(), &mut clock)?;
    let source = clock.time("hash", || Ok::<_, CompileError>(source.end()))?;
    let done = Done {
        source,
        written,
        typed: &typed,
        engine,
        proved,
        stages: clock.stages,
    };
    let manifest = gates::pass(job.options, record::manifest(&job, done, talk))?;
    pipeline::is_unchanged(&prepared.original)?;
    drop(prepared);
    Ok((partial, manifest))
}

/// Reads the model, once it is clear that the options can be met.
fn read(options: &Options, clock: &mut Clock<'_>) -> Result<Input, CompileError> {
    let targets = pipeline::targets(options, clock.talk)?;
    pipeline::fit(options, &targets)?;
    gates::possible(options, &targets)?;
    pipeline::data_is_there(options)?;
    let output = output_path(options);
    pipeline::spares_inputs(options, &output, &[])?;
    let input = Input::read(options, targets, clock)?;
    pipeline::spares_inputs(options, &output, &input.original.sources)?;
    Ok(input)
}

/// Writes what was done beside the model, and puts the bundle in its place.
fn finish(partial: Partial, manifest: Manifest, talk: &dyn Talk) -> Result<Outcome, CompileError> {
    let json = serde_json::to_vec_pretty(&manifest).map_err(CompileError::Manifest)?;
    partial.write(bundle::MANIFEST, &json)?;
    partial.write(bundle::REPORT, report::markdown(&manifest).as_bytes())?;
    partial.write(bundle::REPORT_PAGE, report::html(&manifest).as_bytes())?;
    let (bundle, kept) = partial.finish()?;
    if !kept.is_empty() {
        let kept: Vec<_> = kept.iter().map(|name| name.to_string_lossy()).collect();
        talk.note(&format!("kept in the bundle: {}", kept.join(", ")));
    }
    Ok(Outcome { bundle, manifest })
}

/// What messages call the model in the bundle that is being written.
pub(crate) fn result_name(options: &Options) -> String {
    format!("the result of compiling {}", options.model.display())
}

/// Where the bundle goes.
pub(crate) fn output_path(options: &Options) -> PathBuf {
    let chosen = options.output.clone();
    chosen.unwrap_or_else(|| bundle::default_path(Path::new(&options.model)))
}
