//! The stages that write the result and hold it against the original.

use kiln_graph::Model;
use kiln_graph::onnx::{self, WriteOptions, Written};

use super::CompileError;
use crate::bench::{self, BenchOptions, BenchReport, Subject};
use crate::bundle::{self, Partial};
use crate::engine_parity::{self, EngineParity};
use crate::options::Options;
use crate::parity;
use crate::pipeline::{Rewritten, tolerance};
use crate::prove::{self, Proof};
use crate::talk::Talk;

pub(crate) fn write(model: &Model, partial: &Partial) -> Result<Written, CompileError> {
    Ok(onnx::write(
        model,
        partial.file(bundle::MODEL),
        &WriteOptions::default(),
    )?)
}

/// The result differs from the original, and what can be done about it.
pub(crate) fn not_the_same(
    options: &Options,
    parity: parity::Report,
    engine: Option<String>,
) -> CompileError {
    CompileError::NotTheSame {
        model: options.model.clone(),
        engine,
        parity: Box::new(parity),
        advice: match (options.quantization(), options.half()) {
            (Some(_), _) => {
                "Layers can be kept from quantization with --keep; `kiln bisect` finds the pass"
            }
            (None, Some(_)) => {
                "Nodes can be kept in FP32 with --keep; `kiln bisect` finds the pass"
            }
            (None, None) => "`kiln bisect` finds the pass",
        },
    }
}

/// Compares with the original and saves the typical case.
pub(crate) fn prove(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
) -> Result<parity::Report, CompileError> {
    let report = proof.compare(&tolerance(options, Some(rewritten))?)?;
    if report.failed() {
        return Err(not_the_same(options, report, None));
    }
    proof.save(&partial.file(bundle::PROOF))?;
    Ok(report)
}

/// What ran on the CPU and was to run on a GPU: a warning, or a failure where the GPU was asked for by its name.
pub(crate) fn fallback(
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
pub(crate) fn prove_engine(
    options: &Options,
    rewritten: &Rewritten,
    proof: &mut Proof,
    partial: &Partial,
) -> Result<EngineParity, CompileError> {
    let plan = partial.file(bundle::ENGINE);
    let mut runner = match engine_parity::open(
        &plan,
        options.device.choice.gpu() as usize,
        options.trt_lib.as_deref(),
    ) {
        Ok(runner) => runner,
        Err(not_run) => return Ok(not_run.into()),
    };
    let tolerance = tolerance(options, Some(rewritten))?;
    let parity = proof
        .reference
        .compare_engine(runner.as_mut(), &tolerance)?;
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
pub(super) fn latency(proof: &Proof) -> Result<BenchReport, CompileError> {
    let mut timed = proof.timed()?;
    let (original, inputs) = &mut timed.original;
    let (result, theirs) = &mut timed.result;
    let mut subjects = [
        Subject::session("original", original, inputs).map_err(prove::Error::from)?,
        Subject::session("result", result, theirs).map_err(prove::Error::from)?,
    ];
    let options = BenchOptions {
        batch: timed.batch,
        ..BenchOptions::default()
    };
    Ok(bench::measure(&mut subjects, &options)?)
}
