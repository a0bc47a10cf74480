//! Decoders whose caches grow, for engines: caches of one length that are written into.

use std::path::Path;

use kiln_graph::caches::{Update, caches};
use kiln_graph::{DType, Dim, onnx};

use crate::common::command::{Folder, Ran, kiln};
use crate::common::{fixture, runtime, tensorrt};

fn model(name: &str) -> String {
    fixture("generation").join(name).display().to_string()
}

fn compile(folder: &Folder, name: &str, more: &[&str]) -> Ran {
    let (model, bundle) = (model(name), folder.path("d.kiln"));
    let mut all = vec!["compile", &model, "--fp16", "--no-latency", "-o", &bundle];
    all.extend(more);
    kiln(&all)
}

#[test]
fn growing_caches_become_buffers_and_generate_the_same() {
    if runtime().is_none() {
        return;
    }
    for name in [
        "gpt2.past.ts.sdpa.onnx",
        "llama.past.dynamo.sdpa.onnx",
        // A window that slides.
        "mistral.past.ts.sdpa.onnx",
        // Positions that are counted in a mask.
        "opt.past.ts.sdpa.onnx",
    ] {
        let folder = Folder::new();
        let target = ["--target", "sm_89", "--no-engine", "--max-length", "48"];
        compile(&folder, name, &target)
            .expect(0)
            .says(&["write_indices"]);
        let bundle = folder.path("d.kiln");
        let written = onnx::read(Path::new(&bundle).join("model.onnx"))
            .unwrap()
            .graph;
        let found = caches(&written);
        assert_eq!(found.len(), 4, "{name}");
        for c in found {
            assert_eq!(
                (c.update, c.axis, c.dtype),
                (Update::Written, 2, DType::F16)
            );
            let ty = written.value(c.input).ty();
            assert_eq!(ty.shape().unwrap()[2], Dim::Known(48), "{name}");
            assert!(c.output.is_some());
        }
        let reference = model(name);
        let check = [
            "check",
            &bundle,
            "--reference",
            &reference,
            "--generate",
            "32",
            "--json",
        ];
        let proof = kiln(&check).expect(0).json();
        assert_eq!(proof["tokens"], proof["result_tokens"], "{name}");
        for claim in proof["claims"].as_array().unwrap() {
            assert_eq!(claim["outcome"], "holds", "{name}: {claim}");
        }
    }
}

#[test]
fn a_decoder_that_came_with_buffers_keeps_them_in_the_engines_type() {
    if runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let name = "decoder.scatter.onnx";
    compile(&folder, name, &["--target", "sm_89", "--no-engine"]).expect(0);
    let place = folder.path("d.kiln");
    let written = onnx::read(Path::new(&place).join("model.onnx")).unwrap();
    for c in caches(&written.graph) {
        assert_eq!((c.update, c.dtype), (Update::Written, DType::F16));
    }
    let model = model(name);
    kiln(&["check", &place, "--reference", &model, "--generate", "24"]).expect(0);
}

#[test]
fn an_engine_has_a_profile_for_prompts_and_one_for_steps() {
    if runtime().is_none() || !tensorrt() {
        return;
    }
    let folder = Folder::new();
    let target = ["--target", "sm_86,sm_89,sm_120", "--max-length", "64"];
    compile(&folder, "qwen3.past.ts.sdpa.onnx", &target).expect(0);
    let engine = &folder.manifest("d.kiln")["engine"];
    let inputs = engine["inputs"].as_array().unwrap();
    let shape = |name: &str| {
        let found = inputs.iter().find(|i| i["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {inputs:?}"))["shape"].clone()
    };
    assert_eq!(
        shape("past_key_values.0.key"),
        serde_json::json!([-1, 2, 64, 16])
    );
    assert_eq!(shape("attention_mask"), serde_json::json!([-1, 64]));
    assert_eq!(shape("write_indices"), serde_json::json!([-1]));
    let steps = engine["steps"].as_array().unwrap();
    let is = |k: &serde_json::Value, part: &str| k["name"].as_str().unwrap().contains(part);
    assert_eq!(
        steps.iter().filter(|k| is(k, "mha")).count(),
        2,
        "{steps:?}"
    );
    // Nothing but what attends and what writes touches a cache.
    let long = |k: &serde_json::Value| {
        let reads = k["inputs"].as_array().unwrap().iter();
        reads
            .filter(|i| i["shape"] == serde_json::json!([-1, 2, 64, 16]))
            .count()
    };
    for kernel in steps.iter().filter(|k| long(k) > 0) {
        let name = kernel["name"].as_str().unwrap();
        assert!(
            name.contains("mha") || name.contains("Scat"),
            "{name} reads a cache"
        );
    }
}

