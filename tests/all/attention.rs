//! `kiln attention`: maps of originals and of bundles, as arrays and as a page.

use crate::common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::fixture;
use kiln::attention::{self, Data, Kind, Options, Summary};
use kiln::fault::Fault;
use kiln::parity::npz;
use kiln::talk::Silent;
use kiln_graph::{Model, Op, Tensor, onnx};
use serde_json::Value;
use tempfile::TempDir;

fn options(model: PathBuf, inputs: &str, folder: &TempDir) -> Options {
    Options {
        model,
        data: Data::Arrays(fixture(&format!("models/{inputs}.io.npz"))),
        tokenizer: None,
        max_length: 128,
        layers: Vec::new(),
        heads: Vec::new(),
        page: folder.path().join("attention.html"),
        device: kiln::runtime::DeviceRequest::default(),
        ort_lib: None,
    }
}

/// The maps of a model on the inputs of a fixture; `None` without a runtime.
fn maps(model: &Path, inputs: &str) -> Option<Summary> {
    common::runtime()?;
    let folder = tempfile::tempdir().unwrap();
    let options = options(model.to_path_buf(), inputs, &folder);
    let summary = attention::attention(&options, &Silent).unwrap();
    let back = npz::read(&summary.arrays).unwrap();
    let names: Vec<String> = back.iter().map(|(n, _)| n.clone()).collect();
    let want: Vec<String> = (0..summary.layers.len())
        .map(|k| format!("layer{k}"))
        .collect();
    assert_eq!(names, want);
    for ((_, back), layer) in back.iter().zip(&summary.layers) {
        assert!(back.same_bits(&layer.weights));
    }
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
    Some(summary)
}

/// Every row of a map, as (sample, query, weights).
fn rows(weights: &Tensor) -> Vec<(usize, usize, Vec<f32>)> {
    let [_, heads, queries, keys] = *weights.dims() else {
        panic!("{:?}", weights.dims());
    };
    let values = weights.values::<f32>().unwrap();
    let rows = values.chunks(keys).enumerate();
    rows.map(|(k, row)| (k / (heads * queries), k % queries, row.to_vec()))
        .collect()
}

#[track_caller]
fn sums_to_one(summary: &Summary) {
    for layer in &summary.layers {
        for (_, _, row) in rows(&layer.weights) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{}: {sum}", layer.name);
        }
    }
}

/// An integer input of a fixture: what it is, by sample.
fn input(inputs: &str, name: &str) -> Vec<Vec<i64>> {
    let all = npz::read(&fixture(&format!("models/{inputs}.io.npz"))).unwrap();
    let wanted = format!("in.{name}");
    let (_, tensor) = all.into_iter().find(|(n, _)| *n == wanted).unwrap();
    let values = tensor.to_i64s().unwrap();
    values
        .chunks(tensor.dims()[1])
        .map(<[i64]>::to_vec)
        .collect()
}

/// Keys that the mask hides get nothing, and some are hidden.
#[track_caller]
fn hides_padding(summary: &Summary, inputs: &str) {
    let mask = input(inputs, "attention_mask");
    assert!(mask.iter().flatten().any(|&m| m == 0), "nothing to hide");
    for layer in &summary.layers {
        for (sample, _, row) in rows(&layer.weights) {
            for (weight, kept) in row.iter().zip(&mask[sample]) {
                assert!(*kept != 0 || *weight == 0.0, "{}: {weight}", layer.name);
            }
        }
    }
}

#[track_caller]
fn agree(a: &Summary, b: &Summary, within: f32) {
    assert_eq!(a.layers.len(), b.layers.len());
    for (a, b) in a.layers.iter().zip(&b.layers) {
        assert_eq!((a.weights.dims(), a.kind), (b.weights.dims(), b.kind));
        let (x, y) = (a.weights.values::<f32>(), b.weights.values::<f32>());
        for (x, y) in x.unwrap().iter().zip(y.unwrap()) {
            assert!((x - y).abs() <= within, "{}: {x} and {y}", a.name);
        }
    }
}

/// A fixture as `kiln compile` writes it, and the operators that it has then.
fn compiled(name: &str, folder: &TempDir, more: &[&str]) -> (PathBuf, Vec<Op>) {
    let bundle = folder.path().join("bundle");
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .arg("compile")
        .arg(fixture(&format!("models/{name}.onnx")))
        .args(["--no-engine", "--no-check", "-q", "-o"])
        .arg(&bundle)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let model: Model = onnx::read(bundle.join("model.onnx")).unwrap();
    let ops = model.graph.nodes().map(|(_, n)| n.op()).collect();
    (bundle, ops)
}

