//! `kiln gpu-check`: everything that takes a GPU, done once, with a record.
//!
//! Each step is a `kiln` of its own, started as a user would and read by what it prints as JSON: a step whose process a library
//! takes down is a row that says so, and the next one runs.

mod aims;
mod beside;
mod decoder;
mod encoder;
mod forms;
mod generation;
mod page;
mod record;
mod step;

use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::{DType, onnx};
use serde_json::Value;

use crate::manifest::Manifest;
use crate::nvidia::driver::{self, NoDevice};
use crate::parity::{self, InputSpec};
use crate::talk::Talk;

pub use aims::{Aim, aims, table as aims_table};
pub use decoder::{LLAMA, Shape, decoder};
pub use encoder::{BERT_BASE, SMALL, Sizes, encoder};
pub use forms::{advice, table as forms_table};
pub use page::{RESULTS, advice_for, page};
use record::{BATCH, SEQ};
pub use record::{FormRow, Outcome, Profiled, Record, Row};
pub use step::{Failed, Kiln, Limits, Ran, Steps};

/// What to check, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// A folder with models, each checked beside those that are made.
    pub models: Option<PathBuf>,
    /// Where the record goes.
    pub results: PathBuf,
    /// Where models and bundles go in the meantime.
    pub work: PathBuf,
    /// Every step by the CPU, to see that they run: no measurement of a GPU.
    pub dry_run: bool,
    /// The CUDA device.
    pub device: u32,
    /// The Python whose torch is timed as a comparison.
    pub python: Option<PathBuf>,
    /// ONNX Runtime, where it is not found by itself.
    pub ort_lib: Option<PathBuf>,
}

/// Why there is no check.
#[derive(Debug, thiserror::Error)]
pub enum GpuCheckError {
    /// There is no GPU. `plan` is what would run on one.
    #[error("skipped: no CUDA device: {why} ({mend})\n{plan}", mend = why.mend())]
    NoDevice { why: NoDevice, plan: String },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the encoder {name} cannot be made: {reason}")]
    Made { name: String, reason: String },
}

/// One model to check.
#[derive(Clone, Debug)]
struct Subject {
    name: String,
    path: PathBuf,
    /// Of an encoder that was made, for the peers.
    sizes: Option<Sizes>,
}

/// Batches of made inputs to calibrate INT8 on.
const CALIBRATION: usize = 16;

const PEERS: &str = include_str!("../../scripts/gpu_peers.py");

/// Runs all steps and writes the record.
///
/// # Errors
/// Without a GPU, unless it is a dry run, and when files cannot be written. A step that fails is a row of the record.
pub fn check(
    request: &Request,
    steps: &dyn Steps,
    talk: &dyn Talk,
) -> Result<(Record, PathBuf), GpuCheckError> {
    let gpu = match (driver::probe(), request.dry_run) {
        (_, true) => None,
        (Ok(driver), false) => driver.gpus.into_iter().nth(request.device as usize),
        (Err(why), false) => {
            let plan = plan(request);
            return Err(GpuCheckError::NoDevice { why, plan });
        }
    };
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| GpuCheckError::Io { path, source }
    };
    fs::create_dir_all(&request.work).map_err(io(&request.work))?;
    fs::create_dir_all(&request.results).map_err(io(&request.results))?;
    let mut record = Record::new(gpu.as_ref(), request.dry_run);
    let path = request.results.join(record.file_name());
    write(&record, &path).map_err(io(&path))?;
    let subjects = subjects(request)?;
    // What is wrong shows first; what decides between right ones comes behind.
    for subject in &subjects {
        rows(request, subject, steps, talk, &mut |rows| {
            record.rows.extend(rows);
            // What is measured stays, whatever becomes of the rest.
            write(&record, &path)
        })
        .map_err(io(&path))?;
    }
    for subject in &subjects {
        talk.stage(&format!("forms of {}", subject.name));
        record
            .forms
            .extend(Work::of(request, subject, steps).forms());
        write(&record, &path).map_err(io(&path))?;
    }
    // Last, as it decides nothing.
    for subject in &subjects {
        talk.stage(&format!("profile of {}", subject.name));
        record
            .profiles
            .extend(Work::of(request, subject, steps).profile());
        write(&record, &path).map_err(io(&path))?;
    }
    Ok((record, path))
}

fn write(record: &Record, path: &Path) -> std::io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(record).unwrap_or_default())
}

/// What would run on a GPU, one line for each step.
fn plan(request: &Request) -> String {
    let mut lines = vec!["on a machine with a GPU this would run:".to_string()];
    let mut names = vec![
        "encoder-6x512 (made)".to_string(),
        "bert-base (made)".into(),
        "llama-8x512 (made)".into(),
    ];
    names.extend(brought(request).into_iter().map(|s| s.name));
    for name in names {
        lines.push(format!(
            "  {name}: parity and latency at batch {BATCH}, {SEQ} tokens: ONNX Runtime CUDA FP32 (TF32 off), FP16, BF16 and INT8 by \
             kiln, each form that attention and norms may take in FP16, without and with CUDA graphs, the TensorRT engine where the \
             card is served and its kernels beside the builder's list, PyTorch eager and torch.compile where torch is installed"
        ));
    }
    lines.push(format!(
        "  and write {}",
        request.results.join("<gpu>.json").display()
    ));
    lines.join("\n")
}

