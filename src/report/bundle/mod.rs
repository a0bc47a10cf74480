//! `report.md` and `report.html` of a bundle.

mod changes;
mod head;

use std::collections::BTreeMap;

use super::check::parity_cases;
use super::junit::{Case, Outcome};
use super::latency::{distribution, runs};
use super::page::{self, Axis, Plot, Series};
use super::section::{Part, Section};
use super::target::Document;
use super::{kernels, latency_rows, parity_rows};
use crate::bench::baseline::Verdict;
use crate::engine::DataType;
use crate::manifest::{Also, Manifest, Search, SourceFacts};
use crate::parity::{Comparison, decades, doubts};
use crate::precision::{Floats, Precision, Scheme};
use crate::runtime::{Device, Optimization};
use crate::setting::{ENGINE, NO_CHECK, NO_LATENCY};
use crate::summary::bytes;

/// A compilation as a document.
#[derive(Debug)]
pub struct Page<'a>(pub &'a Manifest);

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "compile"
    }

    fn cases(&self) -> Vec<Case> {
        let m = self.0;
        let mut cases = m.parity.as_ref().map_or(Vec::new(), parity_cases);
        let gates = m.gates.iter().map(|g| Case {
            name: g.gate.to_string(),
            group: "gates".into(),
            outcome: match g.verdict {
                Verdict::Pass => Outcome::Pass,
                Verdict::Fail => Outcome::Fail(g.why.clone()),
                Verdict::Unclear | Verdict::NotRun => Outcome::NotRun(g.to_string()),
            },
            details: g.why.clone(),
            seconds: 0.0,
        });
        cases.extend(gates);
        cases
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        markdown(self.0)
    }

    fn html(&self) -> String {
        html(self.0)
    }
}

/// The report of a bundle, in Markdown.
pub fn markdown(m: &Manifest) -> String {
    let head = head::head(m);
    let verdicts = head.verdicts.into_iter().map(|v| match v.why.is_empty() {
        true => vec![v.what.to_string(), v.word],
        false => vec![v.what.to_string(), format!("{}: {}", v.word, v.why)],
    });
    let facts = head.facts.into_iter();
    let facts = facts.map(|(name, value)| vec![name.to_string(), value]);
    let mut out = format!("# kiln report: {}\n\n", m.source.path);
    out += &super::markdown_table(&["", ""], verdicts.chain(facts));
    for section in sections(m) {
        out += &section.markdown();
    }
    out
}

/// The report of a bundle, as a page.
pub fn html(m: &Manifest) -> String {
    let sections = sections(m);
    let parts: Vec<_> = sections.iter().map(|s| (s.title, s.html())).collect();
    page::page(&head::head(m), &parts)
}

fn sections(m: &Manifest) -> Vec<Section> {
    let mut all = Vec::new();
    let mut add = |title, parts: Vec<Part>| {
        if !parts.is_empty() {
            all.push(Section { title, parts });
        }
    };
    add("Parity", parity(m));
    add("Generation", generation(m));
    add("Latency", latency(m));
    add("Engine", engine(m));
    for also in &m.also {
        add("For ONNX Runtime's CUDA provider", beside(also));
    }
    add("What changed", changes::changes(m));
    add("Quantization of the original", requantized(m));
    if m.precision != "fp32" {
        add("Precision", precision(m));
    }
    if !m.warnings.is_empty() {
        add("Warnings", vec![Part::List(m.warnings.clone())]);
    }
    add("Not run", not_run(m));
    add("Environment", environment(m));
    all
}

/// A result for another target in the same bundle.
fn beside(also: &Also) -> Vec<Part> {
    let m = &also.manifest;
    let told = format!(
        "`{}` has {} nodes (the original {}), precision {}.",
        also.file, m.after.nodes, m.before.nodes, m.precision
    );
    let mut parts = vec![Part::Text(told)];
    parts.extend(parity(m));
    parts.extend((!m.warnings.is_empty()).then(|| Part::List(m.warnings.clone())));
    parts
}

/// What a decoder generates, and what its caches take.
fn generation(m: &Manifest) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Some(proof) = &m.generation {
        let (header, rows) = super::generation::claims(proof);
        parts.push(Part::Table(header, rows));
    }
    let caches = m
        .after
        .caches
        .iter()
        .map(|c| format!("Cache: {}.", c.describe()));
    parts.push(Part::List(caches.collect()));
    if m.after.caches.is_empty() {
        Vec::new()
    } else {
        parts
    }
}

