//! Real exports through the whole compiler: reading and writing, the passes, FP16, engines.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};

use kiln::compile::{Options, Outcome, compile};
use kiln::nvidia::driver;
use kiln::parity::{self, Comparison, FloatMetrics, Npz};
use kiln::precision::{Floats, Precision};
use kiln::runtime::{Optimization, Runtime};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln::{bundle, check};
use kiln_graph::verify::{Phase, verify_model};
use kiln_graph::{onnx, text};

use common::{Named, fixture, session};

macro_rules! zoo {
    ($($module:ident: $name:literal,)*) => {
        $(mod $module {
            #[test]
            fn is_written_as_it_was_read() {
                super::is_written_as_it_was_read($name);
            }

            #[test]
            fn keeps_its_numbers_through_the_default_passes() {
                super::keeps_its_numbers_through_the_default_passes($name);
            }

            #[test]
            fn keeps_its_direction_in_fp16() {
                super::keeps_its_direction_in_fp16($name);
            }
        })*

        const NAMES: &[&str] = &[$($name),*];
    };
}

zoo! {
    bert_tiny_ts_eager_opset11: "bert-tiny.ts.eager.opset11",
    bert_tiny_dynamo_sdpa_opset23: "bert-tiny.dynamo.sdpa.opset23",
    gpt2_ts_sdpa: "gpt2.ts.sdpa",
    llama_dynamo_eager: "llama.dynamo.eager",
    modernbert_ts_sdpa: "modernbert.ts.sdpa",
    t5_dec_ts_eager: "t5-dec.ts.eager",
    torch_encoder_prenorm_dynamo_sdpa: "torch-encoder-prenorm.dynamo.sdpa",
    torch_encoder_small_ts_sdpa: "torch-encoder-small.ts.sdpa",
    vit_ts_eager: "vit.ts.eager",
    whisper_enc_dynamo_eager: "whisper-enc.dynamo.eager",
}

#[test]
fn every_model_is_tested() {
    let mut names: Vec<String> = common::files("models", "onnx")
        .iter()
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut tested = NAMES.to_vec();
    names.sort();
    tested.sort_unstable();
    assert_eq!(names, tested);
}

fn model_path(name: &str) -> PathBuf {
    fixture(&format!("models/{name}.onnx"))
}

/// Inputs and PyTorch's outputs.
fn io_path(name: &str) -> PathBuf {
    let model = name.split('.').next().unwrap();
    fixture(&format!("models/{model}.io.npz"))
}

fn run(
    runtime: &'static Runtime,
    name: &str,
    model: &[u8],
    optimization: Optimization,
) -> (Named, Named) {
    let mut session = session(runtime, model, optimization).unwrap();
    let mut npz = Npz::open(&io_path(name)).unwrap();
    let inputs = parity::from_npz(&mut npz, session.inputs()).unwrap();
    let outputs = session.run(&inputs).unwrap();
    (inputs, outputs)
}

fn assert_same_bits(expected: &Named, found: &Named, what: &str) {
    let names = |all: &Named| all.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{what}");
    for ((name, a), (_, b)) in expected.iter().zip(found) {
        assert!(a.same_bits(b), "{what}: the output '{name}' differs");
    }
}

fn is_written_as_it_was_read(name: &str) {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let path = model_path(name);
    let original = fs::read(&path).unwrap();
    let model = onnx::read(&path).unwrap();
    assert_eq!(verify_model(&model, Phase::Imported), []);
    let written = onnx::to_bytes(&model).unwrap();

    let options = text::PrintOptions::default();
    let message = onnx::to_proto(&model).unwrap();
    let printed = text::print_model(&message, &options);
    let parsed = text::parse_model(&printed).unwrap();
    assert!(
        text::print_model(&parsed, &options) == printed,
        "the text changes when it is parsed and printed again"
    );
    let from_text = onnx::to_bytes(&onnx::read_text(&printed).unwrap()).unwrap();

    for optimization in [Optimization::Disabled, Optimization::All] {
        let (_, expected) = run(runtime, name, &original, optimization);
        let (_, found) = run(runtime, name, &written, optimization);
        assert_same_bits(&expected, &found, "written");
        let (_, found) = run(runtime, name, &from_text, optimization);
        assert_same_bits(&expected, &found, "by way of text");
    }
}

fn compiled(model: &Path, output: PathBuf, floats: Floats) -> Outcome {
    let options = Options {
        output: Some(output),
        targets: Some(Targets::Cpu),
        precision: Precision {
            floats,
            ..Precision::default()
        },
        check: false,
        ..Options::new(model)
    };
    compile(&options, &Silent).unwrap_or_else(|e| panic!("{}: {e}", model.display()))
}

