//! Recipes from end to end: bundles that are made again, gates, and the example of the documentation.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use kiln::parity::{self, InputKind, InputSpec};
use kiln::recipe;
use kiln_graph::DType;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn kiln(folder: &Path, args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .current_dir(folder)
        .args(args)
        .output()
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// A folder with a model, data and a recipe.
fn setup(recipe: &str) -> Option<TempDir> {
    common::runtime()?;
    let folder = tempfile::tempdir().unwrap();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    fs::copy(model, folder.path().join("model.onnx")).unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let spec = |name: &str, kind| InputSpec {
        name: name.into(),
        dtype: DType::I64,
        shape: vec![1, 8],
        kind,
    };
    let specs = [
        spec("input_ids", InputKind::TokenIds { upper: 99 }),
        spec("attention_mask", InputKind::Mask),
        spec("token_type_ids", InputKind::Zeros),
    ];
    for seed in 0..24 {
        let inputs = parity::make(&specs, seed).unwrap();
        parity::save(
            &folder.path().join(format!("data/{seed:02}.npz")),
            &inputs,
            &[],
        )
        .unwrap();
    }
    fs::write(folder.path().join("kiln.yaml"), recipe).unwrap();
    Some(folder)
}

const INT8: &str = "
model: model.onnx
target: cpu
latency: false
precision: {linear: int8}
calibration: {data: data}
";

#[test]
fn a_bundle_is_made_again_byte_for_byte() {
    let Some(folder) = setup(INT8) else { return };
    let folder = folder.path();
    let model = |bundle: &str| fs::read(folder.join(bundle).join("model.onnx")).unwrap();
    let (code, err) = kiln(folder, &["compile", "-c", "kiln.yaml"]);
    assert_eq!(code, 0, "{err}");
    let first = model("model.kiln");
    let (code, err) = kiln(
        folder,
        &["compile", "-c", "kiln.yaml", "-o", "second.kiln", "-q"],
    );
    assert_eq!(code, 0, "{err}");
    assert!(model("second.kiln") == first);
    let (code, err) = kiln(
        folder,
        &[
            "compile",
            "-c",
            "second.kiln/manifest.json",
            "-o",
            "third.kiln",
        ],
    );
    assert_eq!(code, 0, "{err}");
    assert!(model("third.kiln") == first);
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder.join("third.kiln/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(manifest["recipe"]["precision"]["linear"], "int8");
    assert_eq!(manifest["recipe"]["blake3"], manifest["source"]["blake3"]);

    // Options lie over the recipe.
    let (code, err) = kiln(
        folder,
        &["compile", "-c", "kiln.yaml", "--fp16", "-o", "half.kiln"],
    );
    assert_eq!(code, 0, "{err}");
    assert!(model("half.kiln") != first);

    // Another model under the same name is not what the manifest was made of.
    let other = common::fixture("models/vit.ts.eager.onnx");
    fs::copy(other, folder.join("model.onnx")).unwrap();
    let (code, err) = kiln(
        folder,
        &[
            "compile",
            "-c",
            "second.kiln/manifest.json",
            "-o",
            "fourth.kiln",
        ],
    );
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("BLAKE3") && !folder.join("fourth.kiln").exists(),
        "{err}"
    );
}

#[test]
fn a_model_is_known_by_two_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    fs::copy(&model, folder.join("model.onnx")).unwrap();
    let compile = |asked: &str| {
        fs::write(
            folder.join("kiln.yaml"),
            format!("{{model: model.onnx, target: cpu, check: false, {asked}}}"),
        )
        .unwrap();
        kiln(folder, &["compile", "-c", "kiln.yaml"])
    };
    let source = || -> Value {
        let manifest = fs::read(folder.join("model.kiln/manifest.json")).unwrap();
        serde_json::from_slice::<Value>(&manifest).unwrap()["source"].take()
    };
    let bytes = fs::read(model).unwrap();
    let blake3 = blake3::hash(&bytes).to_string();
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();

    // Without a proof the slower one is left out, unless it is asked for.
    assert_eq!(compile("").0, 0);
    assert_eq!(source()["blake3"], *blake3);
    assert_eq!(source()["sha256"], Value::Null);
    assert_eq!(compile(&format!("blake3: {blake3}")).0, 0);
    assert_eq!(compile(&format!("sha256: {sha256}")).0, 0);
    assert_eq!(source()["sha256"], *sha256);
    for (asked, says) in [("sha256: '00'", "SHA-256"), ("blake3: '00'", "BLAKE3")] {
        let (code, err) = compile(asked);
        assert_eq!(code, 3, "{err}");
        assert!(err.contains(says), "{err}");
    }
}

#[test]
fn gates_stop_a_bundle() {
    let Some(folder) = setup("{model: model.onnx, target: cpu, latency: false}") else {
        return;
    };
    let folder = folder.path();
    let gate = |gates: &str, code: i32, says: &str| {
        fs::write(
            folder.join("kiln.yaml"),
            format!("{{model: model.onnx, target: cpu, {gates}}}"),
        )
        .unwrap();
        let (found, err) = kiln(folder, &["compile", "-c", "kiln.yaml"]);
        assert_eq!(found, code, "{gates}: {err}");
        assert!(err.contains(says), "{gates}: {err}");
        assert_eq!(folder.join("model.kiln").exists(), code == 0);
    };
    gate(
        "latency: false, gates: {size: {max-ratio: 0.2}}",
        1,
        "of the original's size",
    );
    gate(
        "latency: false, gates: {size: {max-bytes: 10}}",
        1,
        "the limit is 10",
    );
    gate(
        "latency: false, gates: {latency: {max-ratio: 1}}",
        1,
        "was not measured",
    );
    gate("gates: {latency: {max-ratio: 0.001}}", 1, "the latency is");
    gate(
        "latency: false, gates: {parity: {limits: {pooler_output: {cosine: 1.5}}}}",
        1,
        "pooler_output",
    );
    gate(
        "latency: false, gates: {parity: {tolerance: fp32-exact}, size: {max-ratio: 2}}",
        1,
        "its bits differ",
    );
    gate(
        "latency: false, gates: {parity: {tolerance: fp16}, size: {max-ratio: 2}}",
        0,
        "",
    );
}

#[test]
fn mistakes_are_named() {
    let Some(folder) = setup("presision: {floats: fp16}") else {
        return;
    };
    let (code, err) = kiln(folder.path(), &["compile", "-c", "kiln.yaml"]);
    assert_eq!(code, 2);
    assert!(
        err.contains("kiln.yaml") && err.contains("do you mean 'precision'"),
        "{err}"
    );
    let (code, err) = kiln(folder.path(), &["compile", "-c", "none.yaml"]);
    assert_eq!(code, 2);
    assert!(err.contains("none.yaml"), "{err}");
    let (code, _) = kiln(folder.path(), &["schema"]);
    assert_eq!(code, 0);
}

#[test]
fn the_example_of_the_documentation_is_a_recipe() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes.md")).unwrap();
    let example = text
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.yaml");
    fs::write(&path, example).unwrap();
    let options = recipe::resolve(&recipe::read(&path).unwrap()).unwrap();
    assert_eq!(options.precision.to_string(), "int8+fp16");
    assert!(options.gates.latency_ratio.is_some());
}
