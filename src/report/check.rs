//! A parity gate, for people.

use maud::html;

use super::junit::{Case, Outcome};
use super::page::{self, Axis, Head, Plot, Series, Tone, Verdict};
use super::target::Document;
use super::{markdown_table, parity_rows};
use crate::bisect::{Bisection, Finding};
use crate::check::{Checked, Layers};
use crate::parity::{self, Worst, doubts, failed_output, failures, verdict};

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
                "{passed} of {} inner values are within the tolerance at {}, and no difference reaches an output",
                found.compared.len(),
                found.case
            ),
        });
        return lines;
    };
    let l = &first.layer;
    lines.push(format!(
        "first divergence at {}: \"{}\" of node {}: relative L2 {:.2e}, cosine {:.7} ({passed} of {} inner values are within the \
         tolerance)",
        found.case, l.value, l.node, l.relative_l2, l.cosine, found.compared.len()
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

/// The verdicts of a comparison: each output at each case.
pub(super) fn parity_cases(report: &parity::Report) -> Vec<Case> {
    let all = report.in_order().into_iter();
    let cases = all.map(|Worst { case, output }| Case {
        name: output.name.clone(),
        group: case.name.clone(),
        outcome: match output.outcome() {
            parity::Outcome::Passes => Outcome::Pass,
            parity::Outcome::NotProved => {
                Outcome::NotRun(format!("not proved: {}", failed_output(case, output)))
            }
            parity::Outcome::Fails => Outcome::Fail(failed_output(case, output)),
        },
        details: serde_json::to_string(&output.comparison).unwrap_or_default(),
        seconds: 0.0,
    });
    cases.collect()
}

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "check"
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = parity_cases(&self.0.parity);
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
        cases.extend(self.0.judge.iter().map(|judge| Case {
            name: "judge".into(),
            group: "gates".into(),
            outcome: match judge.pass {
                true => Outcome::Pass,
                false => Outcome::Fail(judge.why.clone()),
            },
            details: judge.why.clone(),
            seconds: judge.seconds,
        }));
        cases
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let c = self.0;
        let word = match (c.pass(), c.failed()) {
            (true, _) => "✅ passes",
            (_, true) => "❌ FAILS",
            _ => "❔ NOT PROVED",
        };
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
        for doubt in doubts(&c.parity) {
            out += &format!("\n{doubt}\n");
        }
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
        let mut sections = vec![("Parity", compared(c))];
        if let Some(found) = &c.layers {
            sections.push(("Layers", html! {
                p { "Values that both graphs compute under one name, in the order of computation, at " (found.case) "." }
                (divergence(found))
                (errors(found).html())
            }));
        }
        if let Some(found) = &c.bisection {
            sections.push(("Bisection", html! { pre { (bisection(found)) } }));
        }
        let e = &c.environment;
        let pair = |name: &str, value: &str| vec![name.to_string(), value.to_string()];
        let rows = [
            pair("kiln", &c.kiln),
            pair("runtime", &c.runtime),
            pair("processor", &format!("{}, {} threads", e.cpu, e.threads)),
            pair("system", &e.os),
        ];
        sections.push(("Environment", page::table(&["", ""], &rows)));
        page::page(&head(c), &sections)
    }
}

fn file_name(path: &str) -> String {
    let name = std::path::Path::new(path).file_name();
    name.map_or_else(|| path.to_string(), |n| n.to_string_lossy().into_owned())
}

fn head(c: &Checked) -> Head {
    let tone = |good: bool| if good { Tone::Good } else { Tone::Bad };
    let mut verdicts = vec![super::verdict::parity_verdict("parity", &c.parity)];
    if let Some(p) = &c.precision {
        verdicts.push(Verdict {
            what: "precision",
            word: if p.present { "present" } else { "absent" }.into(),
            why: p.describe(),
            tone: tone(p.present),
        });
    }
    verdicts.extend(c.engine_parity.as_ref().map(|parity| {
        let verdict = super::verdict::engine_verdict(parity);
        match c.unproved_engine() {
            Some(why) => Verdict {
                tone: Tone::Bad,
                why,
                ..verdict
            },
            None => verdict,
        }
    }));
    verdicts.extend(c.judge.iter().map(|judge| Verdict {
        what: "own judge",
        word: if judge.pass { "passes" } else { "fails" }.into(),
        why: judge.why.clone(),
        tone: tone(judge.pass),
    }));
    verdicts.extend(c.fallback().map(|why| Verdict {
        what: "device",
        word: "nodes ran elsewhere".into(),
        why,
        tone: if c.device.asked {
            Tone::Bad
        } else {
            Tone::Open
        },
    }));
    let outputs = || c.parity.cases.iter().flat_map(|c| &c.outputs);
    let failed = outputs().filter(|o| o.failed()).count();
    Head {
        kind: "parity gate",
        title: file_name(&c.candidate),
        paths: vec![
            ("candidate", c.candidate.clone()),
            ("against", c.against.clone()),
        ],
        verdicts,
        facts: vec![
            ("tolerance", c.parity.tolerance.name.clone()),
            ("device", c.device.to_string()),
            ("cases", c.parity.cases.len().to_string()),
            ("outputs compared", outputs().count().to_string()),
            ("outputs that fail", failed.to_string()),
            ("outputs not proved", c.parity.unproved().len().to_string()),
        ],
    }
}

