//! The engine of a bundle, held to the original as its model is, where there is a GPU that it runs on.

use super::super::Options;
use super::super::error::GenerateError;
use super::super::ran::Place;
use super::super::roles::Roles;
use super::found::{Claim, Outcome};
use super::side::{Given, Side};
use crate::bundle;
use crate::engine::run::EngineRunError;
use crate::engine_parity::NotRun;

/// Whether the decoder has an engine.
pub(super) fn has(roles: &Roles) -> bool {
    bundle::find_engine(&roles.decoder).is_ok()
}

/// What `judged` says of the engines, called by what it is about.
pub(super) fn claim(
    roles: &Roles,
    source: Option<&Given>,
    options: &Options,
    judged: impl FnOnce(&mut Side) -> Result<Claim, GenerateError>,
) -> Result<Claim, GenerateError> {
    let options = Options {
        place: Place::Engine(options.gpu.clone()),
        ..options.clone()
    };
    let found = Side::open(roles, source, &options).and_then(|mut side| judged(&mut side));
    let claim = match found {
        Ok(claim) => claim,
        Err(GenerateError::Engine { source }) => Claim {
            name: String::new(),
            outcome: outcome(&source),
            details: String::new(),
        },
        Err(other) => return Err(other),
    };
    Ok(Claim {
        name: "the engine's scores at each step".into(),
        ..claim
    })
}

/// An engine that ought to run here and does not is broken.
fn outcome(error: &EngineRunError) -> Outcome {
    match error {
        EngineRunError::Cuda(_) => Outcome::NotRun(NotRun::no_device().0),
        EngineRunError::Library(_) | EngineRunError::Invalid { .. } => {
            Outcome::NotRun(error.to_string())
        }
        _ => Outcome::Fails(error.to_string()),
    }
}
