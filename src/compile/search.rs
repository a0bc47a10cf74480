//! The layers that must keep their precision for the result to hold its tolerance: few of them, found by parity.
//!
//! One run of the original and one of the converted model, at the case that was furthest off, show what each layer alone does to
//! numbers (`alone.rs`). Neighbours form groups. A layer that the target can run converted only is never kept, nor is a group that takes such a
//! one with it. A bisection over the number of groups that are kept, the worst first, finds where all cases pass. Then halves of
//! what is kept are converted again, those of the least errors first, as long as all cases pass. Errors of layers add up but may
//! also cancel, so the set is the smallest that was found so, not proved to be the smallest of all.
//!
//! Where the model decides by its own numbers (`decided.rs`), what each layer errs by says little: a rounding far before a TopK turns it. So
//! the layers on the way to a decision form groups of their own, which come behind those that stand out and before all others. Where they
//! are needed, all of them stay: with less, the numbers at hand may be decided right by luck.
//!
//! A group of which the run shows nothing is converted alone and compared. So are three groups of an original that a last bit moves
//! beyond the tolerance: if each breaks it alone, sparing layers gains nothing.

mod alone;
mod decided;
mod order;

use std::collections::VecDeque;
use std::path::PathBuf;

use kiln_graph::Model;
use kiln_graph::onnx::Written;

use super::proved::not_the_same;
use super::{CompileError, proof};
use crate::bundle::{self, Partial};
use crate::manifest::{Group, Search, Tried};
use crate::options::Options;
use crate::parity::{Comparison, OutputReport, Report, Tolerance};
use crate::pipeline::{self, Rewritten};
use crate::prove::Reference;
use crate::talk::{Silent, Talk};
use alone::Alone;
use decided::Decisions;
use order::{Ranked, by_error, error_of, in_order, outstanding, shown};

/// Groups that are kept or converted together. With the bisection over them (at most 5 steps), [`HALVES`], the first comparison and the
/// run that shows what layers do alone, a search runs no more than 15 models, but for groups of which that shows nothing.
pub const GROUPS: usize = 32;

/// Groups that must each break the tolerance alone, where the original amplifies rounding, for the search to end.
const TELLING: usize = 3;

/// Halves of what is kept that are tried.
pub const HALVES: usize = 8;

/// Kept layers of which none is converted again to see whether it must be kept.
const FEW: usize = 4;

/// What a search chooses from.
pub struct Candidates<'a> {
    /// Rewrites the model with these layers spared.
    pub sparing: &'a dyn Fn(&[String]) -> Result<Rewritten, CompileError>,
    /// Layers that the target cannot run unless they are converted.
    pub bound: Vec<String>,
    /// Whether the target has kernels for all of a model.
    pub fits: &'a dyn Fn(&Rewritten) -> bool,
    /// The model whose nodes are the layers.
    pub fused: &'a Model,
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
    let mut trial = Trial {
        tolerance: pipeline::tolerance(options, Some(&rewritten))?,
        path: partial.file(bundle::MODEL),
        reference,
        partial,
        talk,
        compared: 0,
        most: 1,
    };
    let (first, written) = trial.compare(&rewritten, None)?;
    if !first.failed() {
        return Ok(Found {
            rewritten,
            search: None,
            written: Some(written),
        });
    }
    (candidates.builds)(&rewritten.model)?;
    let mut layers = rewritten.converted();
    layers.retain(|l| !candidates.bound.contains(l));
    let known = trial.alone(candidates, &first);
    let Some(ranked) = ranked(&mut trial, candidates, &layers, &known, &first)? else {
        talk.warn(
            "the original amplifies rounding: a last bit of its weights moves it by more than the tolerance allows, and a few \
             converted layers move it as much as all of them, so no layers are looked for that could keep FP32",
        );
        return Err(not_the_same(options, first, None));
    };
    // The steps of a bisection, and halves.
    trial.most =
        trial.compared + 2 + ranked.groups.len().next_power_of_two().ilog2() as usize + HALVES;
    let mut curve = vec![tried(0, &first)];
    let Some((candidate, kept, decided)) = fewest(&mut trial, candidates, &ranked, &mut curve)?
    else {
        return Err(not_the_same(options, first, None));
    };
    let kept = by_error(kept, &known);
    let fixed = if decided { &ranked.leading[..] } else { &[] };
    let free = without(&kept, fixed);
    let standing = outstanding(free.iter().map(|l| error_of(l, &known)), ranked.common);
    let parts = match (decided, standing) {
        (false, 0) => halves(&free),
        // All that is not fixed, or that does not stand out.
        _ if free.is_empty() => VecDeque::new(),
        _ => [free[standing..].to_vec()].into(),
    };
    let parts = (parts, fixed);
    let (candidate, kept) = fewer(&mut trial, candidates, candidate, kept, parts, &mut curve)?;
    let search = Search {
        layers: layers.len(),
        compared: trial.compared,
        groups: ranked.groups,
        curve,
        kept,
    };
    Ok(Found {
        rewritten: candidate,
        search: Some(search),
        written: None,
    })
}

