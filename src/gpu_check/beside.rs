//! What is measured beside ONNX Runtime's latency: where its time goes, TensorRT's engine, PyTorch.

use serde_json::Value;

use super::record::{BATCH, Profiled, SEQ};
use super::{PEERS, Row, Sizes, Work};
use crate::engine_parity::EngineParity;

impl Work<'_> {
    /// Where the time of the FP16 bundle goes, if there is one.
    pub(super) fn profile(&self) -> Option<Profiled> {
        let bundle = self.bundle("fp16").display().to_string();
        let args = [
            "bench",
            &bundle,
            "--profile",
            "--runs",
            "10",
            "--duration",
            "0.1",
        ];
        let args = [&args[..], &["--device", &self.device, "--json", "--quiet"]].concat();
        let bench = self.steps.kiln(&args).json::<Value>().ok()?;
        let operators = bench.pointer("/profiles/0/operators")?.as_array()?;
        let part = |p: &Value| Some((p["name"].as_str()?.to_string(), p["micros"].as_f64()?));
        let parts: Vec<(String, f64)> = operators.iter().filter_map(part).collect();
        let all: f64 = parts.iter().map(|(_, micros)| micros).sum();
        let shares = parts.into_iter().map(|(op, micros)| (op, micros / all));
        Some(Profiled {
            model: self.subject.name.clone(),
            precision: "fp16".into(),
            operators: shares.collect(),
        })
    }

    /// The engine for this machine's GPU: built, held against the original, timed, and its kernels compared.
    pub(super) fn engine(&self) -> Vec<Row> {
        let row = Row::new(&self.subject.name, crate::engine::LIBRARY, "fp16");
        let target = match self.request.dry_run {
            true => "sm_89",
            false => "local",
        };
        let manifest = match self.compile("engine", &["--fp16", "--target", target]) {
            Ok((_, manifest)) => manifest,
            Err(why) => return vec![row.failed(&why)],
        };
        let row = match &manifest.engine_parity {
            EngineParity::NotRun { why } => return vec![row.not_run(why)],
            EngineParity::Run { report, .. } => row.proved(Some(report)),
        };
        let bundle = self.bundle("engine").display().to_string();
        let args = [
            "bench",
            &bundle,
            "--engine",
            "--streams",
            "1,2,4",
            "--device",
            &self.device,
            "--json",
            "--quiet",
        ];
        let row = match self.steps.kiln(&args).json::<Value>() {
            Err(why) => row.failed(&why),
            Ok(bench) => match bench.pointer("/engines/0/points/0") {
                None => row.not_run("the benchmark has no points"),
                Some(point) => row.engine(point),
            },
        };
        vec![row, self.kernels(&bundle)]
    }

    /// The kernels of a bundle's engine, as TensorRT tells them of it and as its builder listed them.
    fn kernels(&self, bundle: &str) -> Row {
        let row = Row::new(&self.subject.name, "the engine's inspector", "fp16");
        let args = [
            "inspect",
            bundle,
            "--engine",
            "--opened",
            "--device",
            &self.device,
            "--json",
            "--quiet",
        ];
        let mut ran = self.steps.kiln(&args);
        // Differences are a finding, and printed.
        if ran.code == Some(1) && !ran.stdout.is_empty() {
            ran.code = Some(0);
        }
        match ran.json() {
            Ok(compared) => row.compared(compared),
            Err(why) => row.failed(&why),
        }
    }

    /// PyTorch with an encoder of the same sizes.
    pub(super) fn peers(&self, s: &Sizes) -> Vec<Row> {
        let none = |why: &str| {
            let row = Row::new(&self.subject.name, "PyTorch", "fp32");
            vec![row.not_run(why)]
        };
        let Some(python) = &self.request.python else {
            return none("no Python on the path");
        };
        if self.request.dry_run {
            return none("a dry run has no GPU to run it on");
        }
        let sizes = [
            s.layers,
            s.width,
            s.heads,
            s.inner,
            s.words,
            s.positions,
            BATCH,
            SEQ,
        ];
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        let ran = self.steps.python(python, PEERS, &sizes);
        let lines = match ran.text() {
            Ok(lines) => lines,
            Err(failed) => return none(&failed.why),
        };
        let rows = lines
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .map(|peer| Row::peer(&self.subject.name, &peer));
        rows.collect()
    }
}
