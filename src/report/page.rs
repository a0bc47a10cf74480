//! Pages that are one file: styles inside, no script of others, no network. Light and dark as the reader's system, for
//! phones and for paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A page of sections with an overview on top.
pub fn page(title: &str, summary: &Markup, sections: &[(&str, Markup)]) -> String {
    let id = |name: &str| name.to_lowercase().replace(' ', "-");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    (summary)
                    @if sections.len() > 2 {
                        nav { @for (name, _) in sections { a href={"#" (id(name))} { (name) } " " } }
                    }
                    @for (name, body) in sections {
                        section id=(id(name)) { h2 { (name) } (body) }
                    }
                    footer { "kiln " (env!("CARGO_PKG_VERSION")) }
                }
            }
        }
    }
    .into_string()
}

/// The colour of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Open,
}

/// Facts in boxes: a label, a value, and how it is.
pub fn tiles(facts: &[(&str, String, Option<Tone>)]) -> Markup {
    let class = |tone: &Option<Tone>| match tone {
        Some(Tone::Good) => "tile good",
        Some(Tone::Bad) => "tile bad",
        Some(Tone::Open) => "tile open",
        None => "tile",
    };
    html! {
        div.tiles {
            @for (label, value, tone) in facts {
                div class=(class(tone)) { div.label { (label) } div.value { (value) } }
            }
        }
    }
}

/// A table that scrolls sideways where it is too wide. Columns of numbers are aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> Markup {
    let number = |k: usize| {
        let mut cells = rows
            .iter()
            .filter_map(|r| r.get(k))
            .filter(|c| !c.is_empty());
        cells.all(|c| c.starts_with(|ch: char| ch.is_ascii_digit() || "-+–<".contains(ch)))
    };
    let class = |k: usize| if number(k) { "n" } else { "" };
    html! {
        div.wide {
            table {
                thead { tr { @for (k, name) in header.iter().enumerate() { th class=(class(k)) { (name) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (k, cell) in row.iter().enumerate() {
                                td class=(format!("{}{}", class(k), verdict(cell))) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn verdict(cell: &str) -> &'static str {
    match cell {
        "ok" | "pass" => " good",
        c if c.starts_with("FAIL") || c == "fail" => " bad",
        "unclear" | "not run" => " open",
        _ => "",
    }
}

/// A horizontal bar for each part, with its value behind.
pub fn bars(parts: &[(String, f64, String)]) -> Markup {
    let most = parts.iter().fold(0.0, |m: f64, p| m.max(p.1));
    let width = |v: f64| if most > 0.0 { 100.0 * v / most } else { 0.0 };
    html! {
        div.bars {
            @for (name, value, text) in parts {
                div.bar {
                    span.name title=(name) { (name) }
                    span.track { span.fill style=(format!("width:{:.1}%", width(*value))) {} }
                    span.text { (text) }
                }
            }
        }
    }
}

/// A line or a row of points of a plot.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Joined by lines.
    pub line: bool,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 10.0;

/// A plot with both axes from the data; y begins at 0 where that wastes less than half.
pub fn plot(x_label: &str, y_label: &str, series: &[Series]) -> Markup {
    let points = || series.iter().flat_map(|s| &s.points);
    let finite = |v: f64| v.is_finite().then_some(v);
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let values = points().filter_map(|p| finite(pick(p)));
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| {
            (lo.min(v), hi.max(v))
        })
    };
    let ((x0, x1), (mut y0, mut y1)) = (range(|p| p.0), range(|p| p.1));
    if !(x0.is_finite() && y0.is_finite()) {
        return html! { p { "There is nothing to plot." } };
    }
    if y0 > 0.0 && y0 < y1 / 2.0 || y0 == y1 {
        y0 = y0.min(0.0);
    }
    if y0 == y1 {
        y1 += 1.0;
    }
    y1 += (y1 - y0) * 0.05;
    let x = |v: f64| match x1 > x0 {
        true => LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - 12.0),
        false => (LEFT + WIDTH) / 2.0,
    };
    let y = |v: f64| TOP + (y1 - v) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let ticks = |lo: f64, hi: f64| (0..=4).map(move |k| lo + (hi - lo) * f64::from(k) / 4.0);
    html! {
        figure {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
                title { (format!("{y_label} by {x_label}")) }
                @for v in ticks(y0, y1) {
                    line.grid x1=(LEFT) x2=(WIDTH) y1=(format!("{:.1}", y(v))) y2=(format!("{:.1}", y(v))) {}
                    text.tick x=(LEFT - 6.0) y=(format!("{:.1}", y(v) + 4.0)) text-anchor="end" { (short(v)) }
                }
                @for v in ticks(x0, x1) {
                    @if x1 > x0 || v == x0 {
                        text.tick x=(format!("{:.1}", x(v))) y=(HEIGHT - BOTTOM + 16.0) text-anchor="middle" { (short(v)) }
                    }
                }
                text.axis x=((LEFT + WIDTH) / 2.0) y=(HEIGHT - 4.0) text-anchor="middle" { (x_label) }
                text.axis transform=(format!("translate(12 {}) rotate(-90)", HEIGHT / 2.0)) text-anchor="middle" { (y_label) }
                @for (k, s) in series.iter().enumerate() {
                    @if s.line && s.points.len() > 1 {
                        polyline class=(format!("line c{}", k % 6)) points=(path(&s.points, &x, &y)) {}
                    }
                    @if !s.line || s.points.len() <= 64 {
                        @for p in &s.points {
                            circle class=(format!("dot c{}", k % 6)) cx=(format!("{:.1}", x(p.0))) cy=(format!("{:.1}", y(p.1))) r=(if s.line { 3.5 } else { 1.6 }) {}
                        }
                    }
                }
            }
            figcaption {
                @for (k, s) in series.iter().enumerate() {
                    span.key { span class=(format!("swatch c{}", k % 6)) {} (s.name) }
                }
            }
        }
    }
}

fn path(points: &[(f64, f64)], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let points = points
        .iter()
        .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)));
    points.collect::<Vec<_>>().join(" ")
}