#[test]
fn bert_hides_padding() {
    let Some(found) = maps(
        &fixture("models/bert-tiny.ts.eager.opset11.onnx"),
        "bert-tiny",
    ) else {
        return;
    };
    assert_eq!(found.layers.len(), 2);
    sums_to_one(&found);
    hides_padding(&found, "bert-tiny");
    let newest = fixture("models/bert-tiny.dynamo.sdpa.opset23.onnx");
    // The standard Attention, and another exporter's masks: the same model.
    agree(&found, &maps(&newest, "bert-tiny").unwrap(), 1e-5);
}

#[test]
fn gpt2_is_causal() {
    let Some(found) = maps(&fixture("models/gpt2.ts.sdpa.onnx"), "gpt2") else {
        return;
    };
    sums_to_one(&found);
    hides_padding(&found, "gpt2");
    for layer in &found.layers {
        assert!(layer.mask.contains("causal"));
        for (_, query, row) in rows(&layer.weights) {
            assert!(row[query + 1..].iter().all(|w| *w == 0.0));
        }
    }
}

#[test]
fn a_decoder_has_cross_attention() {
    let Some(found) = maps(&fixture("models/t5-dec.ts.eager.onnx"), "t5-dec") else {
        return;
    };
    sums_to_one(&found);
    let kinds: Vec<Kind> = found.layers.iter().map(|l| l.kind).collect();
    let (own, cross) = (Kind::SelfAttention, Kind::CrossAttention);
    assert_eq!(kinds, [own, cross, own, cross]);
    assert!(found.layers.iter().all(|l| l.query_tokens.is_some()));
    let tokens: Vec<bool> = found
        .layers
        .iter()
        .map(|l| l.key_tokens.is_some())
        .collect();
    assert_eq!(tokens, [true, false, true, false]);
}

#[test]
fn originals_and_bundles_agree() {
    let ort = Op::new("com.microsoft", "Attention");
    let heads = Op::new("com.microsoft", "MultiHeadAttention");
    let cpu = &["--target", "cpu"][..];
    let half = &["--target", "sm_89", "--fp16"][..];
    let cases = [
        (
            "bert-tiny.ts.eager.opset11",
            "bert-tiny",
            cpu,
            Some(ort),
            1e-5,
        ),
        ("gpt2.ts.sdpa", "gpt2", cpu, Some(ort), 1e-5),
        ("modernbert.ts.sdpa", "modernbert", cpu, Some(heads), 1e-5),
        ("t5-dec.ts.eager", "t5-dec", cpu, Some(heads), 1e-5),
        ("llama.dynamo.eager", "llama", cpu, None, 1e-5),
        // FP16 moves weights by a part of 2048.
        ("gpt2.ts.sdpa", "gpt2", half, None, 1e-3),
    ];
    for (name, inputs, how, fused, within) in cases {
        let Some(original) = maps(&fixture(&format!("models/{name}.onnx")), inputs) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (bundle, ops) = compiled(name, &folder, how);
        assert!(fused.is_none_or(|op| ops.contains(&op)), "{name}");
        agree(&original, &maps(&bundle, inputs).unwrap(), within);
    }
}

/// One layer with one head over the words' own vectors: queries and keys as they are, times `scale`.
fn one_head(scale: f32) -> String {
    format!(
        r#"<ir_version: 8, opset_import: ["" : 20]>
g (int64[batch, seq] input_ids) => (float[batch, 1, seq, 2] y)
<float[32, 2] table = {{ {table} }}, float[2, 2] w = {{1.0, 0.0, 0.0, 1.0}}, float scale = {{ {scale:?} }}, int64[1] axis = {{1}}>
{{
  x = Gather(table, input_ids)
  h = Unsqueeze(x, axis)
  q = MatMul(h, w)
  k = MatMul(h, w)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul(q, kt)
  t = Mul(s, scale)
  p = Softmax <axis = -1> (t)
  y = MatMul(p, h)
}}"#,
        // All words alike but the second, [CLS] aside: it is longer, so that all look at it.
        table = (0..32)
            .map(|k| if k == 2 { "9.0, 9.0" } else { "1.0, 1.0" })
            .collect::<Vec<_>>()
            .join(", ")
    )
}

