//! Attention as exporters write it that this project had not met: masks over flattened heads, and rows that see no key.

use crate::common::{self, case};

use std::path::Path;

use kiln::compile::{CompileError, Options, Outcome, compile};
use kiln::parity;
use kiln::precision::Floats;
use kiln::talk::Silent;
use kiln_graph::Tensor;

/// Compiles without a search, so that what is out of tolerance fails.
fn compiled(
    folder: &Path,
    text: &str,
    target: &str,
    precision: Floats,
    inputs: &[(&str, Tensor)],
) -> Result<Outcome, CompileError> {
    let data = folder.join("inputs.npz");
    parity::save(&data, &named(inputs), &[]).unwrap();
    let options = Options {
        precision: precision.into(),
        search: false,
        inputs: Some(data),
        ..common::options(folder, text, target)
    };
    compile(&options, &Silent)
}

fn named(inputs: &[(&str, Tensor)]) -> common::Named {
    let pairs = inputs.iter().map(|(n, t)| ((*n).to_string(), t.clone()));
    pairs.collect()
}

/// Sixteen tokens of four samples: whole, padded on the left, padded on the right, and nothing but padding.
fn padded() -> Vec<(&'static str, Tensor)> {
    let ids: Vec<i64> = (0..64).map(|k| (k * 7 + k / 16) % 32).collect();
    let seen = |k: i64| match k / 16 {
        0 => 1,
        1 => i64::from(k % 16 >= 8),
        2 => i64::from(k % 16 < 8),
        _ => 0i64,
    };
    let mask: Vec<i64> = (0..64).map(seen).collect();
    let tensor = |v: &[i64]| Tensor::from_values([4usize, 16].as_slice(), v).unwrap();
    vec![
        ("input_ids", tensor(&ids)),
        ("attention_mask", tensor(&mask)),
    ]
}

const LOWEST: &str = "float fill = {-3.4028235e+38}";

/// A layer of Mistral's shape: a window of four keys, causal, with padding, and scores of a trained model's size. FP16's
/// number for a mask does not absorb such scores, and neither does a fused kernel that adds in FP32.
#[test]
fn rows_without_keys_keep_their_meaning() {
    if common::runtime().is_none() {
        return;
    }
    let text = case("window_rows");
    assert!(text.contains(LOWEST));
    let guarded = text.replace(
        "p = Softmax <axis: int = -1> (m)",
        "p0 = Softmax <axis: int = -1> (m)\n   nan = IsNaN (p0)\n   p = Where (nan, z, p0)",
    );
    assert_ne!(guarded, text);
    let replaced = text.replace("m = Add (s, b)", "m = Where (keep, s, fill)");
    assert_ne!(replaced, text);
    let filled = |text: &str, fill: &str| text.replace(LOWEST, &format!("float fill = {{{fill}}}"));
    let spellings = [
        ("lowest", text.clone()),
        ("-10000", filled(&text, "-10000.0")),
        ("-30000", filled(&text, "-30000.0")),
        ("infinite", filled(&text, "-inf")),
        ("guarded", filled(&guarded, "-inf")),
        ("replaced", replaced.clone()),
        ("replaced by -1e9", filled(&replaced, "-1e9")),
        ("replaced by -10000", filled(&replaced, "-10000.0")),
    ];
    let inputs = padded();
    for (name, text) in &spellings {
        for (target, precision) in [
            ("cpu", Floats::Fp32),
            ("cpu", Floats::Fp16),
            ("sm_89", Floats::Fp32),
            ("sm_89", Floats::Fp16),
            ("sm_89", Floats::Bf16),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let outcome = compiled(folder.path(), text, target, precision, &inputs)
                .unwrap_or_else(|e| panic!("{name}, {target}, {precision:?}: {e}"));
            let attention = &outcome.manifest.attention;
            assert_eq!(attention.len(), 1, "{name}, {target}, {precision:?}");
        }
    }
}

/// nn.MultiheadAttention with `need_weights` and a padding mask, by both exporters, and with `add_zero_attn`.
#[test]
fn masks_over_flattened_heads_are_attention() {
    if common::runtime().is_none() {
        return;
    }
    let x: Vec<f32> = (0..96)
        .map(|k| ((k * 37 % 101) as f32) / 50.0 - 1.0)
        .collect();
    let x = Tensor::from_values([2usize, 6, 8].as_slice(), &x).unwrap();
    let hidden: Vec<bool> = (0..12).map(|k| k > 8).collect();
    let hidden = Tensor::from_values([2usize, 6].as_slice(), &hidden).unwrap();
    let masked = vec![("x", x.clone()), ("m", hidden)];
    for (name, inputs) in [
        ("mha_weights_padding_ts", &masked),
        ("mha_weights_padding_dynamo", &masked),
        ("mha_zero_attention_ts", &vec![("x", x)]),
    ] {
        for (target, precision) in [
            ("cpu", Floats::Fp32),
            ("cpu", Floats::Fp16),
            ("sm_89", Floats::Fp16),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let outcome = compiled(folder.path(), &case(name), target, precision, inputs)
                .unwrap_or_else(|e| panic!("{name}, {target}, {precision:?}: {e}"));
            assert_eq!(outcome.manifest.attention.len(), 1, "{name}, {target}");
        }
    }
}

/// What lowering packs for ONNX Runtime is counted as packed, and so is what a model came with.
#[test]
fn packed_projections_are_counted() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let packed = |model: &Path, output: &str, left: usize| {
        let options = Options {
            output: Some(folder.path().join(output)),
            targets: Some("cpu".parse().unwrap()),
            engine: false,
            check: false,
            ..Options::new(model.to_owned())
        };
        let outcome = compile(&options, &Silent).unwrap();
        let blocks = &outcome.manifest.blocks;
        let row = blocks.iter().find(|b| b.kind == "packed projections");
        let row = row.unwrap();
        assert_eq!((row.fused, row.found), (2 - left, 2));
        outcome.bundle.join("model.onnx")
    };
    let first = packed(
        &common::fixture("models/whisper-enc.dynamo.eager.onnx"),
        "first",
        0,
    );
    packed(&first, "second", 0);
    // The classifier reads one row, so that the last layer's query is of another input.
    packed(&common::fixture("models/vit.ts.eager.onnx"), "third", 1);
}
