//! Cases under `fixtures/passes/<pass>/<case>.onnxtxt` with the blessed diff beside them.
//!
//! `# ranges: even|uneven|outlier|infinite` invents what calibration found, `# results` of products' results, too, and `# dynamic` does without.
//! `# products: mixed|silent` invents what INT4 is planned by: channels that move together, or are always zero.
//! `# measured: x=-1e5..20` says it of the values that it names, one or several with commas.
//!
//! Header lines of a case: `# passes: a,b` (default: the folder's name), `# miss: text` for a case in which nothing may
//! apply and a miss or remark with that text is reported, `# unchanged` for one in which nothing may apply,
//! `# target: cpu|cuda|tensorrt` (default: plain ONNX), `# keep: name`, `# keep-op: Softmax` and
//! `# half-io` and `# int4-block: 16` for options. `# tolerance: int8` is for results that another number format moves. Unknown
//! headers are refused; any other comment is a sentence.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::{Model, Op, onnx, text};
use kiln_passes::precision::{
    self, Gram, Plans,
    stats::{Collector, Stats},
};
use kiln_passes::{Application, Context, Evaluator, INT4_BLOCK, Options, Remark, Target, registry};

#[derive(Clone, Debug)]
pub struct Case {
    pub path: PathBuf,
    pub source: String,
    pub passes: String,
    pub miss: Option<String>,
    /// Nothing may apply, whether there is a miss or not.
    pub unchanged: bool,
    pub keep: Option<String>,
    pub keep_op: Option<Op>,
    pub dynamic: bool,
    /// Results of products have ranges, too.
    pub results: bool,
    /// What activations are said to have been: `even`, `uneven`, `outlier` or `infinite`.
    pub ranges: Option<String>,
    /// How the channels of activations are said to move: `mixed` or `silent`.
    pub products: Option<String>,
    /// What values are said to have been, by name: smallest and largest.
    pub measured: Vec<(String, f32, f32)>,
    pub half_io: bool,
    /// Symbols that have one size in all runs.
    pub sizes: BTreeMap<String, usize>,
    pub int4_block: usize,
    pub tolerance: Option<String>,
    pub target: Target,
}

impl Case {
    /// Whether nothing may apply.
    pub fn must_stay(&self) -> bool {
        self.unchanged || self.miss.is_some()
    }
}

#[derive(Debug)]
pub struct Applied {
    pub before: Model,
    pub after: Model,
    pub applications: usize,
    /// Applications as the limit counts them, and the one that reached it.
    pub admitted: usize,
    pub last: Option<Application>,
    pub misses: Vec<String>,
}

