//! The tables of a benchmark.

use crate::bench::baseline::Verdict;
use crate::bench::{Benchmark, PointReport, Profile};
use crate::shapes::Point;
use crate::summary::{bytes, count};

/// A title, a header and rows.
pub type Table = (String, Vec<&'static str>, Vec<Vec<String>>);

/// `batch=1 seq=128`.
pub fn sizes(sizes: &Point) -> String {
    let sizes = sizes.iter().map(|(name, n)| format!("{name}={n}"));
    sizes.collect::<Vec<_>>().join(" ")
}

pub(super) fn ms(ns: f64) -> String {
    format!("{:.3}", ns / 1e6)
}

/// Everything that a terminal shows.
pub fn tables(b: &Benchmark) -> Vec<Table> {
    let mut all = vec![models(b), latency(b)];
    all.extend((!b.placements.is_empty()).then(|| placements(b)));
    for p in &b.profiles {
        all.push(operators(p));
        all.push(blocks(p));
    }
    all.extend(gate(b));
    all
}

/// Where the nodes ran, if that was to be a GPU.
pub(super) fn placements(b: &Benchmark) -> Table {
    let rows = (b.placements.iter()).map(|p| vec![p.model.clone(), p.placement.describe()]);
    (
        "Where the nodes ran".into(),
        vec!["model", "nodes"],
        rows.collect(),
    )
}

pub(super) fn models(b: &Benchmark) -> Table {
    let on = match b.device.device.is_cpu() {
        true => format!(
            "{}, {}, {} thread{}",
            b.device,
            b.environment.cpu,
            b.threads,
            if b.threads == 1 { "" } else { "s" }
        ),
        false => b.device.to_string(),
    };
    let title = format!(
        "{} on {on}: {:.0} GFLOP/s, {:.1} GB/s at most",
        b.runtime, b.machine.gflops, b.machine.gbytes
    );
    let held = |n: Option<u64>| n.map_or("–".into(), |b| bytes(b as usize));
    let rows = b.models.iter().map(|m| {
        vec![
            m.name.clone(),
            count(m.nodes),
            bytes(m.bytes as usize),
            held(m.resident),
            held(m.running),
        ]
    });
    (
        title,
        vec!["model", "nodes", "size", "loaded", "running"],
        rows.collect(),
    )
}

pub(super) fn latency(b: &Benchmark) -> Table {
    let header = vec![
        "sizes",
        "model",
        "runs",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        "items/s",
        "GFLOP",
        "of limit",
        "speed-up (95 %)",
    ];
    let first = first(b);
    let rows = b.points.iter().flat_map(|p| rows(p, first));
    ("Latency".into(), header, rows.collect())
}

/// What the first of several models is, unless all are held against what was measured before.
pub(super) fn first(b: &Benchmark) -> &'static str {
    match (b.models.len(), &b.gate) {
        (0 | 1, _) => "",
        (_, Some(gate)) if !gate.same_run => "",
        _ => "baseline",
    }
}

pub(super) fn rows(p: &PointReport, first: &str) -> Vec<Vec<String>> {
    let rows = p.measured.subjects.iter().enumerate().map(|(k, s)| {
        let ratio = p.measured.ratios.iter().find(|r| r.subject == s.name);
        let speedup = ratio.map_or(first.to_string(), |r| match r.interval {
            Some(i) => format!("{:.2}x ({:.2} to {:.2})", r.speedup, i.low, i.high),
            None => format!("{:.2}x", r.speedup),
        });
        let flops = p.work.get(k).map_or(0, |w| w.flops);
        let limit = p.limits.get(k).copied().unwrap_or(0.0);
        vec![
            sizes(&p.sizes),
            s.name.clone(),
            s.stats.runs.to_string(),
            ms(s.stats.p50),
            ms(s.stats.p90),
            ms(s.stats.p95),
            ms(s.stats.p99),
            format!("{:.1}", s.throughput),
            format!("{:.3}", flops as f64 / 1e9),
            format!("{:.0} %", 100.0 * limit / s.stats.p50),
            speedup,
        ]
    });
    rows.collect()
}

/// Parts below this share of the time are added up.
pub(super) const SMALL: f64 = 0.01;

pub(super) fn operators(p: &Profile) -> Table {
    let (large, small): (Vec<_>, Vec<_>) =
        (p.operators.iter()).partition(|o| o.micros >= SMALL * p.micros);
    let row = |name: &str, nodes: usize, micros: f64| {
        let share = 100.0 * micros / p.micros.max(f64::MIN_POSITIVE);
        vec![
            name.to_string(),
            nodes.to_string(),
            format!("{:.3}", micros / 1e3),
            format!("{share:.1} %"),
        ]
    };
    let mut rows: Vec<_> = large
        .iter()
        .map(|o| row(&o.name, o.nodes, o.micros))
        .collect();
    if !small.is_empty() {
        let nodes = small.iter().map(|o| o.nodes).sum();
        rows.push(row("others", nodes, small.iter().map(|o| o.micros).sum()));
    }
    let title = format!("Where the time goes: {}, by operator", p.model);
    (title, vec!["operator", "nodes", "ms", "share"], rows)
}

pub(super) fn blocks(p: &Profile) -> Table {
    let rows = p.blocks.iter().map(|b| {
        let share = 100.0 * b.micros / p.micros.max(f64::MIN_POSITIVE);
        vec![
            b.name.clone(),
            b.nodes.to_string(),
            format!("{:.3}", b.micros / 1e3),
            format!("{share:.1} %"),
        ]
    });
    let title = format!("Where the time goes: {}, by block", p.model);
    (title, vec!["block", "nodes", "ms", "share"], rows.collect())
}

pub(super) fn gate(b: &Benchmark) -> Option<Table> {
    let gate = b.gate.as_ref()?;
    let rows = gate.points.iter().map(|j| {
        vec![
            j.model.clone(),
            sizes(&j.sizes),
            word(j.found.verdict).to_string(),
            j.why(),
        ]
    });
    let title = format!(
        "At most {:.1} % slower than {}",
        100.0 * gate.allowed,
        gate.baseline
    );
    Some((
        title,
        vec!["model", "sizes", "verdict", "why"],
        rows.collect(),
    ))
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Unclear => "unclear",
        Verdict::NotRun => "not run",
    }
}

/// What has to be said beside the tables.
pub fn notes(b: &Benchmark) -> Vec<String> {
    let beyond = b.points.iter().any(PointReport::is_beyond);
    Vec::from_iter(beyond.then(|| {
        "`of limit` is above 100 % although the machine was measured twice: such a model computes in fewer bits than FP32, or \
         reads its weights from the cache"
            .to_string()
    }))
}
