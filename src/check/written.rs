//! Decoders for engines have caches of one length: what they are held to is the original in the same form, as it was when they were
//! compiled.

use std::path::Path;

use kiln_graph::Model;
use kiln_graph::caches::{self, Update};

use super::Error;
use super::options::Options;
use crate::compile;
use crate::pipeline::{self, written::Portable};
use crate::recipe;
use crate::setting::GENERATE;
use crate::talk::Talk;

/// Gives the original the candidate's caches. `None`: it has them already, or the candidate's grow.
///
/// # Errors
/// When the candidate is no bundle, which would say how it was made, or passes fail.
pub(super) fn same_form(
    options: &Options,
    reference: &Path,
    original: &mut Model,
    candidate: &Model,
    talk: &dyn Talk,
) -> Result<Option<Portable>, Error> {
    let Some(capacity) = capacity(candidate) else {
        return Ok(None);
    };
    let held = caches::caches(&original.graph);
    if held.is_empty() || held.iter().any(|c| c.update == Update::Written) {
        return Ok(None);
    }
    let Some(mut recipe) = recipe::of_bundle(&options.candidate)? else {
        return Err(Error::Unsupported {
            what: options.candidate.display().to_string(),
            why: format!(
                "its caches are of one length and the original's grow, and it is no bundle, which says how it was made: compare what both \
                 generate ({GENERATE})"
            ),
        });
    };
    recipe.model = Some(reference.to_path_buf());
    (recipe.sha256, recipe.blake3) = (None, None);
    let again = compile::Options {
        max_length: Some(capacity),
        ..recipe::resolve(&recipe)?
    };
    let targets = pipeline::targets(&again, talk)?;
    Ok(pipeline::written::portable(
        &again, &targets, original, talk,
    )?)
}

/// The length of caches that are written into.
fn capacity(model: &Model) -> Option<usize> {
    let all = caches::caches(&model.graph);
    let mut written = all.iter().filter(|c| c.update == Update::Written);
    written.find_map(|c| c.capacity(&model.graph))
}