/// Candidates against the original.
struct Trial<'a> {
    reference: &'a mut Reference,
    tolerance: Tolerance,
    partial: &'a Partial,
    /// Where they are written.
    path: PathBuf,
    talk: &'a dyn Talk,
    compared: usize,
    /// How many will be compared, as far as that is known.
    most: usize,
}

impl Trial<'_> {
    /// Compares at one case, or at all.
    fn compare(
        &mut self,
        candidate: &Rewritten,
        case: Option<&str>,
    ) -> Result<(Report, Written), CompileError> {
        self.compared += 1;
        self.talk.stage(&format!("search: model {}", self.compared));
        (self.talk).done(self.compared - 1, self.most.max(self.compared));
        let written = proof::write(&candidate.model, self.partial)?;
        let report = match case {
            None => (self.reference).compare(&self.path, &self.tolerance, &Silent)?,
            Some(case) => (self.reference).compare_case(&self.path, case, &self.tolerance)?,
        };
        Ok((report, written))
    }

    /// What the layers of the candidate that was written last do alone; nothing where it does not run so.
    fn alone(&self, candidates: &Candidates<'_>, report: &Report) -> Alone {
        let worst = report.worst().map(|w| w.case.name.as_str());
        let case = self.reference.case(worst);
        let fused = &candidates.fused.graph;
        let measured = case.map(|case| alone::measure(self.reference, fused, &self.path, case));
        match measured {
            Some(Ok(alone)) => alone,
            Some(Err(e)) => {
                tracing::debug!("layers are converted one group after another: {e}");
                Alone::default()
            }
            None => Alone::default(),
        }
    }
}

/// The groups that may be kept, the worst first, then those of which the model's decisions follow; `None` where the original amplifies rounding, and the first of them each break the
/// tolerance alone.
fn ranked(
    trial: &mut Trial<'_>,
    candidates: &Candidates<'_>,
    layers: &[String],
    known: &Alone,
    first: &Report,
) -> Result<Option<Ranked>, CompileError> {
    let worst = first.worst().map(|w| w.case.name.clone());
    let noisy = amplifies(first, &trial.tolerance);
    let mut broken = 0;
    let mut groups = Vec::new();
    let decisions = Decisions::of(&candidates.fused.graph);
    let (before, behind): (Vec<String>, Vec<String>) =
        (layers.iter().cloned()).partition(|l| decisions.leads(l));
    let size = layers.len().div_ceil(GROUPS).max(1);
    let chunks = before.chunks(size).chain(behind.chunks(size));
    for group in spread(chunks.collect()) {
        if !candidates.keeps(group)? {
            continue;
        }
        let shown = shown(known, group);
        let tells = noisy && groups.len() < TELLING;
        let error = match shown {
            Some(error) if !tells => error,
            _ => {
                let others = without(layers, group);
                // What converts to nothing by itself, a body around which all keeps FP32, changes nothing by itself.
                let measured = match candidates.sparing(&others)? {
                    Some(candidate) => {
                        let (report, _) = trial.compare(&candidate, worst.as_deref())?;
                        broken += usize::from(report.failed());
                        match error(&report) {
                            // Another branch of an If may have been taken: the other cases take it, or none does.
                            Some(0.0) => error(&trial.compare(&candidate, None)?.0),
                            measured => measured,
                        }
                    }
                    None => Some(0.0),
                };
                shown.unwrap_or(measured)
            }
        };
        groups.push(Group {
            layers: group.to_vec(),
            error,
        });
        if tells && groups.len() == TELLING && broken == TELLING {
            return Ok(None);
        }
    }
    Ok(Some(in_order(groups, &decisions)))
}

