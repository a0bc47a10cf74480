//! Decoders with com.microsoft's operators over caches, for engines: caches of one length that are written into.

use std::path::Path;

use kiln_graph::caches::{Update, caches};
use kiln_graph::onnx;

use crate::common::command::{Folder, kiln};
use crate::common::{fixture, runtime, tensorrt};

fn model(name: &str) -> String {
    fixture("generation").join(name).display().to_string()
}

/// GroupQueryAttention of three operands and of one, which rotates half of a head; MultiHeadAttention and Attention.
const MODELS: [(&str, &[&str]); 4] = [
    (
        "decoder.gqa.onnx",
        &["\"attention_mask\" only counted tokens"],
    ),
    (
        "grouped.phi.onnx",
        &["\"attention_mask\" only counted tokens"],
    ),
    ("grouped.multi-bias.onnx", &[]),
    ("grouped.attention.onnx", &["past.0.key and past.0.value"]),
];

#[test]
fn operators_with_a_cache_generate_the_same_from_buffers() {
    if runtime().is_none() {
        return;
    }
    for (name, said) in MODELS {
        for precision in [&["--fp16"][..], &[]] {
            let folder = Folder::new();
            let (original, bundle) = (model(name), folder.path("d.kiln"));
            let all = [
                "compile",
                &original,
                "--no-latency",
                "--no-engine",
                "-o",
                &bundle,
            ];
            let target = ["--target", "sm_89"];
            kiln(&[&all[..], &target, precision].concat())
                .expect(0)
                .says(said)
                .says(&["write_indices says how many tokens"]);
            let written = onnx::read(Path::new(&bundle).join("model.onnx"))
                .unwrap()
                .graph;
            let found = caches(&written);
            assert_eq!(found.len(), 4, "{name}");
            assert!(
                found
                    .iter()
                    .all(|c| c.update == Update::Written && c.axis == 2)
            );
            let foreign = |n: &kiln_graph::Node| n.op().domain() == "com.microsoft";
            assert!(!written.nodes().any(|(_, n)| foreign(n)), "{name}");
            let check = ["check", &bundle, "--reference", &original, "--json"];
            let proof = kiln(&[&check[..], &["--generate", "48"]].concat())
                .expect(0)
                .json();
            for claim in proof["claims"].as_array().unwrap() {
                let is_renamed =
                    name == "grouped.attention.onnx" && claim["name"] == "what the caches hold";
                let wanted = if is_renamed { "not_run" } else { "holds" };
                assert_eq!(claim["outcome"], wanted, "{name}: {claim}");
            }
        }
    }
}

#[test]
fn their_engines_update_caches_in_place() {
    if !tensorrt() {
        return;
    }
    for (name, _) in MODELS {
        let folder = Folder::new();
        let (original, bundle) = (model(name), folder.path("d.kiln"));
        let all = ["compile", &original, "--fp16", "--no-check", "-o", &bundle];
        let ran = kiln(&[&all[..], &["--target", "sm_75,sm_86,sm_89,sm_120"]].concat());
        ran.expect(0).says(&[]);
        let engine = &folder.manifest("d.kiln")["engine"];
        let aliased = &engine["aliased"];
        assert_eq!(
            (&aliased["caches"], &aliased["in_place"]),
            (&4.into(), &4.into()),
            "{name}"
        );
        assert_eq!(aliased["copies_in_steps"], serde_json::json!([]), "{name}");
        let is = |k: &&serde_json::Value| k["name"].as_str().unwrap().contains("mha");
        assert_eq!(
            engine["steps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(is)
                .count(),
            2,
            "{name}"
        );
    }
}

#[test]
fn a_gate_holds_that_steps_leave_caches_where_they_are() {
    if runtime().is_none() || !tensorrt() {
        return;
    }
    let folder = Folder::new();
    let (llama, bundle) = (model("llama.past.dynamo.sdpa.onnx"), folder.path("d.kiln"));
    let all = ["compile", &llama, "--fp16", "--no-check", "-o", &bundle];
    let gate = ["--require", "cache-in-place"];
    let engine = ["--target", "sm_89", "--max-length", "48"];
    kiln(&[&all[..], &engine, &gate].concat()).expect(0);
    let gates = folder.manifest("d.kiln")["gates"].clone();
    assert_eq!(gates[0]["gate"], "cache in place");
    assert_eq!(gates[0]["verdict"], "pass");
    let check = ["check", &bundle, "--reference", &bundle, "--json"];
    let told = kiln(&[&check[..], &gate].concat()).expect(0).json();
    assert_eq!(told["caches"]["pass"], true);
    // Caches that grow, and no engine at all.
    let growing = ["--target", "sm_89", "--growing-caches"];
    kiln(&[&all[..], &growing, &gate].concat())
        .expect(1)
        .says(&["caches in place: the engine has none that are written into"]);
    let none = ["--target", "sm_89", "--no-engine"];
    kiln(&[&all[..], &none, &gate].concat())
        .expect(1)
        .says(&["caches in place: no engine is built"]);
    // A cap on the scores is computed between two products, which read a copy.
    let capped = model("grouped.softcap.onnx");
    let recipe = folder.path("kiln.yaml");
    let text = format!(
        "model: {capped}\noutput: {bundle}\nprecision: {{floats: fp16}}\ntarget: sm_89\ngates: {{cache-in-place: true}}\n"
    );
    std::fs::write(&recipe, text).unwrap();
    kiln(&["compile", "-c", &recipe])
        .expect(1)
        .says(&["kernels of a step copy one"]);
}
