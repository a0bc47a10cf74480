//! The ranges around one size at which a model runs, where it does not run at those that were planned.

use std::collections::BTreeSet;

use kiln_graph::infer::Expr;

use super::runs::{Runs, Settled};
use super::{Point, Range, Shapes};
use kiln_runtime::setting::DIM;

/// Ranges around `found`, at which the model runs. A dimension for which no other size runs is tried together with those
/// of the same size: first others of which that is true, then those that may be larger than they must, as the rows of a mask
/// that are looked up by the places of a batch. What moves with none is held. `written` are sizes that the model's file holds.
pub(super) fn surround(
    shapes: &mut Shapes,
    free: &[String],
    found: Point,
    runs: &mut Runs<'_>,
    written: &BTreeSet<usize>,
    settled: &mut Settled,
) {
    let mut around = Around { found, runs };
    let mut alone = Vec::new();
    for name in free {
        if let Err(why) = around.planned(shapes, name) {
            match around.moves(shapes, name) {
                true => around.widen(shapes, name, &why, settled),
                false => alone.push((name.clone(), why)),
            }
        }
    }
    let mut held = Vec::new();
    while let Some((name, why)) = alone.first().cloned() {
        let sizes = around.found.clone();
        let size = |name: &String| sizes.get(name).copied().unwrap_or(1);
        let same = |other: &String| size(other) == size(&name);
        let mut others: Vec<String> = alone.iter().skip(1).map(|(n, _)| n.clone()).collect();
        others.retain(same);
        let mut group = around.together(shapes, &name, &others);
        if group.is_empty() {
            let held =
                |other: &String| *other == name || held.contains(other) || others.contains(other);
            let loose = free.iter().filter(|other| !held(other) && same(other));
            group = around.together(shapes, &name, &loose.cloned().collect::<Vec<_>>());
        }
        alone.retain(|(n, _)| *n != name && !group.contains(n));
        match group.is_empty() {
            true => held.push(name),
            false if around.planned(shapes, &name).is_ok() => {}
            false => around.widen(shapes, &name, &why, settled),
        }
    }
    hold(shapes, &held, &mut around, written, settled);
    shapes.follow();
}

/// Says which dimensions have one size, and why.
fn hold(
    shapes: &mut Shapes,
    names: &[String],
    around: &mut Around<'_, '_>,
    written: &BTreeSet<usize>,
    settled: &mut Settled,
) {
    let (mut baked, mut others) = (Vec::new(), Vec::new());
    for name in names {
        let n = around.size(name);
        shapes.ranges.insert(name.clone(), Range::fixed(n));
        shapes.baked.push(name.clone());
        // A 1 stands in every file.
        match n > 1 && written.contains(&n) {
            true => baked.push(format!("{name}={n}")),
            false => others.push(format!("{name}={n}")),
        }
    }
    if !baked.is_empty() {
        settled.warnings.push(super::sizes::baked(&baked));
    }
    if !others.is_empty() {
        settled.warnings.push(format!(
            "of the sizes that were tried, the model runs only at {}, so the profile holds that size; give others with {DIM}",
            others.join(", ")
        ));
    }
}

/// A point at which the model runs, and what says whether it does at another.
struct Around<'r, 'a> {
    found: Point,
    runs: &'r mut Runs<'a>,
}

impl Around<'_, '_> {
    fn size(&self, name: &str) -> usize {
        self.found.get(name).copied().unwrap_or(1)
    }

    fn at(&mut self, shapes: &Shapes, name: &str, n: usize) -> Result<(), String> {
        let mut point = self.found.clone();
        point.insert(name.to_string(), n);
        self.runs.at(shapes, &point)
    }

    /// Whether the typical size runs, too, which is then kept with its range.
    fn planned(&mut self, shapes: &Shapes, name: &str) -> Result<(), String> {
        let Some(range) = shapes.ranges.get(name) else {
            return Ok(());
        };
        if range.opt == self.size(name) {
            let elsewhere = [range.max, range.min];
            let mut elsewhere = elsewhere.into_iter().filter(|n| *n != range.opt);
            return match elsewhere.find_map(|n| self.at(shapes, name, n).err()) {
                None => Ok(()),
                Some(why) => Err(why),
            };
        }
        self.at(shapes, name, range.opt)?;
        self.found.insert(name.to_string(), range.opt);
        Ok(())
    }

    /// Whether a neighbour of the size runs.
    fn moves(&mut self, shapes: &Shapes, name: &str) -> bool {
        let n = self.size(name);
        let step = shapes.steps.get(name).copied().unwrap_or(1);
        let near = [n + step, n * 2, n.saturating_sub(step), n / 2];
        let mut near = near.into_iter().filter(|&m| m > 0 && m != n);
        near.any(|m| self.at(shapes, name, m).is_ok())
    }

    /// Which of `others` have to be as large as `name`: their sizes follow from it then.
    fn together(&mut self, shapes: &mut Shapes, name: &str, others: &[String]) -> Vec<String> {
        let pairs = others.iter().map(std::slice::from_ref);
        let all = (others.len() > 1).then_some(others);
        for group in all.into_iter().chain(pairs) {
            let before = shapes.relations.clone();
            for other in group {
                shapes.relations.insert(other.clone(), Expr::symbol(name));
            }
            if self.moves(shapes, name) {
                return group.to_vec();
            }
            shapes.relations = before;
        }
        Vec::new()
    }

    /// The range in which the model runs, within what was planned; it goes below that where it must.
    fn widen(&mut self, shapes: &mut Shapes, name: &str, why: &str, settled: &mut Settled) {
        let Some(planned) = shapes.ranges.get(name).copied() else {
            return;
        };
        let n = self.size(name);
        let step = shapes.steps.get(name).copied().unwrap_or(1);
        let bottom = match planned.min <= n {
            true => planned.min,
            false => step,
        };
        let range = Range {
            min: self.end(shapes, name, bottom, step),
            opt: n,
            max: self.end(shapes, name, planned.max.max(n), step),
        };
        shapes.ranges.insert(name.to_string(), range);
        settled.warnings.push(format!(
            "the profile goes from {name}={} to {}, because the model does not run at {name}={}: {why}",
            range.min,
            range.max,
            if planned.opt == n { planned.max } else { planned.opt },
        ));
    }

    /// The size nearest to `wished` at which the model runs, going there from the one that was found: in strides that double,
    /// and by halves.
    fn end(&mut self, shapes: &Shapes, name: &str, wished: usize, step: usize) -> usize {
        let found = self.size(name);
        if wished == found || self.at(shapes, name, wished).is_ok() {
            return wished;
        }
        let (mut good, mut bad) = (found / step, wished / step);
        while good.abs_diff(bad) > 1 {
            let half = good.abs_diff(bad) / 2;
            let stride = half.min(good.max(1));
            let middle = if bad > good {
                good + stride
            } else {
                bad + half
            };
            match self.at(shapes, name, middle * step) {
                Ok(()) => good = middle,
                Err(_) => bad = middle,
            }
        }
        match good * step == 0 {
            true => found,
            false => good * step,
        }
    }
}
