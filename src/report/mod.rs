//! `report.md`: what was done, and whether it is still right, for people.

pub mod bench;
pub mod check;
pub mod html;
pub mod junit;
mod target;

use std::collections::{BTreeMap, BTreeSet};

use crate::bench::BenchReport;
use crate::engine::DataType;
use crate::manifest::Manifest;
use crate::parity::{CaseReport, Comparison, OutputReport, Report};
use crate::search::Search;
use crate::summary::{bytes, count};

pub use target::{Document, Target, WriteError};

/// The report of a bundle, in Markdown.
pub fn markdown(m: &Manifest) -> String {
    let mut out = format!("# kiln report: {}\n\n", m.source.path);
    out += &summary(m);
    out += "\n## Parity\n\n";
    out += &parity(m);
    out += "\n## Latency\n\n";
    out += &latency(m);
    out += "\n## Engine\n\n";
    out += &engine(m);
    out += "\n## What changed\n\n";
    out += &blocks(m);
    out += "\n";
    out += &passes(m);
    out += "\n";
    out += &operators(m);
    if !m.requantized.is_empty() {
        out += "\n## Quantization of the original\n\n";
        let rows = m.requantized.iter();
        out += &markdown_table(
            &["what became of it", "nodes"],
            rows.map(|r| vec![r.how.clone(), r.nodes.len().to_string()]),
        );
    }
    if m.precision != "fp32" {
        out += "\n## Precision\n\n";
        out += &precision(m);
    }
    if !m.warnings.is_empty() {
        out += "\n## Warnings\n\n";
        for warning in &m.warnings {
            out += &format!("- {warning}\n");
        }
    }
    out += "\n## Environment\n\n";
    out += &environment(m);
    out
}

/// A Markdown table.
pub(crate) fn markdown_table(
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let escape = |cell: &str| cell.replace('|', "\\|");
    let mut out = format!(
        "| {} |\n|{}\n",
        header.join(" | "),
        "---|".repeat(header.len())
    );
    for row in rows {
        let cells: Vec<String> = row.iter().map(|c| escape(c)).collect();
        out += &format!("| {} |\n", cells.join(" | "));
    }
    out
}

fn summary(m: &Manifest) -> String {
    let sizes: Vec<String> = m
        .sizes
        .iter()
        .map(|(name, range)| format!("{name} {range}"))
        .collect();
    let verdict = match &m.parity {
        None => "not run".into(),
        Some(report) => verdict(report),
    };
    markdown_table(
        &["", ""],
        [
            vec!["target".into(), m.target.clone()],
            vec!["precision".into(), m.precision.clone()],
            vec!["parity with the original".into(), verdict],
            vec!["engine parity".into(), m.engine_parity.clone()],
            vec![
                "model".into(),
                format!(
                    "{} → {}",
                    bytes(m.source.bytes as usize),
                    bytes(model_bytes(m) as usize)
                ),
            ],
            vec![
                "nodes".into(),
                format!("{} → {}", m.before.nodes, m.after.nodes),
            ],
            vec!["parameters".into(), count(m.before.parameters)],
            vec![
                "sizes (min:opt:max)".into(),
                if sizes.is_empty() {
                    "fixed".into()
                } else {
                    sizes.join(", ")
                },
            ],
        ],
    )
}

/// Bytes of the optimized model with its external data.
pub fn model_bytes(m: &Manifest) -> u64 {
    m.model.bytes + m.model.external.as_ref().map_or(0, |(_, n)| *n)
}

/// `passes (fp16): cosine ≥ 0.99999, …`, in one line.
pub fn verdict(report: &Report) -> String {
    let word = if report.pass() { "passes" } else { "FAILS" };
    let mut cosine = f64::INFINITY;
    let mut max_abs = 0f64;
    for output in report.cases.iter().flat_map(|c| &c.outputs) {
        if let Comparison::Compared { metrics, .. } = &output.comparison
            && let Some(float) = &metrics.float
        {
            cosine = cosine.min(float.cosine);
            max_abs = max_abs.max(float.max_abs);
        }
    }
    match cosine.is_finite() {
        true => format!(
            "{word} ({}): cosine ≥ {:.7}, max abs ≤ {max_abs:.3e}",
            report.tolerance.name,
            floor7(cosine)
        ),
        false => format!("{word} ({})", report.tolerance.name),
    }
}

