//! The stages that change number formats, and search for what must keep its own.

use kiln_graph::onnx::Written;
use kiln_passes::precision::Plans;
use kiln_passes::{Step, registry};

use super::job::Job;
use super::{CompileError, search};
use crate::manifest::Search;
use crate::options::Options;
use crate::pipeline::clock::Clock;
use crate::pipeline::{self, Passes, Rewritten, calibration};
use crate::prove::Reference;
use crate::talk::{Silent, Talk};

/// The model in its number formats.
pub(super) struct Typed {
    pub rewritten: Rewritten,
    pub search: Option<Search>,
    /// What was written, if the bundle's model is this one already.
    pub written: Option<Written>,
    /// The options with blocks of INT4 half as long, if the result took those.
    pub halved: Option<Options>,
}

/// Changes number formats by these steps, as far as the result holds its tolerance.
///
/// # Errors
/// When a pass or the search fails.
pub(super) fn typed(
    job: &Job<'_>,
    lossy: &[Step],
    mut reference: Option<&mut Reference>,
    clock: &mut Clock<'_>,
) -> Result<Typed, CompileError> {
    let talk = clock.talk;
    let passes = Passes {
        before: Some(&job.prepared.fused),
        stats: job.prepared.stats(),
        plans: job.prepared.plans(),
        grams: job.prepared.grams(),
        // Whatever was chosen, no internal operator may be left.
        finish: registry::LOWER,
        ..Passes::of(lossy, &job.prepared.held)
    };
    let mut rewritten = clock.time("precision", || rewrite(job, &passes, talk))?;
    let shorter = match &mut reference {
        Some(reference) => shorter(job, &rewritten, reference, clock)?,
        None => None,
    };
    let (halved, plans) = shorter.unzip();
    let job = &Job {
        options: halved.as_ref().unwrap_or(job.options),
        ..*job
    };
    let passes = Passes {
        plans: plans.as_ref().or(passes.plans),
        ..passes
    };
    if halved.is_some() {
        rewritten = clock.time("precision", || rewrite(job, &passes, talk))?;
    }
    job.has_kernels(&rewritten)?;
    let (mut search, mut written) = (None, None);
    if let (Some(reference), true) = (reference, !lossy.is_empty() && job.options.search) {
        let candidates = search::Candidates {
            sparing: &|spared: &[String]| {
                let passes = Passes { spared, ..passes };
                rewrite(job, &passes, &Silent)
            },
            fused: &job.prepared.fused.model,
            bound: job.bound(),
            fits: &|rewritten| job.has_kernels(rewritten).is_ok(),
            builds: &|model| job.engine(model, talk).map(|_| ()),
        };
        let found = clock.time("search", || {
            let (options, partial) = (job.options, job.partial);
            let found = search::run(options, reference, rewritten, &candidates, partial, talk);
            found.map_err(|e| e.in_search(options))
        })?;
        (rewritten, search, written) = (found.rewritten, found.search, found.written);
    }
    Ok(Typed {
        rewritten,
        search,
        written,
        halved,
    })
}

fn rewrite(job: &Job<'_>, passes: &Passes<'_>, talk: &dyn Talk) -> Result<Rewritten, CompileError> {
    let Job {
        options, prepared, ..
    } = job;
    let model = prepared.fused.model.clone();
    Ok(pipeline::rewrite(
        options,
        &prepared.targets,
        passes,
        model,
        talk,
    )?)
}

/// The options with shorter blocks of INT4 and the roundings for them, where the result does not hold its tolerance and those may
/// be taken.
fn shorter(
    job: &Job<'_>,
    rewritten: &Rewritten,
    reference: &mut Reference,
    clock: &mut Clock<'_>,
) -> Result<Option<(Options, Plans)>, CompileError> {
    let Some(halved) = calibration::halved(job.options) else {
        return Ok(None);
    };
    let holds = clock.time("blocks", || {
        let holds = search::hold(job.options, reference, rewritten, job.partial);
        holds.map_err(|e| e.in_search(job.options))
    })?;
    if holds {
        return Ok(None);
    }
    let talk = clock.talk;
    let plans = clock.time("calibration", || {
        let p = job.prepared;
        let fused = &p.fused.model;
        let options = p.data(&halved);
        calibration::plans(&options, &p.targets, p.device, fused, &p.shapes, talk)
    })?;
    Ok(Some((halved, plans)))
}
