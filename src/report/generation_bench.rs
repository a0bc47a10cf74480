//! The benchmark of a generation, for people: times, and rows as llama-bench has them.

use maud::html;

use super::junit::{self, Case};
use super::markdown_table;
use super::page::{self, Axis, Form, Head, Plot, Series, Tone, Verdict as Word};
use super::target::Document;
use crate::bench::baseline::Verdict;
use crate::generate::bench::{Benchmark, Gate, Judged, Point, Rate, Side, Size};
use crate::summary;

/// A benchmark as a document.
#[derive(Debug)]
pub struct Timed<'a>(pub &'a Benchmark);

type Table = (String, Vec<&'static str>, Vec<Vec<String>>);

fn ms(seconds: f64) -> String {
    format!("{:.2}", 1e3 * seconds)
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or("–".into(), |r| format!("{:.1} ± {:.1}", r.mean, r.stddev))
}

fn at(size: Size) -> String {
    format!("prompt of {}, {} new", size.prompt, size.new)
}

/// All tables, each with its title.
pub fn tables(b: &Benchmark) -> Vec<Table> {
    let mut all: Vec<Table> = b.points.iter().map(|p| times(b, p)).collect();
    all.push(rows(b));
    all.extend(b.gate.as_ref().map(gate));
    all
}

/// Milliseconds of each model at one size.
fn times(b: &Benchmark, p: &Point) -> Table {
    let encoder = p.sides.iter().any(|s| s.encoder.is_some());
    let row = |s: &Side| {
        let first = p.sides.first();
        let ratio = first.map(|f| s.between.p50 / f.between.p50);
        let mut row = vec![s.name.clone()];
        if encoder {
            row.push(s.encoder.map_or("–".into(), |e| ms(e.p50)));
        }
        let times = [
            s.first.p50,
            s.first.p90,
            s.between.p50,
            s.between.p90,
            s.between.p99,
            s.whole.p50,
        ];
        row.extend(times.map(ms));
        row.push(summary::bytes(s.cache_bytes));
        let ratio = ratio.filter(|r| r.is_finite());
        row.push(ratio.map_or("–".into(), |r| format!("{r:.2}")));
        row
    };
    let mut header = vec!["model"];
    header.extend(encoder.then_some("encoder p50"));
    header.extend([
        "first p50",
        "p90",
        "next p50",
        "p90",
        "p99",
        "all p50",
        "caches",
        "ratio",
    ]);
    let threads = match b.threads {
        Some(n) => format!("{n} threads"),
        None => "threads as ONNX Runtime chooses".into(),
    };
    let title = format!(
        "Milliseconds to the first token, to each next, and of all; ratio of the next to the first model's: {}, {} repetitions in turns, {threads}; tokens {}",
        at(p.size),
        b.repetitions,
        if p.same_tokens { "equal" } else { "NOT equal" }
    );
    (title, header, p.sides.iter().map(row).collect())
}

/// As llama-bench has it: `pp512` reads a prompt of 512 tokens, `tg128 @ d512` generates 128 behind it.
fn rows(b: &Benchmark) -> Table {
    let mut rows = Vec::new();
    for (k, model) in b.models.iter().enumerate() {
        for p in &b.points {
            let Some(side) = p.sides.get(k) else {
                continue;
            };
            let Size { prompt, new } = p.size;
            let mut row = |test: String, found: Option<Rate>| {
                rows.push(vec![
                    model.name.clone(),
                    summary::bytes(usize::try_from(model.weights).unwrap_or(usize::MAX)),
                    parameters(model.parameters),
                    b.threads.unwrap_or(b.environment.threads).to_string(),
                    model
                        .peak_bytes
                        .and_then(|n| usize::try_from(n).ok())
                        .map_or("–".into(), summary::bytes),
                    test,
                    rate(found),
                ]);
            };
            row(format!("pp{prompt}"), side.prompt_rate);
            let behind = match side.encoder {
                Some(_) => String::new(),
                None => format!(" @ d{prompt}"),
            };
            row(format!("tg{new}{behind}"), side.token_rate);
        }
    }
    let header = vec![
        "model",
        "size",
        "params",
        "threads",
        "peak memory",
        "test",
        "t/s",
    ];
    let title = "Tokens a second, mean ± standard deviation over the repetitions; peak memory of a process that runs the model alone";
    (title.into(), header, rows)
}

fn parameters(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n => format!("{:.1} K", n / 1e3),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "passes",
        Verdict::Fail => "FAILS",
        Verdict::Unclear => "not clear",
        Verdict::NotRun => "not run",
    }
}

fn gate(gate: &Gate) -> Table {
    let row = |j: &Judged| {
        vec![
            j.model.clone(),
            at(j.size),
            word(j.found.verdict).into(),
            j.why(),
        ]
    };
    let title = format!(
        "At most {:.0} % slower than {}",
        100.0 * gate.allowed,
        gate.baseline
    );
    let header = vec!["model", "size", "", "found"];
    (title, header, gate.points.iter().map(row).collect())
}

