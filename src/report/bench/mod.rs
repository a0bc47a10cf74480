//! A benchmark, for people.

mod csv;
mod html;
mod tables;

use super::junit::{Case, Outcome};
use super::markdown_table;
use super::target::Document;
use crate::bench::Benchmark;
use crate::bench::baseline::Verdict;

use tables::ms;
pub use tables::{Table, notes, sizes, tables};

/// A benchmark as a document.
#[derive(Debug)]
pub struct Page<'a>(pub &'a Benchmark);

impl Page<'_> {
    /// The numbers as CSV: a header, and a row for each model at each point of the grid.
    ///
    /// # Errors
    /// As [`csv::Error`]; nothing in a benchmark causes one.
    pub fn csv(&self) -> Result<String, ::csv::Error> {
        csv::csv(self.0)
    }
}

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "bench"
    }

    fn cases(&self) -> Vec<Case> {
        if let Some(gate) = &self.0.gate {
            let case = |j: &crate::bench::baseline::Judged| Case {
                name: sizes(&j.sizes),
                group: j.model.clone(),
                outcome: match j.found.verdict {
                    Verdict::Pass => Outcome::Pass,
                    Verdict::Fail => Outcome::Fail(j.why()),
                    Verdict::Unclear | Verdict::NotRun => Outcome::NotRun(j.why()),
                },
                details: j.why(),
                seconds: 0.0,
            };
            return gate.points.iter().map(case).collect();
        }
        let points = self.0.points.iter().flat_map(|p| {
            p.measured.subjects.iter().map(|s| Case {
                name: sizes(&p.sizes),
                group: s.name.clone(),
                outcome: Outcome::Pass,
                details: format!("p50 {} ms, p99 {} ms", ms(s.stats.p50), ms(s.stats.p99)),
                seconds: s.stats.p50 / 1e9,
            })
        });
        points.collect()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let mut out = "# kiln bench\n".to_string();
        for (title, header, rows) in tables(self.0) {
            out += &format!("\n## {title}\n\n{}", markdown_table(&header, rows));
        }
        out
    }

    fn html(&self) -> String {
        html::page(self.0)
    }
}
