//! Broken models under `fixtures/verify`: reading them or verifying their graph says what the first line expects.

use crate::common;

use std::fs;

use kiln_graph::onnx;
use kiln_graph::verify::{Phase, verify_model};

/// Everything that reading and verifying has against a model.
fn objections(source: &str) -> String {
    match onnx::read_text(source) {
        Err(e) => e.to_string(),
        Ok(model) => {
            let findings = verify_model(&model, Phase::Imported);
            let findings: Vec<String> = findings.iter().map(|f| f.to_string()).collect();
            findings.join("\n")
        }
    }
}

#[test]
fn every_broken_model_is_refused_for_its_reason() {
    let mut wrong = Vec::new();
    let files = common::files("verify", "onnxtxt");
    assert!(files.len() > 10);
    for path in files {
        let source = fs::read_to_string(&path).unwrap();
        let first = source.lines().next().unwrap_or_default();
        let expected = first.strip_prefix("# error: ").expect("an error to expect");
        let found = objections(&source);
        if !found.contains(expected) {
            let found = if found.is_empty() { "nothing" } else { &found };
            wrong.push(format!(
                "{}: expected: {expected}\n    found: {found}",
                path.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_exports_have_no_findings() {
    for path in common::files("models", "onnx") {
        let model = onnx::read(&path).unwrap();
        let findings = verify_model(&model, Phase::Imported);
        assert!(findings.is_empty(), "{}: {findings:?}", path.display());
    }
}