/// A row for each model at each size; times are in milliseconds.
///
/// # Errors
/// When memory cannot be written to, which does not happen.
pub fn csv(b: &Benchmark) -> Result<String, csv::Error> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record([
        "model",
        "path",
        "prompt",
        "new",
        "encoder_p50_ms",
        "first_p50_ms",
        "first_p90_ms",
        "between_p50_ms",
        "between_p90_ms",
        "between_p99_ms",
        "whole_p50_ms",
        "prompt_tokens_per_s",
        "prompt_stddev",
        "new_tokens_per_s",
        "new_stddev",
        "cache_bytes",
        "peak_bytes",
    ])?;
    for p in &b.points {
        for (s, m) in p.sides.iter().zip(&b.models) {
            let ms = |seconds: f64| (1e3 * seconds).to_string();
            let mean = |r: Option<Rate>| r.map_or(String::new(), |r| r.mean.to_string());
            let spread = |r: Option<Rate>| r.map_or(String::new(), |r| r.stddev.to_string());
            out.write_record([
                s.name.clone(),
                m.path.clone(),
                p.size.prompt.to_string(),
                p.size.new.to_string(),
                s.encoder.map_or(String::new(), |e| ms(e.p50)),
                ms(s.first.p50),
                ms(s.first.p90),
                ms(s.between.p50),
                ms(s.between.p90),
                ms(s.between.p99),
                ms(s.whole.p50),
                mean(s.prompt_rate),
                spread(s.prompt_rate),
                mean(s.token_rate),
                spread(s.token_rate),
                s.cache_bytes.to_string(),
                m.peak_bytes.map_or(String::new(), |n| n.to_string()),
            ])?;
        }
    }
    let bytes = out.into_inner().map_err(|e| e.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Document for Timed<'_> {
    fn suite(&self) -> &'static str {
        "generation bench"
    }

    fn cases(&self) -> Vec<Case> {
        let case = |j: &Judged| Case {
            name: format!("{}: {}", j.model, j.what),
            group: at(j.size),
            outcome: match j.found.verdict {
                Verdict::Pass => junit::Outcome::Pass,
                Verdict::Fail => junit::Outcome::Fail(j.why()),
                Verdict::Unclear | Verdict::NotRun => junit::Outcome::NotRun(j.why()),
            },
            details: j.why(),
            seconds: 0.0,
        };
        let judged = self.0.gate.iter().flat_map(|g| &g.points);
        judged.map(case).collect()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self.0)
    }

    fn markdown(&self) -> String {
        let mut out = String::from("# kiln bench: generation\n");
        for (title, header, rows) in tables(self.0) {
            out += &format!("\n{title}\n\n{}", markdown_table(&header, rows));
        }
        out
    }

    fn html(&self) -> String {
        let b = self.0;
        let names: Vec<&str> = b.models.iter().map(|m| m.name.as_str()).collect();
        let verdict = b.gate.as_ref().map(|gate| Word {
            what: "latency gate",
            word: if gate.failed() { "fails" } else { "no failure" }.into(),
            why: format!("held against {}", gate.baseline),
            tone: match (
                gate.failed(),
                gate.points.iter().all(|p| p.found.verdict == Verdict::Pass),
            ) {
                (true, _) => Tone::Bad,
                (_, true) => Tone::Good,
                _ => Tone::Open,
            },
        });
        let head = Head {
            kind: "generation",
            title: names.join(", "),
            paths: (b.models.iter())
                .map(|m| ("model", m.path.clone()))
                .collect(),
            verdicts: verdict.into_iter().collect(),
            facts: vec![
                ("repetitions", b.repetitions.to_string()),
                ("processor", b.environment.cpu.clone()),
                ("system", b.environment.os.clone()),
            ],
        };
        let body = html! {
            @for (title, header, rows) in tables(b) { p { (title) } (page::table(&header, &rows)) }
            div.figures { @for p in &b.points { (plot(p).html()) } }
        };
        page::page(&head, &[("Generation", body)])
    }
}

fn plot(p: &Point) -> Plot {
    let series = p.sides.iter().enumerate().map(|(k, s)| Series {
        name: s.name.clone(),
        points: (s.by_position.iter().enumerate())
            .map(|(at, t)| ((p.size.prompt + at + 1) as f64, 1e3 * t))
            .collect(),
        form: Form::Curve,
        colour: k,
    });
    Plot {
        title: format!("Time of a token over its position: {}", at(p.size)),
        x: Axis::new("position"),
        y: Axis::new("ms, median of the repetitions").zero(),
        series: series.collect(),
        marks: Vec::new(),
    }
}
