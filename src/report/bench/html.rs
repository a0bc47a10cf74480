//! A benchmark as a page.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::tables::{Table, blocks, first, gate, latency, models, operators, placements, sizes};
use crate::bench::baseline::Verdict as Judgement;
use crate::bench::{Benchmark, PointReport, SubjectReport};
use crate::report::latency::{distribution, runs};
use crate::report::page::{self, Axis, Form, Head, Plot, Series, Tone, Verdict};

pub(super) fn page(b: &Benchmark) -> String {
    let mut sections = Vec::new();
    if let Some((title, header, rows)) = gate(b) {
        sections.push((
            "Gate",
            html! { p { (title) "." } (page::table(&header, &rows)) },
        ));
    }
    sections.push(("Latency", summary(b)));
    sections.push(("Samples", samples(b)));
    sections.push(("Roofline", roofline(b)));
    if !b.profiles.is_empty() {
        sections.push(("Where the time goes", profiles(b)));
    }
    if !b.placements.is_empty() {
        let (title, header, rows) = placements(b);
        sections.push((
            "Placement",
            html! { p { (title) "." } (page::table(&header, &rows)) },
        ));
    }
    let warnings: Vec<String> = (b.points.iter())
        .flat_map(|p| {
            let warnings = p.measured.warnings.iter();
            warnings.map(|w| format!("{}: {w}", sizes(&p.sizes)))
        })
        .collect();
    if !warnings.is_empty() {
        sections.push((
            "Warnings",
            html! { ul { @for w in &warnings { li { (w) } } } },
        ));
    }
    sections.push(("Environment", environment(b)));
    page::page(&head(b), &sections)
}

fn head(b: &Benchmark) -> Head {
    let names: Vec<&str> = b.models.iter().map(|m| m.name.as_str()).collect();
    let title = match &names[..] {
        [] => String::new(),
        [only] => (*only).to_string(),
        [first, others @ ..] => format!("{} against {first}", others.join(", ")),
    };
    let mut verdicts = Vec::new();
    if let Some(gate) = &b.gate {
        let with = |v: Judgement| {
            gate.points
                .iter()
                .filter(move |p| p.found.verdict == v)
                .count()
        };
        let all = gate.points.len();
        let (word, tone) = match (gate.failed(), with(Judgement::Pass) == all) {
            (true, _) => ("fails", Tone::Bad),
            (false, true) => ("passes", Tone::Good),
            (false, false) => ("not clear everywhere", Tone::Open),
        };
        let (good, bad) = (with(Judgement::Pass), with(Judgement::Fail));
        verdicts.push(Verdict {
            what: "latency gate",
            word: word.into(),
            why: format!(
                "of {all} comparisons {good} pass, {bad} fail, {} cannot be told",
                all - good - bad
            ),
            tone,
        });
    }
    if let Some((first, others)) = names.split_first() {
        verdicts.extend(others.iter().filter_map(|name| speed(b, first, name)));
    }
    Head {
        kind: "benchmark",
        title,
        paths: (b.models.iter().enumerate())
            .map(|(k, m)| match (k, first(b)) {
                (0, "baseline") => ("baseline", m.path.clone()),
                _ => ("model", m.path.clone()),
            })
            .collect(),
        verdicts,
        facts: vec![
            ("runtime", b.runtime.clone()),
            ("device", b.device.to_string()),
            ("processor", b.environment.cpu.clone()),
            ("threads", format!("{}, each on its core", b.threads)),
            ("measured peak", format!("{:.0} GFLOP/s", b.machine.gflops)),
            ("memory", format!("{:.1} GB/s", b.machine.gbytes)),
            ("sizes", b.points.len().to_string()),
        ],
    }
}

