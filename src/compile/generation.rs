//! The proof of a generation, for decoders with a cache.

use kiln_graph::caches::{self, Update};

use super::CompileError;
use crate::bundle::{self, Partial};
use crate::generate::proof::{self, Proof, Request};
use crate::generate::{self, GenerateError};
use crate::options::Options;
use crate::pipeline::{self, Rewritten};
use crate::prove;
use crate::report;
use crate::talk::Talk;

/// Tokens that a compilation generates for the proof: enough that a cache is read several times, few enough to be short.
const STEPS: usize = 8;

/// Generates with original and result, where the model is a decoder that runs alone.
///
/// # Errors
/// When the result generates something else.
pub(super) fn prove(
    options: &Options,
    rewritten: &Rewritten,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<Option<Proof>, CompileError> {
    let caches = caches::caches(&rewritten.model.graph);
    let alone = !caches.is_empty() && caches.iter().all(|c| c.update != Update::Kept);
    // What has other types or inputs than the original is not run by its rules.
    if !alone || options.half_io || !options.fixed.is_empty() {
        return Ok(None);
    }
    let original = bundle::model_path(&options.model);
    let result = partial.file(bundle::MODEL);
    let found = proof::prove(&Request {
        original: &original,
        result: &result,
        steps: STEPS,
        prompt: None,
        source: None,
        tolerance: pipeline::tolerance(options, Some(rewritten))?,
        seed: options.seed,
        options: generate::Options {
            ort_lib: options.ort_lib.clone(),
            plain: true,
            ..generate::Options::default()
        },
    });
    match found {
        Ok(proof) if proof.failed() => Err(CompileError::Generation {
            model: options.model.clone(),
            failed: report::generation::failures(&proof),
        }),
        Ok(proof) => Ok(Some(Proof {
            original: options.model.display().to_string(),
            result: bundle::MODEL.into(),
            ..proof
        })),
        Err(GenerateError::Runtime(e)) if e.is_missing_runtime() => {
            Err(prove::Error::from(e).into())
        }
        Err(e) => {
            let why = bundle::public(&e.to_string()).into_owned();
            talk.note(&format!("the proof of a generation was not run: {why}"));
            Ok(None)
        }
    }
}