/// The ONNX files in the folder of models.
fn brought(request: &Request) -> Vec<Subject> {
    let entries = request.models.as_ref().and_then(|f| f.read_dir().ok());
    let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<Subject> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .map(|path| Subject {
            name: path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            path,
            sizes: None,
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn subjects(request: &Request) -> Result<Vec<Subject>, GpuCheckError> {
    // Every step by the CPU takes minutes on BERT-base, and tells no more than the small one.
    type Named<'a, T> = &'a [(&'a str, T)];
    let (encoders, decoders): (Named<'_, Sizes>, Named<'_, Shape>) = match request.dry_run {
        true => (&[("encoder-dry-run", DRY)], &[("llama-dry-run", DRY_LLAMA)]),
        false => (
            &[("encoder-6x512", SMALL), (aims::MODEL, BERT_BASE)],
            &[("llama-8x512", LLAMA)],
        ),
    };
    let encoders = encoders.iter().map(|(n, s)| (*n, Some(*s), encoder(s)));
    let decoders = decoders.iter().map(|(n, s)| (*n, None, decoder(s)));
    let mut all = Vec::new();
    for (name, sizes, model) in encoders.chain(decoders) {
        let path = request.work.join(format!("{name}.onnx"));
        let failed = |reason: String| GpuCheckError::Made {
            name: name.into(),
            reason,
        };
        let model = model.map_err(|e| failed(e.to_string()))?;
        onnx::write(&model, &path, &onnx::WriteOptions::default())
            .map_err(|e| failed(e.to_string()))?;
        all.push(Subject {
            name: name.into(),
            path,
            sizes,
        });
    }
    all.extend(brought(request));
    Ok(all)
}

/// Small enough to run every step in seconds.
const DRY: Sizes = Sizes {
    layers: 1,
    width: 64,
    heads: 2,
    inner: 128,
    words: 100,
    positions: 512,
};

const DRY_LLAMA: Shape = Shape {
    layers: 1,
    width: 64,
    heads: 4,
    groups: 2,
    inner: 96,
    words: 100,
};

/// All ways to run a model; `keep` has the rows of each as soon as they are there.
fn rows(
    request: &Request,
    subject: &Subject,
    steps: &dyn Steps,
    talk: &dyn Talk,
    keep: &mut dyn FnMut(Vec<Row>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let work = Work::of(request, subject, steps);
    talk.stage(&format!("{}, fp32 in ONNX Runtime", subject.name));
    let full = work.original();
    // The bundles that ONNX Runtime runs, with what they gave.
    talk.stage(&format!("{}, fp16 in ONNX Runtime", subject.name));
    let provider = match request.dry_run {
        true => "cpu",
        false => "cuda",
    };
    let half = work.compile("fp16", &["--fp16", "--target", provider]);
    talk.stage(&format!("{}, bf16 in ONNX Runtime", subject.name));
    let brain = match request.dry_run {
        true => Err(Failed::from("the CPU has no kernels of BF16")),
        false => work.compile("bf16", &["--bf16", "--target", provider]),
    };
    talk.stage(&format!("{}, int8 in ONNX Runtime", subject.name));
    let bytes = match work.calibration() {
        Ok(data) => {
            let data = data.display().to_string();
            work.compile(
                "int8",
                &["--int8", "--fp16", "--target", "cpu", "--calibrate", &data],
            )
        }
        Err(why) => Err(Failed::from(why.as_str())),
    };
    talk.stage(&format!("{}, latency in ONNX Runtime", subject.name));
    keep(work.latencies(
        &full,
        &[("fp16", &half), ("int8", &bytes), ("bf16", &brain)],
    ))?;
    talk.stage(&format!("{}, TensorRT", subject.name));
    keep(work.engine())?;
    keep(work.generations(talk))?;
    if let Some(sizes) = &subject.sizes {
        talk.stage(&format!("{}, PyTorch", subject.name));
        keep(work.peers(sizes))?;
    }
    Ok(())
}

/// A subject in work.
struct Work<'a> {
    request: &'a Request,
    subject: &'a Subject,
    steps: &'a dyn Steps,
    device: String,
}

/// A bundle, and the manifest that was printed.
type Compiled = Result<(PathBuf, Manifest), Failed>;

impl<'a> Work<'a> {
    fn of(request: &'a Request, subject: &'a Subject, steps: &'a dyn Steps) -> Work<'a> {
        let device = match request.dry_run {
            true => "cpu".to_string(),
            false => format!("cuda:{}", request.device),
        };
        Work {
            request,
            subject,
            steps,
            device,
        }
    }
}

impl Work<'_> {
    fn bundle(&self, kind: &str) -> PathBuf {
        let name = format!("{}.{kind}.kiln", self.subject.name);
        self.request.work.join(name)
    }

    fn compile(&self, kind: &str, options: &[&str]) -> Compiled {
        let (bundle, model) = (self.bundle(kind), self.subject.path.display().to_string());
        let out = bundle.display().to_string();
        let mut args = vec!["compile", &model, "-o", &out, "--no-latency", "--json"];
        args.extend(["--device", &self.device, "--quiet"]);
        args.extend(options);
        let manifest = self.steps.kiln(&args).json()?;
        Ok((bundle, manifest))
    }

    /// The original on the device against itself on the CPU.
    fn original(&self) -> Result<parity::Report, Failed> {
        let model = self.subject.path.display().to_string();
        let golden = self.request.work.join(format!("{}.npz", self.subject.name));
        let golden = golden.display().to_string();
        let record = ["--reference", &model, "--record", &golden];
        let run = |against: &[&str], device: &str| {
            let mut args = vec!["check", &model, "--json", "--quiet", "--device", device];
            args.extend(against);
            self.steps.kiln(&args).json::<Value>()
        };
        run(&record, "cpu")?;
        let checked = run(&["--golden", &golden], &self.device)?;
        let report = checked.get("parity").cloned().unwrap_or_default();
        serde_json::from_value(report).map_err(|e| Failed::from(e.to_string().as_str()))
    }

    /// Made token ids, as many as calibration takes.
    fn calibration(&self) -> Result<PathBuf, String> {
        let model = onnx::read(&self.subject.path).map_err(|e| e.to_string())?;
        let folder = self
            .request
            .work
            .join(format!("{}.data", self.subject.name));
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let g = &model.graph;
        let inputs: Vec<InputSpec> = (g.inputs().iter())
            .map(|&v| InputSpec {
                name: g.value(v).name().to_string(),
                dtype: g.value(v).ty().dtype().unwrap_or(DType::I64),
                shape: vec![BATCH, SEQ],
                kind: crate::shapes::input_kind(g, v),
            })
            .collect();
        for seed in 0..CALIBRATION {
            let made = parity::make(&inputs, seed as u64).map_err(|e| e.to_string())?;
            let path = folder.join(format!("{seed:02}.npz"));
            parity::save(&path, &made, &[]).map_err(|e| e.to_string())?;
        }
        Ok(folder)
    }

    /// The original and the bundles side by side.
    fn latencies(
        &self,
        original: &Result<parity::Report, Failed>,
        bundles: &[(&str, &Compiled)],
    ) -> Vec<Row> {
        let provider = match self.request.dry_run {
            true => "ONNX Runtime CPU",
            false => "ONNX Runtime CUDA",
        };
        let model = self.subject.path.display().to_string();
        let mut args = vec!["bench".to_string(), model];
        let built = bundles.iter().filter_map(|(_, b)| b.as_ref().ok());
        args.extend(built.map(|(path, _)| path.display().to_string()));
        let device = self.device.as_str();
        args.extend(["--json", "--quiet", "--device", device].map(str::to_string));
        args.extend(match self.request.dry_run {
            true => ["--runs", "3", "--duration", "0.1"].map(str::to_string),
            false => ["--runs", "100", "--duration", "3"].map(str::to_string),
        });
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let bench = self.steps.kiln(&args).json::<Value>();
        let subjects = bench
            .as_ref()
            .ok()
            .and_then(|b| b.pointer("/points/0/measured/subjects"))
            .and_then(Value::as_array);
        let mut next = 0;
        let mut row = |precision: &str, compiled: Option<&Compiled>| {
            let runner = match precision {
                "fp32" => format!("{provider}, TF32 off"),
                _ => format!("kiln, {provider}"),
            };
            let row = Row::new(&self.subject.name, &runner, precision);
            if let Some(Err(why)) = compiled {
                return row.failed(why);
            }
            let found = subjects.and_then(|s| s.get(next));
            let work = bench.as_ref().ok();
            let work = work.and_then(|b| b.pointer(&format!("/points/0/work/{next}")));
            let row = row.working(work);
            next += 1;
            let row = match (&bench, found.and_then(|s| s.get("stats"))) {
                (_, Some(stats)) => row.timed(stats),
                (Err(why), _) => row.failed(why),
                (Ok(_), None) => row.not_run("the benchmark has no such subject"),
            };
            match (compiled, original) {
                (Some(Ok((_, manifest))), _) => row.proved(manifest.parity.as_ref()),
                (Some(Err(_)), _) => row,
                (None, Ok(report)) => row.proved(Some(report)),
                (None, Err(why)) => row.failed(why),
            }
        };
        let first = [row("fp32", None)].into_iter();
        let others: Vec<Row> = bundles.iter().map(|(p, b)| row(p, Some(b))).collect();
        first.chain(others).collect()
    }
}

#[cfg(test)]
mod tests;
