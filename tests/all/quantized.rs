//! Models that came quantized, compiled for TensorRT: what is written builds and computes the same, what is not is refused.

use crate::common;
use crate::harness;

use kiln::compile::{CompileError, Options, Outcome, compile};
use kiln::engine;
use kiln::fault::Fault;
use kiln::talk::Silent;
use kiln_graph::onnx;
use kiln_passes::registry;

/// Folders of cases whose passes write quantization anew.
const PASSES: &[&str] = &[
    "absorb-offsets",
    "expand-qoperators",
    "lower-nbits",
    "dequantize-constants",
    "symmetrize-qdq",
];

fn compiled(case: &harness::Case, target: &str, built: bool) -> Result<Outcome, CompileError> {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let text = onnx::read_text(&case.source).unwrap();
    std::fs::write(&model, onnx::to_bytes(&text).unwrap()).unwrap();
    let options = Options {
        output: Some(folder.path().join("bundle")),
        targets: Some(target.parse().unwrap()),
        engine: built,
        latency: Some(false),
        ..Options::new(&model)
    };
    compile(&options, &Silent)
}

fn cases() -> Vec<harness::Case> {
    assert!(PASSES.iter().all(|p| registry::find(p).is_ok()));
    let mut cases = harness::cases();
    cases.retain(|c| {
        let mine = PASSES.iter().any(|p| c.path.parent().unwrap().ends_with(p));
        mine && c.target.facts.dialect == "tensorrt"
    });
    cases
}

#[test]
fn what_is_written_for_tensorrt_builds_and_holds_its_tolerance() {
    if common::runtime().is_none() {
        return;
    }
    let built = engine::locate(None).is_ok();
    if !built {
        println!("no engine is built: TensorRT for RTX not found");
    }
    let mut wrong = Vec::new();
    for case in cases().into_iter().filter(|c| c.miss.is_none()) {
        let outcome = compiled(&case, "sm_89", built);
        if let Err(e) = outcome {
            wrong.push(format!("{}: {e}", case.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_cannot_be_written_is_refused_before_tensorrt() {
    if common::runtime().is_none() || engine::locate(None).is_err() {
        return;
    }
    // What these two leave, TensorRT takes.
    let taken = ["absorb-offsets", "dequantize-constants"];
    let taken = |c: &harness::Case| {
        let folder = c.path.parent().unwrap();
        taken.iter().any(|p| folder.ends_with(p))
    };
    let refused = |c: &harness::Case| c.miss.is_some() && !taken(c);
    let mut wrong = Vec::new();
    for case in cases().into_iter().filter(refused) {
        let name = case.path.display();
        match compiled(&case, "sm_89", true) {
            Err(e)
                if e.fault() == Fault::Target
                    && e.to_string().contains("not in TensorRT's dialect") => {}
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(_) => wrong.push(format!("{name}: an engine was built")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn onnx_runtime_keeps_the_quantization_it_knows() {
    if common::runtime().is_none() {
        return;
    }
    for case in cases()
        .into_iter()
        .filter(|c| c.path.ends_with("expand-qoperators/dynamic.onnxtxt"))
    {
        let outcome = compiled(&case, "cpu", false).unwrap();
        assert!(outcome.manifest.requantized.is_empty());
        assert!(outcome.manifest.ops_after.contains_key("MatMulInteger"));
    }
}