fn parity(m: &Manifest) -> Vec<Part> {
    let Some(report) = &m.parity else {
        return vec![Part::Text(format!("Not run (`{}`).", NO_CHECK.option()))];
    };
    let (header, rows) = parity_rows(report);
    let mut parts = vec![
        Part::Text(format!(
            "Compared with the original on {}; tolerance `{}`.",
            proved_on(m),
            report.tolerance.name
        )),
        Part::Table(header, rows),
    ];
    let noted = doubts(report).into_iter().map(Part::Loud);
    parts.splice(1..1, noted);
    // By output, over all cases.
    let mut histograms: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for output in report.cases.iter().flat_map(|c| &c.outputs) {
        let Comparison::Compared { metrics, .. } = &output.comparison else {
            continue;
        };
        let Some(float) = &metrics.float else {
            continue;
        };
        let sum = histograms.entry(&output.name).or_default();
        sum.resize(float.decades.len(), 0);
        sum.iter_mut()
            .zip(&float.decades)
            .for_each(|(a, b)| *a += b);
    }
    let histogram = |(output, counts): (&str, Vec<usize>)| {
        let all: usize = counts.iter().sum();
        let filled = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let bars = decades().into_iter().zip(&counts).skip(filled);
        let bars = bars.map(|(name, &n)| {
            let share = 100.0 * n as f64 / all.max(1) as f64;
            (name, n as f64, format!("{n}, {share:.1} %"))
        });
        let title = format!("Errors of `{output}` over its root mean square, all cases");
        (title, bars.collect())
    };
    parts.push(Part::Bars(histograms.into_iter().map(histogram).collect()));
    parts
}

/// Where the proof ran, and how: `ONNX Runtime's CPU provider, graph optimization disabled`.
fn proved_on(m: &Manifest) -> String {
    let optimization = match m.optimization {
        Some(Optimization::Disabled) => ", graph optimization disabled",
        Some(Optimization::All) => ", graph optimization disabled for it and on for the result",
        None => "",
    };
    format!(
        "{}{optimization}",
        provider(m.device.as_ref().map(|d| d.device))
    )
}

/// `ONNX Runtime's CUDA provider (cuda:0)`
fn provider(device: Option<Device>) -> String {
    match device {
        None => "ONNX Runtime".into(),
        Some(Device::Cpu) => "ONNX Runtime's CPU provider".into(),
        Some(device @ Device::Cuda(_)) => format!("ONNX Runtime's CUDA provider ({device})"),
        Some(device @ Device::Rtx(_)) => format!("TensorRT for RTX in ONNX Runtime ({device})"),
    }
}

/// Engines are timed by another command, whatever GPU is here.
fn not_timed() -> String {
    format!("`kiln bench BUNDLE {}` times it", ENGINE.option())
}

fn latency(m: &Manifest) -> Vec<Part> {
    let Some(report) = &m.latency else {
        let why = m
            .latency_not_run
            .clone()
            .unwrap_or_else(|| format!("`{}` or `{}`", NO_CHECK.option(), NO_LATENCY.option()));
        return vec![Part::Text(format!("Not run ({why})."))];
    };
    let (header, rows) = latency_rows(report);
    let warnings = report.warnings.iter().map(ToString::to_string);
    let settings = report.subjects.first().and_then(|s| s.settings);
    let engine = match &m.engine {
        Some(_) => format!(" The engine was not timed: {}.", not_timed()),
        None => String::new(),
    };
    vec![
        Part::Text(format!(
            "{} with all its optimizations, interleaved runs, at the typical sizes.{engine}",
            provider(settings.map(|s| s.device))
        )),
        Part::Table(header, rows),
        Part::Plots(vec![
            distribution("Distribution", report),
            runs("All runs", report),
        ]),
        Part::List(warnings.collect()),
    ]
}

/// What identifies the input, by the hash that more tools know where there is one.
fn hash(source: &SourceFacts) -> String {
    match (&source.sha256, &source.blake3) {
        (Some(sha256), _) => format!("SHA-256 {sha256}"),
        (None, Some(blake3)) => format!("BLAKE3 {blake3}"),
        (None, None) => "not identified".into(),
    }
}

fn pair(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_string(), value.into()]
}