/// Compares at the inputs that PyTorch saw, and at sizes that kiln chooses; gives what was measured under a label.
fn measured(name: &str, candidate: &Path) -> Vec<(String, FloatMetrics)> {
    let options = check::Options {
        candidate: candidate.to_path_buf(),
        against: check::Against::Reference(model_path(name)),
        record: None,
        require: None,
        layers: false,
        pieces: false,
        bisect: None,
        inputs: Some(io_path(name)),
        fixed: Vec::new(),
        tolerance: None,
        limits: Vec::new(),
        dims: Vec::new(),
        judge: None,
        seed: 7,
        device: kiln::runtime::DeviceRequest::default(),
        ort_lib: None,
        require_engine_parity: false,
        cuda_graph: false,
        trt_lib: None,
    };
    let report = check::check(&options, &Silent).unwrap();
    let cases: Vec<&str> = report
        .parity
        .cases
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert!(cases.len() > 1 && cases.contains(&"typical"), "{cases:?}");
    let outputs = report.parity.cases.iter().flat_map(|case| {
        let outputs = case.outputs.iter();
        outputs.map(|o| (format!("{} at {}", o.name, case.name), &o.comparison))
    });
    outputs
        .map(|(label, comparison)| match comparison {
            Comparison::Compared { metrics, .. } => {
                let floats = metrics.float.clone();
                (label, floats.expect("the outputs are floats"))
            }
            other => panic!("{label}: {other:?}"),
        })
        .collect()
}

fn keeps_its_numbers_through_the_default_passes(name: &str) {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |bundle: &str| folder.path().join(bundle);
    let first = compiled(&model_path(name), at("first"), Floats::Fp32);
    let second = compiled(&model_path(name), at("second"), Floats::Fp32);
    let [a, b] = [&first, &second].map(|o| fs::read(o.bundle.join(bundle::MODEL)).unwrap());
    assert!(a == b, "two compilations give different models");

    let model = onnx::read(first.bundle.join(bundle::MODEL)).unwrap();
    assert_eq!(verify_model(&model, Phase::Lowered), []);

    // What has no operator of its own on this target is written as products, which fuse and are written again.
    let again = compiled(&first.bundle, at("again"), Floats::Fp32);
    assert_eq!(
        again.manifest.ops_after, first.manifest.ops_after,
        "compiled again"
    );

    for (label, metrics) in measured(name, &first.bundle) {
        assert_eq!(metrics.nonfinite.differ, 0, "{label}");
        assert!(metrics.max_abs <= 1e-5, "{label}: {metrics:?}");
    }
}

fn keeps_its_direction_in_fp16(name: &str) {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let outcome = compiled(&model_path(name), folder.path().join("fp16"), Floats::Fp16);
    assert!(outcome.manifest.converted > 0);
    let model = onnx::read(outcome.bundle.join(bundle::MODEL)).unwrap();
    assert_eq!(verify_model(&model, Phase::Lowered), []);
    for (label, metrics) in measured(name, &outcome.bundle) {
        assert_eq!(metrics.nonfinite.differ, 0, "{label}");
        assert!(metrics.cosine >= 0.999, "{label}: {metrics:?}");
    }
}

fn builds_an_engine(name: &str, target: &str) {
    if common::runtime().is_none() || !common::tensorrt() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        output: Some(folder.path().join("bundle")),
        targets: Some(target.parse().unwrap()),
        precision: Floats::Fp16.into(),
        inputs: Some(io_path(name)),
        ..Options::new(model_path(name))
    };
    let outcome = compile(&options, &Silent).unwrap_or_else(|e| panic!("{name}: {e}"));
    let engine = outcome.manifest.engine.expect("an engine was asked for");
    let plan = fs::metadata(outcome.bundle.join(bundle::ENGINE)).unwrap();
    assert_eq!(engine.capabilities, [target]);
    assert!(engine.layers > 0 && engine.bytes == plan.len());
    assert!(outcome.manifest.parity.unwrap().pass());
    // Where no GPU runs the engine, the manifest must not say otherwise.
    let not_run = outcome.manifest.engine_parity.not_run().is_some();
    assert!(not_run || driver::probe().is_ok());
    for file in [bundle::MANIFEST, bundle::REPORT, bundle::PROOF] {
        assert!(outcome.bundle.join(file).is_file(), "{file}");
    }
}

#[test]
fn torchscript_builds_for_ada() {
    builds_an_engine("torch-encoder-small.ts.sdpa", "sm_89");
}

#[test]
fn dynamo_builds_for_ada() {
    builds_an_engine("torch-encoder-prenorm.dynamo.sdpa", "sm_89");
}

#[test]
fn standard_attention_builds_for_turing() {
    builds_an_engine("bert-tiny.dynamo.sdpa.opset23", "sm_75");
}
