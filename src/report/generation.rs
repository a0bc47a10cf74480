//! The proof of a generation, for people.

use maud::html;

use super::junit::{self, Case};
use super::markdown_table;
use super::page::{self, Axis, Form, Head, Plot, Series, Tone, Verdict};
use super::target::Document;
use crate::generate::proof::{Claim, Outcome, Proof};

/// A proof as a document.
#[derive(Debug)]
pub struct Proved<'a>(pub &'a Proof);

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Holds => "holds",
        Outcome::Fails(_) => "FAILS",
        Outcome::NotRun(_) => "not run",
    }
}

fn said(claim: &Claim) -> String {
    match &claim.outcome {
        Outcome::Holds => claim.details.clone(),
        Outcome::Fails(why) | Outcome::NotRun(why) => why.clone(),
    }
}

/// Claims with their outcome and the number that decided it.
pub fn claims(proof: &Proof) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let row = |c: &Claim| vec![c.name.clone(), word(&c.outcome).into(), said(c)];
    (
        vec!["claim", "", "found"],
        proof.claims.iter().map(row).collect(),
    )
}

/// What fails, in one line; empty if nothing does.
pub fn failures(proof: &Proof) -> String {
    let failed = proof.claims.iter().filter_map(|c| match &c.outcome {
        Outcome::Fails(why) => Some(format!("{}: {why}", c.name)),
        _ => None,
    });
    failed.collect::<Vec<_>>().join("; ")
}

impl Document for Proved<'_> {
    fn suite(&self) -> &'static str {
        "generation"
    }

    fn cases(&self) -> Vec<Case> {
        let case = |c: &Claim| Case {
            name: c.name.clone(),
            group: "generation".into(),
            outcome: match &c.outcome {
                Outcome::Holds => junit::Outcome::Pass,
                Outcome::Fails(why) => junit::Outcome::Fail(why.clone()),
                Outcome::NotRun(why) => junit::Outcome::NotRun(why.clone()),
            },
            details: c.details.clone(),
            seconds: 0.0,
        };
        self.0.claims.iter().map(case).collect()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let p = self.0;
        let word = if p.failed() {
            "❌ FAILS"
        } else {
            "✅ passes"
        };
        let (header, rows) = claims(p);
        format!(
            "# kiln check: generation {word}\n\n`{}` against `{}`, {} steps, tolerance {}\n\n{}",
            p.result,
            p.original,
            p.steps.len(),
            p.tolerance,
            markdown_table(&header, rows)
        )
    }

    fn html(&self) -> String {
        let p = self.0;
        let (header, rows) = claims(p);
        let head = Head {
            kind: "generation",
            title: p.result.clone(),
            paths: vec![
                ("candidate", p.result.clone()),
                ("against", p.original.clone()),
            ],
            verdicts: vec![Verdict {
                what: "generation",
                word: if p.failed() { "differs" } else { "passes" }.into(),
                why: failures(p),
                tone: if p.failed() { Tone::Bad } else { Tone::Good },
            }],
            facts: vec![
                ("tolerance", p.tolerance.clone()),
                ("steps", p.steps.len().to_string()),
            ],
        };
        let points = |of: fn(&crate::generate::proof::Step) -> f64| {
            let steps = p.steps.iter();
            steps
                .map(|s| (s.position as f64, of(s).max(LEAST)))
                .collect()
        };
        let series = |name: &str, colour, points| Series {
            name: name.into(),
            points,
            form: Form::Curve,
            colour,
        };
        let plot = Plot {
            title: "Scores at each step, both given the original's tokens".into(),
            x: Axis::new("position"),
            y: Axis::new("relative L2, KL in nats").log(),
            series: vec![
                series("relative L2", 0, points(|s| s.relative_l2)),
                series("KL", 2, points(|s| s.kl)),
            ],
            marks: Vec::new(),
        };
        let body = html! { (page::table(&header, &rows)) (plot.html()) };
        page::page(&head, &[("Generation", body)])
    }
}

/// The least that is drawn; less counts as equal.
const LEAST: f64 = 1e-12;