/// How one model compares with the baseline over all sizes.
fn speed(b: &Benchmark, first: &str, name: &str) -> Option<Verdict> {
    let ratios = b.points.iter().flat_map(|p| &p.measured.ratios);
    let ratios: Vec<_> = ratios.filter(|r| r.subject == name).collect();
    let speed = |pick: fn(f64, f64) -> f64| ratios.iter().map(|r| r.speedup).reduce(pick);
    let (least, most) = (speed(f64::min)?, speed(f64::max)?);
    let low = ratios.iter().map(|r| r.interval.map(|i| i.low > 1.0));
    let high = ratios.iter().map(|r| r.interval.map(|i| i.high < 1.0));
    let tone = match (
        low.into_iter().all(|l| l == Some(true)),
        high.into_iter().all(|h| h == Some(true)),
    ) {
        (true, _) => Tone::Good,
        (_, true) => Tone::Bad,
        _ => Tone::Open,
    };
    let why = match tone {
        Tone::Good => "faster at all sizes",
        Tone::Bad => "slower at all sizes",
        Tone::Open => "the difference is within the noise at some sizes",
    };
    let word = match (least * 100.0).round() == (most * 100.0).round() {
        true => format!("{least:.2}x"),
        false => format!("{least:.2}x to {most:.2}x"),
    };
    Some(Verdict {
        what: "speed",
        word: word.clone(),
        why: format!("{name} against {first}: {why}"),
        tone,
    })
}

fn summary(b: &Benchmark) -> Markup {
    let (_, header, rows) = latency(b);
    html! {
        div.figures { @for plot in sweeps(b) { (plot.html()) } }
        @if let Some((rows_by, columns_by)) = grid_axes(b) {
            h3 { "p50 in ms by " (rows_by) " and " (columns_by) }
            div.figures {
                @for m in &b.models { div { p { (m.name) } (grid(b, &m.name, rows_by, columns_by)) } }
            }
        }
        h3 { "All numbers" }
        (page::table(&header, &rows))
        p { "The limit is what this machine could do at most: the products in FP32 at the speed of a large one, or the weights at the \
            speed of its memory. Beyond 100 %, the model reads weights from the cache, or computes in fewer bits." }
    }
}

fn samples(b: &Benchmark) -> Markup {
    html! {
        p { "Dashed lines are medians." }
        div.figures { @for p in &b.points { (distribution(&sizes(&p.sizes), &p.measured).html()) } }
        details {
            summary { "All runs in the order of measurement" }
            div.figures { @for p in &b.points { (runs(&sizes(&p.sizes), &p.measured).html()) } }
        }
    }
}

fn profiles(b: &Benchmark) -> Markup {
    let at = b.points.last().map(|p| sizes(&p.sizes)).unwrap_or_default();
    html! {
        @if !at.is_empty() { p { "At " (at) ", time in kernels as ONNX Runtime's profiler counts it." } }
        @for p in &b.profiles {
            h3 { (p.model) }
            div.figures {
                div { p { "by operator" } (page::bars(&parts(&operators(p)))) }
                div { p { "by block" } (page::bars(&parts(&blocks(p)))) }
            }
        }
    }
}

fn environment(b: &Benchmark) -> Markup {
    let (_, header, rows) = models(b);
    let pair = |name: &str, value: String| vec![name.to_string(), value];
    let e = &b.environment;
    let timing = b.points.first().map(|p| p.measured.options);
    let mut facts = vec![
        pair("kiln", b.kiln.to_string()),
        pair("runtime", b.runtime.clone()),
        pair("processor", format!("{}, {} threads", e.cpu, e.threads)),
        pair("system", e.os.clone()),
    ];
    facts.extend(timing.map(|t| {
        let seconds = t.min_duration.as_secs_f64();
        let runs = format!(
            "{} to warm up, then at least {} and {seconds} s",
            t.warmup, t.min_runs
        );
        pair("runs", runs)
    }));
    html! {
        (page::table(&["", ""], &facts))
        h3 { "Models" }
        p { "Loaded and running: what the process holds more after the model was loaded, and after it ran at all sizes." }
        (page::table(&header, &rows))
    }
}

/// Bars of a table of parts: name, nodes, milliseconds, share.
fn parts((_, _, rows): &Table) -> Vec<(String, f64, String)> {
    let part = |r: &Vec<String>| {
        let [name, nodes, ms, share] = &r[..] else {
            return None;
        };
        let name = format!("{name} × {nodes}");
        Some((name, ms.parse().unwrap_or(0.0), format!("{ms} ms, {share}")))
    };
    rows.iter().filter_map(part).collect()
}

/// The sizes of each dimension that has several.
fn axes(b: &Benchmark) -> BTreeMap<&str, Vec<usize>> {
    let mut axes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (name, &n) in b.points.iter().flat_map(|p| &p.sizes) {
        let sizes = axes.entry(name).or_default();
        if !sizes.contains(&n) {
            sizes.push(n);
            sizes.sort_unstable();
        }
    }
    axes.retain(|_, sizes| sizes.len() > 1);
    axes
}

