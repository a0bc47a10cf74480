//! INT8, FP8 and INT4 from end to end: calibrated, written for the target, proved.

use crate::common::command::kiln;

use std::fs;
use std::path::{Path, PathBuf};

use kiln::compile::{Calibration, CompileError, Options, Outcome, compile};
use kiln::fault::Fault;
use kiln::parity::{self, Comparison, InputKind, InputSpec};
use kiln::precision::{Floats, Linear};
use kiln::runtime;
use kiln::talk::Silent;
use kiln_graph::{DType, Model, onnx};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/models")
        .join(name)
}

/// 40 samples in an `.npz` file each, as many tokens as the fixture was exported with.
fn data(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    let model = onnx::read(fixture("bert-tiny.ts.eager.opset11.onnx")).unwrap();
    for seed in 0..40 {
        let specs: Vec<InputSpec> = (model.graph.inputs().iter())
            .map(|&v| {
                let name = model.graph.value(v).name().to_string();
                InputSpec {
                    kind: match name.as_str() {
                        "input_ids" => InputKind::TokenIds { upper: 99 },
                        "attention_mask" => InputKind::Mask,
                        _ => InputKind::Zeros,
                    },
                    name,
                    dtype: DType::I64,
                    shape: vec![1, 8],
                }
            })
            .collect();
        let inputs = parity::make(&specs, seed).unwrap();
        parity::save(&data.join(format!("{seed:02}.npz")), &inputs, &[]).unwrap();
    }
    data
}

fn compiled(change: impl FnOnce(&mut Options)) -> Option<(TempDir, Result<Outcome, CompileError>)> {
    if runtime::locate(None).is_err() {
        println!("skipped: ONNX Runtime not found");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options {
        output: Some(folder.path().join("bundle")),
        targets: Some("cpu".parse().unwrap()),
        engine: false,
        latency: Some(false),
        calibration: Calibration {
            data: Some(data(folder.path())),
            samples: 32,
            cache: Some(folder.path().join("ranges")),
            ..Calibration::default()
        },
        ..Options::new(fixture("bert-tiny.ts.eager.opset11.onnx"))
    };
    change(&mut options);
    let outcome = compile(&options, &Silent);
    Some((folder, outcome))
}

fn written(outcome: &Outcome) -> Model {
    onnx::read(outcome.bundle.join("model.onnx")).unwrap()
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes().filter(|(_, n)| n.op().is(op)).count()
}

/// The dtypes that QuantizeLinear gives.
fn formats(model: &Model) -> Vec<DType> {
    let g = &model.graph;
    let zeros = g.nodes().filter(|(_, n)| n.op().is("QuantizeLinear"));
    let mut found: Vec<DType> = zeros
        .map(|(_, n)| g.constant(n.input(2).unwrap()).unwrap().dtype())
        .collect();
    found.dedup();
    found
}

#[test]
fn the_cpu_gets_unsigned_activations_and_a_proof_on_data_that_was_held_out() {
    let Some((_folder, outcome)) = compiled(|o| o.precision.linear = Linear::Int8) else {
        return;
    };
    let outcome = outcome.unwrap();
    let m = &outcome.manifest;
    assert!(m.quantized > 0 && m.precision == "int8");
    assert_eq!(formats(&written(&outcome)), [DType::U8]);
    let calibration = m.calibration.as_ref().unwrap();
    assert!(!calibration.made && calibration.held_out == 8);
    let cases = &m.parity.as_ref().unwrap().cases;
    let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"32.npz"));
    assert_eq!(names.len(), 8);
}

