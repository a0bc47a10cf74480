//! Pages that are one file: styles inside, no script, no network. Light and dark as the reader's system, for phones and for
//! paper.

mod numbers;
mod plot;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use numbers::grouped;
pub use plot::{Axis, Form, Mark, Plot, Series};

/// What stands above the sections of a page.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// What kind of report it is: `parity gate`.
    pub kind: &'static str,
    pub title: String,
    /// Names of files, by what they are.
    pub paths: Vec<(&'static str, String)>,
    pub verdicts: Vec<Verdict>,
    /// Short facts: a label and a value.
    pub facts: Vec<(&'static str, String)>,
}

/// What was decided, in colour.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was judged.
    pub what: &'static str,
    /// One or two words: `passes`.
    pub word: String,
    pub why: String,
    pub tone: Tone,
}

/// The colour of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    /// Neither: not run, or not clear.
    Open,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Bad => "bad",
            Tone::Open => "open",
        }
    }

    /// So that colour is not all that tells them apart.
    fn icon(self) -> &'static str {
        match self {
            Tone::Good => "✓",
            Tone::Bad => "✕",
            Tone::Open => "?",
        }
    }
}

const STYLE: &str = include_str!("style.css");

/// A page of sections below its head.
pub fn page(head: &Head, sections: &[(&str, Markup)]) -> String {
    let id = |name: &str| name.to_lowercase().replace(' ', "-");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (head.title) ": kiln " (head.kind) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        p.brand { "kiln · " (head.kind) }
                        h1 { (breakable(&head.title)) }
                        @for (what, path) in &head.paths { p.path { b { (what) " " } (breakable(path)) } }
                        div.verdicts { @for v in &head.verdicts { (verdict(v)) } }
                        dl.facts {
                            @for (label, value) in &head.facts { div.fact.long[is_long(value)] { dt { (label) } dd { (breakable(value)) } } }
                        }
                    }
                    @if sections.len() > 2 {
                        nav aria-label="Sections" { @for (name, _) in sections { a href={"#" (id(name))} { (name) } } }
                    }
                    @for (name, body) in sections {
                        section id=(id(name)) { h2 { (name) } (body) }
                    }
                    footer { "Written by kiln " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    }
    .into_string()
}

/// Letters in a line of a tile on a phone.
const TILE: usize = 16;

/// Whether a tile is too narrow for a word of it.
fn is_long(value: &str) -> bool {
    let words = pieces(value).into_iter().flat_map(str::split_whitespace);
    words.map(|w| w.chars().count()).max().unwrap_or(0) > TILE
}

/// Parts of a text between which a line may end: of lists, paths and names, but not of numbers or of `sm_120`.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut from = 0;
    let mut letters = text.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        let Some(&(_, next)) = letters.peek() else {
            break;
        };
        let ends = match letter {
            '/' | ',' | '+' => !next.is_whitespace(),
            '_' | '-' | '.' => next.is_alphabetic(),
            _ => false,
        };
        if ends {
            let to = at + letter.len_utf8();
            pieces.push(&text[from..to]);
            from = to;
        }
    }
    pieces.push(&text[from..]);
    pieces
}

/// Text whose lines end between words and the parts of names.
fn breakable(text: &str) -> Markup {
    html! {
        @for (k, piece) in pieces(text).into_iter().enumerate() { @if k > 0 { wbr; } (piece) }
    }
}

fn verdict(v: &Verdict) -> Markup {
    html! {
        div class={"verdict " (v.tone.class())} {
            span.icon aria-hidden="true" { (v.tone.icon()) }
            div {
                div.what { (v.what) }
                div.word { (v.word) }
                @if !v.why.is_empty() { div.why { (v.why) } }
            }
        }
    }
}

/// Longer words are broken, so that a table keeps its width.
const LONG: usize = 48;

