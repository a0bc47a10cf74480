//! Finding the sizes at which a model really runs: exporters bake sizes into Reshapes, and position tables end.
//!
//! First on paper, by inference, then by the runtime. What is run was estimated before: a size that would not fit into
//! memory is not tried.

use kiln_graph::Graph;

use super::plan;
use super::runs::{Probe, Runs, Settled};
use super::search::{constants, search};
use super::surround::surround;
use super::{Point, Range, Shapes};
use kiln_runtime::memory;

/// The sizes tried for all dimensions at once where the typical ones do not run.
const LOWER: &[usize] = &[8192, 4096, 2048, 1024, 512, 256, 64, 32, 16, 8, 4, 2, 1];

/// Shrinks the ranges that the user did not give to sizes at which the model runs. `original` is the graph that `probe`
/// runs, `folded` the same after passes, in whose constants sizes are looked for.
///
/// # Errors
/// When the model does not run at the sizes the user gave, or no sizes are found: what the runtime said.
pub fn settle<'a>(
    original: &'a Graph,
    folded: &Graph,
    shapes: &mut Shapes,
    probe: &'a mut Probe<'a>,
) -> Result<Settled, String> {
    settle_near(original, folded, shapes, None, None, probe)
}

/// As [`settle`]; where the model does not run at the typical sizes, `near` are tried first. Sizes of more than `enough` operations
/// run in parts.
pub(crate) fn settle_near<'a>(
    original: &'a Graph,
    folded: &Graph,
    shapes: &mut Shapes,
    near: Option<&Point>,
    enough: Option<u64>,
    probe: &'a mut Probe<'a>,
) -> Result<Settled, String> {
    let mut settled = Settled {
        warnings: shapes.told(),
    };
    let mut on_paper = Runs {
        original,
        probe: None,
        limit: u64::MAX,
        enough: None,
    };
    if on_paper.at(shapes, &shapes.point(|r| r.opt)).is_ok() {
        fit(shapes, &mut on_paper, &mut settled)?;
    }
    let mut runs = Runs {
        original,
        probe: Some(probe),
        // What the user asks for may take what there is.
        limit: plan::budget().max(memory::free().unwrap_or(u64::MAX)),
        enough,
    };
    let free = free(shapes);
    let typical = shapes.point(|r| r.opt);
    if let Err(first) = runs.at(shapes, &typical) {
        if free.is_empty() {
            return Err(first);
        }
        runs.limit = plan::budget();
        let near = near.filter(|point| runs.at(shapes, point).is_ok()).cloned();
        let found = near
            .or_else(|| lower(shapes, &free, &mut runs))
            .or_else(|| search(folded, shapes, &free, &mut runs));
        let Some(found) = found else {
            return Err(first);
        };
        let written = constants(folded);
        surround(shapes, &free, found, &mut runs, &written, &mut settled);
    }
    fit(shapes, &mut runs, &mut settled)?;
    Ok(settled)
}

fn free(shapes: &Shapes) -> Vec<String> {
    let names = shapes.ranges.keys().filter(|n| shapes.is_free(n));
    names.cloned().collect()
}

/// Shrinks ranges around the typical sizes, which run, until their corners do.
fn fit(shapes: &mut Shapes, runs: &mut Runs<'_>, settled: &mut Settled) -> Result<(), String> {
    let free = free(shapes);
    let corners = |shapes: &Shapes, runs: &mut Runs<'_>| {
        runs.at(shapes, &shapes.point(|r| r.max))?;
        runs.at(shapes, &shapes.point(|r| r.min))
    };
    let Err(why) = corners(shapes, runs) else {
        return Ok(());
    };
    if free.is_empty() {
        return Err(why);
    }
    // Each dimension is widened with those before it at their widest, so that the corners of the profile run too.
    let mut corner = shapes.point(|r| r.opt);
    for name in &free {
        widen(shapes, name, &mut corner, runs, settled);
    }
    shapes.follow();
    if let Err(why) = corners(shapes, runs) {
        for name in &free {
            if let Some(range) = shapes.ranges.get_mut(name) {
                *range = Range::fixed(range.opt);
            }
        }
        shapes.follow();
        settled.warnings.push(format!(
            "the profile holds the typical sizes only: the model does not run at the corners: {why}"
        ));
    }
    Ok(())
}

/// The typical sizes with all free dimensions lowered until the model runs.
fn lower(shapes: &Shapes, free: &[String], runs: &mut Runs<'_>) -> Option<Point> {
    let mut before = shapes.point(|r| r.opt);
    for &cap in LOWER {
        let mut point = before.clone();
        for name in free {
            if let Some(size) = point.get_mut(name) {
                *size = cap.min(*size);
            }
        }
        shapes.complete(&mut point);
        if point != before && runs.at(shapes, &point).is_ok() {
            return Some(point);
        }
        before = point;
    }
    apart(shapes, free, runs)
}

/// The typical sizes with the largest one lowered and the others 1: of sizes that belong together unseen, 1 is common.
fn apart(shapes: &Shapes, free: &[String], runs: &mut Runs<'_>) -> Option<Point> {
    let typical = shapes.point(|r| r.opt);
    let largest = free.iter().max_by_key(|name| typical.get(*name))?;
    let all = LOWER.iter().filter(|&&cap| cap > 1);
    all.filter(|&&cap| typical.get(largest).is_some_and(|&n| cap <= n))
        .find_map(|&cap| {
            let mut point = typical.clone();
            point.extend(free.iter().map(|name| (name.clone(), 1)));
            point.insert(largest.clone(), cap);
            shapes.complete(&mut point);
            runs.at(shapes, &point).is_ok().then_some(point)
        })
}

/// Lowers one dimension's maximum, and raises its minimum, to where the model runs; `corner` gets the maximum.
fn widen(
    shapes: &mut Shapes,
    name: &str,
    corner: &mut Point,
    runs: &mut Runs<'_>,
    settled: &mut Settled,
) {
    let Some(range) = shapes.ranges.get(name).copied() else {
        return;
    };
    let step = shapes.steps.get(name).copied().unwrap_or(1);
    let mut at = |n: usize| {
        let mut point = corner.clone();
        point.insert(name.to_string(), n);
        runs.at(shapes, &point)
    };
    let mut new = range;
    if !range.is_fixed()
        && let Err(why) = at(range.max)
    {
        let (mut good, mut bad) = (range.opt / step, range.max / step);
        while bad.saturating_sub(good) > 1 {
            let middle = good + (bad - good) / 2;
            match at(middle * step) {
                Ok(()) => good = middle,
                Err(_) => bad = middle,
            }
        }
        new.max = (good * step).max(range.opt);
        settled.warnings.push(format!(
            "the profile ends at {name}={}, because the model does not run at {name}={}: {why}",
            new.max, range.max
        ));
    }
    if !range.is_fixed()
        && let Err(why) = at(range.min)
    {
        let (mut bad, mut good) = (range.min / step, range.opt / step);
        while good.saturating_sub(bad) > 1 {
            let middle = bad + (good - bad) / 2;
            match at(middle * step) {
                Ok(()) => good = middle,
                Err(_) => bad = middle,
            }
        }
        new.min = (good * step).min(range.opt);
        settled.warnings.push(format!(
            "the profile begins at {name}={}, because the model does not run at {name}={}: {why}",
            new.min, range.min
        ));
    }
    corner.insert(name.to_string(), new.max);
    shapes.ranges.insert(name.to_string(), new);
}
