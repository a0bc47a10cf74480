//! Biases of attention's projections are moved where an engine pays for them, and what moved with them has no name of the
//! original's.

use crate::common;

use std::path::{Path, PathBuf};

use kiln::check::{self, Against};
use kiln::compile::{Options, Outcome, compile};
use kiln::engine::Sizes;
use kiln::precision::{Floats, Linear};
use kiln::talk::Silent;

const MOVES: [&str; 4] = [
    "weigh-biases",
    "drop-key-bias",
    "move-value-bias",
    "sink-query-bias",
];

/// Models with 2 attentions each, how often each of [`MOVES`] applies, and how often without the first.
const MODELS: [(&str, [usize; 4], [usize; 4]); 6] = [
    // Its projections come packed.
    (
        "models/torch-encoder-prenorm.dynamo.sdpa.onnx",
        [2, 0, 0, 0],
        [0, 2, 2, 2],
    ),
    // Keys have no bias.
    (
        "models/whisper-enc.dynamo.eager.onnx",
        [2, 0, 0, 0],
        [0, 0, 2, 2],
    ),
    // One row alone goes through the last layer.
    ("models/vit.ts.eager.onnx", [2, 0, 0, 0], [0, 1, 1, 1]),
    // Rows may be hidden as a whole and give zeros: values keep their biases otherwise, and with them the queries.
    ("models/gpt2.ts.sdpa.onnx", [2, 0, 0, 0], [0, 2, 0, 0]),
    // Residual sums read what is projected.
    (
        "models/bert-tiny.ts.eager.opset11.onnx",
        [2, 0, 0, 0],
        [0, 0, 0, 0],
    ),
    // No norm is in front of the first layer.
    (
        "models/torch-encoder-small.ts.sdpa.onnx",
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ),
];

fn compiled(model: &str, folder: &Path, more: impl FnOnce(&mut Options)) -> Outcome {
    let mut options = Options {
        output: Some(folder.join("bundle")),
        targets: Some("sm_89".parse().unwrap()),
        latency: Some(false),
        engine: false,
        precision: Floats::Fp16.into(),
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
    for (model, all, others) in MODELS {
        let first = format!("default,-{}", MOVES[0]);
        for (passes, moves) in [(None, all), (Some(first), others)] {
            let folder = tempfile::tempdir().unwrap();
            let outcome = compiled(model, folder.path(), |o| o.passes = passes.clone());
            assert_eq!(applied(&outcome), moves, "{model}: {passes:?}");
            assert!(outcome.manifest.parity.unwrap().pass(), "{model}");
        }
    }
}

#[test]
fn values_of_one_name_have_the_same_numbers() {
    if common::runtime().is_none() {
        return;
    }
    for (model, ..) in MODELS {
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
        tolerance: Some("fp16".into()),
        limits: Vec::new(),
        require: None,
        layers: true,
        pieces: false,
        bisect: None,
        dims: Vec::new(),
        judge: None,
        seed: 1,
        require_engine_parity: false,
        cuda_graph: false,
        device: Default::default(),
        ort_lib: None,
        trt_lib: None,
    }
}

#[test]
fn an_engine_moves_fewer_bytes_with_fewer_kernels() {
    if !common::tensorrt() {
        return;
    }
    for (model, ..) in &MODELS[..5] {
        let facts = |more: fn(&mut Options)| {
            let folder = tempfile::tempdir().unwrap();
            let outcome = compiled(model, folder.path(), |o| {
                (o.engine, o.check) = (true, false);
                o.dims = vec!["batch=1".parse().unwrap()];
                if !model.contains("vit") && !model.contains("whisper") {
                    o.dims.push("seq=32".parse().unwrap());
                }
                more(o);
            });
            let kernels = outcome.manifest.engine.unwrap().listed.kernels;
            let bytes = Sizes::default().traffic(&kernels).unwrap();
            (kernels.launched().count(), bytes)
        };
        let (moved, stayed) = (facts(|_| {}), facts(without_moves));
        assert!(moved.0 < stayed.0, "{model}: {moved:?}, {stayed:?}");
        assert!(moved.1 < stayed.1, "{model}: {moved:?}, {stayed:?}");
    }
}

#[test]
fn biases_stay_where_moving_them_costs() {
    let of = |model: &str, more: fn(&mut Options)| {
        let folder = tempfile::tempdir().unwrap();
        let outcome = compiled(model, folder.path(), |o| {
            o.check = false;
            more(o);
        });
        applied(&outcome)
    };
    // ONNX Runtime's operators take the biases with them.
    let model = "models/vit.ts.eager.onnx";
    let cpu = of(model, |o| o.targets = Some("cpu".parse().unwrap()));
    assert_eq!(cpu, [0; 4]);
    // Packed projections multiply in 8 bits with biases only.
    if common::runtime().is_some() {
        let int8 = of(model, |o| o.precision.linear = Linear::Int8);
        assert_eq!(int8, [0; 4]);
    }
}