/// Failures in words; the table has all.
const SHOWN: usize = 5;

fn compared(c: &Checked) -> maud::Markup {
    let failed = c.parity.cases.iter().flat_map(|case| {
        let outputs = case.outputs.iter().filter(|o| o.failed());
        outputs.map(move |output| failed_output(case, output))
    });
    let failed: Vec<String> = failed.collect();
    let (header, rows) = parity_rows(&c.parity);
    html! {
        @if !failed.is_empty() {
            ul {
                @for line in failed.iter().take(SHOWN) { li { (line) } }
                @if failed.len() > SHOWN { li { "and " (failed.len() - SHOWN) " more, in the table below" } }
            }
        }
        @for doubt in doubts(&c.parity) { p { strong { (doubt) } } }
        (page::table(&header, &rows))
    }
}

/// What the search found, with the operands as a table.
fn divergence(found: &Layers) -> maud::Markup {
    let Some(first) = &found.first else {
        return html! { @for line in layers(found) { p { strong { (line) } } } };
    };
    let rows: Vec<_> = (first.operands.iter())
        .map(|o| {
            vec![
                if o.constant { "constant" } else { "computed" }.to_string(),
                o.value.clone(),
                format!("{:.4}", o.min),
                format!("{:.4}", o.max),
                o.relative_l2.map_or(String::new(), |e| format!("{e:.2e}")),
            ]
        })
        .collect();
    let l = &first.layer;
    html! {
        p { strong { "First divergence: " } code { (l.value) } " of node " code { (l.node) } ", relative L2 "
            (format!("{:.2e}", l.relative_l2)) ", cosine " (format!("{:.7}", l.cosine)) ". The node reads:" }
        (page::table(&["operand", "name", "least", "most", "relative L2"], &rows))
    }
}

/// The least error that is drawn; less counts as equal.
const LEAST: f64 = 1e-9;

fn errors(found: &Layers) -> Plot {
    let series = |name: &str, pass: bool, colour: usize| {
        let all = found.compared.iter().enumerate();
        let shown = all.filter(|(_, l)| l.pass == pass);
        Series {
            name: name.into(),
            points: shown
                .map(|(k, l)| (k as f64 + 1.0, l.relative_l2.max(LEAST)))
                .collect(),
            colour,
            ..Series::default()
        }
    };
    Plot {
        title: "Error of inner values".into(),
        x: Axis::new("inner value, in the order of computation"),
        y: Axis::new("relative L2").log(),
        series: vec![
            series("within the tolerance", true, 0),
            series("beyond it", false, 4),
        ],
        marks: Vec::new(),
    }
}

/// Where both sides ran, what fell back, and what became of the engine.
pub fn facts(c: &Checked) -> Vec<String> {
    let mut lines = vec![format!("device: {}", c.device)];
    lines.extend(c.pieces.iter().map(|found| {
        let largest = found.iter().map(|p| p.bytes).max().unwrap_or(0);
        format!(
            "run in {} pieces, the largest with {:.1} MB of constants: each was given the original's numbers, so that no error is of \
             more than one",
            found.len(),
            largest as f64 / 1e6
        )
    }));
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
    lines.extend(c.cuda_graph.iter().map(|p| format!("CUDA graph: {p}")));
    lines.extend(c.judge.iter().map(|judge| match judge.pass {
        true => format!("judge: passes: {}", judge.why),
        false => format!("judge: FAILS: {}", judge.why),
    }));
    lines
}
