//! A comparison in words.

use super::{CaseReport, Comparison, Floor, Outcome, OutputReport, Report, Unproved, Worst};
use kiln_runtime::setting::INPUTS;

/// `passes (fp16): cosine ≥ 0.99999, …`, in one line.
pub fn verdict(report: &Report) -> String {
    let word = match report.outcome() {
        Outcome::Passes => "passes",
        Outcome::NotProved => "NOT PROVED",
        Outcome::Fails => "FAILS",
    };
    let name = &report.tolerance.name;
    let mut facts: Vec<String> = (report.unproved().iter())
        .map(|(output, why)| format!("output '{output}': {why}"))
        .collect();
    let numbers = measured(report);
    if facts.is_empty() && !numbers.is_empty() {
        facts.push(numbers);
    }
    match facts.is_empty() {
        true => format!("{word} ({name})"),
        false => format!("{word} ({name}): {}", facts.join("; ")),
    }
}

/// What a reader of the verdict must know beside it, in sentences: outputs that are not proved, and a model that amplifies
/// rounding.
pub fn doubts(report: &Report) -> Vec<String> {
    let unproved = report.unproved().into_iter();
    let mut doubts: Vec<String> = unproved
        .map(|(output, why)| {
            let mend = match why {
                Unproved::Random { .. } => "no comparison can prove such an output".to_string(),
                Unproved::Unstable { .. } => {
                    "judge the result by what the model is used for".to_string()
                }
                _ => format!("give real inputs with {INPUTS}"),
            };
            format!("output '{output}' is not proved: {why}; {mend}")
        })
        .collect();
    if let Some((output, floor)) = report.amplified() {
        doubts.push(format!(
            "the model amplifies rounding: a last bit of its weights or another order of operations moves output '{output}' by {}; \
             the result was held to that where it is more than the tolerance allows",
            floor_words(&floor)
        ));
    }
    doubts
}

/// How far an output is from itself.
fn floor_words(floor: &Floor) -> String {
    match floor.unequal > 0.0 {
        true => format!("{:.3} % of its elements", 100.0 * floor.unequal),
        false => format!("{:.2e} in relative L2", floor.relative_l2),
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
pub fn floor7(cosine: f64) -> f64 {
    (cosine * 1e7).floor() / 1e7
}

/// What failed, in one line: the worst, and how much more. If nothing failed, what is not proved.
pub fn failures(report: &Report) -> String {
    let ranked = report.ranked();
    let failed = |w: &&Worst<'_>| w.output.failed();
    let unproved = |w: &&Worst<'_>| w.output.unproved.is_some();
    let mut found: Vec<_> = ranked.iter().filter(failed).collect();
    if found.is_empty() {
        found = ranked.iter().filter(unproved).collect();
    }
    let Some(worst) = found.first() else {
        return String::new();
    };
    let words = failed_output(worst.case, worst.output);
    match found.len() - 1 {
        0 => words,
        more => format!("{words}; and {more} more of {} comparisons", ranked.len()),
    }
}

/// How one output fails, or why it is not proved.
pub fn failed_output(case: &CaseReport, output: &OutputReport) -> String {
    let mut what = match &output.comparison {
        _ if !output.failed() && output.unproved.is_some() => String::new(),
        Comparison::Compared { verdict, .. } => {
            let failed = verdict.failed.iter();
            let failed = failed.map(|f| match &*f.metric {
                "same_bits" => "its bits differ".to_string(),
                _ => f.to_string(),
            });
            failed.collect::<Vec<_>>().join("; ")
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
    if let Some(why) = output.unproved.filter(|_| !output.failed()) {
        what = why.to_string();
    } else if let Some(m) = output.margin {
        what += &format!(
            "; what it decides otherwise was decided by up to {:.1e} of the numbers compared (limit {:.1e})",
            m.largest, m.limit
        );
    }
    if let Some(floor) = output.floor.filter(|f| f.runs > 0 && output.failed()) {
        what += &format!(
            "; the original differs from itself by {}",
            floor_words(&floor)
        );
    }
    format!("output '{}' at {}: {what}", output.name, case.name)
}
