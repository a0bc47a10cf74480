//! The cells of a plan in one report.

use std::fs;

use maud::html;
use serde::Serialize;
use serde_json::Value;

use super::{Cell, Plan, ended};
use crate::bundle;
use crate::report::Document;
use crate::report::junit::{Case, Outcome};
use crate::report::markdown_table;
use crate::report::page::{self, Head, Tone, Verdict};
use crate::summary::bytes;

/// How a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Passes,
    NotProved,
    Fails,
    /// It has no result: not started, running, or killed.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Passes => "passes",
            State::NotProved => "not proved",
            State::Fails => "FAILS",
            State::Missing => "no result",
        }
    }
}

/// What is known of a cell.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub id: String,
    pub model: String,
    pub target: String,
    pub precision: String,
    pub state: State,
    pub exit_code: Option<u8>,
    pub error: Option<String>,
    pub seconds: Option<f64>,
    /// It came from the cache.
    pub cached: Option<bool>,
    /// Of the worst output: its cosine and its largest difference.
    pub cosine: Option<f64>,
    pub max_abs: Option<f64>,
    pub original_bytes: Option<u64>,
    pub model_bytes: Option<u64>,
    pub engine_bytes: Option<u64>,
    /// The least time of the engine on the first card that it has a price for, in microseconds, on paper.
    pub paper_us: Option<f64>,
    pub warnings: usize,
}

/// All cells.
#[derive(Clone, Debug, Serialize)]
pub struct Fleet {
    pub kiln: &'static str,
    pub plan: String,
    pub cells: Vec<Row>,
    #[serde(skip)]
    targets: Vec<String>,
}

/// Reads what the cells left.
pub fn collect(plan: &Plan) -> Fleet {
    Fleet {
        kiln: env!("CARGO_PKG_VERSION"),
        plan: plan.path.display().to_string(),
        cells: plan.cells.iter().map(row).collect(),
        targets: plan.targets.clone(),
    }
}

fn row(cell: &Cell) -> Row {
    let [folder, status] = &cell.outputs;
    let ended = ended(status);
    let recipe = serde_json::to_value(&cell.recipe).unwrap_or_default();
    // A result of another plan is none of this one.
    let ended = ended.filter(|e| e.recipe == recipe);
    let wrote = ended.as_ref().is_some_and(|e| matches!(e.exit_code, 0 | 6));
    let text = fs::read(folder.join(bundle::MANIFEST))
        .ok()
        .filter(|_| wrote);
    let m: Value = text
        .and_then(|t| serde_json::from_slice(&t).ok())
        .unwrap_or_default();
    let (cosine, max_abs) = worst(&m["parity"]);
    let external = m["model"]["external"][1].as_u64().unwrap_or(0);
    Row {
        id: cell.id.clone(),
        model: cell.model.clone(),
        target: cell.target.clone(),
        precision: cell.precision.clone(),
        state: match ended.as_ref().map(|e| e.exit_code) {
            None => State::Missing,
            Some(0 | 6) if m.is_null() => State::Missing,
            Some(0) => State::Passes,
            Some(6) => State::NotProved,
            Some(_) => State::Fails,
        },
        exit_code: ended.as_ref().map(|e| e.exit_code),
        error: ended.as_ref().and_then(|e| e.error.clone()),
        seconds: ended.as_ref().map(|e| e.seconds),
        cached: m["cache"]["hit"].as_bool(),
        cosine,
        max_abs,
        original_bytes: m["source"]["bytes"].as_u64(),
        model_bytes: m["model"]["bytes"].as_u64().map(|n| n + external),
        engine_bytes: m["engine"]["bytes"].as_u64(),
        paper_us: m["engine"]["paper"]["prices"][0]["microseconds"].as_f64(),
        warnings: m["warnings"].as_array().map_or(0, Vec::len),
    }
}

/// The least cosine and the largest difference of all outputs.
fn worst(parity: &Value) -> (Option<f64>, Option<f64>) {
    let cases = parity["cases"].as_array().into_iter().flatten();
    let outputs = cases.flat_map(|c| c["outputs"].as_array().into_iter().flatten());
    let floats: Vec<&Value> = outputs
        .map(|o| &o["comparison"]["metrics"]["float"])
        .filter(|f| f.is_object())
        .collect();
    let all = |key: &'static str| floats.iter().filter_map(move |f| f[key].as_f64());
    (
        all("cosine").reduce(f64::min),
        all("max_abs").reduce(f64::max),
    )
}

impl Fleet {
    /// Whether every cell passes.
    pub fn pass(&self) -> bool {
        self.cells.iter().all(|c| c.state == State::Passes)
    }

    pub fn count(&self, state: State) -> usize {
        self.cells.iter().filter(|c| c.state == state).count()
    }

    /// `16 pass, 1 fails, 1 without result`.
    pub fn sentence(&self) -> String {
        let parts = [
            (State::Passes, "passed"),
            (State::NotProved, "not proved"),
            (State::Fails, "failed"),
            (State::Missing, "without a result"),
        ];
        let parts = parts
            .into_iter()
            .map(|(state, word)| (self.count(state), word));
        let parts = parts.filter(|(n, _)| *n > 0);
        let parts: Vec<String> = parts.map(|(n, word)| format!("{n} {word}")).collect();
        format!("{} cells: {}", self.cells.len(), parts.join(", "))
    }

