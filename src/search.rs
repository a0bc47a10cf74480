//! The layers that must keep their precision for the result to hold its tolerance: few of them, found by parity.
//!
//! Every layer, or group of neighbours where there are many, is converted alone and compared with the original at
//! the case that was furthest off: its error is its sensitivity. Then a bisection over the number of groups that are kept, the most
//! sensitive first, finds where all cases pass. Then halves of the groups that are kept are converted again, those of the least sensitive
//! first, as long as all cases pass. Errors of layers add up but may also cancel, so the set is the smallest
//! that was found so, not proved to be the smallest of all.

use serde::Serialize;

use crate::bundle;
use crate::bundle::Partial;
use crate::compile::CompileError;
use crate::compile::stages;
use crate::compile::{Options, Rewritten};
use crate::parity::{Comparison, Report};
use crate::prove::Reference;
use crate::talk::Talk;

/// Groups whose sensitivity is measured. With the bisection that follows (at most 5 steps), [`HALVES`] and the first comparison
/// no search compares more than 46 models.
pub const GROUPS: usize = 32;

/// Halves of kept groups that are tried.
pub const HALVES: usize = 8;

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// Layers that could be converted.
    pub layers: usize,
    /// Models that were compared with the original.
    pub compared: usize,
    /// By sensitivity, the most sensitive first.
    pub groups: Vec<Group>,
    /// Numbers of kept layers that were tried, in the order of the search, and the error.
    pub curve: Vec<Tried>,
    /// Layers that keep their precision.
    pub kept: Vec<String>,
}

/// Layers that are kept or converted together.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub layers: Vec<String>,
    /// Largest relative L2 error of an output, at the case that was furthest off, when these alone are converted; `None` if it is not
    /// finite.
    pub error: Option<f64>,
}

/// One candidate.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    pub kept: usize,
    /// Largest relative L2 error of an output over all cases; `None` if it is not finite.
    pub error: Option<f64>,
    pub pass: bool,
}

/// Rewrites the model with these layers spared.
pub type Rewrite<'a> = dyn Fn(&[String]) -> Result<Rewritten, CompileError> + 'a;

/// Whether the converted model holds the tolerance at all cases. It is written over the bundle's model.
///
/// # Errors
/// When it cannot be written or run.
pub fn hold(
    options: &Options,
    reference: &mut Reference,
    rewritten: &Rewritten,
    partial: &Partial,
) -> Result<bool, CompileError> {
    let tolerance = stages::tolerance(options, Some(rewritten))?;
    stages::write(&rewritten.model, partial)?;
    let path = partial.file(bundle::MODEL);
    let report = reference.compare(&path, &tolerance)?;
    Ok(!report.failed())
}

/// The converted model if it holds the tolerance, else one that keeps as few layers as the search finds, with the search.
/// Candidates are written over the bundle's model.
///
/// # Errors
/// When a candidate cannot be made or run, and [`CompileError::NotTheSame`] when no number of kept layers is enough.
pub fn run(
    options: &Options,
    reference: &mut Reference,
    rewritten: Rewritten,
    rewrite: &Rewrite<'_>,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<(Rewritten, Option<Search>), CompileError> {
    let tolerance = stages::tolerance(options, Some(&rewritten))?;
    let path = partial.file(bundle::MODEL);
    let mut compared = 0;
    let mut compare = |candidate: &Rewritten, case: Option<&str>| {
        compared += 1;
        talk.stage(&format!("search: model {compared}"));
        stages::write(&candidate.model, partial)?;
        match case {
            None => reference.compare(&path, &tolerance),
            Some(case) => reference.compare_case(&path, case, &tolerance),
        }
    };
    let first = compare(&rewritten, None)?;
    if !first.failed() {
        return Ok((rewritten, None));
    }
    let worst = first.worst().map(|w| w.case.name.clone());
    let layers = rewritten.converted();
    let mut curve = vec![tried(0, &first)];
    let mut groups = Vec::new();
    for group in layers.chunks(layers.len().div_ceil(GROUPS).max(1)) {
        let others: Vec<String> = (layers.iter())
            .filter(|l| !group.contains(l))
            .cloned()
            .collect();
        let report = compare(&rewrite(&others)?, worst.as_deref())?;
        groups.push(Group {
            layers: group.to_vec(),
            error: error(&report),
        });
    }
    // What is not finite is worst.
    let badness = |g: &Group| g.error.unwrap_or(f64::INFINITY);
    groups.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
    let keeping = |count: usize| -> Vec<String> {
        let kept = groups.iter().take(count);
        kept.flat_map(|g| g.layers.iter().cloned()).collect()
    };
    // Converting nothing is no result, so the last group is never kept.
    let (mut low, mut high) = (0, groups.len());
    let mut best = None;
    while high - low > 1 {
        let middle = low.midpoint(high);
        let kept = keeping(middle);
        let candidate = rewrite(&kept)?;
        let report = compare(&candidate, None)?;
        curve.push(tried(kept.len(), &report));
        match !report.failed() {
            true => {
                high = middle;
                best = Some((candidate, kept));
            }
            false => low = middle,
        }
    }
    let Some((mut candidate, mut kept)) = best else {
        let failed = crate::report::failures(&first);
        return Err(stages::not_the_same(options, failed));
    };
    let halves = (groups[..high].iter().rev())
        .filter(|g| g.layers.len() > 1)
        .flat_map(|g| g.layers.chunks(g.layers.len().div_ceil(2)));
    for half in halves.take(HALVES) {
        let fewer = kept.iter().filter(|l| !half.contains(l));
        let fewer: Vec<String> = fewer.cloned().collect();
        let found = rewrite(&fewer)?;
        let report = compare(&found, None)?;
        curve.push(tried(fewer.len(), &report));
        if !report.failed() {
            (candidate, kept) = (found, fewer);
        }
    }
    let search = Search {
        layers: layers.len(),
        compared,
        groups,
        curve,
        kept,
    };
    Ok((candidate, Some(search)))
}

fn tried(kept: usize, report: &Report) -> Tried {
    Tried {
        kept,
        error: error(report),
        pass: !report.failed(),
    }
}

/// The largest relative L2 error; `None` if an output cannot be compared or the error is not finite.
fn error(report: &Report) -> Option<f64> {
    let mut worst = 0f64;
    for output in report.cases.iter().flat_map(|c| &c.outputs) {
        match &output.comparison {
            Comparison::Compared { metrics, .. } => {
                if let Some(float) = &metrics.float {
                    (float.relative_l2.is_finite() && float.nonfinite.differ == 0).then_some(())?;
                    worst = worst.max(float.relative_l2);
                }
            }
            _ => return None,
        }
    }
    Some(worst)
}