/// Rounded down, so that what is printed is a lower bound.
fn floor7(cosine: f64) -> f64 {
    (cosine * 1e7).floor() / 1e7
}

/// What failed, in one line.
pub fn failures(report: &Report) -> String {
    let mut lines = Vec::new();
    for case in &report.cases {
        let failed = case.outputs.iter().filter(|o| !o.comparison.pass());
        lines.extend(failed.map(|output| failed_output(case, output)));
    }
    lines.join("; ")
}

/// How one output fails.
pub fn failed_output(case: &CaseReport, output: &OutputReport) -> String {
    let what = match &output.comparison {
        Comparison::Compared { verdict, .. } => {
            let failed = verdict.failed.iter();
            let failed =
                failed.map(|f| format!("{} {:.3e} (limit {:.3e})", f.metric, f.value, f.limit));
            failed.collect::<Vec<_>>().join(", ")
        }
        Comparison::Mismatch {
            reference,
            candidate,
        } => format!(
            "{}{:?} became {}{:?}",
            reference.dtype, reference.shape, candidate.dtype, candidate.shape
        ),
        Comparison::Missing { .. } => "it is missing".into(),
        Comparison::Extra { .. } => "the original does not have it".into(),
        Comparison::Incomparable { .. } => {
            "its type cannot be compared, and its bits differ".into()
        }
    };
    format!("output '{}' at {}: {what}", output.name, case.name)
}

/// Rows of case, output and metrics: `(header, rows)`, for a table of any kind.
pub fn parity_rows(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec![
        "case", "output", "elements", "max abs", "rel L2", "cosine", "SQNR dB", "argmax",
        "NaN/Inf", "verdict",
    ];
    let mut rows = Vec::new();
    for case in &report.cases {
        for output in &case.outputs {
            let pass = if output.comparison.pass() {
                "ok"
            } else {
                "FAIL"
            };
            let mut row = vec![case.name.clone(), output.name.clone()];
            match &output.comparison {
                Comparison::Compared { metrics, .. } => match &metrics.float {
                    Some(f) => row.extend([
                        metrics.elements.to_string(),
                        format!("{:.2e}", f.max_abs),
                        format!("{:.2e}", f.relative_l2),
                        format!("{:.7}", floor7(f.cosine)),
                        format!("{:.1}", f.sqnr_db),
                        f.argmax
                            .map_or(String::new(), |a| format!("{:.2} %", a * 100.0)),
                        f.nonfinite.differ.to_string(),
                    ]),
                    None => row.extend([
                        metrics.elements.to_string(),
                        format!("{} differ", metrics.unequal),
                        String::new(),
                        String::new(),
                        String::new(),
                        String::new(),
                        String::new(),
                    ]),
                },
                _ => row.extend(std::iter::repeat_n(String::new(), 7)),
            }
            row.push(pass.into());
            rows.push(row);
        }
    }
    (header, rows)
}

fn parity(m: &Manifest) -> String {
    match &m.parity {
        None => "Not run (`--no-check`).\n".into(),
        Some(report) => {
            let (header, rows) = parity_rows(report);
            format!(
                "Against the original in FP32 on ONNX Runtime's CPU provider, graph optimization disabled; tolerance \
                 `{}`.\n\n{}",
                report.tolerance.name,
                markdown_table(&header, rows)
            )
        }
    }
}

/// Rows of model and percentiles in milliseconds: `(header, rows)`, for a table of any kind.
pub fn latency_rows(report: &BenchReport) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let ms = |ns: f64| format!("{:.3}", ns / 1e6);
    let header = vec![
        "model",
        "runs",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "items/s",
        "speed-up (95 %)",
    ];
    let rows = report.subjects.iter().map(|s| {
        let ratio = report.ratios.iter().find(|r| r.subject == s.name);
        let speedup = ratio.map_or(String::new(), |r| match r.interval {
            Some(i) => format!("{:.2}x ({:.2} to {:.2})", r.speedup, i.low, i.high),
            None => format!("{:.2}x", r.speedup),
        });
        vec![
            s.name.clone(),
            s.stats.runs.to_string(),
            ms(s.stats.p50),
            ms(s.stats.p90),
            ms(s.stats.p99),
            format!("{:.1}", s.throughput),
            speedup,
        ]
    });
    (header, rows.collect())
}