fn kiln(args: &[&std::ffi::OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn text_gives_tokens_and_flags() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = fixture("tokenizers/words.json");
    let (model, page) = (
        folder.path().join("m.onnx"),
        folder.path().join("maps.html"),
    );
    for (scale, flag) in [(1.0, "one-key"), (0.0, "uniform")] {
        std::fs::write(&model, common::encode(&one_head(scale))).unwrap();
        let output = kiln(&[
            "attention".as_ref(),
            model.as_ref(),
            "--text".as_ref(),
            "the cat sat".as_ref(),
            "--tokenizer".as_ref(),
            tokenizer.as_ref(),
            "--json".as_ref(),
            "-o".as_ref(),
            page.as_ref(),
        ]);
        assert!(output.status.success(), "{output:?}");
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let head = &summary["layers"][0]["heads"][0];
        assert_eq!(head["flags"], serde_json::json!([flag]), "{summary:#}");
        assert!(head["entropy"].is_f64());
        let html = std::fs::read_to_string(&page).unwrap();
        for token in ["[CLS]", "[SEP]"] {
            assert!(html.contains(&format!("\"{token}\"")), "{token}");
        }
        let arrays = npz::read(&page.with_extension("npz")).unwrap();
        assert_eq!(arrays[0].0, "layer0");
    }
    // Nothing is left beside what was asked for.
    let mut left: Vec<_> = (std::fs::read_dir(folder.path()).unwrap())
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["m.onnx", "maps.html", "maps.npz"]);
}

#[test]
fn layers_and_heads_are_chosen() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("models/gpt2.ts.sdpa.onnx");
    let some = Options {
        layers: vec![1],
        heads: vec![1],
        ..options(model.clone(), "gpt2", &folder)
    };
    let found = attention::attention(&some, &Silent).unwrap();
    let whole = maps(&model, "gpt2").unwrap();
    let [layer] = &found.layers[..] else {
        panic!("{found:?}");
    };
    assert_eq!((layer.layer, layer.heads[0].head), (1, 1));
    let [samples, heads, queries, keys] = *whole.layers[1].weights.dims() else {
        panic!();
    };
    assert_eq!(layer.weights.dims(), [samples, 1, queries, keys]);
    let all = whole.layers[1].weights.values::<f32>().unwrap();
    let second: Vec<f32> = (all.chunks(queries * keys).enumerate())
        .filter(|(k, _)| k % heads == 1)
        .flat_map(|(_, map)| map.to_vec())
        .collect();
    assert_eq!(layer.weights.values::<f32>().unwrap(), second);
    let names = npz::read(&found.arrays).unwrap();
    assert_eq!(names[0].0, "layer1");
}

#[test]
fn what_cannot_be_done_is_said() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gpt2 = || options(fixture("models/gpt2.ts.sdpa.onnx"), "gpt2", &folder);
    let plain = folder.path().join("plain.onnx");
    let text = r#"<ir_version: 8, opset_import: ["" : 20]>
        g (float[n] x) => (float[n] y) { y = Relu(x) }"#;
    std::fs::write(&plain, common::encode(text)).unwrap();
    let x = folder.path().join("x.npz");
    npz::write(&x, &[("x", Tensor::vector(&[1f32]))]).unwrap();
    let cases = [
        (
            Options {
                layers: vec![7],
                ..gpt2()
            },
            Fault::Request,
            "has no attention 7: they are numbered 0 to 1",
        ),
        (
            Options {
                heads: vec![9],
                ..gpt2()
            },
            Fault::Request,
            "has no head 9",
        ),
        (
            Options {
                page: folder.path().join("maps"),
                ..gpt2()
            },
            Fault::Request,
            "ends in .html",
        ),
        (
            Options {
                model: "none.onnx".into(),
                ..gpt2()
            },
            Fault::Model,
            "none.onnx",
        ),
        (
            Options {
                data: Data::Arrays("none.npz".into()),
                ..gpt2()
            },
            Fault::Request,
            "none.npz",
        ),
        (
            Options {
                data: Data::Text(vec!["a".into()]),
                ..gpt2()
            },
            Fault::Request,
            "tokenizer",
        ),
        (
            Options {
                model: plain,
                data: Data::Arrays(x.clone()),
                ..gpt2()
            },
            Fault::Model,
            "kiln finds no attention in",
        ),
        (
            Options {
                data: Data::Arrays(x.clone()),
                page: x.with_extension("html"),
                ..gpt2()
            },
            Fault::Request,
            "would be overwritten",
        ),
    ];
    for (options, fault, says) in cases {
        let error = attention::attention(&options, &Silent).unwrap_err();
        assert_eq!(error.fault(), fault, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!options.page.exists());
    }
}
