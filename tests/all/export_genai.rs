//! `kiln export genai`: what onnxruntime-genai is given. `make genai-check` runs it with the real one.

use std::fs;
use std::path::Path;

use kiln::generate::Ports;
use kiln_graph::onnx;
use serde_json::{Value, json};

use crate::common::command::{Folder, Ran, kiln};
use crate::common::{fixture, runtime};

/// A bundle of one of the small decoders for the CPU.
fn bundle(folder: &Folder, model: &str) -> Option<String> {
    runtime()?;
    let model = fixture("generation").join(model).display().to_string();
    let place = folder.path("d.kiln");
    let target = ["--target", "cpu", "--no-latency", "--no-check", "--force"];
    kiln(&[&["compile", &model, "-o", &place][..], &target].concat()).expect(0);
    Some(place)
}

fn export(folder: &Folder, bundle: &str, more: &[&str]) -> Ran {
    let out = folder.path("d.genai");
    kiln(
        &[
            &["export", "genai", bundle, "-o", &out, "--force"][..],
            more,
        ]
        .concat(),
    )
}

fn config(folder: &Folder) -> Value {
    let text = fs::read(folder.path("d.genai/genai_config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn the_runtime_is_told_what_the_graph_says() {
    let folder = Folder::new();
    let Some(growing) = bundle(&folder, "decoder.growing.onnx") else {
        return;
    };
    export(&folder, &growing, &["--stop", "2,3"])
        .expect(0)
        .says(&["there is no tokenizer"]);
    let found = config(&folder);
    let decoder = json!({
        "filename": "model.onnx", "session_options": {"provider_options": []},
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 16, "hidden_size": 64,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    });
    assert_eq!(found["model"]["decoder"], decoder);
    for (key, right) in [
        ("type", json!("decoder")),
        ("context_length", json!(64)),
        ("vocab_size", json!(64)),
        ("eos_token_id", json!([2, 3])),
        ("pad_token_id", json!(2)),
    ] {
        assert_eq!(found["model"][key], right, "{key}");
    }
    let search = json!({"do_sample": false, "max_length": 64, "past_present_share_buffer": false});
    assert_eq!(found["search"], search);
    // Caches that may stay in one buffer do.
    let shared = bundle(&folder, "decoder.gqa.onnx").unwrap();
    export(&folder, &shared, &["--stop", "2"]).expect(0);
    assert_eq!(
        config(&folder)["search"]["past_present_share_buffer"],
        json!(true)
    );
}

#[test]
fn published_files_give_ids_lengths_and_the_tokenizer() {
    let folder = Folder::new();
    let Some(llama) = bundle(&folder, "llama.past.dynamo.sdpa.onnx") else {
        return;
    };
    let from = folder.path("published");
    fs::create_dir_all(&from).unwrap();
    let export = |more: &[&str]| export(&folder, &llama, &[&["--from", &from][..], more].concat());
    export(&[]).expect(2).says(&["--stop", "is not known"]);
    let published = json!({"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "do_sample": true, "temperature": 0.6});
    folder.write(
        "published/generation_config.json",
        published.to_string().as_bytes(),
    );
    let made = json!({"eos_token_id": 5, "max_position_embeddings": 128, "hidden_size": 32});
    folder.write("published/config.json", made.to_string().as_bytes());
    let tokens = fs::read(fixture("tokenizers/bytes.json")).unwrap();
    folder.write("published/tokenizer.json", &tokens);
    export(&["--max-length", "96"]).expect(0).says(&["samples"]);
    let found = config(&folder);
    let model = &found["model"];
    assert_eq!(model["eos_token_id"], json!([2, 7]));
    assert_eq!(
        (&model["bos_token_id"], &model["pad_token_id"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(
        (&model["context_length"], &found["search"]["max_length"]),
        (&json!(96), &json!(96))
    );
    assert_eq!(
        (
            &found["search"]["do_sample"],
            &found["search"]["temperature"]
        ),
        (&json!(true), &json!(0.6))
    );
    assert_eq!(model["decoder"]["hidden_size"], json!(32));
    let settings = fs::read_to_string(folder.path("d.genai/tokenizer_config.json")).unwrap();
    assert!(settings.contains("PreTrainedTokenizerFast"), "{settings}");
    // The published one stays as it is.
    folder.write(
        "published/tokenizer_config.json",
        b"{\"tokenizer_class\": \"LlamaTokenizer\"}",
    );
    export(&["--stop", "9"]).expect(0);
    let settings = fs::read_to_string(folder.path("d.genai/tokenizer_config.json")).unwrap();
    assert!(settings.contains("LlamaTokenizer"), "{settings}");
    assert_eq!(config(&folder)["model"]["context_length"], json!(128));
    let words = fixture("tokenizers/sentence.json").display().to_string();
    export(&["--tokenizer", &words])
        .expect(2)
        .says(&["WordPiece", "BPE and Unigram"]);
    export(&["--stop", "96"])
        .expect(2)
        .says(&["token 96", "from 0 to 95"]);
    folder.write("published/config.json", b"{");
    export(&[]).expect(2).says(&["config.json", "no JSON"]);
}

#[test]
fn caches_without_a_pattern_get_names_that_have_one() {
    if runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let mut model = onnx::read(fixture("generation/decoder.growing.onnx")).unwrap();
    let g = &mut model.graph;
    let pasts: Vec<_> = (g.inputs().iter().copied())
        .filter(|&v| g.value(v).name().starts_with("past"))
        .collect();
    for (v, name) in pasts.into_iter().zip(["a", "b", "c", "d"]) {
        g.set_value_name(v, name);
    }
    let path = folder.path("named.onnx");
    fs::write(&path, onnx::to_bytes(&model).unwrap()).unwrap();
    let place = folder.path("named.kiln");
    kiln(&[
        "compile",
        &path,
        "--target",
        "cpu",
        "--no-latency",
        "--no-check",
        "-o",
        &place,
    ])
    .expect(0);
    export(&folder, &place, &["--stop", "2"])
        .expect(0)
        .says(&["no pattern"]);
    let inputs = config(&folder)["model"]["decoder"]["inputs"].clone();
    assert_eq!(inputs["past_key_names"], json!("past_key_values.%d.key"));
    let written = onnx::read(folder.path("d.genai/model.onnx")).unwrap();
    let ports = Ports::of(&written.graph).unwrap();
    let names: Vec<(&str, &str)> = (ports.caches.iter())
        .map(|c| (c.port.name.as_str(), c.output.as_deref().unwrap()))
        .collect();
    for pair in [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.1.value", "present.1.value"),
    ] {
        assert!(names.contains(&pair), "{names:?}");
    }
}

#[test]
fn what_the_runtime_cannot_run_is_refused_with_the_reason() {
    let folder = Folder::new();
    for (model, reason) in [
        (
            "decoder.scatter.onnx",
            ["write_indices", "where its caches are written"],
        ),
        ("decoder.merged.onnx", ["use_cache_branch", "--drop-inputs"]),
        ("t5.decoder.ts.sdpa.onnx", ["encoder", "nothing to give"]),
        ("t5.encoder.ts.sdpa.onnx", ["it has no cache", "past"]),
    ] {
        let Some(place) = bundle(&folder, model) else {
            return;
        };
        export(&folder, &place, &["--stop", "2"])
            .expect(3)
            .says(&reason);
        assert!(!Path::new(&folder.path("d.genai")).exists());
    }
    let roles = json!({"encoder": "d.kiln", "decoder": "d.kiln"});
    fs::create_dir_all(folder.path("pair")).unwrap();
    folder.write(
        "pair/generation.json",
        roles.to_string().replace("d.kiln", "../d.kiln").as_bytes(),
    );
    export(&folder, &folder.path("pair"), &["--stop", "2"])
        .expect(3)
        .says(&["an encoder and a decoder"]);
}
