//! What was done, and whether it is still right, for people: on the terminal, in Markdown, HTML and JUnit.

pub mod bench;
pub mod bisection;
mod bundle;
pub mod check;
pub mod gpu;
pub mod junit;
pub mod kernels;
mod latency;
pub mod page;
mod section;
pub(crate) mod table;
mod target;

use crate::bench::BenchReport;
use crate::manifest::Manifest;
use crate::parity::{CaseReport, Comparison, OutputReport, Report};

pub use bundle::{html, markdown};
pub use kernels::kernel_lines;
pub use target::{Document, Target, WriteError};

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

/// Bytes of the optimized model with its external data.
pub fn model_bytes(m: &Manifest) -> u64 {
    m.model.bytes + m.model.external.as_ref().map_or(0, |(_, n)| *n)
}

/// `passes (fp16): cosine ≥ 0.99999, …`, in one line.
pub fn verdict(report: &Report) -> String {
    let word = if report.pass() { "passes" } else { "FAILS" };
    let name = &report.tolerance.name;
    match measured(report) {
        numbers if numbers.is_empty() => format!("{word} ({name})"),
        numbers => format!("{word} ({name}): {numbers}"),
    }
}

/// The least cosine and the largest error of all outputs of floats; empty without one.
pub fn measured(report: &Report) -> String {
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
        true => format!("cosine ≥ {:.7}, max abs ≤ {max_abs:.3e}", floor7(cosine)),
        false => String::new(),
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
            let failed = failed.map(|f| match f.metric {
                "same_bits" => "its bits differ".to_string(),
                metric => format!("{metric} {:.3e} (limit {:.3e})", f.value, f.limit),
            });
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

/// The JSON Schema of what is read or printed as JSON, with nothing but itself in it.
pub fn schema<T: schemars::JsonSchema>() -> schemars::Schema {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let settings = settings.with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}
