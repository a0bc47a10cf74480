//! Originals that round activations to integers: what a rounding moves by a step, and what is said of that.

use crate::common::{self, compiled};

use std::sync::Mutex;

use kiln::compile::CompileError;
use kiln::parity;
use kiln::precision::Floats;
use kiln::talk::{Silent, Talk};

/// A residual layer whose input is quantized with a zero point far from the middle.
const RESIDUAL: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] x) => (float[batch, 4] y)
<float s = {0.01}, uint8 z = {8}, float t = {0.02}, uint8 m = {120}, float u = {0.01}, int8 zero = {0},
 int8[4, 4] k = {24, 50, -60, 1, -70, 10, 80, 9, 30, -55, -20, 11, 20, 2, 5, -25}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  w = DequantizeLinear(k, u, zero)
  p = MatMul(d, w)
  r = Add(p, d)
  i = QuantizeLinear(r, t, m)
  y = DequantizeLinear(i, t, m)
}"#;

#[test]
fn the_noise_of_a_quantized_original_is_always_measured() {
    if common::runtime().is_none() {
        return;
    }
    let outcome = compiled(RESIDUAL, "cpu", |o| o.precision.floats = Floats::Fp16).unwrap();
    let report = outcome.manifest.parity.unwrap();
    assert_eq!(report.outcome(), parity::Outcome::Passes);
    let outputs = || report.cases.iter().flat_map(|c| &c.outputs);
    assert!(outputs().any(|o| o.floor.is_some_and(|f| f.runs > 4)));
}

/// Turing multiplies no floats of 32 bits, and not in INT8 into such: the product has to become FP16, with its offset.
#[test]
fn an_offset_keeps_no_product_from_turing() {
    if common::runtime().is_none() || !common::tensorrt() {
        return;
    }
    // Columns that cancel, and columns that add up.
    for text in [RESIDUAL, &RESIDUAL.replace('-', "")] {
        let built = compiled(text, "sm_75", |o| {
            (o.precision.floats, o.engine) = (Floats::Fp16, true)
        });
        let manifest = built.unwrap().manifest;
        assert_eq!(manifest.parity_outcome, Some(parity::Outcome::Passes));
    }
}

/// The product is of a size that the last bit of gamma moves its sine by a tenth of a radian, and the result is rounded to steps.
#[test]
fn an_original_that_makes_much_of_a_last_bit_proves_nothing() {
    if common::runtime().is_none() {
        return;
    }
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 8] x) => (float[batch, 8] y)
<float s = {0.02}, uint8 z = {100}, float t = {0.008}, uint8 m = {128}, float much = {1500000.0},
 float[8] gamma = {0.9, 1.1, 1.2, 0.8, 0.7, 1.3, 0.95, 1.05}, float[8] beta = {0.1, -0.1, 0.2, -0.2, 0.3, -0.3, 0.4, -0.4}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  n = LayerNormalization(d, gamma, beta)
  l = Mul(n, much)
  w = Sin(l)
  i = QuantizeLinear(w, t, m)
  y = DequantizeLinear(i, t, m)
}"#;
    let outcome = compiled(text, "sm_89", |_| {}).unwrap();
    let report = outcome.manifest.parity.unwrap();
    let outputs = || report.cases.iter().flat_map(|c| &c.outputs);
    let floor = outputs().filter_map(|o| Some(o.floor?.relative_l2));
    assert!(floor.fold(0.0, f64::max) > 0.15);
    assert!(report.amplified().is_some());
}

#[derive(Default)]
struct Said {
    stages: Mutex<Vec<String>>,
    warnings: Mutex<Vec<String>>,
    shares: Mutex<Vec<(String, usize, usize)>>,
}

impl Talk for Said {
    fn stage(&self, stage: &str) {
        self.stages.lock().unwrap().push(stage.to_string());
    }

