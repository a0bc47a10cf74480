//! What TensorRT read of a model, held against the precision that was asked for.

use crate::common;

use std::path::Path;

use kiln::compile::{CompileError, Options, Outcome, compile};
use kiln::engine::{self, AttentionKernel, DataType};
use kiln::fault::Fault;
use kiln::precision::{Floats, Format, Linear, Precision};
use kiln::report::kernels::kernel_lines;
use kiln::talk::Silent;

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
    compiled_of(&linear(), change)
}

fn compiled_of(
    text: &str,
    change: impl FnOnce(&mut Options),
) -> Option<Result<Outcome, CompileError>> {
    if engine::locate(None).is_err() {
        println!("skipped: TensorRT for RTX not found");
        return None;
    }
    Some(common::compiled(text, "sm_89", |o| {
        (o.engine, o.check) = (true, false);
        change(o);
    }))
}

#[test]
fn the_manifest_counts_tensors_by_type() {
    let Some(plain) = compiled(|_| {}) else {
        return;
    };
    let network = plain.unwrap().manifest.engine.unwrap().network;
    assert_eq!(network.layers["matrix_multiply"], 2);
    assert!(!network.tensors.contains_key(&DataType::Float16));
    let both =
        compiled(|o| (o.precision.floats, o.precision.linear) = (Floats::Fp16, Linear::Int4))
            .unwrap();
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
        o.precision.floats = Floats::Fp16;
        only(o);
    });
    let Some(half) = half else { return };
    let error = half.unwrap_err();
    assert_eq!(error.fault(), Fault::Result);
    assert!(error.to_string().contains("without float16"), "{error}");
    let int4 = compiled(|o| {
        o.precision.linear = Linear::Int4;
        only(o);
    });
    let error = int4.unwrap().unwrap_err();
    assert!(error.to_string().contains("without int4"), "{error}");
}

#[test]
fn the_engines_kernels_say_what_they_multiply() {
    let Some(both) =
        compiled(|o| (o.precision.floats, o.precision.linear) = (Floats::Fp16, Linear::Int4))
    else {
        return;
    };
    let engine = both.unwrap().manifest.engine.unwrap();
    // Weights as small as these are dequantized when the engine is built. The network cannot say so.
    assert_eq!(engine.network.dequantized[&DataType::Int4], 2);
    let types = (engine.listed.otherwise.iter()).map(|o| (o.asked, o.multiplies.as_deref()));
    let fp16 = (DataType::Int4, Some("fp16"));
    assert_eq!(types.collect::<Vec<_>>(), [fp16, fp16]);
    let error = compiled(|o| {
        (o.precision.floats, o.precision.linear) = (Floats::Fp16, Linear::Int4);
        o.gates.precision = Some(Format::Int4);
    });
    let error = error.unwrap().unwrap_err().to_string();
    assert!(error.contains("multiplies `MatMul → m` in fp16"), "{error}");
}

/// Of queries, keys and values of 2 heads of 16 numbers, in FP16 and in FP32.
const TWO_ATTENTIONS: &str = r#"<ir_version: 10, opset_import: ["" : 23]>
    g (float[2, 2, 8, 16] q, float[2, 2, 8, 16] k, float[2, 2, 8, 16] v) => (float[2, 2, 8, 16] y, float[2, 2, 8, 16] z) {
        qh = Cast<to = 10>(q) kh = Cast<to = 10>(k) vh = Cast<to = 10>(v)
        [half] h = Attention(qh, kh, vh) y = Cast<to = 1>(h)
        [full] z = Attention(q, v, k)
    }"#;

#[test]
fn attention_without_a_kernel_of_its_own_is_named() {
    let Some(outcome) = compiled_of(TWO_ATTENTIONS, |_| {}) else {
        return;
    };
    // TensorRT has no dedicated kernel for FP32.
    let engine = outcome.unwrap().manifest.engine.unwrap();
    let of = |kernel| {
        let all = engine
            .listed
            .attention
            .iter()
            .filter(|a| a.kernel == kernel);
        all.map(|a| a.node.as_str()).collect::<Vec<_>>()
    };
    let own = of(AttentionKernel::Dedicated);
    assert!(own.len() == 1 && own[0].contains("half"), "{own:?}");
    let products = of(AttentionKernel::Products);
    assert!(
        products.len() == 1 && products[0].contains("full"),
        "{products:?}"
    );
    let lines = kernel_lines(&engine.listed);
    assert!(lines.contains("attention 1 of 2 dedicated"), "{lines}");
    assert!(lines.contains("attention in products: full"), "{lines}");
    let whole = compiled_of(TWO_ATTENTIONS, |o| o.precision.floats = Floats::Fp16).unwrap();
    let lines = kernel_lines(&whole.unwrap().manifest.engine.unwrap().listed);
    assert!(lines.contains("attention 2 dedicated"), "{lines}");
    assert!(!lines.contains("in products"), "{lines}");
}

