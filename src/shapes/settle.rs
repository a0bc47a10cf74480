//! Finding the sizes at which a model really runs: exporters bake sizes into Reshapes, and position tables end.

use std::collections::BTreeSet;

use kiln_graph::infer;
use kiln_graph::{Dim, Graph, Shape};

use super::{Point, Range, Shapes};

/// Whether the original model runs at the given shapes of its inputs; the error says why not.
pub type Probe<'a> = dyn FnMut(&Point) -> Result<(), String> + 'a;

/// What had to change.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

/// Candidate sizes tried for one dimension before giving up.
const MAX_CANDIDATES: usize = 48;
/// Combinations handed to the runtime before giving up.
const MAX_PROBES: usize = 64;

/// Shrinks the ranges that the user did not give to sizes at which the model runs.
///
/// # Errors
/// When the model does not run at the sizes the user gave, or no sizes are found: what the runtime said.
pub fn settle(
    graph: &Graph,
    shapes: &mut Shapes,
    probe: &mut Probe<'_>,
) -> Result<Settled, String> {
    let mut settled = Settled::default();
    let free: Vec<String> = (shapes.ranges.keys())
        .filter(|s| !shapes.given.contains(s))
        .cloned()
        .collect();
    let typical = shapes.point(|r| r.opt);
    if let Err(first) = probe(&typical) {
        if free.is_empty() {
            return Err(first);
        }
        if !lower_optimum(shapes, &free, probe) {
            let Some(point) = search(graph, shapes, &free, probe) else {
                return Err(first);
            };
            let baked = fix_baked(shapes, &free, &point, probe);
            settled.warnings.push(format!(
                "the exporter baked the example's sizes into the model: it runs only at {}, so the profile holds that \
                 size; export it again with this dimension dynamic to serve others",
                baked.join(", ")
            ));
        }
    }
    // Each dimension is widened with those before it at their widest, so that the corners of the profile run too.
    let mut corner = shapes.point(|r| r.opt);
    for name in &free {
        widen(shapes, name, &mut corner, probe, &mut settled);
    }
    for point in [shapes.point(|r| r.max), shapes.point(|r| r.min)] {
        if let Err(why) = probe(&point) {
            if free.is_empty() {
                return Err(why);
            }
            for name in &free {
                if let Some(range) = shapes.ranges.get_mut(name) {
                    *range = Range::fixed(range.opt);
                }
            }
            settled.warnings.push(format!(
                "the model does not run at the corners of its profile ({}), so the profile holds the typical sizes only",
                brief(&why)
            ));
            break;
        }
    }
    Ok(settled)
}

/// Fixes the dimensions that run at the found size only; the others keep their ranges. Gives the fixed ones.
fn fix_baked(
    shapes: &mut Shapes,
    free: &[String],
    found: &Point,
    probe: &mut Probe<'_>,
) -> Vec<String> {
    let mut baked = Vec::new();
    let mut point = found.clone();
    for name in free {
        let n = found.get(name).copied().unwrap_or(1);
        let wished = shapes.ranges.get(name).map_or(n, |r| r.opt);
        point.insert(name.clone(), wished);
        if wished == n || probe(&point).is_err() {
            point.insert(name.clone(), n);
            shapes.ranges.insert(name.clone(), Range::fixed(n));
            shapes.baked.push(name.clone());
            baked.push(format!("{name}={n}"));
        }
    }
    baked
}

/// Halves the optimum of all free dimensions until the model runs.
fn lower_optimum(shapes: &mut Shapes, free: &[String], probe: &mut Probe<'_>) -> bool {
    let before = shapes.ranges.clone();
    let mut cap = 64;
    while cap >= 2 {
        for name in free {
            if let Some(range) = shapes.ranges.get_mut(name) {
                range.opt = range.opt.min(cap);
            }
        }
        if probe(&shapes.point(|r| r.opt)).is_ok() {
            return true;
        }
        cap /= 2;
    }
    shapes.ranges = before;
    false
}