fn latency(m: &Manifest) -> String {
    let Some(report) = &m.latency else {
        let why = m
            .latency_not_run
            .unwrap_or("`--no-check` or `--no-latency`");
        return format!("Not run ({why}).\n");
    };
    let (header, rows) = latency_rows(report);
    format!(
        "ONNX Runtime's CPU provider with all its optimizations, interleaved runs, at the typical sizes. The engine was \
         not timed: no CUDA device.\n\n{}",
        markdown_table(&header, rows)
    )
}

fn engine(m: &Manifest) -> String {
    let Some(e) = &m.engine else {
        return "None was built.\n".into();
    };
    let mut out = markdown_table(
        &["", ""],
        [
            vec!["builder".into(), e.runtime.clone()],
            vec!["compute capabilities".into(), e.capabilities.join(", ")],
            vec!["plan".into(), bytes(e.bytes as usize)],
            vec![
                "parse, build".into(),
                format!("{:.2} s, {:.2} s", e.parse_seconds, e.build_seconds),
            ],
            vec!["layers read".into(), e.layers.to_string()],
            vec!["tensors by type".into(), counts(&e.network.tensors)],
            vec!["dequantized by type".into(), counts(&e.network.dequantized)],
            // An engine's own layers are known where it is opened.
            vec![
                "layers of the engine".into(),
                "not read: no CUDA device".into(),
            ],
        ],
    );
    if e.attention_decomposed {
        out += "\nTensorRT has no dedicated kernel for this attention; it was allowed to take it apart.\n";
    }
    for warning in e.warnings.iter().take(8) {
        out += &format!("\n- TensorRT warns: {warning}");
    }
    out + "\n"
}

fn counts(types: &BTreeMap<DataType, usize>) -> String {
    let all: Vec<String> = types.iter().map(|(t, n)| format!("{n} {t}")).collect();
    match all.is_empty() {
        true => "none".into(),
        false => all.join(", "),
    }
}

fn blocks(m: &Manifest) -> String {
    let found = m.blocks.iter().filter(|b| b.found > 0);
    let mut out = markdown_table(
        &["blocks", "found", "fused"],
        found.map(|b| vec![b.kind.into(), b.found.to_string(), b.fused.to_string()]),
    );
    if !m.attention.is_empty() {
        let size = |n: usize| if n == 0 { "?".into() } else { n.to_string() };
        out += "\n";
        out += &markdown_table(
            &[
                "attention",
                "heads",
                "kv heads",
                "head size",
                "scale",
                "mask",
            ],
            m.attention.iter().map(|a| {
                let guard = if a.guarded {
                    ", hidden rows give zeros"
                } else {
                    ""
                };
                vec![
                    a.node.clone(),
                    size(a.heads),
                    size(a.kv_heads),
                    size(a.head_size),
                    format!("{:.4}", a.scale),
                    format!("{}{guard}", a.mask),
                ]
            }),
        );
    }
    out
}

fn passes(m: &Manifest) -> String {
    markdown_table(
        &["pass", "results", "applications", "ms", "nodes"],
        m.passes.iter().map(|p| {
            vec![
                p.name.clone(),
                p.results.clone(),
                p.applications.to_string(),
                format!("{:.1}", p.milliseconds),
                format!("{} → {}", p.nodes_before, p.nodes_after),
            ]
        }),
    )
}

fn operators(m: &Manifest) -> String {
    let names: BTreeSet<&String> = m.ops_before.keys().chain(m.ops_after.keys()).collect();
    let mut rows: Vec<(usize, usize, &String)> = (names.into_iter())
        .map(|op| {
            let n =
                |ops: &std::collections::BTreeMap<String, usize>| ops.get(op).copied().unwrap_or(0);
            (n(&m.ops_before), n(&m.ops_after), op)
        })
        .collect();
    rows.sort_by_key(|(before, after, _)| std::cmp::Reverse(before.max(after).to_owned()));
    markdown_table(
        &["operator", "before", "after"],
        rows.into_iter()
            .map(|(before, after, op)| vec![op.clone(), before.to_string(), after.to_string()]),
    )
}