pub fn fixtures() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let near = here.join("fixtures");
    if near.is_dir() {
        near
    } else {
        here.join("../fixtures")
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for folder in sorted(&fixtures().join("passes")) {
        for path in sorted(&folder) {
            if path.extension().is_some_and(|e| e == "onnxtxt") {
                cases.push(read(path, &folder));
            }
        }
    }
    cases
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// What may stand at the top of a case; those with a colon take a value.
const HEADERS: &[&str] = &[
    "dynamic",
    "results",
    "half-io",
    "int4-block:",
    "keep-op:",
    "keep:",
    "measured:",
    "miss:",
    "passes:",
    "products:",
    "ranges:",
    "sizes:",
    "target:",
    "tolerance:",
    "unchanged",
];

/// An unknown header. A header is a word in lower case, alone or with a colon behind it.
fn unknown_header(source: &str) -> Option<&str> {
    let lines = source.lines().take_while(|l| l.starts_with('#'));
    let mut headers = lines.map(|l| l[1..].trim()).filter(|l| {
        let end = l.find([' ', ':']).unwrap_or(l.len());
        let (word, rest) = l.split_at(end);
        let named = word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        named && (rest.is_empty() || rest.starts_with(':'))
    });
    headers.find(|l| {
        !HEADERS.iter().any(|h| match h.ends_with(':') {
            true => l.starts_with(h),
            false => l == h,
        })
    })
}

fn read(path: PathBuf, folder: &Path) -> Case {
    let source = fs::read_to_string(&path).unwrap();
    if let Some(header) = unknown_header(&source) {
        panic!("{}: unknown header '# {header}'", path.display());
    }
    let header = |key: &str| {
        let lines = source.lines().take_while(|l| l.starts_with('#'));
        let mut found = lines.filter_map(|l| l[1..].trim().strip_prefix(key));
        found.next().map(|v| v.trim().to_string())
    };
    let folder = folder.file_name().unwrap().to_string_lossy();
    Case {
        passes: header("passes:").unwrap_or(folder.to_string()),
        miss: header("miss:"),
        unchanged: header("unchanged").is_some(),
        keep: header("keep:"),
        keep_op: header("keep-op:").map(|name| Op::onnx(&name)),
        dynamic: header("dynamic").is_some(),
        results: header("results").is_some(),
        ranges: header("ranges:"),
        products: header("products:"),
        measured: header("measured:")
            .map_or(Vec::new(), |all| all.split(',').map(measured).collect()),
        half_io: header("half-io").is_some(),
        sizes: header("sizes:")
            .map_or_else(BTreeMap::new, |all| all.split(',').map(size).collect()),
        int4_block: header("int4-block:").map_or(INT4_BLOCK, |b| b.parse().unwrap()),
        tolerance: header("tolerance:"),
        target: match header("target:").as_deref() {
            None => Target::standard(),
            Some("cpu") => Target::cpu(),
            Some("cuda") => Target::cuda(),
            Some("tensorrt") => Target::tensorrt("sm_89"),
            Some(other) => panic!("{}: unknown target {other}", path.display()),
        },
        path,
        source,
    }
}

/// `seq=4`
fn size(text: &str) -> (String, usize) {
    let (name, size) = text.split_once('=').unwrap();
    (name.trim().to_string(), size.trim().parse().unwrap())
}

/// `x=-1e5..20`
fn measured(text: &str) -> (String, f32, f32) {
    let (name, range) = text.split_once('=').unwrap();
    let (min, max) = range.split_once("..").unwrap();
    let number = |t: &str| t.trim().parse().unwrap();
    (name.trim().to_string(), number(min), number(max))
}

/// What calibration could have found: 64 rows in ±4, of which channel 3 may be 30 times as large, or 40 away, or
/// every channel one to 32 times, or 64 rows from 0 to 4.8.
fn stats(case: &Case, model: &Model) -> Stats {
    let Some(ranges) = &case.ranges else {
        let named = |(name, min, max): &(String, f32, f32)| {
            let mut values = model.graph.values();
            let (id, _) = values.find(|(_, v)| v.name() == name).unwrap();
            let mut collector = Collector::new();
            collector.add(None, &[*min, *max]);
            (id, collector.finish())
        };
        return case.measured.iter().map(named).collect();
    };
    let factor = |channel: usize| match (ranges.as_str(), channel) {
        ("uneven", c) => 2f32.powi(c as i32 % 6),
        ("outlier", 3) => 30.0,
        ("infinite", 3) => f32::INFINITY,
        ("positive", _) => 0.6,
        ("even" | "outlier" | "infinite" | "far", _) => 1.0,
        (other, _) => panic!("{}: unknown ranges {other}", case.path.display()),
    };
    let offset = |channel: usize| match (ranges.as_str(), channel) {
        ("far", 3) => 40.0,
        ("positive", _) => 2.4,
        _ => 0.0,
    };
    let mut model = model.clone();
    kiln_graph::infer::annotate(&mut model.graph);
    let measured = |v: kiln_graph::ValueId| {
        let shape = model.graph.value(v).ty().shape()?;
        let channels = shape.last()?.known()?;
        let values: Vec<f32> = (0..64 * channels)
            .map(|k| {
                let v = (k * 37 % 251) as f32 * (8.0 / 250.0) - 4.0;
                v * factor(k % channels) + offset(k % channels)
            })
            .collect();
        let mut collector = Collector::new();
        collector.add(Some(channels), &values);
        Some((v, collector.finish()))
    };
    let mut wanted = precision::wanted(&model);
    if case.results {
        wanted.extend(precision::wanted_results(&model));
        wanted.sort_unstable();
        wanted.dedup();
    }
    wanted.into_iter().filter_map(measured).collect()
}

/// Plans for INT4 by what calibration could have found: each channel is mostly what its neighbours are, and some are larger.
fn plans(case: &Case, model: &Model, options: &Options<'_>) -> Plans {
    let Some(products) = &case.products else {
        return Plans::default();
    };
    let product = |i: usize, j: usize| {
        let size = |k: usize| 2f32.powi(k as i32 % 3);
        match products.as_str() {
            "silent" => 0.0,
            "mixed" => size(i) * size(j) * 0.5f32.powi(i.abs_diff(j) as i32),
            other => panic!("{}: unknown products {other}", case.path.display()),
        }
    };
    let mut model = model.clone();
    kiln_graph::infer::annotate(&mut model.graph);
    let plan = |v: kiln_graph::ValueId| {
        let shape = model.graph.value(v).ty().shape()?;
        let channels = shape.last()?.known()?;
        let mut gram = Gram::new(channels);
        let product = &product;
        gram.add((0..channels).map(|i| (0..channels).map(move |j| product(i, j))));
        let plan = precision::plan_int4(&model.graph, v, &gram, &case.target, options)?;
        Some((v, plan))
    };
    let wanted = precision::wanted_by_int4(&model).0;
    wanted.into_iter().filter_map(plan).collect()
}

/// The model with what internal operators stand for, so that a runtime takes it.
pub fn lowered(model: &Model, target: &Target) -> Model {
    let mut model = model.clone();
    let options = Options::default();
    let mut cx = Context::new(target, &options);
    kiln_passes::run(&mut model, registry::LOWER, &mut cx, &mut |_, _| {}).unwrap();
    model
}

pub fn apply(case: &Case, evaluator: Option<&dyn Evaluator>) -> Applied {
    apply_up_to(None, case, evaluator)
}

/// Applies the passes until the limit of applications is reached.
pub fn apply_up_to(
    limit: Option<usize>,
    case: &Case,
    evaluator: Option<&dyn Evaluator>,
) -> Applied {
    let name = case.path.display();
    let before = onnx::read_text(&case.source).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut after = before.clone();
    let target = &case.target;
    let keep = |node: &str| case.keep.as_deref() == Some(node);
    let stats = stats(case, &before);
    let options = Options {
        dynamic: case.dynamic,
        stats: &stats,
        keep: &keep,
        keep_ops: case.keep_op.as_slice(),
        convert_io: case.half_io,
        int4_block: case.int4_block,
        sizes: &case.sizes,
        ..Options::default()
    };
    let plans = plans(case, &before, &options);
    let options = Options {
        plans: &plans,
        ..options
    };
    let mut cx = Context::new(target, &options);
    cx.explain = true;
    cx.evaluator = evaluator;
    cx.limit = limit;
    let steps = registry::select(&case.passes, registry::DEFAULT).unwrap();
    let reports = kiln_passes::run(&mut after, &steps, &mut cx, &mut |_, _| {});
    let (applications, mut misses) = match reports {
        Ok(reports) => (reports.iter().map(|r| r.applications).sum(), Vec::new()),
        // A pass that refuses is a case too: its message is what the header names.
        Err(e) => (0, vec![e.to_string()]),
    };
    misses.extend(cx.misses.iter().map(|m| m.why.clone()));
    misses.extend(cx.remarks.iter().filter_map(|r| match r {
        Remark::Skipped { why } => Some(why.clone()),
        _ => None,
    }));
    Applied {
        before,
        after,
        applications,
        admitted: cx.applied,
        last: cx.last,
        misses,
    }
}

/// What is wrong with how the case's passes keep to a limit; empty if nothing is.
pub fn beyond_limits(case: &Case, evaluator: Option<&dyn Evaluator>) -> String {
    let whole = apply(case, evaluator);
    // The driver infers types, passes or no passes.
    let none = Case {
        passes: String::new(),
        ..case.clone()
    };
    let mut before = print(&apply(&none, evaluator).after);
    let refused = apply_up_to(Some(0), case, evaluator);
    if refused.applications + refused.admitted > 0 || print(&refused.after) != before {
        return format!("changes without being admitted:\n{}", diff(&refused));
    }
    if case.miss.is_some() {
        return String::new();
    }
    for limit in 1..=whole.admitted {
        let cut = apply_up_to(Some(limit), case, evaluator);
        let after = print(&cut.after);
        if cut.admitted != limit || cut.last.is_none() || after == before {
            return format!("{limit}: {} were admitted: {:?}", cut.admitted, cut.last);
        }
        before = after;
    }
    match before == print(&whole.after) {
        true => String::new(),
        false => "the last application is not the end".into(),
    }
}

pub fn print(model: &Model) -> String {
    print_up_to(Some(64), model)
}

/// The model as text that can be read again.
pub fn print_whole(model: &Model) -> String {
    print_up_to(None, model)
}

fn print_up_to(max_elements: Option<usize>, model: &Model) -> String {
    let options = text::PrintOptions { max_elements };
    text::print_model(&onnx::to_proto(model).unwrap(), &options)
}

pub fn diff(applied: &Applied) -> String {
    let (before, after) = (print(&applied.before), print(&applied.after));
    let diff = similar::TextDiff::from_lines(&before, &after);
    diff.unified_diff().context_radius(3).to_string()
}