    fn done(&self, done: usize, of: usize) {
        let stage = self.stages.lock().unwrap().last().cloned();
        let mut shares = self.shares.lock().unwrap();
        shares.push((stage.unwrap_or_default(), done, of));
    }

    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_string());
    }

    fn engine(&self) -> &dyn kiln::engine::Progress {
        Silent.engine()
    }
}

/// The last bit moves the sine by some hundredths, and FP16 anywhere before it by whole turns.
#[test]
fn no_layers_are_looked_for_where_each_of_them_breaks_a_noisy_original() {
    if common::runtime().is_none() {
        return;
    }
    let layers = (0..12).map(|k| format!("t{} = MatMul(t{k}, w)\n", k + 1));
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] t0) => (float[batch, 4] y)
<float much = {{300000.0}}, float[4, 4] w = {{0.5, 0.5, 0.5, 0.5, 0.5, -0.5, 0.5, -0.5, 0.5, 0.5, -0.5, -0.5, 0.5, -0.5, -0.5, 0.5}}>
{{
  {}
  l = Mul(t12, much)
  y = Sin(l)
}}"#,
        layers.collect::<String>()
    );
    let folder = tempfile::tempdir().unwrap();
    let mut options = common::options(folder.path(), &text, "cpu");
    options.precision.floats = Floats::Fp16;
    let said = Said::default();
    let outcome = kiln::compile::compile(&options, &said);
    assert!(matches!(outcome, Err(CompileError::NotTheSame { .. })));
    let warnings = said.warnings.lock().unwrap();
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("no layers are looked for")),
        "{warnings:?}"
    );
    let stages = said.stages.lock().unwrap();
    let searched = stages.iter().filter(|s| s.starts_with("search: model"));
    assert_eq!(searched.count(), 4, "{stages:?}");
    let shares = said.shares.lock().unwrap();
    let mut shares = shares.iter().filter(|(s, ..)| s.starts_with("search"));
    assert!(shares.all(|(_, done, of)| done < of));
}

/// Of many cases, the share that is done is told.
#[test]
fn cases_of_a_comparison_are_counted() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = common::options(folder.path(), RESIDUAL, "cpu");
    let said = Said::default();
    let outcome = kiln::compile::compile(&options, &said).unwrap();
    let cases = outcome.manifest.parity.unwrap().cases.len();
    let shares = said.shares.lock().unwrap();
    let parity = shares.iter().filter(|(s, ..)| s == "parity");
    let told: Vec<(usize, usize)> = parity.map(|(_, done, of)| (*done, *of)).collect();
    let runs = 2 * cases;
    let expected: Vec<(usize, usize)> = (0..runs).map(|done| (done, runs)).collect();
    assert_eq!(told, expected);
}

/// Attention as one operator rounds nothing between softmax and the values.
#[test]
fn attention_with_quantized_probabilities_is_left_and_the_reason_is_said() {
    let attention = |probabilities: &str, read: &str| {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2, seq, 8] q, float[batch, 2, 8, seq] k, float[batch, 2, seq, 8] v) => (float[batch, 2, seq, 8] y)
<float s = {{0.004}}, uint8 z = {{0}}, float half = {{0.35355338}}>
{{
  a = MatMul(q, k)
  b = Mul(a, half)
  p = Softmax <axis = -1> (b)
  {probabilities}
  y = MatMul({read}, v)
}}"#
        );
        let outcome = compiled(&text, "cpu", |o| o.check = false).unwrap();
        let blocks = outcome.manifest.blocks;
        blocks.into_iter().find(|b| b.kind == "attention").unwrap()
    };
    let quantized = attention(
        "i = QuantizeLinear(p, s, z) d = DequantizeLinear(i, s, z)",
        "d",
    );
    assert_eq!(
        quantized.describe(),
        "attention 0 of 1 (their probabilities are quantized)"
    );
    let plain = attention("", "p");
    assert_eq!(plain.describe(), "attention 1 of 1");
    assert_eq!(plain.why, None);
}
