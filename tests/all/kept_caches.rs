//! Caches that stay where a decoder runs, from step to step.

use std::path::PathBuf;

use kiln::generate::{
    Decoder, Generator, Options, Ports, Prompt, Ran, Roles, Rules, Source, generate, open,
    open_once,
};
use kiln::parity::npz;
use kiln::runtime::{Session, SessionOptions};
use kiln_graph::{Tensor, onnx};

use crate::common::command::kiln;
use crate::common::{fixture, runtime};

fn model(name: &str) -> PathBuf {
    fixture("generation").join(name)
}

/// A decoder whose caches stay in the memory of its session, as on a GPU.
fn keeping(name: &str) -> Option<Decoder> {
    let path = model(name);
    let graph = onnx::read(&path).unwrap().graph;
    let session = Session::from_path(runtime()?, &path, &SessionOptions::default()).unwrap();
    Some(Decoder::new(Ran::carrying(session), Ports::of(&graph).unwrap(), Some(64)).unwrap())
}

fn rules() -> Rules {
    Rules {
        limit: 12,
        ..Rules::default()
    }
}

#[test]
fn the_tokens_are_those_of_caches_that_come_back() {
    for name in [
        "decoder.growing.onnx",
        "decoder.merged.onnx",
        "decoder.gqa.onnx",
        "decoder.scatter.onnx",
        "gpt2.past.ts.sdpa.onnx",
        "llama.past.dynamo.sdpa.onnx",
    ] {
        let Some(mut kept) = keeping(name) else {
            return;
        };
        let options = Options {
            max_length: Some(64),
            ..Options::default()
        };
        let mut back = open(&model(name), &options).unwrap();
        let hides = back.ports.hides_padding();
        let ragged: Vec<Vec<i64>> = vec![vec![5, 9, 2, 7], vec![3, 1]];
        let prompts = if hides {
            ragged
        } else {
            vec![vec![5, 9, 2, 7]]
        };
        // Twice, so that the second begins behind what the first left.
        for _ in 0..2 {
            let run = |decoder: &mut Decoder| {
                let done = generate(decoder, &prompts, &[], &rules(), &mut |_, _| {});
                done.unwrap().tokens
            };
            assert_eq!(run(&mut kept), run(&mut back), "{name}");
        }
    }
}

#[test]
fn a_first_step_hands_its_caches_over() {
    let name = "whisper";
    let Some(decoder) = keeping(&format!("{name}.decoder.ts.sdpa.onnx")) else {
        return;
    };
    let once = |role: &str| {
        let path = model(&format!("{name}.{role}.ts.sdpa.onnx"));
        open_once(&path, &Options::default()).unwrap()
    };
    let mut kept = Generator {
        decoder,
        encoder: Some(once("encoder")),
        first: Some(once("first")),
    };
    let roles = Roles {
        encoder: Some(model(&format!("{name}.encoder.ts.sdpa.onnx"))),
        first: Some(model(&format!("{name}.first.ts.sdpa.onnx"))),
        decoder: model(&format!("{name}.decoder.ts.sdpa.onnx")),
        ..Roles::default()
    };
    let mut back = Generator::open(&roles, &Options::default()).unwrap();
    let arrays = npz::read(&model(&format!("{name}.tokens.npz"))).unwrap();
    let features = arrays.into_iter().filter(|(n, _)| n == "input_features");
    let features: Vec<(String, Tensor)> = features.collect();
    let start: Vec<i64> = vec![1, 2];
    let prompt = Prompt::Source(Source::Features(features), start);
    let run = |generator: &mut Generator| {
        let done = generator.run(&prompt, &rules(), &mut |_, _| {});
        done.unwrap().tokens
    };
    assert_eq!(run(&mut kept), run(&mut back));
}

#[test]
fn one_generation_at_a_time_is_kept() {
    let Some(mut kept) = keeping("decoder.growing.onnx") else {
        return;
    };
    let mut first = kept.start(1, &[]).unwrap();
    kept.step(&mut first, &[vec![5, 9]]).unwrap();
    let mut second = kept.start(1, &[]).unwrap();
    kept.step(&mut second, &[vec![3]]).unwrap();
    kept.step(&mut second, &[vec![4]]).unwrap();
    let error = kept.step(&mut first, &[vec![2]]).unwrap_err().to_string();
    assert!(error.contains("another one has begun"), "{error}");
}

#[test]
fn engines_take_a_gpu() {
    let model = model("decoder.growing.onnx");
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("b.kiln");
    let (from, to) = (model.to_str().unwrap(), bundle.to_str().unwrap());
    kiln(&["compile", from, "--target", "cpu", "-o", to]).expect(0);
    let generate = ["generate", to, "--ids", "5,9", "--engine"];
    kiln(&generate).expect(2).says(&["has no engine"]);
    if kiln::engine::run::unavailable().is_some() {
        std::fs::write(bundle.join("model.engine"), "an engine").unwrap();
        kiln(&generate).expect(5).says(&["no CUDA device"]);
        let check = ["check", to, "--reference", from, "--generate", "4"];
        let out = kiln(&check).expect(0).out;
        let claim = out.lines().find(|l| l.contains("the engine's scores"));
        assert!(claim.is_some_and(|l| l.contains("no CUDA device")), "{out}");
    }
}
