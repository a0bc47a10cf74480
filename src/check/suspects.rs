//! Which passes may have broken a candidate, and the search among them.

use std::path::Path;

use kiln_passes::registry;

use super::Error;
use super::options::{Options, Suspects};
use crate::bisect::{self, Bisection};
use crate::bundle;
use crate::compile;
use crate::parity::Tolerance;
use crate::pipeline;
use crate::recipe;
use crate::setting::BISECT;
use crate::talk::Talk;

/// Makes the candidate again from the reference, as its manifest says, and searches for the application at which parity
/// breaks.
///
/// # Errors
/// When the candidate is no bundle, or the search itself fails.
pub(super) fn search(
    options: &Options,
    suspects: &Suspects,
    reference: &Path,
    tolerance: &Tolerance,
    talk: &dyn Talk,
) -> Result<Bisection, Error> {
    let manifest = options.candidate.join(bundle::MANIFEST);
    if !manifest.is_file() {
        return Err(Error::Unsupported {
            what: BISECT.to_string(),
            why: format!(
                "{} is not a bundle whose manifest.json records its passes; give the original to `kiln bisect`",
                options.candidate.display()
            ),
        });
    }
    let mut recipe = recipe::read(&manifest)?;
    recipe.model = Some(reference.to_path_buf());
    // Another model than the recipe's may be the one that is right.
    (recipe.sha256, recipe.blake3) = (None, None);
    if let Some(inputs) = &options.inputs {
        recipe.inputs = Some(inputs.clone());
    }
    if !options.fixed.is_empty() {
        recipe.input_values = (options.fixed.iter())
            .map(|f| (f.name.clone(), recipe::Given::Text(f.value.clone())))
            .collect();
    }
    let mut again = recipe::resolve(&recipe)?;
    if !options.dims.is_empty() {
        again.dims.clone_from(&options.dims);
        again.shapes.clear();
    }
    let again = compile::Options {
        ort_lib: options.ort_lib.clone(),
        device: options.device,
        seed: options.seed,
        check: true,
        ..again
    };
    let steps = match suspects {
        Suspects::Recipe => pipeline::steps(&again).map_err(bisect::Error::from)?,
        Suspects::Steps(steps) => steps.clone(),
    };
    let suspects = bisect::Suspects {
        steps: &steps,
        finish: registry::LOWER,
    };
    Ok(bisect::bisect(&again, suspects, tolerance, talk)?)
}
