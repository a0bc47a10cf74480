//! A comparison as a table: all of it, or each output once.

use crate::parity::{Comparison, Nonfinite, Outcome, OutputReport, Report, Worst, floor7};
use crate::setting::VERBOSE;

/// Rows of case, output and metrics: `(header, rows)`, for a table of any kind. Of a report that fails the worst come first.
/// Where a result was beyond its limit, the limit on relative L2 and what the original differs from itself stand beside it.
pub fn parity_rows(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let shown = match report.failed() {
        true => report.ranked(),
        false => report.in_order(),
    };
    rows(report, "case", &shown)
}

/// A comparison in as many rows as it has outputs.
#[derive(Clone, Debug)]
pub struct Brief {
    pub header: Vec<&'static str>,
    /// Each output at its worst case.
    pub rows: Vec<Vec<String>>,
    /// What the rows leave out.
    pub notes: Vec<String>,
}

/// Names of a list that are shown.
const NAMED: usize = 4;

/// Each output at its worst case, as [`parity_rows`]; outputs without floats of which no element differs share a line.
pub fn brief(report: &Report) -> Brief {
    let cases = report.cases.len();
    let shown = report.by_output();
    let same = |w: &&Worst<'_>| is_same(w.output);
    let equal: Vec<&str> = (shown.iter().filter(same))
        .map(|w| w.output.name.as_str())
        .collect();
    let mut notes = Vec::new();
    let mut kept = shown.clone();
    if equal.len() > 1 {
        kept.retain(|w| !is_same(w.output));
        let mut names = equal
            .iter()
            .take(NAMED)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        if equal.len() > NAMED {
            names += &format!(" and {} more", equal.len() - NAMED);
        }
        notes.push(format!(
            "{} outputs without floats, 0 differ: {names}",
            equal.len()
        ));
    }
    let case = match cases {
        0 | 1 => "case",
        n => {
            notes.push(format!("the worst of {n} cases; {VERBOSE} shows all"));
            "worst case"
        }
    };
    let (header, rows) = rows(report, case, &kept);
    Brief {
        header,
        rows,
        notes,
    }
}

/// Whether nothing differs, in an output whose errors have no size.
fn is_same(output: &OutputReport) -> bool {
    let equal = matches!(&output.comparison,
        Comparison::Compared { metrics, .. } if metrics.float.is_none() && metrics.unequal == 0);
    equal && output.outcome() == Outcome::Passes
}

fn rows(
    report: &Report,
    case: &'static str,
    shown: &[Worst<'_>],
) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let noisy = shown.iter().any(|w| w.output.floor.is_some());
    let mut header = vec![case, "output", "elements", "max abs", "rel L2"];
    if noisy {
        header.extend(["limit", "noise"]);
    }
    header.extend(["cosine", "SQNR dB", "argmax", "NaN/Inf", "verdict"]);
    let row = |&Worst { case, output }: &Worst<'_>| {
        let mut row = vec![case.name.clone(), output.name.clone()];
        row.extend(cells(output));
        if noisy {
            row.splice(5..5, noise_cells(report, output));
        }
        row.push(word(output).into());
        row
    };
    (header, shown.iter().map(row).collect())
}

/// From the number of elements to what is not finite.
fn cells(output: &OutputReport) -> Vec<String> {
    let Comparison::Compared { metrics, .. } = &output.comparison else {
        return vec![String::new(); 7];
    };
    let elements = metrics.elements.to_string();
    match &metrics.float {
        Some(f) => vec![
            elements,
            format!("{:.2e}", f.max_abs),
            format!("{:.2e}", f.relative_l2),
            format!("{:.7}", floor7(f.cosine)),
            format!("{:.1}", f.sqnr_db),
            f.argmax
                .map_or(String::new(), |a| format!("{:.2} %", a * 100.0)),
            nonfinite(&f.nonfinite),
        ],
        None => {
            let mut cells = vec![elements, format!("{} differ", metrics.unequal)];
            cells.extend(output.margin.map(|m| format!("margin {:.1e}", m.largest)));
            cells.resize(7, String::new());
            cells
        }
    }
}

/// All elements that are not finite, and how many of them differ.
fn nonfinite(found: &Nonfinite) -> String {
    match (found.most(), found.differ) {
        (all, 0) => all.to_string(),
        (all, differ) => format!("{all}, {differ} differ"),
    }
}

/// The limit and the floor of relative L2, or of what is unequal.
fn noise_cells(report: &Report, output: &OutputReport) -> [String; 2] {
    let Some(floor) = output.floor else {
        return [String::new(), String::new()];
    };
    let limits = report.tolerance.limits_of(&output.name);
    let number = |n: Option<f64>| n.map_or(String::new(), |n| format!("{n:.2e}"));
    match &output.comparison {
        Comparison::Compared { metrics, .. } if metrics.float.is_none() => {
            [number(limits.unequal), number(Some(floor.unequal))]
        }
        _ => [number(limits.relative_l2), number(Some(floor.relative_l2))],
    }
}

/// The verdict on one output.
pub fn word(output: &OutputReport) -> &'static str {
    let forgiven = matches!(&output.comparison,
        Comparison::Compared { verdict, .. } if !verdict.forgiven.is_empty());
    match output.outcome() {
        Outcome::Passes if forgiven && output.floor.is_some() => "ok, by noise",
        Outcome::Passes if forgiven && output.margin.is_some() => "ok, by margin",
        Outcome::Passes if forgiven => "ok, below a bit",
        outcome => outcome.word(),
    }
}
