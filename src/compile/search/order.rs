//! In which order layers are kept.

use super::alone::Alone;
use super::decided::Decisions;
use crate::manifest::Group;

/// Layers err in FP16 by 1e-4 to 1e-3 of their numbers, whatever they are; what errs by more than so many times what half of them do
/// does something else.
const OUTSTANDING: f64 = 8.0;

/// The groups that may be kept, those first that are to be kept first.
pub(super) struct Ranked {
    pub groups: Vec<Group>,
    /// What half of them err by at most.
    pub common: f64,
    /// How many are worth a try before a bisection, and whether they hold all that leads to a decision.
    pub hints: Vec<(usize, bool)>,
    /// The layers of these that lead to one.
    pub leading: Vec<String>,
}

/// The groups that stand out, the worst first, then those that lead to a decision, then all others.
pub(super) fn in_order(mut groups: Vec<Group>, decisions: &Decisions) -> Ranked {
    groups.sort_by(|a, b| badness(b.error).total_cmp(&badness(a.error)));
    let common = common(&groups);
    let standing = outstanding(groups.iter().map(|g| badness(g.error)), common);
    let leads = |g: &Group| g.layers.iter().any(|l| decisions.leads(l));
    groups[standing..].sort_by_key(|g| !leads(g));
    let way = standing + groups[standing..].iter().filter(|g| leads(g)).count();
    let turned = groups[..standing].iter().any(|g| decisions.turn(&g.layers));
    let leading = groups[..way].iter().flat_map(|g| &g.layers);
    let leading = leading.filter(|l| decisions.leads(l)).cloned().collect();
    // Where a decision was turned, to keep what stands out may hold by luck: other numbers turn it by another rounding.
    let hints = match turned && way < groups.len() {
        true => vec![(way, true)],
        false if way == standing => vec![(standing, false)],
        false => vec![(standing, false), (way, true)],
    };
    Ranked {
        groups,
        common,
        hints,
        leading,
    }
}

/// The largest error of a layer of the group, `Some(None)` if it is not finite. `None` if nothing is known of one that may have it.
pub(super) fn shown(known: &Alone, group: &[String]) -> Option<Option<f64>> {
    let errors: Option<Vec<Option<f64>>> = group.iter().map(|l| known.get(l).copied()).collect();
    let worst = |errors: Vec<Option<f64>>| {
        let mut errors = errors.into_iter();
        errors.try_fold(0f64, |worst, error| Some(worst.max(error?)))
    };
    errors.map(worst)
}

/// What is not finite is worst.
fn badness(error: Option<f64>) -> f64 {
    error.unwrap_or(f64::INFINITY)
}

/// The layers with the worst first; those of which nothing is known are before them.
pub(super) fn by_error(mut layers: Vec<String>, known: &Alone) -> Vec<String> {
    layers.sort_by(|a, b| error_of(b, known).total_cmp(&error_of(a, known)));
    layers
}

pub(super) fn error_of(layer: &str, known: &Alone) -> f64 {
    known
        .get(layer)
        .map_or(f64::INFINITY, |error| badness(*error))
}

/// What half of the groups err by at most.
fn common(groups: &[Group]) -> f64 {
    let middle = groups.get(groups.len() / 2);
    middle.map_or(0.0, |g| badness(g.error))
}

/// How many of the errors, the largest first, stand out from what is common; 0 if all do.
pub(super) fn outstanding(errors: impl ExactSizeIterator<Item = f64>, common: f64) -> usize {
    let all = errors.len();
    let count = errors.take_while(|&e| e > OUTSTANDING * common).count();
    if count < all { count } else { 0 }
}
