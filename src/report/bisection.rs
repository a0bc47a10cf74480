//! Which application of a pass breaks parity, for people.

use super::brief;
use super::table::table;
use crate::bisect::{Bisection, Culprit, Failure, Finding};
use crate::parity::Report;
use crate::setting::JSON;

/// Lines of a diff that are shown; `--json` has all.
const SHOWN: usize = 120;

/// A bisection in lines: its runs, and what it found.
pub fn text(bisection: &Bisection) -> String {
    let all = bisection.applications;
    let runs = bisection.runs.iter();
    let rows: Vec<_> = runs
        .map(|run| {
            let verdict = if run.pass { "ok" } else { "FAIL" };
            vec![run.applications.to_string(), verdict.into()]
        })
        .collect();
    let mut out = table(&["applications", "parity"], &rows);
    out += &match &bisection.finding {
        Finding::Passes { parity } => format!(
            "\n{}\n  result   all {all} applications keep parity; nothing was found\n",
            measured(parity)
        ),
        Finding::NotItself { failure } => format!(
            "\n{}  result   the model differs from itself before any application\n  failure  {}\n",
            table_of(failure),
            failure
        ),
        Finding::Found(culprit) => found(culprit, all, bisection.runs.len()),
    };
    out += &format!("  device   {}\n", bisection.device);
    out
}

fn found(culprit: &Culprit, all: usize, runs: usize) -> String {
    let mut out = format!(
        "\n{}  result   parity breaks at application {} of {all}, found in {runs} runs\n",
        table_of(&culprit.failure),
        culprit.number
    );
    out += &format!("  pass     {}\n  node     {}\n", culprit.pass, culprit.node);
    out += &format!("  failure  {}\n\n", culprit.failure);
    let lines: Vec<&str> = culprit.diff.lines().collect();
    for line in lines.iter().take(SHOWN) {
        out += &format!("{line}\n");
    }
    if let Some(more @ 1..) = lines.len().checked_sub(SHOWN) {
        out += &format!("… and {more} lines more; {JSON} has them all\n");
    }
    out
}

fn measured(parity: &Report) -> String {
    let brief = brief(parity);
    table(&brief.header, &brief.rows)
}

fn table_of(failure: &Failure) -> String {
    match failure {
        Failure::Differs { parity } => measured(parity) + "\n",
        Failure::Refused { .. } => String::new(),
    }
}
