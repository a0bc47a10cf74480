//! Data of decoders comes from generations on what was given: prompts, or what an encoder reads.

use kiln::parity::npz;
use kiln_graph::Tensor;

use crate::common::command::kiln;
use crate::common::{fixture, runtime};

fn path(name: &str) -> String {
    fixture("generation").join(name).display().to_string()
}

#[test]
fn a_decoder_is_calibrated_on_the_caches_of_its_prompts() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    // Two rows, each a prompt.
    let prompts = Tensor::from_values(vec![2, 4], &[5i64, 9, 33, 2, 7, 8, 1, 30]).unwrap();
    npz::write(
        &folder.path().join("prompts.npz"),
        &[("input_ids", prompts)],
    )
    .unwrap();
    let growing = path("decoder.growing.onnx");
    for (target, out) in [("cpu", "cpu.kiln"), ("sm_89", "engine.kiln")] {
        let (data, out) = (at("prompts.npz"), at(out));
        let compile = [
            "compile",
            &growing,
            "--int8",
            "--target",
            target,
            "--no-engine",
            "--no-check",
            "--calibrate",
            &data,
            "-o",
            &out,
        ];
        let ran = kiln(&compile).expect(0);
        assert!(ran.err.contains("16 steps of generations"), "{}", ran.err);
        let manifest = std::fs::read_to_string(folder.path().join(&out).join("manifest.json"));
        let manifest: serde_json::Value = serde_json::from_str(&manifest.unwrap()).unwrap();
        let told = &manifest["calibration"];
        assert_eq!(told["made"], false, "{told}");
        let data = told["data"].as_str().unwrap();
        assert!(data.starts_with("16 steps of generations from"), "{data}");
    }
    // A prompt serves for the proof, too.
    let fp16 = [
        "compile",
        &growing,
        "--fp16",
        "--target",
        "cpu",
        "--no-latency",
    ];
    let out = at("fp16.kiln");
    kiln(&[&fp16[..], &["--inputs", &at("prompts.npz"), "-o", &out]].concat()).expect(0);
    let wrong = Tensor::from_values(vec![1, 1], &[64i64]).unwrap();
    npz::write(&folder.path().join("wrong.npz"), &[("input_ids", wrong)]).unwrap();
    let refused = kiln(
        &[
            &fp16[..],
            &["--inputs", &at("wrong.npz"), "--force", "-o", &out],
        ]
        .concat(),
    );
    assert!(refused.expect(2).err.contains("token 64"));
}

#[test]
fn a_pair_is_calibrated_on_what_its_encoder_reads() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let roles = serde_json::json!({
        "encoder": path("t5.encoder.ts.sdpa.onnx"),
        "first": path("t5.first.ts.sdpa.onnx"),
        "decoder": path("t5.decoder.ts.sdpa.onnx"),
        "start": [0],
    });
    std::fs::write(folder.path().join("generation.json"), roles.to_string()).unwrap();
    // The mask is made: a file of sources need not have it.
    let sources = Tensor::from_values(vec![2, 3], &[5i64, 9, 33, 7, 8, 1]).unwrap();
    npz::write(
        &folder.path().join("sources.npz"),
        &[("input_ids", sources)],
    )
    .unwrap();
    let (file, data, out) = (at("generation.json"), at("sources.npz"), at("pair.kiln"));
    let compile = ["compile", &file, "--int8", "--target", "cpu", "--no-check"];
    let ran = kiln(&[&compile[..], &["--calibrate", &data, "-o", &out]].concat());
    let ran = ran.expect(0);
    assert!(
        !ran.err.contains("dynamic") && !ran.err.contains("made-up"),
        "{}",
        ran.err
    );
    for role in ["encoder", "first-step", "decoder"] {
        let manifest = folder
            .path()
            .join("pair.kiln")
            .join(role)
            .join("manifest.json");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["calibration"]["made"], false, "{role}");
    }
}