fn engine(m: &Manifest) -> Vec<Part> {
    let Some(e) = &m.engine else {
        return vec![Part::Text("None was built.".into())];
    };
    let time = format!("{:.2} s, {:.2} s", e.parse_seconds, e.build_seconds);
    let mut parts = vec![Part::Table(
        vec!["", ""],
        vec![
            pair("builder", &e.runtime),
            pair("compute capabilities", e.capabilities.join(", ")),
            pair("plan", bytes(e.bytes as usize)),
            pair("parse, build", time),
            pair("layers read", e.layers.to_string()),
            pair("tensors by type", counts(&e.network.tensors)),
            pair("dequantized by type", counts(&e.network.dequantized)),
        ],
    )];
    if e.attention_decomposed {
        parts.push(Part::Text(
            "TensorRT has no dedicated kernel for this attention; it was allowed to take it apart."
                .into(),
        ));
    }
    parts.extend(kernels::parts(&e.listed));
    let warnings = e.warnings.iter().take(8);
    parts.push(Part::List(
        warnings.map(|w| format!("TensorRT warns: {w}")).collect(),
    ));
    parts
}

fn counts(types: &BTreeMap<DataType, usize>) -> String {
    let all: Vec<String> = types.iter().map(|(t, n)| format!("{n} {t}")).collect();
    match all.is_empty() {
        true => "none".into(),
        false => all.join(", "),
    }
}

fn requantized(m: &Manifest) -> Vec<Part> {
    if m.requantized.is_empty() {
        return Vec::new();
    }
    let rows = m.requantized.iter();
    let rows = rows.map(|r| vec![r.how.clone(), r.nodes.len().to_string()]);
    vec![Part::Table(
        vec!["what became of it", "nodes"],
        rows.collect(),
    )]
}

/// Ranges of activations, and what they were measured on.
fn ranges(m: &Manifest) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Some(c) = &m.calibration {
        let held = match c.held_out {
            0 => "the proof used no sample of its own".to_string(),
            n => format!("{n} samples behind them proved the result"),
        };
        let cached = if c.cached { " (from the cache)" } else { "" };
        parts.push(Part::Text(format!(
            "{} values were measured on {}{cached}; {held}.",
            c.values, c.data
        )));
        if c.made {
            parts.push(Part::Loud(
                "The data is made up: the ranges say little about real inputs.".into(),
            ));
        }
    }
    if !m.activations.is_empty() {
        let rows = m.activations.iter().map(|a| {
            vec![
                a.value.clone(),
                format!("{:.4} to {:.4}", a.lo, a.hi),
                a.method.to_string(),
                a.outliers.to_string(),
                a.smoothing.as_deref().unwrap_or("-").into(),
                format!("{:.1}", 10.0 * a.noise.max(1e-30).log10()),
            ]
        });
        let header = vec![
            "activation",
            "range",
            "chosen by",
            "channels apart",
            "smoothed by",
            "expected noise, dB",
        ];
        parts.push(fold_long("Ranges of activations", header, rows.collect()));
    }
    if !m.rounded.is_empty() {
        let rows = m.rounded.iter().map(|r| {
            vec![
                r.layer.clone(),
                r.method.to_string(),
                if r.factors { "yes" } else { "-" }.into(),
                format!("{:.4}", r.error),
            ]
        });
        let header = vec![
            "weight of",
            "rounded",
            "factors of channels",
            "error of its products, relative L2",
        ];
        parts.push(Part::Table(header, rows.collect()));
    }
    parts
}

/// Rows of a table that are shown at once.
const ROWS: usize = 16;

/// A table under a title, folded if it is long.
fn fold_long(title: &str, header: Vec<&'static str>, rows: Vec<Vec<String>>) -> Part {
    match rows.len() {
        0..=ROWS => Part::Table(header, rows),
        n => Part::Fold(format!("{title}: {n}"), vec![Part::Table(header, rows)]),
    }
}

fn precision(m: &Manifest) -> Vec<Part> {
    let mut parts = Vec::new();
    let Precision { floats, linear } = m.options.precision;
    let multiplied = linear.scheme().is_some_and(|s| s != Scheme::Weights);
    if let Some(format) = linear.format().filter(|_| multiplied) {
        let format = format.title();
        parts.push(Part::Text(format!(
            "{} linear layers and convolutions multiply in {format}.",
            m.quantized
        )));
    }
    parts.extend(ranges(m));
    if let Some(block) = m.options.int4_block {
        parts.push(Part::Text(format!(
            "{} linear layers have INT4 weights in blocks of {block}.",
            m.quantized
        )));
    }
    if floats != Floats::Fp32 {
        let half = floats.format().title();
        parts.push(Part::Text(format!("{} nodes are {half}.", m.converted)));
    }
    parts.push(Part::Text(format!(
        "{} nodes keep their precision.",
        m.kept.len()
    )));
    if !m.kept.is_empty() {
        let rows = m.kept.iter().map(|k| vec![k.node.clone(), k.why.clone()]);
        let header = vec!["node that keeps its precision", "why"];
        parts.push(fold_long(
            "Nodes that keep their precision",
            header,
            rows.collect(),
        ));
    }
    if let Some(search) = &m.search {
        parts.extend(sensitivity(search));
    }
    let clamped = m.clamped.iter().map(|c| {
        format!(
            "constant `{}`: {} values up to {:.3e} stand for infinity, and became ones that the format has",
            c.tensor, c.values, c.abs_max
        )
    });
    parts.push(Part::List(clamped.collect()));
    parts
}