#[test]
fn caches_stay_growing_where_that_is_asked_for() {
    if runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let target = ["--target", "sm_89", "--no-engine", "--growing-caches"];
    compile(&folder, "gpt2.past.ts.sdpa.onnx", &target).expect(0);
    let path = folder.path("d.kiln") + "/model.onnx";
    let found = caches(&onnx::read(path).unwrap().graph);
    assert!(found.iter().all(|c| c.update == Update::Grows));
    let both = ["--growing-caches", "--max-length", "9"];
    compile(&folder, "gpt2.past.ts.sdpa.onnx", &both).expect(2);
}

#[test]
fn a_length_that_changes_nothing_is_said() {
    let folder = Folder::new();
    let quick = ["--no-check", "--no-engine", "--max-length", "48"];
    for (name, target) in [
        ("t5.encoder.ts.sdpa.onnx", "sm_89"),
        ("gpt2.past.ts.sdpa.onnx", "cpu"),
    ] {
        compile(&folder, name, &[&quick[..], &["--target", target]].concat())
            .expect(0)
            .says(&["--max-length changes nothing"]);
    }
}

#[test]
fn a_bundle_says_that_its_caches_are_updated_in_place_and_what_they_take() {
    if !tensorrt() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("m.kiln").display().to_string();
    let llama = fixture("generation").join("llama.past.dynamo.sdpa.onnx");
    let llama = llama.display().to_string();
    let compile = ["compile", &llama, "--fp16", "--target", "sm_89"];
    let more = ["--max-length", "64", "--no-check", "-o", &bundle];
    let ran = kiln(&[&compile[..], &more].concat()).expect(0);
    // 2 layers, keys and values, 2 heads of 8 halves: 128 B a token.
    for said in [
        "caches 4 of 4 updated in place",
        "128 B a token, 8.2 kB at 64",
    ] {
        assert!(ran.out.contains(said), "{}", ran.out);
    }
    let report = std::fs::read_to_string(folder.path().join("m.kiln/report.md")).unwrap();
    assert!(report.contains("caches, a row") && report.contains("updated in place"));
}

#[test]
fn a_check_gives_the_original_the_same_caches() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("b.kiln");
    let to = bundle.to_str().unwrap();
    for form in ["growing", "gqa"] {
        let from = fixture(&format!("generation/decoder.{form}.onnx"));
        let from = from.to_str().unwrap();
        let compile = [
            "compile",
            from,
            "--fp16",
            "--target",
            "sm_89",
            "--no-engine",
        ];
        kiln(&[&compile[..], &["--max-length", "32", "--force", "-o", to]].concat()).expect(0);
        let check = |candidate: &str| kiln(&["check", candidate, "--reference", from, "--json"]);
        let found = check(to).expect(0).json();
        let cases = found["parity"]["cases"].as_array().unwrap();
        let outputs = cases[0]["outputs"].as_array().unwrap();
        assert!(outputs.len() > 4, "{form}: {found}");
        let alone = folder.path().join("alone.onnx");
        std::fs::copy(bundle.join("model.onnx"), &alone).unwrap();
        check(alone.to_str().unwrap())
            .expect(2)
            .says(&["--generate"]);
    }
}
