//! The sizes that a model is compiled for where the user says none: by what each axis counts, by what the graph demands,
//! and by the memory that a run would take. Nothing is run for it.

use std::collections::BTreeMap;

use kiln_graph::infer::Expr;
use kiln_graph::{Dim, Graph};

use super::paper::{self, Look};
use super::relate::{Misfit, Study};
use super::roles::{self, Role};
use super::{Point, Range, Shapes, SpecError};
use kiln_runtime::memory;
use kiln_runtime::setting::DIM;

/// What values may take at the largest sizes that kiln chooses by itself, in bytes: what a machine that compiles models can
/// spare, several times what a sentence encoder takes at 8 × 512.
const BUDGET: u64 = 2 << 30;

/// Sides of pictures that networks of one size were trained with.
const SIDES: &[usize] = &[
    224, 256, 384, 448, 512, 640, 336, 518, 299, 320, 192, 160, 128, 112, 96, 64, 48, 32, 28, 1024,
];

/// Heights of lines of text that networks read, the usual ones first.
const HEIGHTS: &[usize] = &[48, 32, 64, 40, 24, 28, 56, 80, 96, 16, 128];

/// Strides of networks: halvings between a picture and its coarsest map.
const STRIDES: &[usize] = &[1, 2, 4, 8, 16, 32, 64, 14];

/// The least of a sound, in samples, the shortest first.
const SOUNDS: &[usize] = &[1600, 3200, 4800, 8000, 12_000];

/// The most that sizes may take that kiln chooses: [`BUDGET`], or half of what is free where that is less.
pub(super) fn budget() -> u64 {
    memory::free().map_or(BUDGET, |free| BUDGET.min(free / 2))
}

/// Sets relations and default ranges.
///
/// # Errors
/// When sizes that the user gave contradict each other.
pub(super) fn plan(graph: &Graph, shapes: &mut Shapes) -> Result<(), SpecError> {
    let study = loop {
        let study = Study::new(graph, shapes);
        match study.given_fit(shapes) {
            Ok(()) => break study,
            Err(Misfit::Never(why)) => return Err(why),
            // Each turn takes one away.
            Err(Misfit::Wide(name)) => shapes.given.retain(|g| *g != name),
        }
    };
    assign_roles(graph, shapes, &study);
    for (name, expr) in study.relations() {
        match expr.as_i64().and_then(|n| usize::try_from(n).ok()) {
            None => drop(shapes.relations.insert(name, expr)),
            Some(n) => {
                shapes.ranges.insert(name.clone(), Range::fixed(n));
                if !study.is_pinned(&name) {
                    shapes.baked.push(name);
                }
            }
        }
    }
    shapes.follow();
    let mut ends = study.ends();
    ends.extend(positions(graph, shapes, &study));
    tables(shapes, ends);
    pictures(graph, shapes);
    sounds(graph, shapes);
    shapes.follow();
    spare(graph, shapes);
    Ok(())
}

fn assign_roles(graph: &Graph, shapes: &mut Shapes, study: &Study<'_>) {
    let mut assigned = roles::by_place(&shapes.inputs);
    for (stand_in, role) in roles::by_use(graph, &study.facts) {
        if let Some(symbol) = study.symbol(&stand_in)
            && !symbol.to_ascii_lowercase().contains("batch")
        {
            assigned.insert(symbol.to_string(), role);
        }
    }
    // What is as long as a batch is one.
    for (name, expr) in study.relations() {
        if let Some(same) = expr.lone_symbol()
            && assigned.get(&name) == Some(&Role::Batch)
        {
            assigned.insert(same.to_string(), Role::Batch);
        }
    }
    for (symbol, role) in &assigned {
        if !shapes.is_given(symbol) {
            shapes.ranges.insert(symbol.clone(), role.range());
        }
    }
    shapes.roles = assigned;
}

/// Lengths of positions that are given from outside, and the tables that they index.
fn positions(graph: &Graph, shapes: &Shapes, study: &Study<'_>) -> Vec<(Expr, i64)> {
    let end = |(v, rows): (kiln_graph::ValueId, i64)| {
        let name = graph.value(v).name();
        let input = shapes.inputs.iter().find(|i| i.name == name)?;
        match input.dims.last()? {
            Dim::Symbol(s) => Some((study.size(s), rows)),
            _ => None,
        }
    };
    let counted = super::kinds::counted(graph).into_iter();
    counted.filter_map(end).collect()
}

