//! One model in each form that it may take for ONNX Runtime's CUDA provider, timed in turns: what decides the lowering.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::{Model, onnx};
use kiln_passes::targets::cuda_forms::{FORMS, Form};
use kiln_passes::{Context, Options, Step, registry};
use serde_json::Value;

use super::record::{FormRow, Outcome};
use super::step::Failed;
use super::{Row, Work};
use crate::parity;
use crate::runtime::OrtEvaluator;

/// A form that was written and compared.
struct Written {
    form: &'static Form,
    /// Of its file.
    hash: Option<blake3::Hash>,
    result: Result<Compared, Failed>,
}

/// A form's file, and what it is without and with a CUDA graph.
struct Compared {
    path: PathBuf,
    /// Kernels of its attention.
    attention: Vec<String>,
    plain: Row,
    graph: Row,
}

impl Compared {
    /// Whether it may be timed.
    fn runs(&self, graph: bool) -> bool {
        let row = if graph { &self.graph } else { &self.plain };
        row.not_run.is_none() && row.parity.as_ref().is_some_and(|p| p.pass)
    }
}

impl Work<'_> {
    /// All forms, without and with CUDA graphs.
    pub(super) fn forms(&self) -> Vec<FormRow> {
        let model = match onnx::read(&self.subject.path) {
            Ok(model) => model,
            Err(e) => return self.all_failed(&e.to_string()),
        };
        let mut written: Vec<Written> = Vec::new();
        for form in &FORMS {
            // A form that gives the file of an earlier one is not run again.
            let file = self.write_form(form, &model);
            let hash = file.as_ref().ok().map(|(_, hash)| *hash);
            let same = written.iter().find(|w| hash.is_some() && w.hash == hash);
            let result = match same {
                Some(same) => {
                    let why = format!("the same file as {}", same.form.name);
                    Err(Failed::from(why.as_str()))
                }
                None => file.and_then(|(path, _)| self.compared(form, path)),
            };
            written.push(Written { form, hash, result });
        }
        [false, true]
            .into_iter()
            .flat_map(|graph| self.timed_forms(&written, graph))
            .collect()
    }

    fn all_failed(&self, why: &str) -> Vec<FormRow> {
        let rows = FORMS.iter().map(|form| FormRow {
            not_run: Some(why.into()),
            ..self.form_row(form, false)
        });
        rows.collect()
    }

    /// FP16 on a GPU; a dry run has kernels of FP32 alone.
    fn half(&self) -> (&'static str, &'static [Step]) {
        match self.request.dry_run {
            true => ("fp32", &[]),
            false => ("fp16", registry::FP16),
        }
    }

    fn form_row(&self, form: &Form, graph: bool) -> FormRow {
        FormRow {
            model: self.subject.name.clone(),
            form: form.name.into(),
            about: form.about.into(),
            precision: self.half().0.into(),
            graph,
            p50_ms: None,
            p99_ms: None,
            parity: None,
            attention: Vec::new(),
            not_run: None,
        }
    }

    fn path(&self, form: &Form) -> PathBuf {
        let name = format!("{}.{}.onnx", self.subject.name, form.name);
        self.request.work.join(name)
    }

    /// Writes the model in a form; its file and that file's hash.
    fn write_form(&self, form: &Form, model: &Model) -> Result<(PathBuf, blake3::Hash), Failed> {
        let failed = |e: &dyn std::fmt::Display| Failed::from(e.to_string().as_str());
        let mut model = model.clone();
        let (_, half) = self.half();
        let (target, options) = (form.target(), Options::default());
        let evaluator = OrtEvaluator::new(self.request.ort_lib.as_deref());
        let mut cx = Context::new(&target, &options);
        cx.evaluator = Some(&evaluator);
        let steps = [registry::DEFAULT, half, registry::LOWER].concat();
        kiln_passes::run(&mut model, &steps, &mut cx, &mut |_, _| {}).map_err(|e| failed(&e))?;
        let path = self.path(form);
        onnx::write(&model, &path, &onnx::WriteOptions::default()).map_err(|e| failed(&e))?;
        let hash = blake3::hash(&fs::read(&path).map_err(|e| failed(&e))?);
        Ok((path, hash))
    }

    /// Holds a form's file against the original, without and with a CUDA graph.
    fn compared(&self, form: &Form, path: PathBuf) -> Result<Compared, Failed> {
        let (precision, _) = self.half();
        let (candidate, original) = (shown(&path), shown(&self.subject.path));
        let mut args = vec![
            "check",
            &candidate,
            "--reference",
            &original,
            "--json",
            "--quiet",
        ];
        args.extend(["--device", &self.device, "--cuda-graph"]);
        let ran = self.steps.kiln(&args);
        let attention = ran.attention();
        let checked: Value = match ran.json() {
            // Whatever a graph does, the form may be right without one.
            Err(_) => {
                args.pop();
                self.steps.kiln(&args).json()?
            }
            Ok(checked) => checked,
        };
        let report = |at: &str| {
            let report = checked.pointer(at).cloned().unwrap_or_default();
            serde_json::from_value::<parity::Report>(report)
        };
        let plain = report("/parity").map_err(|e| Failed::from(e.to_string().as_str()))?;
        let row = || Row::new(&self.subject.name, form.name, precision);
        let graph = match (
            report("/cuda_graph/report"),
            checked.pointer("/cuda_graph/why"),
        ) {
            (Ok(graph), _) => row().proved(Some(&graph)),
            (_, Some(why)) => row().not_run(why.as_str().unwrap_or_default()),
            (_, None) => row().not_run("a CUDA graph of it failed"),
        };
        Ok(Compared {
            path,
            attention,
            plain: row().proved(Some(&plain)),
            graph,
        })
    }

    /// Those that run, in turns.
    fn timed_forms(&self, written: &[Written], graph: bool) -> Vec<FormRow> {
        let running: Vec<String> = (written.iter())
            .filter_map(|w| w.result.as_ref().ok().filter(|c| c.runs(graph)))
            .map(|c| shown(&c.path))
            .collect();
        let bench = match running.is_empty() {
            true => Err(Failed::from("no form runs")),
            false => self.bench_forms(&running, graph),
        };
        let mut next = 0;
        let row = |w: &Written| {
            let row = self.form_row(w.form, graph);
            let compared = match &w.result {
                Err(failed) => {
                    let failed = Row::new("", "", "").failed(failed);
                    return FormRow {
                        parity: failed.parity,
                        not_run: failed.not_run,
                        ..row
                    };
                }
                Ok(compared) => compared,
            };
            let proved = if graph {
                &compared.graph
            } else {
                &compared.plain
            };
            let timed = match compared.runs(graph) {
                false => proved.clone(),
                true => {
                    let at = format!("/points/0/measured/subjects/{next}/stats");
                    next += 1;
                    match &bench {
                        Ok(bench) => match bench.pointer(&at) {
                            Some(stats) => proved.clone().timed(stats),
                            None => proved.clone().not_run("the benchmark has no such subject"),
                        },
                        Err(why) => proved.clone().not_run(&why.why),
                    }
                }
            };
            FormRow {
                p50_ms: timed.p50_ms,
                p99_ms: timed.p99_ms,
                parity: timed.parity,
                attention: compared.attention.clone(),
                not_run: timed.not_run,
                ..row
            }
        };
        written.iter().map(row).collect()
    }

    fn bench_forms(&self, files: &[String], graph: bool) -> Result<Value, Failed> {
        let mut args = vec!["bench"];
        args.extend(files.iter().map(String::as_str));
        args.extend(["--json", "--quiet", "--device", &self.device]);
        args.extend(match self.request.dry_run {
            true => ["--runs", "3", "--duration", "0.1"],
            false => ["--runs", "100", "--duration", "1"],
        });
        args.extend(graph.then_some("--cuda-graph"));
        self.steps.kiln(&args).json()
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A header and rows, each against the first form of its model without CUDA graphs.
pub fn table(rows: &[FormRow]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec![
        "model",
        "form",
        "CUDA graph",
        "p50 ms",
        "of the first",
        "attention's kernels",
        "parity",
    ];
    let row = |r: &FormRow| {
        let first = rows.iter().find(|f| f.model == r.model);
        let ratio = r
            .p50_ms
            .zip(first.and_then(|f| f.p50_ms))
            .map(|(p, f)| p / f);
        let number =
            |v: Option<f64>, digits: usize| v.map_or(String::new(), |v| format!("{v:.digits$}"));
        vec![
            r.model.clone(),
            r.form.clone(),
            if r.graph { "on" } else { "off" }.into(),
            number(r.p50_ms, 3),
            number(ratio, 2),
            r.attention.join(", "),
            Outcome::told(r.parity.as_ref(), r.not_run.as_deref()),
        ]
    };
    (header, rows.iter().map(row).collect())
}

/// Less than this is noise of a machine that others use.
const CLEAR: f64 = 0.97;

/// Which form goes fastest by the geometric mean over models that all forms ran, in one sentence; `None` where nothing right was
/// timed, or where the first form is the fastest without CUDA graphs.
pub fn advice(rows: &[FormRow]) -> Option<String> {
    let base = |model: &str| {
        let first = rows
            .iter()
            .find(|r| r.model == model && r.form == FORMS[0].name && !r.graph);
        first.and_then(|r| r.p50_ms)
    };
    let mean = |form: &str, graph: bool| {
        let same = rows.iter().filter(|r| r.form == form && r.graph == graph);
        let mut logs = Vec::new();
        for r in same {
            logs.push((r.p50_ms.filter(|_| r.is_right())? / base(&r.model)?).ln());
        }
        let n = logs.len() as f64;
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / n).exp())
    };
    let all = FORMS.iter().flat_map(|f| [(f, false), (f, true)]);
    let measured = all.filter_map(|(f, graph)| Some((f, graph, mean(f.name, graph)?)));
    let (form, graph, ratio) = measured.min_by(|a, b| a.2.total_cmp(&b.2))?;
    (ratio < CLEAR).then(|| {
        let graphs = if graph { " with CUDA graphs" } else { "" };
        format!(
            "of the forms measured on this GPU, {}{graphs} takes {ratio:.2} of the time of the cuda target's own ({})",
            form.name, form.about
        )
    })
}
