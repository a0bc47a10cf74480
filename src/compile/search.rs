//! The layers that must keep their precision for the result to hold its tolerance: few of them, found by parity.
//!
//! Every layer, or group of neighbours where there are many, is converted alone and compared with the original at
//! the case that was furthest off, or at all of them where it changes nothing there: its error is its sensitivity. A layer
//! that the target can run converted only is never kept, nor is a group that takes such a one with it. Then a bisection over the number
//! of groups that are kept, the most sensitive first, finds where all cases pass. Then halves of the groups that are kept are converted again, those of the least sensitive
//! first, as long as all cases pass. Errors of layers add up but may also cancel, so the set is the smallest
//! that was found so, not proved to be the smallest of all. Where none is found, the layers that did no harm at the one case are
//! measured at all of them, and it begins again.
//!
//! An original that a last bit moves beyond the tolerance is beyond it with almost all layers spared, too: three groups, each
//! converted alone, tell that.

use kiln_graph::Model;
use kiln_graph::onnx::Written;

use super::{CompileError, proof};
use crate::bundle::{self, Partial};
use crate::manifest::{Group, Search, Tried};
use crate::options::Options;
use crate::parity::{Comparison, OutputReport, Report, Tolerance};
use crate::pipeline::{self, Rewritten};
use crate::prove::Reference;
use crate::talk::{Silent, Talk};

/// Groups whose sensitivity is measured. With the bisection that follows (at most 5 steps), [`HALVES`] and the first comparison
/// no search compares more than 46 models, but for those in which a group changes nothing at the one case, and where all begins again.
pub const GROUPS: usize = 32;

/// Groups that must each break the tolerance alone, where the original amplifies rounding, for the search to end.
const TELLING: usize = 3;

/// Halves of kept groups that are tried.
pub const HALVES: usize = 8;

/// What a search chooses from.
pub struct Candidates<'a> {
    /// Rewrites the model with these layers spared.
    pub sparing: &'a dyn Fn(&[String]) -> Result<Rewritten, CompileError>,
    /// Layers that the target cannot run unless they are converted.
    pub bound: Vec<String>,
    /// Whether the target has kernels for all of a model.
    pub fits: &'a dyn Fn(&Rewritten) -> bool,
    /// Whether an engine can be built of a model; what cannot needs no search.
    pub builds: &'a dyn Fn(&Model) -> Result<(), CompileError>,
}