/// The fewest groups, the worst first, whose layers must keep their precision for the result to hold its tolerance; `None` where all
/// are not enough. Also whether decisions need it, which then need all that they follow from.
fn fewest(
    trial: &mut Trial<'_>,
    candidates: &Candidates<'_>,
    ranked: &Ranked,
    curve: &mut Vec<Tried>,
) -> Result<Option<(Rewritten, Vec<String>, bool)>, CompileError> {
    let groups = &ranked.groups;
    let keeping = |count: usize| -> Vec<String> {
        let kept = groups.iter().take(count);
        kept.flat_map(|g| g.layers.iter().cloned()).collect()
    };
    // Converting nothing is no result, so the last group is never kept where no layer is bound to be converted.
    let bound = usize::from(!candidates.bound.is_empty());
    let (mut low, mut high) = (0, groups.len() + bound);
    let mut best = None;
    let mut hints = ranked.hints.iter().copied();
    while high - low > 1 {
        let hint = hints.find(|&(few, _)| few > low && few < high);
        let (middle, whole) = hint.unwrap_or((low.midpoint(high), false));
        let kept = keeping(middle);
        match passing(trial, candidates, &kept, curve)? {
            Tries::Passes(candidate) => {
                high = middle;
                best = Some((*candidate, kept, whole));
                if whole {
                    break;
                }
            }
            Tries::Unfit => high = middle,
            Tries::Fails => low = middle,
        }
    }
    Ok(best)
}

/// Less of what is kept: without these parts, then without their halves, as far as all that is not fixed goes.
fn fewer(
    trial: &mut Trial<'_>,
    candidates: &Candidates<'_>,
    mut candidate: Rewritten,
    mut kept: Vec<String>,
    (mut parts, fixed): (VecDeque<Vec<String>>, &[String]),
    curve: &mut Vec<Tried>,
) -> Result<(Rewritten, Vec<String>), CompileError> {
    let mut tries = 0;
    while let Some(part) = parts.pop_front() {
        if tries == HALVES || kept.len() <= FEW {
            break;
        }
        let fewer = without(&kept, &part);
        match passing(trial, candidates, &fewer, curve)? {
            Tries::Passes(found) => {
                (candidate, kept) = (*found, fewer);
                if parts.is_empty() {
                    parts = halves(&without(&kept, fixed));
                }
            }
            Tries::Fails => parts.extend(halves(&part)),
            Tries::Unfit => continue,
        }
        tries += 1;
    }
    Ok((candidate, kept))
}

/// What becomes of a model with some layers spared.
enum Tries {
    Passes(Box<Rewritten>),
    Fails,
    /// It is not made, or the target does not run it.
    Unfit,
}

fn passing(
    trial: &mut Trial<'_>,
    candidates: &Candidates<'_>,
    kept: &[String],
    curve: &mut Vec<Tried>,
) -> Result<Tries, CompileError> {
    let candidate = candidates.sparing(kept)?;
    let Some(candidate) = candidate.filter(|c| (candidates.fits)(c)) else {
        return Ok(Tries::Unfit);
    };
    let (report, _) = trial.compare(&candidate, None)?;
    curve.push(tried(kept.len(), &report));
    Ok(match report.failed() {
        true => Tries::Fails,
        false => Tries::Passes(Box::new(candidate)),
    })
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

/// The two halves of more than one layer, that of the least errors first.
fn halves(layers: &[String]) -> VecDeque<Vec<String>> {
    let (worse, less) = layers.split_at(layers.len() / 2);
    let both = [less.to_vec(), worse.to_vec()].into_iter();
    both.filter(|half| !half.is_empty() && half.len() < layers.len())
        .collect()
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