/// Ranges of activations, and what they were measured on.
fn ranges(m: &Manifest) -> String {
    let mut out = String::new();
    if let Some(c) = &m.calibration {
        let held = match c.held_out {
            0 => "the proof used no sample of its own".to_string(),
            n => format!("{n} samples behind them proved the result"),
        };
        out += &format!(
            "{} values were measured on {}{}; {held}.\n",
            c.values,
            c.data,
            if c.cached { " (from the cache)" } else { "" }
        );
        if c.made {
            out += "\n**The data is made up: the ranges say little about real inputs.**\n";
        }
    }
    if !m.activations.is_empty() {
        out += "\n";
        out += &markdown_table(
            &[
                "activation",
                "range",
                "chosen by",
                "channels apart",
                "smoothed by",
                "expected noise, dB",
            ],
            m.activations.iter().map(|a| {
                vec![
                    a.value.clone(),
                    format!("{:.4} to {:.4}", a.lo, a.hi),
                    a.method.into(),
                    a.outliers.to_string(),
                    a.smoothing.unwrap_or("-").into(),
                    format!("{:.1}", 10.0 * a.noise.max(1e-30).log10()),
                ]
            }),
        );
        out += "\n";
    }
    out
}

fn precision(m: &Manifest) -> String {
    let mut out = String::new();
    if m.options.int8.is_some() || m.options.fp8 {
        let format = if m.options.fp8 { "FP8" } else { "INT8" };
        out += &format!("{} linear layers multiply in {format}.\n", m.quantized);
    }
    out += &ranges(m);
    if let Some(block) = m.options.int4_block {
        out += &format!(
            "{} linear layers have INT4 weights in blocks of {block}.\n",
            m.quantized
        );
    }
    if let Some(half) = m.half() {
        out += &format!("{} nodes are {half}.\n", m.converted);
    }
    out += &format!("{} nodes keep their precision.\n", m.kept.len());
    if !m.kept.is_empty() {
        out += "\n";
        out += &markdown_table(
            &["node that keeps its precision", "why"],
            m.kept.iter().map(|k| vec![k.node.clone(), k.why.clone()]),
        );
    }
    if let Some(search) = &m.search {
        out += "\n";
        out += &sensitivity(search);
    }
    for c in &m.clamped {
        out += &format!(
            "\n- constant `{}`: {} values up to {:.3e} stand for infinity, and became ones that the format has",
            c.tensor, c.values, c.abs_max
        );
    }
    out + "\n"
}

/// The layers by what they cost alone, and what was tried.
fn sensitivity(search: &Search) -> String {
    let number = |error: Option<f64>| error.map_or("not finite".into(), |e| format!("{e:.3e}"));
    let mut out = format!(
        "{} of {} layers are kept, found by comparing {} models with the original. Errors are the largest relative L2 of an \
         output.\n\n",
        search.kept.len(),
        search.layers,
        search.compared
    );
    out += &markdown_table(
        &["kept layers", "error", "verdict"],
        search.curve.iter().map(|t| {
            let verdict = if t.pass { "ok" } else { "out of tolerance" };
            vec![t.kept.to_string(), number(t.error), verdict.into()]
        }),
    );
    out += "\n";
    out += &markdown_table(
        &["converted alone", "error", "kept"],
        search.groups.iter().map(|g| {
            let kept = g.layers.iter().all(|l| search.kept.contains(l));
            let kept = if kept { "yes" } else { "no" };
            vec![g.layers.join(", "), number(g.error), kept.into()]
        }),
    );
    out
}

fn environment(m: &Manifest) -> String {
    let stages: Vec<String> = m
        .stages
        .iter()
        .map(|s| format!("{} {:.2} s", s.name, s.seconds))
        .collect();
    markdown_table(
        &["", ""],
        [
            vec!["kiln".into(), m.kiln.clone()],
            vec!["input".into(), format!("SHA-256 {}", m.source.sha256)],
            vec!["producer".into(), m.before.producer.clone()],
            vec![
                "proved with".into(),
                m.runtime.clone().unwrap_or_else(|| "not run".into()),
            ],
            vec![
                "machine".into(),
                format!(
                    "{}, {} threads, {}",
                    m.environment.cpu, m.environment.threads, m.environment.os
                ),
            ],
            vec!["time".into(), stages.join(", ")],
        ],
    )
}