#[test]
fn tensorrt_gets_integers_around_zero() {
    let Some((_folder, outcome)) = compiled(|o| {
        o.precision.linear = Linear::Int8;
        o.targets = Some("sm_89".parse().unwrap());
        o.precision.floats = Floats::Fp16;
    }) else {
        return;
    };
    let outcome = outcome.unwrap();
    assert_eq!(outcome.manifest.precision, "int8+fp16");
    let model = written(&outcome);
    assert_eq!(formats(&model), [DType::I8]);
    let g = &model.graph;
    for (_, node) in g.nodes().filter(|(_, n)| n.op().is("DequantizeLinear")) {
        let zero = g.constant(node.input(2).unwrap()).unwrap();
        assert!(zero.bytes().iter().all(|&b| b == 0));
    }
}

#[test]
fn fp8_is_emulated_and_old_targets_have_none() {
    let fp8 = |target: &str| {
        let targets = target.parse().unwrap();
        compiled(|o| (o.precision.linear, o.targets) = (Linear::Fp8, Some(targets)))
    };
    let Some((_folder, outcome)) = fp8("sm_89,sm_120") else {
        return;
    };
    let outcome = outcome.unwrap();
    assert_eq!(formats(&written(&outcome)), [DType::F8E4M3FN]);
    let (_folder, refused) = fp8("sm_86,sm_89").unwrap();
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("sm_86"), "{refused}");
    assert_eq!(refused.fault(), Fault::Request);
}

#[test]
fn dynamic_ranges_need_no_data_and_are_no_option_for_tensorrt() {
    let dynamic = |target: &str| {
        let targets = target.parse().unwrap();
        compiled(|o| {
            (o.precision.linear, o.targets) = (Linear::Int8Dynamic, Some(targets));
            o.calibration = Calibration::default();
        })
    };
    let Some((_folder, outcome)) = dynamic("cpu") else {
        return;
    };
    let model = written(&outcome.unwrap());
    assert!(count(&model, "MatMulInteger") > 0);
    assert!(count(&model, "DynamicQuantizeLinear") < count(&model, "MatMulInteger"));
    let (_folder, refused) = dynamic("sm_89").unwrap();
    assert_eq!(refused.unwrap_err().fault(), Fault::Request);
}

#[test]
fn without_data_the_manifest_warns() {
    let Some((_folder, outcome)) = compiled(|o| {
        o.precision.linear = Linear::Int8;
        o.calibration = Calibration::default();
    }) else {
        return;
    };
    let m = outcome.unwrap().manifest;
    assert!(m.calibration.unwrap().made);
    assert!(m.warnings.iter().any(|w| w.contains("made-up")));
}

#[test]
fn a_cache_is_read_the_second_time() {
    let Some((folder, first)) = compiled(|o| o.precision.linear = Linear::Int8) else {
        return;
    };
    assert!(!first.unwrap().manifest.calibration.unwrap().cached);
    let options = Options {
        output: Some(folder.path().join("again")),
        targets: Some("cpu".parse().unwrap()),
        latency: Some(false),
        precision: Linear::Int8.into(),
        calibration: Calibration {
            data: Some(folder.path().join("data")),
            samples: 32,
            cache: Some(folder.path().join("ranges")),
            ..Calibration::default()
        },
        ..Options::new(fixture("bert-tiny.ts.eager.opset11.onnx"))
    };
    let again = compile(&options, &Silent).unwrap();
    assert!(again.manifest.calibration.unwrap().cached);
}

