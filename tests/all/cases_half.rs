//! Half precision on models in which a rounding decides: each result is run with every FP16 value rounded, on numbers at the
//! far end of what the model takes, and held against the original.

use crate::common;

use kiln::compile::{Options, compile};
use kiln::precision::Floats;
use kiln::runtime::{Optimization, Runtime};
use kiln::talk::Silent;
use kiln::{bundle, twin};
use kiln_graph::{Model, Tensor, onnx};
use kiln_passes::precision::HalfFormat;

use common::Named;

fn tensor<T: kiln_graph::Element>(dims: &[usize], values: &[T]) -> Tensor {
    Tensor::from_values(dims, values).unwrap()
}

fn run(runtime: &'static Runtime, model: &Model, inputs: &Named) -> Vec<(String, Tensor)> {
    let bytes = onnx::to_bytes(model).unwrap();
    let mut session = common::session(runtime, &bytes, Optimization::Disabled).unwrap();
    session.run(inputs).unwrap()
}

/// The original's outputs, and those of the compiled model with each value rounded.
fn both(
    runtime: &'static Runtime,
    name: &str,
    half: HalfFormat,
    inputs: &Named,
) -> Vec<(String, Tensor, Tensor)> {
    let folder = tempfile::tempdir().unwrap();
    let text = common::case(name);
    let (floats, target) = match half {
        HalfFormat::Fp16 => (Floats::Fp16, "cpu"),
        HalfFormat::Bf16 => (Floats::Bf16, "sm_89"),
    };
    let options = Options {
        precision: floats.into(),
        check: false,
        ..common::options(folder.path(), &text, target)
    };
    let outcome = compile(&options, &Silent).unwrap();
    let original = onnx::read_text(&text).unwrap();
    let result = onnx::read(outcome.bundle.join(bundle::MODEL)).unwrap();
    let rounded = twin::rounding(&result).expect("something is half");
    let right = run(runtime, &original, inputs);
    let found = run(runtime, &rounded, inputs);
    let pairs = right.into_iter().zip(found);
    pairs.map(|((name, a), (_, b))| (name, a, b)).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let integers = || Some(tensor.bytes().iter().map(|b| f64::from(*b)).collect());
    tensor.to_f64s().or_else(integers).unwrap()
}

/// A row whose window is padding counts those of its keys that one of the two masks hides.
#[test]
fn keys_that_two_masks_hide_do_not_count_in_rows_without_keys() {
    if common::runtime().is_none() {
        return;
    }
    for target in ["sm_89", "cpu"] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            precision: Floats::Fp16.into(),
            ..common::options(folder.path(), &common::case("window_and_padding"), target)
        };
        let outcome = compile(&options, &Silent);
        assert!(outcome.is_ok(), "{target}: {}", outcome.unwrap_err());
    }
}

/// Integers, booleans and what is made of integers must be equal; floats must be within `limit` of the largest.
fn holds(name: &str, half: HalfFormat, inputs: &Named, exact: &[&str]) {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let limit = match half {
        HalfFormat::Fp16 => 4e-3,
        HalfFormat::Bf16 => 3e-2,
    };
    for (output, right, found) in both(runtime, name, half, inputs) {
        let (a, b) = (numbers(&right), numbers(&found));
        let scale = a.iter().fold(0f64, |m, v| m.max(v.abs()));
        let bound = match exact.contains(&output.as_str()) {
            true => 0.0,
            false => limit * scale,
        };
        for (a, b) in a.iter().zip(&b) {
            assert!(a.is_finite(), "{name}: the original's {output} has {a}");
            assert_eq!(right.dims(), found.dims(), "{name}: {output}");
            assert!(
                (a - b).abs() <= bound,
                "{name} in {half:?}: {output} is {b}, right is {a}"
            );
        }
    }
}

/// What a compilation of the text warns of.
#[derive(Default)]
struct Warnings(std::sync::Mutex<Vec<String>>);

impl kiln::talk::Talk for Warnings {
    fn stage(&self, _: &str) {}

    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_string());
    }

    fn engine(&self) -> &dyn kiln::engine::Progress {
        Silent.engine()
    }
}

