//! What a check found, as JSON and as a table.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Failed;
use crate::engine::Work;
use crate::engine::inspected::Compared;
use crate::environment::{Environment, environment};
use crate::nvidia::driver::Gpu;
use crate::parity::Report;

/// Items and tokens of the measurement.
pub(super) const BATCH: usize = 1;

pub(super) const SEQ: usize = 128;

/// Operators that a sentence names.
const NAMED: usize = 4;

/// Everything that was checked on one GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub kiln: String,
    /// As the driver names it; `null` for a dry run.
    pub gpu: Option<String>,
    /// `sm_90`
    pub capability: Option<String>,
    /// Every step ran on the CPU, to see that it runs: none of the times is a GPU's.
    pub dry_run: bool,
    /// Items and tokens of every measurement.
    pub batch: usize,
    pub seq: usize,
    pub environment: Environment,
    pub rows: Vec<Row>,
    /// Forms that a model may take for ONNX Runtime's CUDA provider, timed in turns.
    #[serde(default)]
    pub forms: Vec<FormRow>,
    /// Where the time of FP16 models goes.
    #[serde(default)]
    pub profiles: Vec<Profiled>,
}

/// One way to run one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub model: String,
    pub runner: String,
    pub precision: String,
    /// `null` where it was not run.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Items a second; of an engine, with the number of streams that gives the most.
    pub throughput: Option<f64>,
    /// Whether the outputs are those of the original; `null` where nothing was compared.
    pub parity: Option<Outcome>,
    /// What one run has to do, where that was reckoned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// An engine's kernels beside the list that its builder wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Compared>,
    /// Why it was not run.
    pub not_run: Option<String>,
}

/// Parity in two numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub pass: bool,
    pub tolerance: String,
    /// The least of all outputs at all sizes; `null` if all are integers or have the same bits.
    pub cosine: Option<f64>,
}

impl Outcome {
    /// `passes (fp16), cosine 0.9999500`, or why nothing was compared.
    pub(super) fn told(parity: Option<&Outcome>, not_run: Option<&str>) -> String {
        match (not_run, parity) {
            (Some(why), Some(p)) if p.pass => format!("not timed: {why}"),
            (Some(why), Some(_)) => format!("FAILS: {why}"),
            (Some(why), None) => format!("not run: {why}"),
            (None, None) => String::new(),
            (None, Some(p)) => {
                let word = if p.pass { "passes" } else { "FAILS" };
                let cosine = p
                    .cosine
                    .map_or(String::new(), |c| format!(", cosine {c:.7}"));
                format!("{word} ({}){cosine}", p.tolerance)
            }
        }
    }
}

/// Where the time of a model goes, by operator, longest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profiled {
    pub model: String,
    pub precision: String,
    /// Names, and their parts of the time.
    pub operators: Vec<(String, f64)>,
}

impl Profiled {
    /// `MatMul 62 %, com.microsoft.MultiHeadAttention 20 %`
    pub(super) fn told(&self) -> String {
        let named = self.operators.iter().take(NAMED);
        let each = named.map(|(op, share)| format!("{op} {:.0} %", 100.0 * share));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// One form of one model, with CUDA graphs or without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormRow {
    pub model: String,
    pub form: String,
    /// What differs from the form that `--target cuda` gives.
    pub about: String,
    pub precision: String,
    /// Runs replay a CUDA graph.
    pub graph: bool,
    /// `null` where it was not run.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Whether the outputs are those of the original; `null` where nothing was compared.
    pub parity: Option<Outcome>,
    /// Attention's kernels by ONNX Runtime's own words: `FLASH_ATTENTION`, `EFFICIENT_ATTENTION`, `MATH` for what is not fused.
    #[serde(default)]
    pub attention: Vec<String>,
    /// Why it was not run.
    pub not_run: Option<String>,
}

impl FormRow {
    pub(super) fn is_right(&self) -> bool {
        self.parity.as_ref().is_some_and(|p| p.pass)
    }
}

impl Record {
    pub(super) fn new(gpu: Option<&Gpu>, dry_run: bool) -> Record {
        Record {
            kiln: env!("CARGO_PKG_VERSION").into(),
            gpu: gpu.map(|g| g.name.clone()),
            capability: gpu.map(Gpu::target),
            dry_run,
            batch: BATCH,
            seq: SEQ,
            environment: environment(),
            rows: Vec::new(),
            forms: Vec::new(),
            profiles: Vec::new(),
        }
    }

    /// `nvidia-h100-80gb-hbm3.json`
    pub fn file_name(&self) -> String {
        file_name(self.gpu.as_deref().unwrap_or("dry-run"))
    }

    /// Whether everything that ran is right.
    pub fn pass(&self) -> bool {
        let right = |p: &Option<Outcome>| p.as_ref().is_none_or(|p| p.pass);
        self.rows.iter().all(|r| right(&r.parity)) && self.forms.iter().all(|f| right(&f.parity))
    }