/// The layers by what they cost alone, and what was tried.
fn sensitivity(search: &Search) -> Vec<Part> {
    let number = |error: Option<f64>| error.map_or("not finite".into(), |e| format!("{e:.3e}"));
    let curve = search.curve.iter().map(|t| {
        let verdict = if t.pass { "ok" } else { "out of tolerance" };
        vec![t.kept.to_string(), number(t.error), verdict.into()]
    });
    let groups = search.groups.iter().map(|g| {
        let kept = g.layers.iter().all(|l| search.kept.contains(l));
        let kept = if kept { "yes" } else { "no" };
        vec![g.layers.join(", "), number(g.error), kept.into()]
    });
    let points = search.curve.iter();
    let points = points.filter_map(|t| Some((t.kept as f64, t.error?)));
    let plot = Plot {
        title: "Error by kept layers".into(),
        x: Axis::new("kept layers"),
        y: Axis::new("relative L2").zero(),
        series: vec![Series {
            name: "models that were compared".into(),
            points: points.collect(),
            ..Series::default()
        }],
        marks: Vec::new(),
    };
    vec![
        Part::Text(format!(
            "{} of {} layers are kept, found by comparing {} models with the original. Errors of models are the largest relative L2 of \
             an output; those of layers are the largest of a value that they make of the original's numbers.",
            search.kept.len(),
            search.layers,
            search.compared
        )),
        Part::Plots(vec![plot]),
        Part::Table(vec!["kept layers", "error", "verdict"], curve.collect()),
        Part::Fold(
            "What layers do alone".into(),
            vec![Part::Table(
                vec!["layers", "error alone", "kept"],
                groups.collect(),
            )],
        ),
    ]
}

/// What would have been checked or measured, and was not, with the reason.
fn not_run(m: &Manifest) -> Vec<Part> {
    let mut lines = Vec::new();
    if let Some(why) = m.engine_parity.not_run() {
        lines.push(format!("parity of the engine: {why}"));
    }
    match &m.parity {
        None => lines.push(format!("parity with the original: `{}`", NO_CHECK.option())),
        Some(report) => lines.extend(
            (report.unproved().iter())
                .map(|(output, why)| format!("parity of output `{output}` is not proved: {why}")),
        ),
    }
    lines.extend(m.parted.iter().map(|why| format!("parity: {why}")));
    let not_run = m.gates.iter().filter(|g| g.verdict == Verdict::NotRun);
    lines.extend(not_run.map(|g| format!("gate on {}: {}", g.gate, g.why)));
    if m.latency.is_none() {
        lines.push(format!(
            "latency: {}",
            m.latency_not_run.as_deref().unwrap_or("switched off")
        ));
    }
    if m.engine.is_some() {
        lines.push(format!("latency of the engine: {}", not_timed()));
    }
    match lines.is_empty() {
        true => Vec::new(),
        false => vec![Part::List(lines)],
    }
}

fn environment(m: &Manifest) -> Vec<Part> {
    let stages = m
        .stages
        .iter()
        .map(|s| format!("{} {:.2} s", s.name, s.seconds));
    let stages = stages.collect::<Vec<_>>().join(", ");
    let runs = m.ran.iter().map(|r| {
        let (original, result) = (r.original, r.result);
        format!(
            "{} {original} of the original and {result} of results",
            r.stage
        )
    });
    let runs = runs.collect::<Vec<_>>().join(", ");
    let e = &m.environment;
    let runtime = match (&m.runtime, &m.device) {
        (Some(runtime), Some(device)) => format!("{runtime} on {device}"),
        _ => "not run".into(),
    };
    let bars = m
        .stages
        .iter()
        .map(|s| (s.name.clone(), s.seconds, format!("{:.2} s", s.seconds)));
    vec![
        Part::Table(
            vec!["", ""],
            vec![
                pair("kiln", &m.kiln),
                pair("input", hash(&m.source)),
                pair("producer", &m.before.producer),
                pair("proved with", runtime),
                pair(
                    "machine",
                    format!("{}, {} threads, {}", e.cpu, e.threads, e.os),
                ),
                pair("time", stages),
                pair("runs of the proof", runs),
            ],
        ),
        Part::Bars(vec![("Time of the compilation".into(), bars.collect())]),
    ]
}
