//! A parity gate, for people.

use maud::html;

use super::junit::{Case, Outcome};
use super::page::{self, Series, Tone};
use super::target::Document;
use super::{failed_output, failures, markdown_table, parity_rows, verdict};
use crate::bisect::{Bisection, Finding};
use crate::check::{Checked, Layers};

/// A check as a document.
#[derive(Debug)]
pub struct Page<'a>(pub &'a Checked);

/// What the comparison of inner values found, in lines.
pub fn layers(found: &Layers) -> Vec<String> {
    let mut lines = Vec::new();
    let passed = found.compared.iter().filter(|l| l.pass).count();
    let Some(first) = &found.first else {
        lines.push(match found.compared.is_empty() {
            true => "the graphs have no inner values of the same name".into(),
            false => format!(
                "{passed} of {} inner values are within the tolerance at {}",
                found.compared.len(),
                found.case
            ),
        });
        return lines;
    };
    let l = &first.layer;
    lines.push(format!(
        "first divergence at {}: \"{}\" of node {}: relative L2 {:.2e}, cosine {:.7} ({passed} inner values before it are within \
         the tolerance)",
        found.case, l.value, l.node, l.relative_l2, l.cosine
    ));
    for o in &first.operands {
        let kind = if o.constant { "constant" } else { "operand" };
        let error = match (o.constant, o.relative_l2) {
            (true, _) => String::new(),
            (_, Some(e)) => format!(", relative L2 {e:.2e}"),
            (_, None) => ", not in the reference".into(),
        };
        lines.push(format!(
            "  {kind} \"{}\" from {:.4} to {:.4}{error}",
            o.value, o.min, o.max
        ));
    }
    lines
}

/// What the search for a pass found, as text.
pub fn bisection(found: &Bisection) -> String {
    let mut text = super::bisection::text(found);
    if let Finding::Passes { .. } = found.finding {
        text += "  The recipe's passes are not to blame: the bundle's model.onnx is not what they make. Compile it again.\n";
    }
    text
}

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "check"
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for case in &self.0.parity.cases {
            for output in &case.outputs {
                cases.push(Case {
                    name: output.name.clone(),
                    group: case.name.clone(),
                    outcome: match output.comparison.pass() {
                        true => Outcome::Pass,
                        false => Outcome::Fail(failed_output(case, output)),
                    },
                    details: serde_json::to_string(&output.comparison).unwrap_or_default(),
                    seconds: 0.0,
                });
            }
        }
        if let Some(p) = &self.0.precision {
            cases.push(Case {
                name: p.describe(),
                group: "precision".into(),
                outcome: match p.present {
                    true => Outcome::Pass,
                    false => Outcome::Fail(p.describe()),
                },
                details: String::new(),
                seconds: 0.0,
            });
        }
        cases
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let c = self.0;
        let word = if c.pass() { "✅ passes" } else { "❌ FAILS" };
        let mut out = format!(
            "# kiln check: {word}\n\n`{}` against `{}`\n\n",
            c.candidate, c.against
        );
        if !c.parity.pass() {
            out += &format!("**{}**\n\n", failures(&c.parity));
        }
        let (header, rows) = parity_rows(&c.parity);
        out += &markdown_table(&header, rows);
        out += &format!("\n{}\n", verdict(&c.parity));
        for line in facts(c) {
            out += &format!("\n{line}\n");
        }
        if let Some(p) = &c.precision {
            out += &format!("\n{}\n", p.describe());
        }
        if let Some(found) = &c.layers {
            out += &format!("\n```\n{}\n```\n", layers(found).join("\n"));
        }
        if let Some(found) = &c.bisection {
            out += &format!("\n```diff\n{}\n```\n", bisection(found));
        }
        out
    }

    fn html(&self) -> String {
        let c = self.0;
        let tone = |good: bool| Some(if good { Tone::Good } else { Tone::Bad });
        let word = |good: bool| if good { "passes" } else { "FAILS" }.to_string();
        let mut facts = vec![
            ("parity", word(c.parity.pass()), tone(c.parity.pass())),
            ("candidate", c.candidate.clone(), None),
            ("against", c.against.clone(), None),
            ("tolerance", c.parity.tolerance.name.clone(), None),
            ("runtime", c.runtime.clone(), None),
            ("device", c.device.to_string(), None),
        ];
        if let Some(parity) = &c.engine_parity {
            let bad = c.unproved_engine().is_some();
            facts.push((
                "engine parity",
                parity.to_string(),
                tone(!bad).filter(|_| bad || parity.proved()),
            ));
        }
        if let Some(why) = c.fallback() {
            facts.push(("fallback", why, tone(!c.device.asked)));
        }
        if let Some(p) = &c.precision {
            facts.push(("precision", p.describe(), tone(p.present)));
        }
        let (header, rows) = parity_rows(&c.parity);
        let mut sections = vec![(
            "Parity",
            html! {
                @if !c.parity.pass() { p { strong { (failures(&c.parity)) } } }
                (page::table(&header, &rows))
                p { (verdict(&c.parity)) }
            },
        )];
        if let Some(found) = &c.layers {
            let error = |l: &crate::check::Layer| l.relative_l2.max(1e-12).log10();
            let series = Series {
                name: "log10 of relative L2".into(),
                points: found
                    .compared
                    .iter()
                    .enumerate()
                    .map(|(k, l)| (k as f64, error(l)))
                    .collect(),
                line: false,
            };
            sections.push((
                "Layers",
                html! {
                    pre { (layers(found).join("\n")) }
                    (page::plot("inner value", "log10 error", &[series]))
                },
            ));
        }
        if let Some(found) = &c.bisection {
            sections.push(("Bisection", html! { pre { (bisection(found)) } }));
        }
        sections.push(("Environment", html! {
            p { (c.environment.os) ", " (c.environment.cpu) ", " (c.environment.threads) " threads" }
        }));
        page::page("kiln check", &page::tiles(&facts), &sections)
    }
}

/// Where both sides ran, what fell back, and what became of the engine.
pub fn facts(c: &Checked) -> Vec<String> {
    let mut lines = vec![format!("device: {}", c.device)];
    lines.extend(
        c.placements
            .iter()
            .map(|p| format!("{}: {}", p.side, p.placement.describe())),
    );
    lines.extend(
        c.engine_parity
            .iter()
            .map(|p| format!("engine parity: {p}")),
    );
    lines
}
