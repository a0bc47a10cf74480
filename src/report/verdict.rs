//! Verdicts above a report.

use super::page::{Tone, Verdict};
use crate::engine_parity::EngineParity;
use crate::parity::{Outcome, Report, measured};

/// The verdict on an engine.
pub(super) fn engine_verdict(parity: &EngineParity) -> Verdict {
    let (word, tone) = match (parity.proved(), parity.failed()) {
        (true, _) => ("passes", Tone::Good),
        (_, true) => ("fails", Tone::Bad),
        _ if parity.not_run().is_none() => ("not proved", Tone::Open),
        _ => ("not run", Tone::Open),
    };
    Verdict {
        what: "parity of the engine",
        word: word.into(),
        why: parity
            .not_run()
            .map_or_else(|| parity.to_string(), str::to_string),
        tone,
    }
}

/// The verdict on a comparison, above a report.
pub(super) fn parity_verdict(what: &'static str, report: &Report) -> Verdict {
    let name = &report.tolerance.name;
    let unproved = report.unproved().into_iter();
    let unproved: Vec<String> = unproved
        .map(|(output, why)| format!("{output}: {why}"))
        .collect();
    let (word, tone, why) = match report.outcome() {
        Outcome::Passes => ("passes", Tone::Good, measured(report)),
        Outcome::Fails => ("fails", Tone::Bad, measured(report)),
        Outcome::NotProved => ("not proved", Tone::Open, unproved.join("; ")),
    };
    Verdict {
        what,
        word: word.into(),
        why: format!("tolerance {name}: {why}"),
        tone,
    }
}