    /// A header and rows, each against the FP32 of its model.
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let header = vec![
            "model",
            "runner",
            "precision",
            "p50 ms",
            "p99 ms",
            "of FP32",
            "items/s",
            "parity",
        ];
        let row = |r: &Row| {
            let base = self.rows.iter().find(|b| b.model == r.model);
            let base = base.and_then(|b| b.p50_ms);
            let number = |v: Option<f64>, digits: usize| {
                v.map_or(String::new(), |v| format!("{v:.digits$}"))
            };
            let ratio = r.p50_ms.zip(base).map(|(p, b)| p / b);
            let parity = match (&r.not_run, &r.parity, &r.kernels) {
                (None, None, Some(kernels)) => compared(kernels),
                (why, parity, _) => Outcome::told(parity.as_ref(), why.as_deref()),
            };
            vec![
                r.model.clone(),
                r.runner.clone(),
                r.precision.clone(),
                number(r.p50_ms, 3),
                number(r.p99_ms, 3),
                number(ratio, 2),
                number(r.throughput, 0),
                parity,
            ]
        };
        (header, self.rows.iter().map(row).collect())
    }
}

/// What was found of an engine's kernels, and the first that is not as listed.
fn compared(kernels: &Compared) -> String {
    let Compared {
        listed,
        told,
        differences,
    } = kernels;
    match differences.split_first() {
        None => format!("{told} kernels, as listed"),
        Some((first, rest)) => {
            let more = match rest.len() {
                0 => String::new(),
                n => format!("; {n} more"),
            };
            format!("{told} kernels, {listed} listed: {first}{more}")
        }
    }
}

impl Row {
    pub(super) fn new(model: &str, runner: &str, precision: &str) -> Row {
        Row {
            model: model.into(),
            runner: runner.into(),
            precision: precision.into(),
            p50_ms: None,
            p99_ms: None,
            throughput: None,
            parity: None,
            work: None,
            kernels: None,
            not_run: None,
        }
    }

    pub(super) fn not_run(mut self, why: &str) -> Row {
        self.not_run = Some(why.into());
        self
    }

    /// With a step that failed: one whose gate failed gave a wrong result.
    pub(super) fn failed(self, failed: &Failed) -> Row {
        let wrong = failed.gate.then(|| Outcome {
            pass: false,
            tolerance: String::new(),
            cosine: None,
        });
        Row {
            parity: wrong,
            ..self.not_run(&failed.why)
        }
    }

    /// With statistics of `kiln bench`, in nanoseconds.
    pub(super) fn timed(mut self, stats: &Value) -> Row {
        let ms = |key: &str| Some(stats.get(key)?.as_f64()? / 1e6);
        (self.p50_ms, self.p99_ms) = (ms("p50"), ms("p99"));
        let mean = ms("mean").filter(|m| *m > 0.0);
        self.throughput = mean.map(|m| BATCH as f64 * 1e3 / m);
        self
    }

    /// With a point of `kiln bench --engine`: the kernels' time, as ONNX Runtime's is without copies, too.
    pub(super) fn engine(self, point: &Value) -> Row {
        let row = match point.get("compute") {
            Some(stats) => self.timed(stats),
            None => self.not_run("the benchmark has no times"),
        };
        let loads = point.get("loads").and_then(Value::as_array);
        let all = loads.into_iter().flatten();
        let most = all.filter_map(|l| l.get("throughput")?.as_f64());
        Row {
            throughput: most.fold(row.throughput, |a, b| Some(a.map_or(b, |a| a.max(b)))),
            ..row
        }
    }

    /// With what a run has to do.
    pub(super) fn working(mut self, work: Option<&Value>) -> Row {
        self.work = work.and_then(|w| serde_json::from_value(w.clone()).ok());
        self
    }

    /// With an engine's kernels beside the list.
    pub(super) fn compared(mut self, kernels: Compared) -> Row {
        self.kernels = Some(kernels);
        self
    }

    /// With a report of parity; `None` where nothing was compared.
    pub(super) fn proved(mut self, report: Option<&Report>) -> Row {
        self.parity = report.map(|report| Outcome {
            pass: !report.failed(),
            tolerance: report.tolerance.name.clone(),
            cosine: report.cosine(),
        });
        self
    }

    /// What a line of the peers' program says.
    pub(super) fn peer(model: &str, peer: &Value) -> Row {
        let text = |key: &str| peer.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| peer.get(key).and_then(Value::as_f64);
        Row {
            p50_ms: number("p50_ms"),
            p99_ms: number("p99_ms"),
            throughput: number("p50_ms").map(|ms| BATCH as f64 * 1e3 / ms),
            not_run: peer
                .get("not_run")
                .and_then(Value::as_str)
                .map(str::to_owned),
            ..Row::new(model, text("runner"), text("precision"))
        }
    }
}

/// `nvidia-h100-80gb-hbm3.json`
pub(super) fn file_name(gpu: &str) -> String {
    let letters = gpu.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '-',
    });
    let letters: String = letters.collect();
    format!("{}.json", letters.trim_matches('-'))
}
