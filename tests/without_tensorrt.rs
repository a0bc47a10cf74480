//! What a kiln does that was built without TensorRT: `cargo test --no-default-features --test without_tensorrt`. A binary of its own,
//! so that this other build needs not all tests.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use kiln::compile::{CompileError, Options, compile};
use kiln::engine::{self, ComputeCapability, EngineError};
use kiln::fault::Fault;
use kiln::talk::Silent;
use kiln::targets::Targets;
use prost::Message;
use tempfile::TempDir;

const MODEL: &str = "
<ir_version: 8, opset_import: [\"\": 17]>
m (float[2,3] x) => (float[2,3] y) {
  y = Relu(x)
}
";

fn options(folder: &Path, targets: Targets) -> Options {
    let model = kiln_graph::text::parse_model(MODEL).unwrap();
    let path = folder.join("m.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    Options {
        output: Some(folder.join("m.kiln")),
        targets: Some(targets),
        latency: Some(false),
        ..Options::new(path)
    }
}

#[test]
fn the_cpu_is_served() {
    let folder = TempDir::new().unwrap();
    let outcome = compile(&options(folder.path(), Targets::Cpu), &Silent);
    match outcome {
        Ok(outcome) => assert!(outcome.bundle.join("model.onnx").is_file()),
        // Without ONNX Runtime nothing is proved on any build.
        Err(e) => assert_eq!(e.fault(), Fault::Machine, "{e}"),
    }
}

#[test]
fn an_engine_is_refused_and_says_what_to_do() {
    if engine::AVAILABLE {
        return;
    }
    let folder = TempDir::new().unwrap();
    let targets = Targets::Engines(vec![ComputeCapability::Sm89]);
    let options = options(folder.path(), targets);
    let error = compile(&options, &Silent).unwrap_err();
    assert!(
        matches!(
            &error,
            CompileError::Engine {
                source: EngineError::Absent
            }
        ),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Machine);
    let said = error.to_string();
    for what in ["without TensorRT", "tensorrt", "`target` cpu"] {
        assert!(said.contains(what), "{said}");
    }
    assert!(!folder.path().join("m.kiln").exists());
    let plain = Options {
        engine: false,
        check: false,
        ..options
    };
    compile(&plain, &Silent).unwrap();
}