fn p50(s: &SubjectReport) -> f64 {
    s.stats.p50 / 1e6
}

/// Latency by each dimension that has several sizes, a line for each model and each choice of the others.
fn sweeps(b: &Benchmark) -> Vec<Plot> {
    let plot = |(axis, ticks): (&str, Vec<usize>)| {
        let mut series: Vec<Series> = Vec::new();
        let mut strokes: Vec<String> = Vec::new();
        for p in &b.points {
            let mut others = p.sizes.clone();
            let Some(x) = others.remove(axis) else {
                continue;
            };
            let others = sizes(&others);
            let stroke = strokes
                .iter()
                .position(|s| *s == others)
                .unwrap_or_else(|| {
                    strokes.push(others.clone());
                    strokes.len() - 1
                });
            for (colour, s) in p.measured.subjects.iter().enumerate() {
                let name = format!("{} {others}", s.name);
                let at = (x as f64, p50(s));
                match series.iter_mut().find(|s| s.name == name) {
                    Some(s) => s.points.push(at),
                    None => series.push(Series {
                        name,
                        points: vec![at],
                        form: Form::Line(stroke),
                        colour,
                    }),
                }
            }
        }
        for s in &mut series {
            s.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        Plot {
            title: format!("p50 by {axis}"),
            x: Axis::new(axis).at(ticks.iter().map(|&n| n as f64).collect()),
            y: Axis::new("p50 latency, ms").zero(),
            series,
            marks: Vec::new(),
        }
    };
    axes(b).into_iter().map(plot).collect()
}

/// The two dimensions of a grid that has two.
fn grid_axes(b: &Benchmark) -> Option<(&str, &str)> {
    let axes = axes(b);
    let mut names = axes.keys();
    match (names.next(), names.next(), names.next()) {
        (Some(rows), Some(columns), None) => Some((rows, columns)),
        _ => None,
    }
}

fn grid(b: &Benchmark, model: &str, rows_by: &str, columns_by: &str) -> Markup {
    let axes = axes(b);
    let empty = Vec::new();
    let of = |name: &str| axes.get(name).unwrap_or(&empty);
    let at = |row: usize, column: usize| {
        let here = |p: &&PointReport| {
            p.sizes.get(rows_by) == Some(&row) && p.sizes.get(columns_by) == Some(&column)
        };
        let point = b.points.iter().find(here)?;
        let subjects = &point.measured.subjects;
        subjects.iter().find(|s| s.name == model).map(p50)
    };
    let columns: Vec<String> = of(columns_by).iter().map(usize::to_string).collect();
    let rows: Vec<_> = (of(rows_by).iter())
        .map(|&r| {
            (
                r.to_string(),
                of(columns_by).iter().map(|&c| at(r, c)).collect(),
            )
        })
        .collect();
    page::heat(&format!("{rows_by} ↓ {columns_by} →"), &columns, &rows)
}

/// Speed over operations per byte, below what the machine can do.
fn roofline(b: &Benchmark) -> Markup {
    let mut series: Vec<Series> = (b.models.iter().enumerate())
        .map(|(colour, m)| Series {
            name: m.name.clone(),
            points: Vec::new(),
            form: Form::Dots,
            colour,
        })
        .collect();
    for p in &b.points {
        let subjects = p.measured.subjects.iter().zip(&p.work);
        for (s, (subject, work)) in series.iter_mut().zip(subjects) {
            let intensity = work.flops as f64 / work.bytes().max(1) as f64;
            s.points
                .push((intensity, work.flops as f64 / subject.stats.p50));
        }
    }
    let at = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let ridge = b.machine.gflops / b.machine.gbytes;
    let (least, most) = (
        at().fold(ridge, f64::min) / 2.0,
        at().fold(ridge, f64::max) * 2.0,
    );
    let limit = Series {
        name: "the most that this machine does".into(),
        points: [least, ridge, most]
            .map(|i| (i, (i * b.machine.gbytes).min(b.machine.gflops)))
            .to_vec(),
        form: Form::Curve,
        colour: 5,
    };
    let plot = Plot {
        title: "Speed at all sizes".into(),
        x: Axis::new("FLOP per byte of weights, inputs and outputs").log(),
        y: Axis::new("GFLOP/s").log(),
        series: [vec![limit], series].concat(),
        marks: Vec::new(),
    };
    html! {
        p { "Left of the bend memory is the limit, right of it the arithmetic units are." }
        (plot.html())
    }
}
