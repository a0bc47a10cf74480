//! The manifest as a contract: what is written is read as the same, older kilns' manifests open, and newer ones are refused.

use std::fs;
use std::path::Path;

use kiln::manifest::{self, FORMAT, Manifest};
use kiln::report;
use serde_json::{Value, json};

use crate::common::command::{Folder, kiln};
use crate::common::{self, schema::misfits};

/// Bundles of several kinds: what was asked for, beside the model.
fn kinds() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut kinds = vec![
        ("fp16", vec!["--target", "cpu", "--fp16"]),
        ("explained", vec!["--target", "cpu", "--explain", "all"]),
        ("int8", vec!["--target", "cpu", "--int8"]),
        ("dynamic", vec!["--target", "cpu", "--int8=dynamic"]),
        ("unproved", vec!["--target", "cpu", "--no-check"]),
        ("gated", vec!["--target", "cpu", "--max-size-ratio", "1.5"]),
    ];
    if common::tensorrt() {
        kinds.push(("engine", vec!["--target", "sm_89", "--fp16"]));
        kinds.push(("bf16", vec!["--target", "sm_89", "--bf16"]));
        kinds.push(("int4", vec!["--target", "sm_89", "--int4", "--fp16"]));
    }
    kinds
}

/// JSON → struct → JSON is the identity, and a report is what the manifest alone gives.
#[test]
fn a_manifest_is_read_as_it_was_written() {
    if common::runtime().is_none() {
        return;
    }
    let schema: Value = serde_json::from_str(&kiln(&["schema", "manifest"]).expect(0).out).unwrap();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let model = model.to_str().unwrap();
    let folder = Folder::new();
    for (kind, options) in kinds() {
        let bundle = folder.path(kind);
        let mut args = vec!["compile", model, "-o", &bundle, "--quiet", "--no-latency"];
        if kind == "fp16" {
            args.retain(|a| *a != "--no-latency");
            args.push("--latency");
        }
        args.extend(options);
        kiln(&args).expect(0);
        let bundle = Path::new(&bundle);
        let text = fs::read(bundle.join("manifest.json")).unwrap();
        let read = manifest::read(bundle).unwrap();
        assert_eq!(read.format, FORMAT);
        assert!(serde_json::to_vec_pretty(&read).unwrap() == text, "{kind}");
        let json: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(misfits(&json, &schema, kind), [""; 0]);
        let told = |name: &str| fs::read_to_string(bundle.join(name)).unwrap();
        assert!(report::markdown(&read) == told("report.md"), "{kind}");
        assert!(report::html(&read) == told("report.html"), "{kind}");
    }
}

fn parsed(text: &Value) -> Result<Manifest, manifest::ManifestError> {
    manifest::parse(Path::new("manifest.json"), text.to_string().as_bytes())
}

#[test]
fn keys_that_are_not_known_are_passed_over() {
    let future = json!({
        "kiln": "0.9.0", "format": FORMAT, "target": "cpu", "moon": {"phase": 3},
        "source": {"path": "m.onnx", "colour": "red"}, "recipe": {"target": "cpu", "moon": 1},
        "engine_parity": {"status": "not-run", "why": "there is no engine", "moon": true},
    });
    let read = parsed(&future).unwrap();
    assert_eq!(
        (read.target.as_str(), read.source.path.as_str()),
        ("cpu", "m.onnx")
    );
    assert!(read.parity.is_none() && read.recipe.target.is_some());
}

/// What kilns wrote before there were formats.
#[test]
fn a_manifest_without_a_format_opens() {
    let old = parsed(&json!({"kiln": "0.1.0", "target": "cpu", "precision": "fp16"})).unwrap();
    assert_eq!((old.format, old.precision.as_str()), (0, "fp16"));
    assert!(report::markdown(&old).contains("fp16"));
}

#[test]
fn what_is_no_manifest_is_refused() {
    for text in [
        json!(null),
        json!([1]),
        json!({"parity": []}),
        json!({"format": "two"}),
    ] {
        let error = parsed(&text).unwrap_err().to_string();
        assert!(
            error.starts_with("manifest.json cannot be read: "),
            "{error}"
        );
    }
}

/// By every verb that reads one.
#[test]
fn a_manifest_of_a_newer_format_is_refused_by_name() {
    let folder = Folder::with_model();
    folder.compile(&["--no-check", "-q"]).expect(0);
    let path = folder.path("model.kiln/manifest.json");
    let mut json = folder.manifest("model.kiln");
    json["format"] = json!(FORMAT + 1);
    json["kiln"] = json!("9.0.0");
    // The newer kiln means something else by it.
    json["parity"] = json!("see parity.json");
    fs::write(&path, json.to_string()).unwrap();
    let newer = ["manifest.json", "format 2, of kiln 9.0.0", "update kiln"];
    let (model, bundle) = (folder.path("model.onnx"), folder.path("model.kiln"));
    kiln(&["compile", "-c", &path]).expect(2).says(&newer);
    kiln(&["compile", &bundle, "-o", &folder.path("other.kiln")])
        .expect(2)
        .says(&newer);
    kiln(&["inspect", &bundle]).expect(0).says(&newer);
    if common::runtime().is_some() {
        kiln(&["check", &bundle, "--reference", &model])
            .expect(2)
            .says(&newer);
    }
}

/// Where the proof ran is what the manifest says, not what is usual.
#[test]
fn a_report_says_where_the_proof_ran() {
    let told = |device: &str, optimization: &str, engine: Value| {
        let manifest = parsed(&json!({
            "device": {"device": device, "why": "", "asked": true}, "optimization": optimization, "engine": engine,
            "parity": {"tolerance": {"name": "int8", "limits": {"same_bits": false}, "overrides": []}, "cases": []},
        }));
        report::markdown(&manifest.unwrap())
    };
    let plain = told("cpu", "disabled", Value::Null);
    assert!(
        plain.contains("on ONNX Runtime's CPU provider, graph optimization disabled; tolerance")
    );
    assert!(!plain.contains("latency of the engine"));
    let integers = told("cpu", "all", json!({"bytes": 1}));
    assert!(integers.contains("disabled for it and on for the result; tolerance `int8`"));
    assert!(integers.contains("latency of the engine: `kiln bench BUNDLE --engine` times it"));
    let cuda = told("cuda:1", "disabled", Value::Null);
    assert!(cuda.contains("on ONNX Runtime's CUDA provider (cuda:1), graph optimization disabled"));
}