/// Three digits.
fn short(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 0.01 => format!("{v:.2}"),
        _ => format!("{v:.1e}"),
    }
}

const STYLE: &str = "
:root{--bg:#fff;--fg:#1c1e21;--soft:#646b73;--line:#d9dde2;--card:#f5f6f8;--good:#1a7f37;--bad:#c62828;--open:#9a6700;
--c0:#2563eb;--c1:#d97706;--c2:#059669;--c3:#9333ea;--c4:#db2777;--c5:#475569}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e6e8ea;--soft:#9aa2ab;--line:#33383e;--card:#1f2226;--good:#4ac26b;
--bad:#ff7b72;--open:#e3b341;--c0:#6ea8fe;--c1:#f0a95a;--c2:#45c79b;--c3:#c39bf5;--c4:#f07bb0;--c5:#a3b0c2}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem}
nav{margin:1rem 0;font-size:.9rem}nav a{margin-right:.8rem}a{color:var(--c0)}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem}
.tile{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--line);border-radius:4px;padding:.5rem .8rem;min-width:9rem;flex:1}
.tile.good{border-left-color:var(--good)}.tile.bad{border-left-color:var(--bad)}.tile.open{border-left-color:var(--open)}
.label{color:var(--soft);font-size:.8rem}.value{font-weight:600;overflow-wrap:anywhere}
.tile.good .value,td.good{color:var(--good)}.tile.bad .value,td.bad{color:var(--bad);font-weight:600}.tile.open .value,td.open{color:var(--open)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{color:var(--soft);font-weight:500}.n{text-align:right}
.bars{font-size:.85rem}.bar{display:flex;align-items:center;gap:.6rem;margin:.15rem 0}
.bar .name{width:14rem;flex:none;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.track{flex:1;background:var(--card);height:.9rem}.fill{display:block;height:100%;background:var(--c0)}
.bar .text{width:9rem;flex:none;text-align:right;font-variant-numeric:tabular-nums}
figure{margin:.8rem 0}svg{width:100%;max-width:48rem;height:auto}
.grid{stroke:var(--line)}.tick,.axis{fill:var(--soft);font-size:11px}
.line{fill:none;stroke-width:2}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}.line.c4{stroke:var(--c4)}.line.c5{stroke:var(--c5)}
.dot.c0{fill:var(--c0)}.dot.c1{fill:var(--c1)}.dot.c2{fill:var(--c2)}.dot.c3{fill:var(--c3)}.dot.c4{fill:var(--c4)}.dot.c5{fill:var(--c5)}
.swatch{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}
.swatch.c0{background:var(--c0)}.swatch.c1{background:var(--c1)}.swatch.c2{background:var(--c2)}.swatch.c3{background:var(--c3)}.swatch.c4{background:var(--c4)}.swatch.c5{background:var(--c5)}
.key{margin-right:1rem;font-size:.85rem}
pre{background:var(--card);padding:.6rem;overflow-x:auto}
footer{margin:2rem 0;color:var(--soft);font-size:.8rem}
@media(max-width:40rem){.bar .name{width:8rem}.bar .text{width:6rem}}
@media print{nav{display:none}section{break-inside:avoid}.wide{overflow:visible}}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_models_is_no_markup() {
        let rows = [vec!["<script>".to_string(), "1".into()]];
        let text = page("a & b", &html! {}, &[("T", table(&["x", "n"], &rows))]);
        assert!(text.contains("&lt;script&gt;") && !text.contains("<script>"));
        assert!(text.contains("a &amp; b"));
        assert!(text.contains("td class=\"n\""));
    }

    #[test]
    fn plots_take_any_numbers() {
        let series = |points: &[(f64, f64)]| Series {
            name: "s".into(),
            points: points.to_vec(),
            line: true,
        };
        for points in [
            &[][..],
            &[(1.0, 1.0)],
            &[(1.0, f64::NAN)],
            &[(1.0, 5.0), (2.0, 5.0)],
        ] {
            let text = plot("x", "y", &[series(points)]).into_string();
            assert!(!text.contains("\"NaN") && !text.contains("inf"), "{text}");
        }
    }
}
