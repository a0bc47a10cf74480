//! A Transformer block that overflows FP16: large activations before a norm, and a mask of -1e12.

use crate::common;

use std::fs;
use std::path::Path;

use common::Named;
use kiln::compile::{Calibration, Options, Outcome, compile};
use kiln::parity::{self, InputKind, InputSpec};
use kiln::precision::Floats;
use kiln::runtime::{Optimization, Runtime};
use kiln::talk::Silent;
use kiln_graph::{DType, Tensor, onnx};

/// The block in `float` or `float16`, between casts of its input and output. The products before the norm reach 1e5.
fn block(ty: &str) -> String {
    let mut state = 1u64;
    let mut weight = |name: &str, rows: usize, columns: usize, scale: f64| {
        let mut number = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 40) as f64 / f64::from(1 << 23) - 1.0) * scale
        };
        let numbers: Vec<String> = (0..rows * columns)
            .map(|_| format!("{:.4}", number()))
            .collect();
        format!(
            "{ty}[{rows}, {columns}] {name} = {{{}}}",
            numbers.join(", ")
        )
    };
    let weights = [
        weight("wq", 32, 32, 0.2),
        weight("wk", 32, 32, 0.2),
        weight("wv", 32, 32, 0.2),
        weight("up", 32, 64, 500.0),
        weight("down", 64, 32, 60.0),
        weight("head", 32, 32, 0.2),
    ];
    // Rounded to FP16, -1e12 is minus infinity.
    let (number, far) = match ty {
        "float" => (1, "-1e12"),
        _ => (10, "-inf"),
    };
    format!(
        r#"
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, seq, 32] x, int64[batch, seq] mask) => (float[batch, seq, 32] y) <
  {weights},
  {ty}[32] one = {{{ones}}}, {ty}[32] zero = {{{zeros}}},
  {ty} full = {{1.0}}, {ty} far = {{{far}}}, {ty} root = {{5.656854}}, int64[2] axes = {{1, 2}}
>
{{
  h = Cast <to = {number}> (x)
  [q] q = MatMul(h, wq)
  [k] k = MatMul(h, wk)
  [v] v = MatMul(h, wv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  [scores] s = MatMul(q, kt)
  scaled = Div(s, root)
  keep = Cast <to = {number}> (mask)
  drop = Sub(full, keep)
  [fill] bias = Mul(drop, far)
  wide = Unsqueeze(bias, axis)
  masked = Add(scaled, wide)
  [probabilities] p = Softmax <axis = -1> (masked)
  [context] c = MatMul(p, v)
  [residual] r = Add(c, h)
  [up] u = MatMul(r, up)
  relu = Relu(u)
  [down] d = MatMul(relu, down)
  [sum] e = Add(d, r)
  [norm] n = LayerNormalization(e, one, zero)
  [head] o = MatMul(n, head)
  y = Cast <to = 1> (o)
}}
"#,
        weights = weights.join(",\n  "),
        ones = ["1.0"; 32].join(", "),
        zeros = ["0.0"; 32].join(", "),
    )
    .replace("int64[2] axes = {1, 2}", "int64[1] axis = {1}")
}

fn inputs(seed: u64) -> Named {
    let spec = |name: &str, dtype, shape: &[usize], kind| InputSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        kind,
    };
    let specs = [
        spec("x", DType::F32, &[2, 7, 32], InputKind::Normal { std: 1.0 }),
        spec("mask", DType::I64, &[2, 7], InputKind::Mask),
    ];
    parity::make(&specs, seed).unwrap()
}

fn run(runtime: &'static Runtime, model: &[u8], inputs: &Named) -> Tensor {
    let mut session = common::session(runtime, model, Optimization::Disabled).unwrap();
    session.run(inputs).unwrap().remove(0).1
}

fn compiled(folder: &Path, data: bool) -> Outcome {
    let samples = folder.join("samples");
    fs::create_dir_all(&samples).unwrap();
    for seed in 0..16 {
        parity::save(&samples.join(format!("{seed:02}.npz")), &inputs(seed), &[]).unwrap();
    }
    let options = Options {
        precision: Floats::Fp16.into(),
        calibration: Calibration {
            data: data.then_some(samples),
            ..Calibration::default()
        },
        ..common::options(folder, &block("float"), "sm_89")
    };
    compile(&options, &Silent).unwrap()
}

#[test]
fn converting_everything_gives_nan() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let plain = run(runtime, &common::encode(&block("float16")), &inputs(3));
    let values = plain.values::<f32>().unwrap();
    assert!(values.iter().any(|v| v.is_nan()), "{values:?}");
    let reference = run(runtime, &common::encode(&block("float")), &inputs(3));
    assert!(
        reference
            .values::<f32>()
            .unwrap()
            .iter()
            .all(|v| v.is_finite())
    );
}

#[test]
fn measured_ranges_name_what_stays() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let outcome = compiled(folder.path(), true);
    let m = &outcome.manifest;
    assert_eq!(m.parity.as_ref().unwrap().tolerance.name, "fp16");
    assert!(m.search.is_none(), "ranges alone are enough");
    assert!(m.converted >= 5, "{}", m.converted);
    let why = |node: &str| {
        m.kept
            .iter()
            .find(|k| k.node.starts_with(&format!("{node} ")))
            .map(|k| k.why.as_str())
    };
    for node in ["down", "sum"] {
        let why = why(node).unwrap();
        assert!(why.contains("FP16 ends at 65504"), "{node}: {why}");
    }
    for node in ["q", "k", "v", "head"] {
        assert_eq!(why(node), None, "{node}");
    }
    let reference = run(runtime, &common::encode(&block("float")), &inputs(3));
    let path = outcome.bundle.join("model.onnx");
    let bytes = fs::read(&path).unwrap();
    let graph = onnx::read(&path).unwrap().graph;
    let halves = graph
        .values()
        .filter_map(|(v, _)| graph.constant(v)?.values::<half::f16>());
    assert!(halves.flatten().all(|v| v.is_finite()));
    let found = run(runtime, &bytes, &inputs(3));
    let metrics = parity::metrics(&reference, &found).unwrap().float.unwrap();
    assert!(metrics.cosine > 0.9999, "{metrics:?}");
}

#[test]
fn without_data_the_search_finds_it() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let m = compiled(folder.path(), false).manifest;
    let search = m.search.unwrap();
    assert!(
        search.kept.iter().any(|n| n.starts_with("down ")),
        "{:?}",
        search.kept
    );
    assert!(m.converted >= 5, "{}", m.converted);
}
