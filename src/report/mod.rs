//! What was done, and whether it is still right, for people: on the terminal, in Markdown, HTML and JUnit.

pub mod bench;
pub mod bisection;
mod bundle;
pub mod check;
pub mod diff;
pub mod failed;
pub mod generation;
pub mod generation_bench;
pub mod gpu;
pub mod junit;
pub mod kernels;
mod latency;
pub mod page;
mod parity;
mod section;
pub(crate) mod table;
mod target;
mod verdict;

use crate::bench::BenchReport;

pub use bundle::{Page as BundlePage, html, markdown};
pub use kernels::kernel_lines;
pub use parity::{Brief, brief, parity_rows, word};
pub use target::{Document, Target, WriteError, write};

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