/// A table that scrolls sideways where it is too wide. Columns of numbers are aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> Markup {
    let number = |k: usize| {
        let mut cells = rows
            .iter()
            .filter_map(|r| r.get(k))
            .filter(|c| !c.is_empty());
        cells.all(|c| c.starts_with(|ch: char| ch.is_ascii_digit() || "-+–<".contains(ch)))
    };
    let long = |k: usize| {
        rows.iter()
            .filter_map(|r| r.get(k))
            .any(|c| c.chars().count() > LONG)
    };
    let class = |k: usize| match (number(k), long(k)) {
        (true, _) => "n",
        (_, true) => "long",
        _ => "",
    };
    let named = header.iter().any(|h| !h.is_empty());
    html! {
        div.wide tabindex="0" {
            table {
                @if named {
                    thead { tr { @for (k, name) in header.iter().enumerate() { th.n[number(k)] scope="col" { (name) } } } }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (k, cell) in row.iter().enumerate() {
                                td class=(format!("{}{}", class(k), judged(cell))) { (grouped(cell)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn judged(cell: &str) -> &'static str {
    match cell {
        "ok" | "pass" | "passes" => " good",
        c if c.starts_with("FAIL") || c == "fail" => " bad",
        "unclear" | "not run" => " open",
        _ => "",
    }
}

/// Numbers over two axes as a table whose colour says how large they are: rows by the first label, columns by the second.
pub fn heat(corner: &str, columns: &[String], rows: &[(String, Vec<Option<f64>>)]) -> Markup {
    let known = || rows.iter().flat_map(|(_, cells)| cells).flatten();
    let most = known().copied().fold(0.0, f64::max);
    let colour = |v: f64| {
        let share = if most > 0.0 { (v / most).sqrt() } else { 0.0 };
        format!("background:rgba(var(--heat),{:.2})", 0.04 + 0.36 * share)
    };
    html! {
        div.wide {
            table {
                thead { tr { th { (corner) } @for c in columns { th.n scope="col" { (c) } } } }
                tbody {
                    @for (name, cells) in rows {
                        tr {
                            th scope="row" { (name) }
                            @for cell in cells {
                                @match cell {
                                    Some(v) => td.heat style=(colour(*v)) { (numbers::digits(*v)) },
                                    None => td.heat { "–" },
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A horizontal bar for each part, with its value behind.
pub fn bars(parts: &[(String, f64, String)]) -> Markup {
    let most = parts.iter().fold(0.0, |m: f64, p| m.max(p.1));
    html! {
        div.bars {
            @for (name, value, text) in parts {
                div.bar.none[*value == 0.0] title=(format!("{name}: {text}")) {
                    span.name { (name) }
                    span.track { span.fill style=(width(*value, most)) {} }
                    span.text { (text) }
                }
            }
        }
    }
}

/// Two bars for each part: before and after.
pub fn changes(parts: &[(String, usize, usize)]) -> Markup {
    let most = parts.iter().map(|p| p.1.max(p.2)).max().unwrap_or(0) as f64;
    html! {
        div.bars {
            @for (name, before, after) in parts {
                div.bar title=(format!("{name}: {before} before, {after} after")) {
                    span.name { (name) }
                    span {
                        span.track { span.fill.before style=(width(*before as f64, most)) {} }
                        span.track { span.fill.after style=(width(*after as f64, most)) {} }
                    }
                    span.text { (before) " → " (after) }
                }
            }
        }
    }
}

fn width(value: f64, most: f64) -> String {
    let share = if most > 0.0 {
        100.0 * value / most
    } else {
        0.0
    };
    format!("width:{share:.1}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_models_is_no_markup() {
        let rows = [vec!["<script>".to_string(), "1".into()]];
        let head = Head {
            title: "a & b".into(),
            ..Head::default()
        };
        let text = page(&head, &[("T", table(&["x", "n"], &rows))]);
        assert!(text.contains("&lt;script&gt;") && !text.contains("<script>"));
        assert!(text.contains("a &amp; b"));
        assert!(text.contains("td class=\"n\""));
    }

    #[test]
    fn lines_end_between_words() {
        let text = breakable("sm_86,sm_120").into_string();
        assert_eq!(text, "sm_86,<wbr>sm_120");
        assert_eq!(breakable("a<b.onnx").into_string(), "a&lt;b.<wbr>onnx");
        assert_eq!(pieces("45.5 MB, 1e-3+"), ["45.5 MB, 1e-3+"]);
        assert_eq!(pieces("größe_über"), ["größe_", "über"]);
        assert!(is_long("encodersequencelength 1:1:8") && !is_long("sm_86,sm_89,sm_90,sm_120"));
    }

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!(grouped("1572864"), "1\u{202f}572\u{202f}864");
        assert_eq!(grouped("49152"), "49\u{202f}152");
        assert_eq!(grouped("4096"), "4096");
        assert_eq!(grouped("sm_890000"), "sm_890000");
    }
}