/// The largest error of this output over all cases.
fn error(outcome: &Outcome, output: &str) -> f64 {
    let cases = &outcome.manifest.parity.as_ref().unwrap().cases;
    let errors = (cases.iter().flat_map(|c| &c.outputs)).filter(|o| o.name == output);
    let errors = errors.map(|o| {
        let Comparison::Compared { metrics, .. } = &o.comparison else {
            panic!("{} was not compared", o.name);
        };
        metrics.float.as_ref().unwrap().relative_l2
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn int4_weights_are_rounded_on_the_data_with_zero_points_where_the_target_has_them() {
    let int4 = |target: &str| {
        let targets = target.parse().unwrap();
        compiled(|o| (o.precision.linear, o.targets) = (Linear::Int4, Some(targets)))
    };
    let Some((_folder, outcome)) = int4("cpu") else {
        return;
    };
    let outcome = outcome.unwrap();
    let rounded = &outcome.manifest.rounded;
    assert_eq!(rounded.len(), outcome.manifest.quantized);
    let compensated = rounded.iter().filter(|r| r.method == "compensated");
    assert!(2 * compensated.count() > rounded.len());
    assert!(rounded.iter().all(|r| r.error > 0.0 && r.error < 0.2));
    let model = written(&outcome);
    let products = model
        .graph
        .nodes()
        .filter(|(_, n)| n.op().name() == "MatMulNBits");
    let products: Vec<_> = products.collect();
    assert_eq!(products.len(), rounded.len());
    assert!(products.iter().all(|(_, n)| n.input(3).is_some()));

    let (_folder, outcome) = int4("sm_89").unwrap();
    let outcome = outcome.unwrap();
    assert!(!outcome.manifest.rounded.is_empty());
    let model = written(&outcome);
    let dequantized = model
        .graph
        .nodes()
        .filter(|(_, n)| n.op().is("DequantizeLinear"));
    for (_, node) in dequantized {
        assert!(node.input(2).is_none(), "TensorRT has no zero points");
    }
}

#[test]
fn int4_weights_without_data_are_rounded_to_nearest() {
    let Some((_folder, outcome)) = compiled(|o| {
        o.precision.linear = Linear::Int4;
        o.calibration = Calibration::default();
    }) else {
        return;
    };
    let outcome = outcome.unwrap();
    assert!(outcome.manifest.rounded.is_empty());
    let model = written(&outcome);
    let products = model
        .graph
        .nodes()
        .filter(|(_, n)| n.op().name() == "MatMulNBits");
    assert!(
        products
            .map(|(_, n)| n.input(3))
            .all(|zeros| zeros.is_none())
    );
}

const OUTPUT: &str = "last_hidden_state";

#[test]
fn blocks_of_int4_are_halved_before_layers_are_kept() {
    let int4 = |block: usize, fixed: bool, limit: Option<f64>| {
        compiled(|o| {
            o.precision.linear = Linear::Int4;
            (o.int4_block, o.int4_fixed) = (block, fixed);
            o.limits
                .extend(limit.map(|l| format!("{OUTPUT}:relative_l2={l}")));
        })
    };
    let Some((_folder, coarse)) = int4(32, true, None) else {
        return;
    };
    let (coarse, fine) = (coarse.unwrap(), int4(16, true, None).unwrap().1.unwrap());
    let (worse, better) = (error(&coarse, OUTPUT), error(&fine, OUTPUT));
    assert!(better > 0.0 && better < 0.95 * worse, "{better} {worse}");
    let between = Some((better * worse).sqrt());

    let halved = int4(32, false, between).unwrap().1.unwrap();
    assert_eq!(halved.manifest.options.int4_block, Some(16));
    assert_eq!(halved.manifest.recipe.precision.int4_block, Some(16));
    assert!(halved.manifest.search.is_none());
    assert!(
        halved
            .manifest
            .warnings
            .iter()
            .any(|w| w.contains("16 rows"))
    );

    let fixed = int4(32, true, between).unwrap().1.unwrap();
    assert_eq!(fixed.manifest.options.int4_block, Some(32));
    assert!(!fixed.manifest.search.unwrap().kept.is_empty());
}

/// Whoever asks for two reads the names of both.
#[test]
fn one_format_excludes_the_other() {
    for both in [
        ["--fp16", "--bf16"],
        ["--int8", "--fp8"],
        ["--int8=dynamic", "--int4"],
        ["--fp8", "--int4=64"],
    ] {
        let names = both.map(|option| option.split('=').next().unwrap());
        let ran = kiln(&["compile", "model.onnx", both[0], both[1]]);
        ran.expect(2).says(&names);
    }
}