/// Lowers maxima to where tables end: sums before their parts, which may then be short enough.
fn tables(shapes: &mut Shapes, mut ends: Vec<(Expr, i64)>) {
    ends.sort_by_key(|(size, end)| (std::cmp::Reverse(size.names().len()), *end));
    for (size, end) in ends {
        let before = shapes.ranges.clone();
        end_at(shapes, &size, end);
        if let Some(lowered) = lowered(shapes, &before) {
            shapes.notes.push(format!(
                "{lowered}: the model has a table or a constant of {end} for {size}"
            ));
        }
    }
}

/// The sizes that end earlier than before: `past ends at 32 and seq at 32`.
fn lowered(shapes: &Shapes, before: &BTreeMap<String, Range>) -> Option<String> {
    let names = shapes.ranges.iter().filter(|(n, r)| {
        !shapes.relations.contains_key(*n) && before.get(*n).is_some_and(|b| b.max > r.max)
    });
    let mut names = names.map(|(n, r)| (n, r.max));
    let (first, max) = names.next()?;
    let rest = names.map(|(n, max)| format!(" and {n} at {max}"));
    Some(format!("{first} ends at {max}{}", rest.collect::<String>()))
}

/// Lowers maxima until `size` ends at `end`: of several sizes, the larger one first.
fn end_at(shapes: &mut Shapes, size: &Expr, end: i64) {
    let fits = |shapes: &Shapes| {
        let point = shapes.point(|r| r.max);
        let most = size.eval(&|n| i64::try_from(*point.get(n)?).ok());
        most.is_none_or(|n| n <= end)
    };
    let names = size.names().into_iter().filter(|n| shapes.is_free(n));
    let free: Vec<String> = names.collect();
    if let [only] = &free[..] {
        let before = shapes.ranges[only];
        let (mut good, mut bad) = (before.min, before.max + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            set_max(shapes, only, middle, before);
            match fits(shapes) {
                true => good = middle,
                false => bad = middle,
            }
        }
        set_max(shapes, only, good, before);
        return;
    }
    while !fits(shapes) {
        let wide = |n: &&String| shapes.ranges[*n].max > shapes.ranges[*n].min.max(1);
        // Of two that are alike, a past keeps more: prompts are shorter than what is written to them.
        let size = |n: &&String| {
            (
                shapes.ranges[*n].max,
                shapes.roles.get(*n) == Some(&Role::New),
            )
        };
        let widest = free.iter().filter(wide).max_by_key(size);
        let Some(name) = widest.cloned() else {
            return;
        };
        let before = shapes.ranges[&name];
        set_max(shapes, &name, before.max / 2, before);
    }
}

/// A maximum, with an optimum that is not above it.
fn set_max(shapes: &mut Shapes, name: &str, max: usize, before: Range) {
    let max = max.max(before.min).max(1);
    let range = Range {
        min: before.min,
        opt: before.opt.min(max),
        max,
    };
    shapes.ranges.insert(name.to_string(), range);
    shapes.follow();
}

fn look_at(graph: &Graph, shapes: &Shapes, names: &[String], size: usize) -> Look {
    let mut point: Point = shapes.point(|r| r.opt.max(1));
    for name in names {
        point.insert(name.clone(), size);
    }
    paper::look(graph, shapes, &point)
}

fn with_role(shapes: &Shapes, wanted: &[Role]) -> Vec<String> {
    let roles = shapes.roles.iter();
    let names = roles.filter(|(name, role)| wanted.contains(role) && shapes.is_free(name));
    names.map(|(name, _)| name.clone()).collect()
}

/// Sizes of pictures: multiples of what the graph can divide them by, or the one size that it has a table for.
fn pictures(graph: &Graph, shapes: &mut Shapes) {
    let names = with_role(shapes, &[Role::Image, Role::Line]);
    if names.is_empty() {
        return;
    }
    let fits = |shapes: &Shapes, n: usize| look_at(graph, shapes, &names, n).conflict.is_none();
    let stride = stride(Role::Image.range().opt, |n| fits(shapes, n));
    if let Some(m) = stride {
        for name in &names {
            in_steps(shapes, name, m);
        }
        return;
    }
    if lines(graph, shapes, &names) {
        return;
    }
    if let Some(&side) = SIDES.iter().find(|&&n| fits(shapes, n)) {
        for name in names {
            shapes.ranges.insert(name.clone(), Range::fixed(side));
            shapes.baked.push(name);
        }
    }
}

