//! What TensorRT read of a model, held against the precision that was asked for.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use kiln::check::Precision;
use kiln::compile::{CompileError, Int8, Options, Outcome, compile};
use kiln::engine::{self, DataType};
use kiln::talk::Silent;
use kiln_graph::onnx;

/// Two layers, of which the second is wide enough for INT4.
fn linear() -> String {
    let numbers = |n: usize| (0..n).map(|k| format!("{:.2}", (k * 7 % 13) as f32 / 13.0 - 0.5));
    let list = |n: usize| numbers(n).collect::<Vec<_>>().join(", ");
    format!(
        "<ir_version: 10, opset_import: [\"\" : 20]>\n\
         g (float[2, 32] x) => (float[2, 16] y) <float[32, 32] v = {{{}}}, float[32, 16] w = {{{}}}>\n\
         {{ m = MatMul(x, v) r = Relu(m) y = MatMul(r, w) }}",
        list(32 * 32),
        list(32 * 16)
    )
}

fn compiled(change: impl FnOnce(&mut Options)) -> Option<Result<Outcome, CompileError>> {
    if engine::locate(None).is_err() {
        println!("skipped: TensorRT for RTX not found");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let text = onnx::read_text(&linear()).unwrap();
    std::fs::write(&model, onnx::to_bytes(&text).unwrap()).unwrap();
    let mut options = Options {
        output: Some(folder.path().join("bundle")),
        targets: Some("sm_89".parse().unwrap()),
        check: false,
        ..Options::new(&model)
    };
    change(&mut options);
    Some(compile(&options, &Silent))
}

#[test]
fn the_manifest_counts_tensors_by_type() {
    let Some(plain) = compiled(|_| {}) else {
        return;
    };
    let network = plain.unwrap().manifest.engine.unwrap().network;
    assert_eq!(network.layers["matrix_multiply"], 2);
    assert!(!network.tensors.contains_key(&DataType::Float16));
    let both = compiled(|o| (o.fp16, o.int4) = (true, Some(32))).unwrap();
    let network = both.unwrap().manifest.engine.unwrap().network;
    assert_eq!(network.dequantized[&DataType::Int4], 2);
    assert!(network.tensors.contains_key(&DataType::Float16));
    assert!(!network.tensors.contains_key(&DataType::Float32));
}

#[test]
fn an_engine_without_the_precision_asked_for_fails() {
    // The passes that convert are left out.
    let only = |o: &mut Options| o.passes = Some("fold-constants".into());
    let half = compiled(|o| {
        o.fp16 = true;
        only(o);
    });
    let Some(half) = half else { return };
    let error = half.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("without float16"), "{error}");
    let int4 = compiled(|o| {
        o.int4 = Some(32);
        only(o);
    });
    let error = int4.unwrap().unwrap_err();
    assert!(error.to_string().contains("without int4"), "{error}");
}

#[test]
fn the_engines_kernels_say_what_they_multiply() {
    let Some(both) = compiled(|o| (o.fp16, o.int4) = (true, Some(32))) else {
        return;
    };
    let engine = both.unwrap().manifest.engine.unwrap();
    // Weights as small as these are dequantized when the engine is built. The network cannot say so.
    assert_eq!(engine.network.dequantized[&DataType::Int4], 2);
    let types = (engine.otherwise.iter()).map(|o| (o.asked, o.multiplies.as_deref()));
    let fp16 = (DataType::Int4, Some("fp16"));
    assert_eq!(types.collect::<Vec<_>>(), [fp16, fp16]);
    let error = compiled(|o| {
        (o.fp16, o.int4) = (true, Some(32));
        o.gates.precision = Some(Precision::Int4);
    });
    let error = error.unwrap().unwrap_err().to_string();
    assert!(error.contains("multiplies `MatMul → m` in fp16"), "{error}");
}

#[test]
fn a_precision_that_the_engine_must_multiply_in_is_a_gate() {
    let required = |precision| {
        compiled(|o| {
            o.fp16 = true;
            o.gates.precision = Some(precision);
        })
    };
    let Some(fp16) = required(Precision::Fp16) else {
        return;
    };
    assert!(fp16.is_ok());
    let error = required(Precision::Int8).unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(
        error
            .to_string()
            .contains("no product in it, but 2 in fp16"),
        "{error}"
    );
}

#[test]
fn quantized_layers_that_multiply_in_floats_are_named() {
    if engine::locate(None).is_err() {
        println!("skipped: TensorRT for RTX not found");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/models/bert-tiny.ts.eager.opset11.onnx");
    let options = Options {
        output: Some(folder.path().join("bundle")),
        targets: Some("sm_89".parse().unwrap()),
        check: false,
        fp16: true,
        int8: Some(Int8::Static),
        dims: vec!["seq=1:16:64".parse().unwrap()],
        ..Options::new(model)
    };
    let engine = compile(&options, &Silent).unwrap().manifest.engine.unwrap();
    let products = engine.kernels.products();
    let of = |types: &str| products.get(types).copied().unwrap_or(0);
    assert!(of("int8") > 0, "{products:?}");
    // What the kernels multiply and what is named of layers are two ways to see the same.
    assert_eq!(engine.otherwise.len(), of("int8 x fp16"), "{products:?}");
    assert!(engine.otherwise.iter().all(|o| o.layer.contains("/m/")));
}
