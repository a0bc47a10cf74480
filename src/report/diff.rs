//! What is different between two models, for people.

use super::junit::{Case, Outcome};
use super::page::{self, Head, Tone, Verdict};
use super::section::{Part, Section};
use super::target::Document;
use crate::diff::{Blocks, Count, Diff, Row, Side};
use crate::summary;

/// The difference as a report.
#[derive(Debug)]
pub struct Page<'a>(pub &'a Diff);

/// A table for the terminal.
type Table<'t> = dyn Fn(&[&str], &[Vec<String>]) -> String + 't;

/// The difference in lines.
pub fn text(d: &Diff, table: &Table<'_>) -> String {
    let mut out = String::new();
    for (name, side) in [("a", &d.a), ("b", &d.b)] {
        out += &format!("  {name}  {}\n     {}\n", side.path, about(side));
    }
    if !d.facts.is_empty() {
        out += &format!("\n{}", table(&FACTS, &facts(d)));
    }
    for blocks in &d.blocks {
        out += &format!("\n  {}\n", title(blocks));
        out += &table(&ROWS, &rows(&blocks.rows, Some(LINE)));
    }
    if !d.passes.is_empty() {
        out += &format!("\n{}", table(&PASSES, &passes(d)));
    }
    out + &format!("\n  {}\n", sentence(d))
}

const FACTS: [&str; 3] = ["what", "a", "b"];
const ROWS: [&str; 4] = [
    "operator",
    "a",
    "b",
    "only in a (−), only in b (+), changed (~)",
];
const PASSES: [&str; 4] = ["pass", "only in a", "only in b", "changed"];

fn about(side: &Side) -> String {
    let mut parts = vec![
        format!("{} nodes", side.nodes),
        format!("{} of constants", summary::bytes(side.constant_bytes)),
    ];
    match (&side.kiln, &side.target, &side.precision) {
        (Some(kiln), Some(target), Some(precision)) => {
            parts.push(format!("{precision} for {target} by kiln {kiln}"));
        }
        _ if side.producer.is_empty() => {}
        _ => parts.push(format!("by {}", side.producer)),
    }
    parts.join(", ")
}

/// The verdict: `different: 150 nodes only in a, 6 only in b, 72 changed`.
pub fn sentence(d: &Diff) -> String {
    if d.same {
        return "the same".into();
    }
    let parts = [
        (d.only_a, "only in a"),
        (d.only_b, "only in b"),
        (d.changed, "changed"),
    ];
    let parts = parts.into_iter().filter(|(n, _)| *n > 0);
    let mut parts: Vec<String> = parts
        .enumerate()
        .map(|(k, (n, what))| match k {
            0 => format!("{n} node{} {what}", if n == 1 { "" } else { "s" }),
            _ => format!("{n} {what}"),
        })
        .collect();
    if parts.is_empty() {
        let counted = d.facts.iter().filter(|f| f.counts);
        parts = counted.map(|f| f.what.clone()).collect();
    }
    format!("different: {}", parts.join(", "))
}

fn facts(d: &Diff) -> Vec<Vec<String>> {
    let all = d.facts.iter();
    all.map(|f| vec![f.what.clone(), f.a.clone(), f.b.clone()])
        .collect()
}

fn passes(d: &Diff) -> Vec<Vec<String>> {
    let all = d.passes.iter();
    all.map(|p| {
        let counts = [p.only_a, p.only_b, p.changed];
        let mut row = vec![p.pass.clone()];
        row.extend(counts.map(|n| if n == 0 { String::new() } else { n.to_string() }));
        row
    })
    .collect()
}

/// `encoder/layer.0 to 2 (3 blocks alike): 66 → 25 nodes`
fn title(blocks: &Blocks) -> String {
    let nodes = format!("{} → {} nodes", blocks.nodes_a, blocks.nodes_b);
    match blocks.names.as_slice() {
        [] => format!("outside of blocks: {nodes}"),
        [name] => format!("{name}: {nodes}"),
        names => format!("{} ({} alike): {nodes} each", span(names), names.len()),
    }
}

/// Numbered names by the first and the last, if there is none missing; else the first ones.
fn span(names: &[String]) -> String {
    let split = |name: &str| {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (list, number) = name.split_at(name.len() - digits);
        Some((list.to_string(), number.parse::<usize>().ok()?))
    };
    let all: Option<Vec<(String, usize)>> = names.iter().map(|n| split(n)).collect();
    if let Some([first, rest @ ..]) = all.as_deref() {
        let next = |k: usize| (first.0.clone(), first.1 + 1 + k);
        let counted = rest.iter().enumerate().all(|(k, part)| *part == next(k));
        if let (true, Some(last)) = (counted, rest.last()) {
            return format!("{}{} to {}", first.0, first.1, last.1);
        }
    }
    match names {
        [a, b, c, _, ..] => format!("{a}, {b}, {c}, …"),
        names => names.join(", "),
    }
}

/// Letters of a line of changes in the terminal.
const LINE: usize = 60;