/// The least of [`STRIDES`] of whose multiples, from a size on, all that are tried fit.
fn stride(from: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    STRIDES.iter().copied().find(|&m| {
        let first = from.div_ceil(m);
        [first, first + 1, first + 3, first * 2]
            .iter()
            .all(|k| fits(k * m))
    })
}

/// A range in multiples of a step.
fn in_steps(shapes: &mut Shapes, name: &str, step: usize) {
    let range = shapes.ranges[name];
    let up = |n: usize| n.div_ceil(step) * step;
    let range = Range {
        min: up(range.min),
        opt: up(range.opt),
        max: range.max / step * step,
    };
    shapes.ranges.insert(name.to_string(), range);
    if step > 1 {
        shapes.steps.insert(name.to_string(), step);
    }
}

/// Pictures of one height whose width is open, such as lines of text: finds the side that the graph wants to be of one
/// size while the others are of any. Gives whether there is one.
fn lines(graph: &Graph, shapes: &mut Shapes, names: &[String]) -> bool {
    let wide = Role::Line.range();
    for side in names {
        let others: Vec<String> = names.iter().filter(|n| *n != side).cloned().collect();
        if others.is_empty() {
            return false;
        }
        for &height in HEIGHTS {
            let before = shapes.ranges.clone();
            shapes.ranges.insert(side.clone(), Range::fixed(height));
            let fits = |n| look_at(graph, shapes, &others, n).conflict.is_none();
            if let Some(step) = stride(wide.opt, fits) {
                for name in &others {
                    shapes.ranges.insert(name.clone(), wide);
                    in_steps(shapes, name, step);
                }
                shapes.notes.push(format!(
                    "{side} is {height}: at this height of lines the graph takes any {}; another one is given with {DIM}",
                    others.join(", ")
                ));
                return true;
            }
            shapes.ranges = before;
        }
    }
    false
}

/// The shortest sound that all windows fit into.
fn sounds(graph: &Graph, shapes: &mut Shapes) {
    let names = with_role(shapes, &[Role::Samples]);
    if names.is_empty() {
        return;
    }
    let fits = |n: &&usize| look_at(graph, shapes, &names, **n).conflict.is_none();
    let Some(&shortest) = SOUNDS.iter().find(fits) else {
        return;
    };
    for name in names {
        if let Some(range) = shapes.ranges.get_mut(&name) {
            range.min = shortest.min(range.opt);
        }
    }
}

/// Lowers maxima until a run fits into the budget: the batch first, then whatever is largest.
fn spare(graph: &Graph, shapes: &mut Shapes) {
    let budget = budget();
    let before = shapes.ranges.clone();
    let asked = paper::look(graph, shapes, &shapes.point(|r| r.max)).bytes;
    let most = memory::free().map_or(u64::MAX, |free| free / 2).max(budget);
    let mut now = asked;
    while now > budget {
        let lower = |n: &&String| {
            let range = shapes.ranges[*n];
            // What the user gave may need more: then the typical sizes stay, as long as the machine has it.
            let least = if now > most { range.min } else { range.opt };
            shapes.is_free(n) && range.max > least.max(1)
        };
        let size = |n: &&String| {
            let batch = shapes.roles.get(*n) == Some(&Role::Batch);
            (batch, shapes.ranges[*n].max)
        };
        let Some(name) = shapes.ranges.keys().filter(lower).max_by_key(size).cloned() else {
            break;
        };
        let range = shapes.ranges[&name];
        let step = shapes.steps.get(&name).copied().unwrap_or(1);
        let least = if now > most { step } else { range.opt };
        let half = (range.max / 2 / step * step).max(least);
        if half >= range.max {
            break;
        }
        set_max(shapes, &name, half, range);
        now = paper::look(graph, shapes, &shapes.point(|r| r.max)).bytes;
    }
    if let Some(lowered) = lowered(shapes, &before) {
        shapes.notes.push(format!(
            "{lowered}: a run at the usual sizes would take about {}; give {DIM} to serve more",
            kiln_runtime::units::bytes(usize::try_from(asked).unwrap_or(usize::MAX))
        ));
    }
}
