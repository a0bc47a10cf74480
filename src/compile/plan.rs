//! What a compilation would do, of what can be told without running anything.

use kiln_passes::Step;
use serde::Serialize;

use super::{CompileError, output_path, read};
use crate::options::Options;
use crate::pipeline;
use crate::pipeline::clock::Clock;
use crate::pipeline::prepared::Input;
use crate::precision::Scheme;
use crate::recipe::{self, Recipe};
use crate::talk::Talk;
use crate::targets::Targets;

/// What a compilation would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Everything that was chosen, by the user or by default; a recipe file that says the same.
    pub recipe: Recipe,
    /// Ranges of symbolic dimensions; a run of the original may narrow those that were not given.
    pub sizes: Option<String>,
    /// How close outputs must be; a model that was quantized already may get another.
    pub tolerance: String,
    pub stages: Vec<&'static str>,
    /// In the order in which they run; more of some follow from what they find.
    pub passes: Vec<&'static str>,
}

/// Reads the model and says what would be done; neither a runtime is loaded nor a file written.
///
/// # Errors
/// As [`compile`](super::compile), for what is wrong before anything runs.
pub fn plan(options: &Options, talk: &dyn Talk) -> Result<Plan, CompileError> {
    let Input {
        targets,
        mut shapes,
        ..
    } = read(options, &mut Clock::new(talk))?;
    for warning in shapes.told() {
        talk.warn(&warning);
    }
    let steps = pipeline::steps(options)?;
    let tolerance = pipeline::tolerance(options, None)?.name;
    let passes = steps.iter().filter_map(|step| match step {
        Step::Run(pass) => Some(pass.name()),
        Step::Enter(_) => None,
    });
    Ok(Plan {
        recipe: resolved(options, &targets, &tolerance),
        sizes: shapes.describe(),
        tolerance,
        stages: planned(options, &targets, !pipeline::split(&steps).1.is_empty()),
        passes: passes.collect(),
    })
}

/// The recipe with what its keys are by default.
fn resolved(options: &Options, targets: &Targets, tolerance: &str) -> Recipe {
    let mut recipe = options.recipe.clone();
    recipe.output.get_or_insert_with(|| output_path(options));
    recipe.target = Some(recipe::Targets::One(targets.to_string()));
    recipe.precision.floats.get_or_insert_default();
    recipe.seed.get_or_insert(options.seed);
    let parity = &mut recipe.gates.parity;
    parity
        .tolerance
        .get_or_insert_with(|| tolerance.to_string());
    recipe
}

fn planned(options: &Options, targets: &Targets, lossy: bool) -> Vec<&'static str> {
    let engine = options.engine && targets.is_engine();
    let ranges = options.precision.linear.scheme() == Some(Scheme::Static);
    let measured = options.calibration.data.is_some() || ranges;
    let all = [
        ("read", true),
        ("passes", true),
        ("sizes", options.check),
        ("calibration", measured),
        ("precision", lossy),
        (
            "search, if out of tolerance",
            lossy && options.check && options.search,
        ),
        ("write", true),
        ("engine", engine),
        ("parity", options.check),
        ("engine parity, if a GPU is here", engine && options.check),
        (
            "latency, where the result serves",
            options.check && options.latency.is_none(),
        ),
        ("latency", options.check && options.latency == Some(true)),
    ];
    let all = all.into_iter().filter(|(_, run)| *run);
    all.map(|(stage, _)| stage).collect()
}