impl std::fmt::Debug for Candidates<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidates")
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl Candidates<'_> {
    /// Whether the target runs the model with these layers spared: one that is kept takes its neighbours with it.
    fn keeps(&self, layers: &[String]) -> Result<bool, CompileError> {
        // Targets that bind no layer run all of them.
        if self.bound.is_empty() {
            return Ok(true);
        }
        let candidate = self.sparing(layers)?;
        Ok(candidate.is_some_and(|candidate| (self.fits)(&candidate)))
    }

    /// The model with these layers spared; `None` if nothing is left to convert then.
    fn sparing(&self, spared: &[String]) -> Result<Option<Rewritten>, CompileError> {
        match (self.sparing)(spared) {
            Ok(rewritten) => Ok(Some(rewritten)),
            Err(CompileError::Pipeline(e)) if e.is_nothing() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

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
    let tolerance = pipeline::tolerance(options, Some(rewritten))?;
    proof::write(&rewritten.model, partial)?;
    let path = partial.file(bundle::MODEL);
    reference.begin("blocks");
    let report = reference.compare(&path, &tolerance, &Silent)?;
    Ok(!report.failed())
}

/// What a search ends with.
#[derive(Debug)]
pub struct Found {
    pub rewritten: Rewritten,
    /// `None` if the converted model holds the tolerance as it is.
    pub search: Option<Search>,
    /// What was written, if the bundle's model is this one.
    pub written: Option<Written>,
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
    candidates: &Candidates<'_>,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<Found, CompileError> {
    reference.begin("search");
    let tolerance = pipeline::tolerance(options, Some(&rewritten))?;
    let path = partial.file(bundle::MODEL);
    let mut compared = 0;
    // Of the first alone nobody knows whether more follow.
    let most = std::cell::Cell::new(1);
    let mut compare = |candidate: &Rewritten, case: Option<&str>| {
        compared += 1;
        talk.stage(&format!("search: model {compared}"));
        talk.done(compared - 1, most.get().max(compared));
        let written = proof::write(&candidate.model, partial)?;
        let compared = match case {
            None => reference.compare(&path, &tolerance, &Silent)?,
            Some(case) => reference.compare_case(&path, case, &tolerance)?,
        };
        Ok::<(Report, Written), CompileError>((compared, written))
    };
    let (first, written) = compare(&rewritten, None)?;
    if !first.failed() {
        return Ok(Found {
            rewritten,
            search: None,
            written: Some(written),
        });
    }
    let mut compare =
        |candidate: &Rewritten, case| Ok::<_, CompileError>(compare(candidate, case)?.0);
    (candidates.builds)(&rewritten.model)?;
    let worst = first.worst().map(|w| w.case.name.clone());
    let mut layers = rewritten.converted();
    layers.retain(|l| !candidates.bound.contains(l));
    let mut curve = vec![tried(0, &first)];
    let mut groups = Vec::new();
    let mut held = Vec::new();
    let noisy = amplifies(&first, &tolerance);
    let mut broken = 0;
    let size = layers.len().div_ceil(GROUPS).max(1);
    let parts = spread(layers.chunks(size).collect());
    most.set(models(parts.len(), size));
    for group in parts {
        if !candidates.keeps(group)? {
            continue;
        }
        let others = without(&layers, group);
        // What converts to nothing by itself, a body around which all keeps FP32, changes nothing by itself.
        let error = match candidates.sparing(&others)? {
            Some(candidate) => {
                let report = compare(&candidate, worst.as_deref())?;
                broken += usize::from(report.failed());
                held.extend(group.iter().filter(|_| !report.failed()).cloned());
                match error(&report) {
                    // Another branch of an If may have been taken: the other cases take it, or none does.
                    Some(0.0) => error(&compare(&candidate, None)?),
                    measured => measured,
                }
            }
            None => Some(0.0),
        };
        groups.push(Group {
            layers: group.to_vec(),
            error,
        });
        if noisy && groups.len() == TELLING && broken == TELLING {
            talk.warn(
                "the original amplifies rounding: a last bit of its weights moves it by more than the tolerance allows, and a few \
                 converted layers move it as much as all of them, so no layers are looked for that could keep FP32",
            );
            return Err(proof::not_the_same(options, first, None));
        }
    }
    let mut whole = |candidate: &Rewritten| compare(candidate, None);
    let spared = (&layers[..], &held[..]);
    let found = least(&mut groups, spared, candidates, &mut whole, &mut curve)?;
    let Some((candidate, kept)) = found else {
        return Err(proof::not_the_same(options, first, None));
    };
    let search = Search {
        layers: layers.len(),
        compared,
        groups,
        curve,
        kept,
    };
    Ok(Found {
        rewritten: candidate,
        search: Some(search),
        written: None,
    })
}

/// How many models are compared at most, but for what is compared at all cases again: the first, each group, the steps of a
/// bisection, halves of groups of more than one layer.
fn models(groups: usize, size: usize) -> usize {
    let bisection = (groups + 1).next_power_of_two().ilog2() as usize;
    let halves = if size > 1 { HALVES } else { 0 };
    1 + groups + bisection + halves
}

/// As [`fewest`]. Where that finds nothing, groups that held the tolerance at the one case (the second of `spared`; the first are
/// all layers) are measured at all of them: what decides may decide otherwise elsewhere.
fn least(
    groups: &mut [Group],
    spared: (&[String], &[String]),
    candidates: &Candidates<'_>,
    compare: &mut dyn FnMut(&Rewritten) -> Result<Report, CompileError>,
    curve: &mut Vec<Tried>,
) -> Result<Option<(Rewritten, Vec<String>)>, CompileError> {
    // What is not finite is worst.
    let badness = |g: &Group| g.error.unwrap_or(f64::INFINITY);
    groups.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
    let found = fewest(groups, candidates, compare, curve)?;
    if found.is_some() {
        return Ok(found);
    }
    let (layers, held) = spared;
    for group in groups
        .iter_mut()
        .filter(|g| g.layers.iter().any(|l| held.contains(l)))
    {
        let others = without(layers, &group.layers);
        if let Some(candidate) = candidates.sparing(&others)? {
            group.error = error(&compare(&candidate)?);
        }
    }
    groups.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
    fewest(groups, candidates, compare, curve)
}

/// The fewest groups, the worst first, whose layers must keep their precision for the result to hold its tolerance, less what of
/// them need not; `None` where all are not enough.
fn fewest(
    groups: &[Group],
    candidates: &Candidates<'_>,
    compare: &mut dyn FnMut(&Rewritten) -> Result<Report, CompileError>,
    curve: &mut Vec<Tried>,
) -> Result<Option<(Rewritten, Vec<String>)>, CompileError> {
    let keeping = |count: usize| -> Vec<String> {
        let kept = groups.iter().take(count);
        kept.flat_map(|g| g.layers.iter().cloned()).collect()
    };
    // Converting nothing is no result, so the last group is never kept where no layer is bound to be converted.
    let bound = usize::from(!candidates.bound.is_empty());
    let (mut low, mut high) = (0, groups.len() + bound);
    let mut best = None;
    while high - low > 1 {
        let middle = low.midpoint(high);
        let kept = keeping(middle);
        let candidate = candidates.sparing(&kept)?;
        let Some(candidate) = candidate.filter(|c| (candidates.fits)(c)) else {
            high = middle;
            continue;
        };
        let report = compare(&candidate)?;
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
        return Ok(None);
    };
    for half in halves(&groups[..high]).take(HALVES) {
        let fewer = without(&kept, half);
        let found = candidates.sparing(&fewer)?;
        let Some(found) = found.filter(|c| (candidates.fits)(c)) else {
            continue;
        };
        let report = compare(&found)?;
        curve.push(tried(fewer.len(), &report));
        if !report.failed() {
            (candidate, kept) = (found, fewer);
        }
    }
    Ok(Some((candidate, kept)))
}

/// Whether all that failed does so of a model that a last bit moves beyond the tolerance.
fn amplifies(report: &Report, tolerance: &Tolerance) -> bool {
    let failed = || {
        let outputs = report.cases.iter().flat_map(|c| &c.outputs);
        outputs.filter(|o| o.failed())
    };
    let beyond = |o: &OutputReport| {
        let limit = tolerance.limits_of(&o.name).relative_l2;
        (o.floor.zip(limit)).is_some_and(|(floor, limit)| floor.relative_l2 > limit)
    };
    failed().next().is_some() && failed().all(beyond)
}

/// The same groups, those in front from all over the model.
fn spread<T>(mut groups: Vec<T>) -> Vec<T> {
    if groups.len() > TELLING {
        let last = groups.len() - 1;
        groups.swap(1, last / 2);
        groups.swap(2, last);
    }
    groups
}

fn without(layers: &[String], group: &[String]) -> Vec<String> {
    let others = layers.iter().filter(|l| !group.contains(l));
    others.cloned().collect()
}

/// Halves of the groups of more than one layer, those of the least sensitive first.
fn halves(groups: &[Group]) -> impl Iterator<Item = &[String]> {
    let groups = groups.iter().rev().filter(|g| g.layers.len() > 1);
    groups.flat_map(|g| g.layers.chunks(g.layers.len().div_ceil(2)))
}

fn tried(kept: usize, report: &Report) -> Tried {
    Tried {
        kept,
        error: error(report),
        pass: !report.failed(),
    }
}

/// The largest error of an output: of floats the relative L2 error, of other outputs that fail 1 and the share of elements
/// that differ, as one other decision weighs more than any rounding. `None` if an output cannot be compared or the error is
/// not finite.
fn error(report: &Report) -> Option<f64> {
    let mut worst = 0f64;
    for output in report.cases.iter().flat_map(|c| &c.outputs) {
        let Comparison::Compared { metrics, verdict } = &output.comparison else {
            return None;
        };
        let error = match &metrics.float {
            Some(float) => {
                (float.relative_l2.is_finite() && float.nonfinite.differ == 0).then_some(())?;
                float.relative_l2
            }
            None if verdict.pass => 0.0,
            None => 1.0 + metrics.unequal as f64 / metrics.elements.max(1) as f64,
        };
        worst = worst.max(error);
    }
    Some(worst)
}
