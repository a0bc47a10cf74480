//! Biases of attention's projections are moved where an engine pays for them, and what moved with them has no name of the
//! original's.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use kiln::check::{self, Against};
use kiln::compile::{Options, Outcome, compile};
use kiln::talk::Silent;

const MOVES: [&str; 3] = ["drop-key-bias", "move-value-bias", "sink-query-bias"];

/// Models, and how many attentions they have.
const MODELS: [(&str, usize); 4] = [
    ("models/bert-tiny.ts.eager.opset11.onnx", 2),
    // Its projections come packed.
    ("models/torch-encoder-prenorm.dynamo.sdpa.onnx", 2),
    // Keys have no bias.
    ("models/whisper-enc.dynamo.eager.onnx", 2),
    ("models/vit.ts.eager.onnx", 2),
];

fn compiled(model: &str, folder: &Path, more: impl FnOnce(&mut Options)) -> Outcome {
    let mut options = Options {
        output: Some(folder.join("bundle")),
        targets: Some("sm_89".parse().unwrap()),
        latency: false,
        engine: false,
        ..Options::new(common::fixture(model))
    };
    more(&mut options);
    compile(&options, &Silent).unwrap_or_else(|e| panic!("{model}: {e}"))
}

fn without_moves(options: &mut Options) {
    options.passes = Some(format!("default,-{}", MOVES.join(",-")));
}

/// How often each of [`MOVES`] applied.
fn applied(outcome: &Outcome) -> Vec<usize> {
    let passes = &outcome.manifest.passes;
    let of = |name: &&str| {
        let found = passes.iter().filter(|p| p.name == *name);
        found.map(|p| p.applications).sum()
    };
    MOVES.iter().map(of).collect()
}

#[test]
fn every_bias_finds_its_place_and_the_result_is_the_same() {
    if common::runtime().is_none() {
        return;
    }
    for (model, layers) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let outcome = compiled(model, folder.path(), |_| {});
        let keys = if model.contains("whisper") { 0 } else { layers };
        assert_eq!(applied(&outcome), [keys, layers, layers], "{model}");
        assert!(outcome.manifest.parity.unwrap().pass(), "{model}");
    }
}

#[test]
fn values_of_one_name_have_the_same_numbers() {
    if common::runtime().is_none() {
        return;
    }
    for (model, _) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let outcome = compiled(model, folder.path(), |o| o.check = false);
        let checked = check::check(&comparing(outcome.bundle, common::fixture(model)), &Silent);
        let layers = checked.unwrap().layers.unwrap();
        assert!(!layers.compared.is_empty(), "{model}");
        assert!(layers.first.is_none(), "{model}: {:?}", layers.first);
    }
}

fn comparing(candidate: PathBuf, reference: PathBuf) -> check::Options {
    check::Options {
        candidate,
        against: Against::Reference(reference),
        record: None,
        inputs: None,
        fixed: Vec::new(),
        tolerance: Some("fp32-rewrite".into()),
        limits: Vec::new(),
        require: None,
        layers: true,
        pieces: false,
        bisect: None,
        dims: Vec::new(),
        seed: 1,
        require_engine_parity: false,
        device: Default::default(),
        ort_lib: None,
        trt_lib: None,
    }
}

#[test]
fn an_engine_has_two_kernels_less_a_layer() {
    if !common::tensorrt() {
        return;
    }
    for (model, layers) in MODELS {
        let kernels = |more: fn(&mut Options)| {
            let folder = tempfile::tempdir().unwrap();
            let outcome = compiled(model, folder.path(), |o| {
                (o.engine, o.check) = (true, false);
                more(o);
            });
            let engine = outcome.manifest.engine.unwrap();
            engine.kernels.launched().count()
        };
        let (moved, stayed) = (kernels(|_| {}), kernels(without_moves));
        assert!(moved + 2 * layers <= stayed, "{model}: {moved}, {stayed}");
    }
}

#[test]
fn other_runtimes_keep_their_biases() {
    let folder = tempfile::tempdir().unwrap();
    let model = "models/bert-tiny.ts.eager.opset11.onnx";
    let outcome = compiled(model, folder.path(), |o| {
        (o.targets, o.check) = (Some("cpu".parse().unwrap()), false);
    });
    assert_eq!(applied(&outcome), [0, 0, 0]);
}