    /// Models and precisions by targets.
    pub fn overview(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let mut header = vec!["model".to_string(), "precision".to_string()];
        header.extend(self.targets.iter().cloned());
        let mut rows: Vec<Vec<String>> = Vec::new();
        for cell in &self.cells {
            let known = |r: &&mut Vec<String>| r[0] == cell.model && r[1] == cell.precision;
            let at = self
                .targets
                .iter()
                .position(|t| *t == cell.target)
                .unwrap_or(0);
            let row = match rows.iter_mut().find(known) {
                Some(row) => row,
                None => {
                    let mut row = vec![cell.model.clone(), cell.precision.clone()];
                    row.resize(header.len(), "–".into());
                    rows.push(row);
                    // It was pushed just now.
                    let last = rows.len() - 1;
                    &mut rows[last]
                }
            };
            row[at + 2] = cell.brief();
        }
        (header, rows)
    }

    fn details(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let header = vec![
            "cell",
            "state",
            "cosine",
            "max abs",
            "model",
            "of the original",
            "engine",
            "on paper",
            "seconds",
            "cache",
        ];
        let or = |text: Option<String>| text.unwrap_or_default();
        let rows = self.cells.iter().map(|c| {
            let ratio = c.model_bytes.zip(c.original_bytes).filter(|(_, o)| *o > 0);
            vec![
                c.id.clone(),
                c.state.word().to_string(),
                or(c.cosine.map(|v| format!("{v:.7}"))),
                or(c.max_abs.map(|v| format!("{v:.2e}"))),
                or(c.model_bytes.map(|n| bytes(n as usize))),
                or(ratio.map(|(m, o)| format!("{:.0} %", 100.0 * m as f64 / o as f64))),
                or(c.engine_bytes.map(|n| bytes(n as usize))),
                or(c.paper_us.map(|us| format!("{us:.0} µs"))),
                or(c.seconds.map(|s| format!("{s:.1}"))),
                or(c.cached
                    .map(|hit| if hit { "hit" } else { "made" }.to_string())),
            ]
        });
        (header, rows.collect())
    }

    /// Cells that did not pass, and why.
    fn failures(&self) -> Vec<(&str, String)> {
        let others = self.cells.iter().filter(|c| c.state != State::Passes);
        others
            .map(|c| {
                let code = c
                    .exit_code
                    .map_or(String::new(), |code| format!(" (exit code {code})"));
                let why = c.error.as_deref().unwrap_or(c.state.word());
                (c.id.as_str(), format!("{why}{code}"))
            })
            .collect()
    }
}

impl Row {
    fn brief(&self) -> String {
        match (self.state, self.cosine) {
            (State::Passes | State::NotProved, Some(cosine)) => {
                format!("{}, cosine {cosine:.6}", self.state.word())
            }
            (State::Fails, _) => format!("FAILS ({})", self.exit_code.unwrap_or(0)),
            (state, _) => state.word().into(),
        }
    }
}

impl Document for Fleet {
    fn suite(&self) -> &'static str {
        "matrix"
    }

    fn cases(&self) -> Vec<Case> {
        let case = |c: &Row| Case {
            name: c.id.clone(),
            group: c.model.clone(),
            outcome: match c.state {
                State::Passes => Outcome::Pass,
                State::Fails => Outcome::Fail(c.error.clone().unwrap_or_default()),
                state => Outcome::NotRun(state.word().into()),
            },
            details: String::new(),
            seconds: c.seconds.unwrap_or(0.0),
        };
        self.cells.iter().map(case).collect()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    fn markdown(&self) -> String {
        let word = if self.pass() {
            "✅ passes"
        } else {
            "❌ FAILS"
        };
        let mut out = format!("# kiln matrix: {word}\n\n{}\n\n", self.sentence());
        let (header, rows) = self.overview();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        out += &markdown_table(&header, rows);
        for (id, why) in self.failures() {
            out += &format!("\n- `{id}`: {why}");
        }
        let (header, rows) = self.details();
        out += &format!("\n\n{}", markdown_table(&header, rows));
        out
    }

    fn html(&self) -> String {
        let (header, rows) = self.overview();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let (all, details) = self.details();
        let failures = self.failures();
        let mut sections = vec![("Overview", page::table(&header, &rows))];
        if !failures.is_empty() {
            sections.push((
                "What did not pass",
                html! {
                    ul { @for (id, why) in &failures { li { code { (id) } ": " (why) } } }
                },
            ));
        }
        sections.push(("Cells", page::table(&all, &details)));
        let (word, tone) = match (self.pass(), self.count(State::Fails)) {
            (true, _) => ("passes", Tone::Good),
            (_, 0) => ("open", Tone::Open),
            _ => ("fails", Tone::Bad),
        };
        let head = Head {
            kind: "matrix",
            title: "Fleet".into(),
            paths: vec![("plan", self.plan.clone())],
            verdicts: vec![Verdict {
                what: "all cells",
                word: word.into(),
                why: self.sentence(),
                tone,
            }],
            facts: vec![
                ("cells", self.cells.len().to_string()),
                ("passed", self.count(State::Passes).to_string()),
                ("failed", self.count(State::Fails).to_string()),
                ("without a result", self.count(State::Missing).to_string()),
                (
                    "from the cache",
                    self.cells
                        .iter()
                        .filter(|c| c.cached == Some(true))
                        .count()
                        .to_string(),
                ),
            ],
        };
        page::page(&head, &sections)
    }
}
