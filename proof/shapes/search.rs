//! Sizes that a model might have been made for, where it runs at none of the usual ones.

use std::collections::BTreeSet;

use kiln_graph::infer;
use kiln_graph::{Dim, Graph};

use super::runs::Runs;
use super::{Point, Shapes};

/// Candidate sizes tried for one dimension before giving up.
const MAX_CANDIDATES: usize = 48;
/// Combinations handed to the runtime before giving up.
const MAX_PROBES: usize = 64;
/// Combinations looked at on paper before giving up.
const MAX_LOOKS: usize = 20_000;

/// Sizes found in the model itself, and 1, tried in all combinations: first on paper, then by the runtime.
pub(super) fn search(
    graph: &Graph,
    shapes: &Shapes,
    free: &[String],
    runs: &mut Runs<'_>,
) -> Option<Point> {
    let mut candidates = constants(graph);
    candidates.insert(1);
    // What was given of one input may be a size of another.
    let given = shapes.given.iter().filter_map(|n| shapes.ranges.get(n));
    candidates.extend(given.map(|range| range.opt));
    // As many as all combinations of can be looked at.
    let mut most = MAX_CANDIDATES;
    while most > 1
        && most
            .checked_pow(free.len() as u32)
            .is_none_or(|n| n > MAX_LOOKS)
    {
        most -= 1;
    }
    let candidates: Vec<usize> = candidates.into_iter().take(most).collect();
    // What stands first turns fastest: batches stand last, so that they are 1 as long as the rest finds a size.
    let mut free = free.to_vec();
    free.sort_by_key(|name| shapes.is_batch(name));
    let mut probes = 0;
    let mut indices = vec![0usize; free.len()];
    if candidates.len().checked_pow(free.len() as u32)? > MAX_LOOKS {
        return None;
    }
    loop {
        let mut point = shapes.point(|r| r.opt);
        for (name, &k) in free.iter().zip(&indices) {
            point.insert(name.clone(), candidates[k]);
        }
        if consistent(graph, shapes, &point) {
            probes += 1;
            if runs.at(shapes, &point).is_ok() {
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

/// Sizes that shape operands hold.
pub(super) fn constants(graph: &Graph) -> BTreeSet<usize> {
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
                .filter(|n| (1..=4096).contains(n));
            found.extend(sizes.map(|n| n as usize));
        }
    }
    found
}

/// Whether every Reshape keeps its number of elements when the inputs have the sizes of `point`.
fn consistent(graph: &Graph, shapes: &Shapes, point: &Point) -> bool {
    let mut point = point.clone();
    shapes.complete(&mut point);
    let overrides = super::overrides(graph, shapes, |d| match d {
        Dim::Symbol(s) => point.get(&**s).map_or(Dim::Unknown, |&n| Dim::Known(n)),
        other => other.clone(),
    });
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