/// Lowers one dimension's maximum, and raises its minimum, to where the model runs; `corner` gets the maximum.
fn widen(
    shapes: &mut Shapes,
    name: &str,
    corner: &mut Point,
    probe: &mut Probe<'_>,
    settled: &mut Settled,
) {
    let Some(range) = shapes.ranges.get(name).copied() else {
        return;
    };
    let mut runs = |n: usize| {
        let mut point = corner.clone();
        point.insert(name.to_string(), n);
        probe(&point)
    };
    let mut new = range;
    if !range.is_fixed()
        && let Err(why) = runs(range.max)
    {
        let (mut good, mut bad) = (range.opt, range.max);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match runs(middle) {
                Ok(()) => good = middle,
                Err(_) => bad = middle,
            }
        }
        new.max = good;
        settled.warnings.push(format!(
            "the model does not run at {name}={} ({}); the profile ends at {name}={good}",
            range.max,
            brief(&why)
        ));
    }
    if !range.is_fixed()
        && let Err(why) = runs(range.min)
    {
        let first = (range.min..=range.opt.min(range.min + 4)).find(|&n| runs(n).is_ok());
        new.min = first.unwrap_or(range.opt);
        settled.warnings.push(format!(
            "the model does not run at {name}={} ({}); the profile begins at {name}={}",
            range.min,
            brief(&why),
            new.min
        ));
    }
    corner.insert(name.to_string(), new.max);
    shapes.ranges.insert(name.to_string(), new);
}

fn brief(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    match line.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_string(),
    }
}

/// Sizes found in the model itself, tried in all combinations: first on paper, then by the runtime.
fn search(graph: &Graph, shapes: &Shapes, free: &[String], probe: &mut Probe<'_>) -> Option<Point> {
    let candidates = candidates(graph);
    let mut probes = 0;
    let mut indices = vec![0usize; free.len()];
    if candidates.is_empty() || candidates.len().checked_pow(free.len() as u32)? > 20_000 {
        return None;
    }
    loop {
        let mut point = shapes.point(|r| r.opt);
        for (name, &k) in free.iter().zip(&indices) {
            point.insert(name.clone(), candidates[k]);
        }
        if consistent(graph, shapes, &point) {
            probes += 1;
            if probe(&point).is_ok() {
                return Some(point);
            }
            if probes >= MAX_PROBES {
                return None;
            }
        }
        let mut k = 0;
        loop {
            let index = indices.get_mut(k)?;
            *index += 1;
            if *index < candidates.len() {
                break;
            }
            *index = 0;
            k += 1;
        }
    }
}

/// Positive integers that shape operands hold.
fn candidates(graph: &Graph) -> Vec<usize> {
    let mut found = BTreeSet::new();
    for (_, node) in graph.nodes() {
        if !node.op().is_any(&[
            "Reshape",
            "Expand",
            "ConstantOfShape",
            "Concat",
            "Slice",
            "Tile",
        ]) {
            continue;
        }
        for v in node.inputs().iter().flatten() {
            let numbers = graph
                .constant(*v)
                .filter(|t| t.len() <= 8)
                .and_then(|t| t.to_i64s());
            let sizes = numbers
                .into_iter()
                .flatten()
                .filter(|n| (2..=4096).contains(n));
            found.extend(sizes.map(|n| n as usize));
        }
    }
    found.into_iter().take(MAX_CANDIDATES).collect()
}

/// Whether every Reshape keeps its number of elements when the inputs have the sizes of `point`.
fn consistent(graph: &Graph, shapes: &Shapes, point: &Point) -> bool {
    let at = shapes.at(point);
    let overrides: Vec<_> = (graph.inputs().iter())
        .filter_map(|&v| {
            let (_, shape) = at.iter().find(|(n, _)| n == graph.value(v).name())?;
            Some((v, shape.iter().map(|&n| Dim::Known(n)).collect::<Shape>()))
        })
        .collect();
    let facts = infer::with_inputs(graph, &overrides);
    let count = |v| {
        let dims = facts.ty(v).shape()?.iter().map(Dim::known);
        dims.into_iter().try_fold(1usize, |n, d| n.checked_mul(d?))
    };
    graph
        .nodes()
        .filter(|(_, n)| n.op().is("Reshape"))
        .all(|(_, node)| {
            match (
                node.input(0).and_then(count),
                node.output(0).and_then(count),
            ) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
        })
        && facts.conflicts().is_empty()
}