#[test]
fn ranges_of_fp16_come_from_real_inputs_or_are_said_to_be_unmeasured() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 2] x) => (float[batch, 2] y)
        <float[2, 2] w = {1, 0.5, -0.25, 1}, float one = {1}>
        { m = MatMul(x, w) s = Mul(m, m) p = Add(s, one) l = Log(p) y = MatMul(l, w) }"#;
    let loud = vec![named(
        "x",
        tensor(&[2, 2], &[8000f32, -300.0, 20000.0, 50.0]),
    )];
    for real in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let inputs = folder.path().join("inputs.npz");
        kiln::parity::save(&inputs, &loud, &[]).unwrap();
        let options = Options {
            precision: Floats::Fp16.into(),
            inputs: real.then_some(inputs),
            ..common::options(folder.path(), text, "cpu")
        };
        let warnings = Warnings::default();
        let outcome = compile(&options, &warnings).unwrap();
        let said = |all: &[String]| all.iter().any(|w| w.contains("made-up inputs alone"));
        assert_eq!(said(&warnings.0.lock().unwrap()), !real);
        assert_eq!(said(&outcome.manifest.warnings), !real);
        let result = onnx::read(folder.path().join("bundle").join(bundle::MODEL)).unwrap();
        let rounded = twin::rounding(&result).unwrap();
        let found = numbers(&run(runtime, &rounded, &loud)[0].1);
        assert_eq!(found.iter().all(|v| v.is_finite()), real, "{found:?}");
    }
}

const BOTH: [HalfFormat; 2] = [HalfFormat::Fp16, HalfFormat::Bf16];

fn named(name: &str, tensor: Tensor) -> (String, Tensor) {
    (name.to_string(), tensor)
}

#[test]
fn decisions_on_ids_stay_what_they_are() {
    let ids = [49406i64, 50255, 50256, 50257, 2049, 2048, 50254, 50256];
    let inputs = vec![
        named("ids", tensor(&[2, 4], &ids)),
        named("x", tensor(&[2, 4, 2], &[0.25f32; 16])),
    ];
    let exact = [
        "last", "first", "end", "before", "near", "bucket", "rest", "places", "order", "whole",
        "chosen", "taken", "twice",
    ];
    for half in BOTH {
        holds("half_decisions", half, &inputs, &exact);
    }
}

#[test]
fn decisions_in_bodies_and_across_them() {
    let inputs = |yes: bool| {
        vec![
            named("c", tensor(&[], &[yes])),
            named("ids", tensor(&[2, 2], &[50256i64, 50255, 2049, 50257])),
            named("x", tensor(&[2, 2], &[0.5f32, -1.0, 2.0, 0.25])),
        ]
    };
    for half in BOTH {
        for yes in [true, false] {
            holds(
                "half_bodies",
                half,
                &inputs(yes),
                &["end", "outside", "count", "seen"],
            );
        }
    }
}

#[test]
fn decisions_on_floats_that_the_model_is_given() {
    let x = [4099f32, 0.5, 1.0, 2051.0, -1.0, 0.2, 997.0, 0.25, -0.5];
    let uv = [0.7311f32, 0.1234, 0.9996, 0.5005, 0.3333, 0.8887];
    let inputs = vec![
        named("x", tensor(&[3, 3], &x)),
        named("uv", tensor(&[3, 2], &uv)),
        named("pos", tensor(&[3], &[4001i64, 4002, 4003])),
    ];
    for half in BOTH {
        holds("half_given", half, &inputs, &["id", "cell", "best"]);
    }
}

#[test]
fn guards_of_divisors_hold_however_they_are_spelled() {
    let inputs = vec![
        named("c", tensor(&[], &[true])),
        named(
            "x",
            tensor(&[2, 4], &[1.0f32, -2.0, 0.5, 3.0, 0.0, 0.0, 0.0, 0.0]),
        ),
    ];
    holds("half_guards", HalfFormat::Fp16, &inputs, &[]);
}

#[test]
fn lengths_beyond_65504_overflow_nothing() {
    let inputs = vec![
        named("x", tensor(&[2, 2], &[1.0f32, -2.0, 0.5, 3.0])),
        named("length", tensor(&[1], &[160_000i64])),
    ];
    for half in BOTH {
        holds("half_lengths", half, &inputs, &[]);
    }
}
