//! The stages that write the result and hold it against the original.

use kiln_graph::onnx::{self, WriteOptions, Written};
use kiln_graph::{DType, Model};

use super::job::Job;
use super::proved::{Proved, not_the_same};
use super::{CompileError, gates, pieces};
use crate::bench::{self, BenchOptions, BenchReport, Subject};
use crate::bundle::{self, Partial};
use crate::engine_parity::{EngineParity, NotRun};
use crate::engine_runner;
use crate::manifest::EngineFacts;
use crate::options::Options;
use crate::parity;
use crate::pipeline::clock::Clock;
use crate::pipeline::{Rewritten, tolerance};
use crate::prove::{self, Proof};
use crate::setting::LATENCY;
use crate::talk::Talk;
use crate::targets::Targets;
use crate::twin;

pub(crate) fn write(model: &Model, partial: &Partial) -> Result<Written, CompileError> {
    Ok(onnx::write(
        model,
        partial.file(bundle::MODEL),
        &WriteOptions::default(),
    )?)
}

/// Compares with the original and saves the typical case.
fn prove(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<parity::Report, CompileError> {
    proof.reference.begin("parity");
    let report = proof.compare(&tolerance(options, Some(rewritten))?, talk)?;
    if report.failed() {
        return Err(not_the_same(options, report, None));
    }
    proof.save(&partial.file(bundle::PROOF))?;
    Ok(report)
}

/// What ran on the CPU and was to run on a GPU: a warning, or a failure where the GPU was asked for by its name.
fn fallback(
    options: &Options,
    proof: &Proof,
    talk: &dyn Talk,
) -> Result<Option<String>, CompileError> {
    let Some(why) = parity::fallen(proof.reference.placements()) else {
        return Ok(None);
    };
    if proof.reference.device().asked {
        let model = options.model.clone();
        return Err(CompileError::Fallback { model, why });
    }
    talk.warn(&why);
    Ok(Some(why))
}

/// Holds the engine against the original, where there is a GPU to run it on.
fn prove_engine(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<EngineParity, CompileError> {
    let plan = partial.file(bundle::ENGINE);
    let mut runner = match engine_runner::open(
        &plan,
        options.device.choice.gpu() as usize,
        options.trt_lib.as_deref(),
    ) {
        Ok(runner) => runner,
        Err(not_run) => return Ok(not_run.into()),
    };
    let tolerance = tolerance(options, Some(rewritten))?;
    proof.reference.begin("engine parity");
    let parity = proof
        .reference
        .compare_engine(runner.as_mut(), &tolerance, talk)?;
    match parity {
        EngineParity::Run { report, runner } if report.failed() => {
            Err(not_the_same(options, *report, Some(runner.to_string())))
        }
        _ => Ok(parity),
    }
}

/// Times both at the typical sizes.
///
/// # Errors
/// When a model does not load or run.
fn latency(proof: &Proof) -> Result<BenchReport, CompileError> {
    let mut timed = proof.timed()?;
    let (original, inputs) = &mut timed.original;
    let (result, theirs) = &mut timed.result;
    let mut subjects = [
        Subject::session("original", original, inputs).map_err(prove::Error::from)?,
        Subject::session("result", result, theirs).map_err(prove::Error::from)?,
    ];
    let options = BenchOptions {
        batch: timed.batch,
        ..BenchOptions::verdict()
    };
    Ok(bench::measure(&mut subjects, &options)?)
}

const NO_BF16: &str =
    "ONNX Runtime's CPU provider has no BF16 kernels, and its CUDA provider not all";

const NO_CUDA: &str = "the result serves on ONNX Runtime's CUDA provider, which cannot run here";

/// Compares, judges and times, as far as that is asked for.
///
/// # Errors
/// When the result or the engine differs, or a model does not run.
pub(super) fn all(
    job: &Job<'_>,
    rewritten: &Rewritten,
    proof: Option<Proof>,
    engine: Option<&EngineFacts>,
    clock: &mut Clock<'_>,
) -> Result<Proved, CompileError> {
    let (options, partial, talk) = (job.options, job.partial, clock.talk);
    let mut proved = Proved {
        proof,
        parity: None,
        generation: None,
        fallback: None,
        engine_parity: EngineParity::from(match engine {
            Some(_) => NotRun::unchecked(),
            None => NotRun::no_engine(),
        }),
        judge: None,
        latency: None,
        latency_not_run: None,
        in_pieces: None,
    };
    if let Some(why) = job.in_pieces {
        clock.time("parity", || {
            pieces::prove(job, rewritten, why, &mut proved, talk)
        })?;
        return Ok(proved);
    }
    let Some(proof) = &mut proved.proof else {
        return Ok(proved);
    };
    proved.parity = Some(clock.time("parity", || prove(options, rewritten, proof, partial, talk))?);
    proved.generation = clock.time("generation", || {
        super::generation::prove(options, rewritten, partial, talk)
    })?;
    proved.fallback = fallback(options, proof, talk)?;
    if engine.is_some() {
        proved.engine_parity = clock.time("engine parity", || {
            prove_engine(options, rewritten, proof, partial, talk)
        })?;
    }
    if let Some(asked) = &options.judge {
        proof.reference.begin("judge");
        proved.judge = Some(clock.time("judge", || proof.ask(asked, talk))?);
    }
    if options.latency == Some(false) {
        return Ok(proved);
    }
    if job.prepared.targets == Targets::Cuda && proof.reference.device().device.is_cpu() {
        proved.latency_not_run = Some(NO_CUDA.to_string());
        return Ok(proved);
    }
    let targets = &job.prepared.targets;
    let serves_here = *targets == Targets::Cpu || !proof.reference.device().device.is_cpu();
    if options.latency.is_none() && !serves_here {
        let why = gates::elsewhere(targets);
        proved.latency_not_run = Some(format!("{why}; {LATENCY} times it there"));
        return Ok(proved);
    }
    if twin::formats(&rewritten.model).contains(&DType::BF16) {
        proved.latency_not_run = Some(NO_BF16.to_string());
        return Ok(proved);
    }
    // What was proved is right, whether or not it can be timed here.
    match clock.time("latency", || latency(proof)) {
        Ok(measured) => proved.latency = Some(measured),
        Err(e) => {
            let why = bundle::public(&e.to_string()).into_owned();
            talk.warn(&format!("the result was not timed: {why}"));
            proved.latency_not_run = Some(why);
        }
    }
    Ok(proved)
}