#[test]
fn an_operator_that_the_parser_would_misread_is_refused() {
    let rotary = r#"<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[2, 2, 3, 4] x, int64[2, 3] at, float[3, 2] c, float[3, 2] s) => (float[2, 2, 3, 4] y) {
            [turn] y = com.microsoft.RotaryEmbedding<scale = 2.0>(x, at, c, s)
        }"#;
    let Some(outcome) = compiled_of(rotary, |o| o.precision.floats = Floats::Fp16) else {
        return;
    };
    let error = outcome.unwrap_err();
    assert_eq!(error.fault(), Fault::Target, "{error}");
    assert!(error.to_string().contains("turn ("), "{error}");
}

#[test]
fn a_precision_that_the_engine_must_multiply_in_is_a_gate() {
    let required = |precision| {
        compiled(|o| {
            o.precision.floats = Floats::Fp16;
            o.gates.precision = Some(precision);
        })
    };
    let Some(fp16) = required(Format::Fp16) else {
        return;
    };
    assert!(fp16.is_ok());
    let error = required(Format::Int8).unwrap().unwrap_err();
    assert_eq!(error.fault(), Fault::Result);
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
        precision: Precision {
            floats: Floats::Fp16,
            linear: Linear::Int8,
        },
        dims: vec!["seq=1:16:64".parse().unwrap()],
        ..Options::new(model)
    };
    let engine = compile(&options, &Silent).unwrap().manifest.engine.unwrap();
    let products = engine.listed.kernels.products();
    let of = |types: &str| products.get(types).copied().unwrap_or(0);
    assert!(of("int8") > 0, "{products:?}");
    // What the kernels multiply and what is named of layers are two ways to see the same.
    assert_eq!(
        engine.listed.otherwise.len(),
        of("int8 x fp16"),
        "{products:?}"
    );
    assert!(
        engine
            .listed
            .otherwise
            .iter()
            .all(|o| o.layer.contains("/m/"))
    );
}

/// x `[batch, 2, seq, 4]` rotated by tables of 16 positions, by an operator that TensorRT's parser would misread.
fn rotated(operator: &str, version: i64) -> String {
    let table = |f: fn(f32) -> f32| {
        let angles = (0..32).map(|k| (k / 2) as f32 * [1.0, 0.1][k % 2]);
        let all: Vec<_> = angles.map(|a| format!("{:.6}", f(a))).collect();
        all.join(", ")
    };
    format!(
        "<ir_version: 10, opset_import: [\"\" : {version}, \"com.microsoft\" : 1]>\n\
         g (float[batch, 2, seq, 4] x, int64[batch, seq] at) => (float[batch, 2, seq, 4] y) \
         <float[16, 2] cos = {{{}}}, float[16, 2] sin = {{{}}}>\n{{ y = {operator} }}",
        table(f32::cos),
        table(f32::sin)
    )
}

#[test]
fn rotary_embeddings_of_any_domain_are_rotated_as_they_say() {
    for (operator, version) in [
        ("com.microsoft.RotaryEmbedding(x, at, cos, sin)", 17),
        (
            "com.microsoft.RotaryEmbedding<interleaved = 1>(x, at, cos, sin)",
            17,
        ),
        ("RotaryEmbedding(x, cos, sin, at)", 23),
    ] {
        // The proof runs the operator itself in ONNX Runtime.
        let Some(made) = compiled_of(&rotated(operator, version), |o| o.check = true) else {
            return;
        };
        let manifest = made.unwrap_or_else(|e| panic!("{operator}: {e}")).manifest;
        let parity = manifest.parity.unwrap();
        assert!(parity.pass(), "{operator}");
        assert_eq!(
            manifest.engine.unwrap().listed.kernels.launched().count(),
            1
        );
    }
}

#[test]
fn attributes_that_are_not_onnx_are_not_dropped() {
    let text = "<ir_version: 10, opset_import: [\"\" : 23]>\n\
                g (float[2, 2, 16, 16] x, float[2, 2, 16, 16] z) => (float[2, 2, 16, 16] y)\n\
                { y = Attention<causal_kind = \"upper_left\">(x, z, z) }";
    for check in [false, true] {
        let Some(made) = compiled_of(text, |o| o.check = check) else {
            return;
        };
        let error = made.unwrap_err();
        assert_eq!(error.fault(), Fault::Target);
        assert!(error.to_string().contains("causal_kind"), "{error}");
    }
}

#[test]
fn positions_are_constants_where_the_length_is_fixed() {
    let text = include_str!("../../fixtures/passes/fold-positions/relative.onnxtxt");
    let made = |length: &str| {
        compiled_of(text, |o| {
            o.dims = vec!["batch=1".parse().unwrap(), length.parse().unwrap()];
            (o.precision.floats, o.check) = (Floats::Fp16, true);
        })
    };
    let Some(fixed) = made("seq=4") else { return };
    let fixed = fixed.unwrap().manifest;
    assert!(fixed.parity.unwrap().pass());
    let open = made("seq=1:4:4").unwrap().unwrap().manifest;
    assert!(!fixed.ops_after.contains_key("Gather"));
    assert!(open.ops_after.contains_key("Gather"));
}
