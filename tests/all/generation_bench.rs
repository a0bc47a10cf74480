//! Benchmarks of a generation: pairs, decoders without a cache, several sizes, a gate.

use serde_json::Value;

use crate::common::command::kiln;
use crate::common::{fixture, runtime};

fn path(name: &str) -> String {
    fixture("generation").join(name).display().to_string()
}

fn bench(arguments: &[&str], code: i32) -> Value {
    let out = kiln(&[&["bench", "--repetitions", "2"], arguments, &["--json"]].concat());
    serde_json::from_str(&out.expect(code).out).unwrap()
}

/// A pair by its roles, in a file of its own.
fn pair(folder: &std::path::Path, name: &str, roles: &[(&str, &str)]) -> String {
    let mut json = serde_json::json!({"start": [1]});
    for (role, model) in roles {
        json[role] = path(model).into();
    }
    let file = folder.join(name);
    std::fs::write(&file, json.to_string()).unwrap();
    file.display().to_string()
}

#[test]
fn a_pair_is_timed_beside_its_decoder_without_a_cache() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, reads) in [("t5", true), ("whisper", false)] {
        let of = |role: &str| format!("{name}.{role}.ts.sdpa.onnx");
        let (encoder, first, decoder) = (of("encoder"), of("first"), of("decoder"));
        let all = [
            ("encoder", &*encoder),
            ("first", &*first),
            ("decoder", &*decoder),
        ];
        let cached = pair(folder.path(), "cached.json", &all);
        // The first step alone is a decoder that runs all tokens each time.
        let roles = [("encoder", &*encoder), ("decoder", &*first)];
        let without = pair(folder.path(), "without.json", &roles);
        let found = bench(
            &[
                &without,
                &cached,
                "--generate=prompt=9,new=6",
                "--generate",
                "prompt=5,new=3",
                "--name=without",
            ],
            0,
        );
        let sizes: Vec<i64> = (found["points"].as_array().unwrap().iter())
            .map(|p| p["new"].as_i64().unwrap())
            .collect();
        assert_eq!(sizes, [6, 3]);
        for point in found["points"].as_array().unwrap() {
            assert_eq!(point["same_tokens"], true, "{name}");
            let sides = point["sides"].as_array().unwrap();
            assert_eq!(sides[0]["cache_bytes"], 0);
            assert!(sides[1]["cache_bytes"].as_u64().unwrap() > 0);
            for side in sides {
                assert!(side["encoder"]["p50"].as_f64().unwrap() > 0.0);
                assert_eq!(side["prompt_rate"].is_null(), !reads);
                assert_eq!(side["first_ns"].as_array().unwrap().len(), 2);
            }
        }
        let models = found["models"].as_array().unwrap();
        assert_eq!(models[0]["name"], "without");
        assert_eq!(models[0]["without_cache"], true);
        assert_eq!(models[1]["without_cache"], false);
        assert!(
            models
                .iter()
                .all(|m| m["peak_bytes"].as_u64().unwrap() > 1 << 20)
        );
    }
}

#[test]
fn the_caches_of_a_decoder_take_what_its_tokens_do() {
    if runtime().is_none() {
        return;
    }
    let growing = path("decoder.growing.onnx");
    let found = bench(&[&growing, "--generate=prompt=16,new=12"], 0);
    // Twelve tokens take eleven steps; 512 bytes for each of 27 places.
    assert_eq!(found["points"][0]["sides"][0]["cache_bytes"], 27 * 512);
    assert_eq!(
        found["points"][0]["sides"][0]["tokens"]
            .as_array()
            .unwrap()
            .len(),
        12
    );
    kiln(&["bench", &growing, "--generate=prompt=50,new=40"]).expect(2);
}

#[test]
fn a_saved_benchmark_is_a_baseline() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (growing, gqa) = (path("decoder.growing.onnx"), path("decoder.gqa.onnx"));
    let size = "--generate=prompt=8,new=8";
    let saved = folder.path().join("saved.json");
    let mut before = bench(&[&growing, size], 0);
    // A baseline that no machine reaches, of enough repetitions.
    let side = &mut before["points"][0]["sides"][0];
    for times in ["first_ns", "between_ns"] {
        side[times] = vec![1; 40].into();
    }
    std::fs::write(&saved, before.to_string()).unwrap();
    let saved = saved.display().to_string();
    let found = bench(&[&growing, size, "--baseline", &saved], 1);
    let judged = found["gate"]["points"].as_array().unwrap();
    let fails = judged.iter().filter(|j| j["verdict"] == "fail").count();
    assert_eq!((judged.len(), fails), (2, 2));
    assert_eq!(judged[1]["what"], "time between tokens");
    // A model is measured first, in the same run; a size that a file does not have is not run.
    let among = [
        &*growing,
        &gqa,
        size,
        "--baseline",
        &gqa,
        "--max-regression=1000000%",
    ];
    let found = bench(&among, 0);
    assert_eq!(found["models"][0]["path"], *gqa);
    let judged = found["gate"]["points"].as_array().unwrap();
    assert!(judged.len() == 2 && judged.iter().all(|j| j["verdict"] == "pass"));
    let other = ["--generate=prompt=4,new=8", "--baseline", &saved];
    let found = bench(&[&[&*growing], &other[..]].concat(), 0);
    assert_eq!(found["gate"]["points"][0]["verdict"], "not_run");
    std::fs::write(folder.path().join("saved.json"), "{}").unwrap();
    let wrong = kiln(&["bench", &growing, size, "--baseline", &saved]).expect(2);
    assert!(
        wrong
            .err
            .contains("it is not what a benchmark of a generation prints")
    );
}

#[test]
fn a_decoder_without_a_cache_generates_and_an_encoder_does_not() {
    if runtime().is_none() {
        return;
    }
    let gpt2 = fixture("models/gpt2.ts.sdpa.onnx").display().to_string();
    let one = kiln(&["generate", &gpt2, "--ids=5,9,33", "--new=6"]).expect(0);
    let first = one.out.trim().split(',').next().unwrap().to_string();
    let longer = format!("--ids=5,9,33,{first}");
    let behind = kiln(&["generate", &gpt2, &longer, "--new=5"]).expect(0);
    assert_eq!(one.out.trim(), format!("{first},{}", behind.out.trim()));
    // Rows of unequal lengths do not see each other.
    let both = ["generate", &gpt2, "--ids=5,9,33", "--ids=7,8", "--new=6"];
    let both = kiln(&both).expect(0);
    assert_eq!(both.out.lines().next(), Some(one.out.trim()));
    let bert = fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let bert = bert.display().to_string();
    let refused = kiln(&["bench", &bert, "--generate=prompt=4,new=2"]).expect(3);
    assert!(refused.err.contains("it has no cache"), "{}", refused.err);
}
