//! `kiln export`: what servers are given. `make serve-check` serves it with a real Triton.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common;
use crate::common::command::{Folder, kiln};

/// A bundle of a small encoder for the CPU.
fn bundle(folder: &Folder, options: &[&str]) -> Option<String> {
    common::runtime()?;
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let place = folder.path("tiny.kiln");
    let base = [
        "compile",
        model.to_str().unwrap(),
        "--no-latency",
        "-o",
        &place,
    ];
    kiln(&[&base[..], options].concat()).expect(0);
    Some(place)
}

fn config(repository: &str, model: &str) -> String {
    fs::read_to_string(format!("{repository}/{model}/config.pbtxt")).unwrap()
}

#[test]
fn triton_is_told_names_types_and_limits() {
    let folder = Folder::new();
    let Some(bundle) = bundle(&folder, &["--target", "cpu", "--fp16"]) else {
        return;
    };
    let repository = folder.path("repository");
    let base = [
        "export",
        "triton",
        &bundle,
        "-o",
        &repository,
        "--no-measure",
    ];
    let ran = kiln(&base).expect(0);
    assert!(ran.out.contains("tiny/1/model.onnx"), "{}", ran.out);
    let text = config(&repository, "tiny");
    for part in [
        "name: \"tiny\"",
        "backend: \"onnxruntime\"",
        "max_batch_size: 8",
        "name: \"input_ids\"\n  data_type: TYPE_INT64\n  dims: [ -1 ]",
        "dynamic_batching {\n}",
        "kind: KIND_CPU",
        "input_data_file: \"input-0\"",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    // A sample of 128 tokens of eight bytes.
    let warm = fs::metadata(format!("{repository}/tiny/warmup/input-0")).unwrap();
    assert_eq!(warm.len(), 128 * 8);
    // What is there is kept, unless it is to be replaced.
    kiln(&base).expect(2).says(&["is there already", "--force"]);
    let other = [
        &base[..],
        &["--force", "--no-batching", "--model-version", "3"],
    ]
    .concat();
    kiln(&other).expect(0);
    assert!(Path::new(&format!("{repository}/tiny/3/model.onnx")).is_file());
    assert!(!config(&repository, "tiny").contains("dynamic_batching"));
    assert_eq!(fs::read_dir(&repository).unwrap().count(), 1);
}

#[test]
fn texts_go_through_tokenizer_model_and_pooling() {
    let folder = Folder::new();
    let Some(bundle) = bundle(&folder, &["--target", "cpu"]) else {
        return;
    };
    let repository = folder.path("repository");
    let tokenizer = common::fixture("tokenizers/words.json");
    let base = [
        "export",
        "triton",
        &bundle,
        "-o",
        &repository,
        "--no-measure",
    ];
    let texts = [
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--pooling",
        "mean",
    ];
    let ran = kiln(&[&base[..], &texts].concat());
    ran.expect(0)
        .says(&["tiny-text takes TEXT and gives EMBEDDING"]);
    let whole = config(&repository, "tiny-text");
    let steps: Vec<&str> = whole
        .split("model_name: ")
        .skip(1)
        .map(|s| s.lines().next().unwrap())
        .collect();
    assert_eq!(
        steps,
        ["\"tiny-tokenizer\"", "\"tiny\"", "\"tiny-pooling\""]
    );
    assert!(config(&repository, "tiny-tokenizer").contains("key: \"max_length\""));
    for file in [
        "tiny-tokenizer/1/model.py",
        "tiny-tokenizer/1/tokenizer.json",
        "tiny-pooling/1/model.py",
    ] {
        assert!(
            Path::new(&format!("{repository}/{file}")).is_file(),
            "{file}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    let Some(bundle) = bundle(&folder, &["--target", "cpu"]) else {
        return;
    };
    let repository = folder.path("repository");
    let export = |more: &[&str]| {
        let base = [
            "export",
            "triton",
            &bundle,
            "-o",
            &repository,
            "--no-measure",
        ];
        kiln(&[&base[..], more].concat())
    };
    export(&["--name", "a/b"])
        .expect(2)
        .says(&["--name", "a/b"]);
    export(&["--output-name", "nosuch"])
        .expect(2)
        .says(&["no output \"nosuch\"", "it has: "]);
    assert!(!Path::new(&repository).exists());
    let model = common::fixture("models/vit.ts.eager.onnx");
    let ran = kiln(&[
        "export",
        "triton",
        model.to_str().unwrap(),
        "-o",
        &repository,
    ]);
    assert_ne!(ran.code, 0);
    assert!(!Path::new(&repository).exists());
}

#[test]
fn engines_for_rtx_are_said_not_to_be_served() {
    let folder = Folder::new();
    if !common::tensorrt() {
        return;
    }
    let Some(bundle) = bundle(&folder, &["--target", "sm_89", "--fp16"]) else {
        return;
    };
    let repository = folder.path("repository");
    let ran = kiln(&["export", "triton", &bundle, "-o", &repository]).expect(0);
    ran.says(&[
        "no backend for engines of TensorRT for RTX",
        "was not measured",
    ]);
    let text = config(&repository, "tiny");
    assert!(
        text.contains("backend: \"onnxruntime\"") && text.contains("KIND_GPU"),
        "{text}"
    );
    assert!(!Path::new(&format!("{repository}/tiny/1/model.plan")).exists());
}

#[test]
fn text_embeddings_inference_gets_what_it_reads() {
    let folder = Folder::new();
    let Some(bundle) = bundle(&folder, &["--target", "cpu", "--fp16"]) else {
        return;
    };
    let (from, out) = (folder.path("published"), folder.path("tei"));
    fs::create_dir_all(format!("{from}/1_Pooling")).unwrap();
    let export = |more: &[&str]| {
        let base = ["export", "tei", &bundle, "-o", &out, "--from", &from];
        kiln(&[&base[..], more].concat())
    };
    let outputs = kiln(&["inspect", &bundle, "--json"]).json()["outputs"].clone();
    let pooled = outputs[1][0].as_str().unwrap().to_string();
    let rename = format!("{pooled}=pooled");
    export(&["--rename", &rename])
        .expect(2)
        .says(&["config.json", "cannot be read"]);
    folder.write("published/config.json", b"{\"model_type\": \"bert\"}");
    export(&["--rename", &rename])
        .expect(2)
        .says(&["does not start without hidden_size"]);
    let config = json!({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128, "vocab_size": 99});
    folder.write("published/config.json", config.to_string().as_bytes());
    folder.write("published/tokenizer.json", b"{}");
    folder.write("published/1_Pooling/config.json", b"{}");
    export(&["--rename", "nosuch=logits"])
        .expect(2)
        .says(&["no output \"nosuch\""]);
    export(&["--rename", &rename]).expect(0);
    for file in [
        "model.onnx",
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
    ] {
        assert!(Path::new(&format!("{out}/{file}")).is_file(), "{file}");
    }
    let exported = kiln(&["inspect", &format!("{out}/model.onnx"), "--json"]).json();
    let names: Vec<&str> = exported["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o[0].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"last_hidden_state") && names.contains(&"pooled"),
        "{names:?}"
    );
}