/// One row an operator; longer lists of changes go on in rows of their own.
fn rows(all: &[Row], line: Option<usize>) -> Vec<Vec<String>> {
    let row = |r: &Row| {
        let mut lines = lines(&changes(r), line).into_iter();
        let first = lines.next().unwrap_or_default();
        let counts = [r.operator.clone(), r.a.to_string(), r.b.to_string(), first];
        let more = lines.map(|text| vec![String::new(), String::new(), String::new(), text]);
        let mut rows = vec![counts.to_vec()];
        rows.extend(more);
        rows
    };
    all.iter().flat_map(row).collect()
}

fn lines(parts: &[String], most: Option<usize>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let fits = |l: &&mut String| {
            let letters = l.chars().count() + 2 + part.chars().count();
            most.is_none_or(|most| letters <= most)
        };
        match lines.last_mut().filter(fits) {
            Some(line) => *line += &format!(", {part}"),
            None => lines.push(part.clone()),
        }
    }
    lines
}

/// `−3 fuse-qkv`, `+1 lower-attention`, `~4 float → float16 (convert-fp16)`
fn changes(row: &Row) -> Vec<String> {
    let list = |sign: &'static str, counts: &[Count]| -> Vec<String> {
        let one = |c: &Count| {
            let words = match (c.what.as_str(), c.pass.as_deref()) {
                ("", None) => String::new(),
                ("", Some(pass)) => format!(" {pass}"),
                (what, None) => format!(" {what}"),
                (what, Some(pass)) => format!(" {what} ({pass})"),
            };
            format!("{sign}{}{words}", c.nodes)
        };
        counts.iter().map(one).collect()
    };
    let parts = [
        list("−", &row.only_a),
        list("+", &row.only_b),
        list("~", &row.changed),
    ];
    parts.concat()
}

impl Page<'_> {
    fn sections(&self) -> Vec<Section> {
        let d = self.0;
        let mut sections = Vec::new();
        let mut section = |title: &'static str, parts: Vec<Part>| {
            sections.push(Section { title, parts });
        };
        if !d.facts.is_empty() {
            section("Files", vec![Part::Table(FACTS.to_vec(), facts(d))]);
        }
        if !d.operators.is_empty() {
            let bars = d.operators.iter();
            let bars = bars.map(|r| (r.operator.clone(), r.a, r.b)).collect();
            let table = Part::Table(ROWS.to_vec(), rows(&d.operators, None));
            section("Operators", vec![Part::Changes(bars), table]);
        }
        if !d.blocks.is_empty() {
            let parts = d.blocks.iter().flat_map(|b| {
                let table = Part::Table(ROWS.to_vec(), rows(&b.rows, None));
                [Part::Head(title(b)), table]
            });
            section("Blocks", parts.collect());
        }
        if !d.passes.is_empty() {
            section("Passes", vec![Part::Table(PASSES.to_vec(), passes(d))]);
        }
        sections
    }
}

impl Document for Page<'_> {
    fn suite(&self) -> &'static str {
        "diff"
    }

    fn cases(&self) -> Vec<Case> {
        let outcome = match self.0.same {
            true => Outcome::Pass,
            false => Outcome::Fail(sentence(self.0)),
        };
        vec![Case {
            name: "the same".into(),
            group: "diff".into(),
            outcome,
            details: String::new(),
            seconds: 0.0,
        }]
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let d = self.0;
        let mut out = format!("# kiln diff: {}\n", sentence(d));
        for (name, side) in [("a", &d.a), ("b", &d.b)] {
            out += &format!("\n- {name}: `{}`, {}", side.path, about(side));
        }
        out += "\n";
        for section in self.sections() {
            out += &section.markdown();
        }
        out
    }

    fn html(&self) -> String {
        let d = self.0;
        let (word, tone) = match d.same {
            true => ("the same", Tone::Good),
            false => ("different", Tone::Open),
        };
        let why = sentence(d);
        let head = Head {
            kind: "diff",
            title: "What changed".into(),
            paths: vec![("a", d.a.path.clone()), ("b", d.b.path.clone())],
            verdicts: vec![Verdict {
                what: "models",
                word: word.into(),
                why: why.trim_start_matches("different: ").to_string(),
                tone,
            }],
            facts: vec![
                ("nodes", format!("{} → {}", d.a.nodes, d.b.nodes)),
                (
                    "constants",
                    format!(
                        "{} → {}",
                        summary::bytes(d.a.constant_bytes),
                        summary::bytes(d.b.constant_bytes)
                    ),
                ),
            ],
        };
        let sections = self.sections();
        let sections: Vec<_> = sections.iter().map(|s| (s.title, s.html())).collect();
        page::page(&head, &sections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_named_from_the_first_to_the_last() {
        let span = |names: &[&str]| span(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(span(&["h.0", "h.1", "h.2"]), "h.0 to 2");
        assert_eq!(span(&["h.9", "h.10"]), "h.9 to 10");
        assert_eq!(span(&["h.0", "h.2"]), "h.0, h.2");
        assert_eq!(span(&["a.0", "b.1"]), "a.0, b.1");
        assert_eq!(span(&["a", "b", "c", "d"]), "a, b, c, …");
    }
}
