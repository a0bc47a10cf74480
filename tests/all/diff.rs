//! `kiln diff`: what is the same, what is not, and which pass did it.

use std::fs;

use serde_json::Value;

use crate::common;
use crate::common::command::{Folder, MODEL, Ran, kiln};

/// The model with one change, and the model, as ONNX text.
fn pair(change: impl Fn(&str) -> String) -> (Folder, String, String) {
    let folder = Folder::new();
    let a = folder.write("a.onnxtxt", MODEL.as_bytes());
    let changed = change(MODEL);
    let b = folder.write("b.onnxtxt", changed.as_bytes());
    (folder, a, b)
}

fn diff(a: &str, b: &str) -> Ran {
    kiln(&["diff", a, b, "--json"])
}

/// The operators of all changes: `operator: −n +n ~n what`.
fn told(json: &Value) -> Vec<String> {
    let sum = |list: &Value| -> i64 {
        let all = list.as_array().unwrap().iter();
        all.map(|c| c["nodes"].as_i64().unwrap()).sum()
    };
    let rows = json["operators"].as_array().unwrap().iter();
    rows.map(|r| {
        let what = r["changed"][0]["what"].as_str().unwrap_or_default();
        let [a, b, c] = ["only_a", "only_b", "changed"].map(|k| sum(&r[k]));
        format!("{} -{a} +{b} ~{c} {what}", r["operator"].as_str().unwrap())
    })
    .collect()
}

#[test]
fn names_and_documentation_are_no_difference() {
    let (_folder, a, b) = pair(|text| text.to_string());
    let ran = kiln(&["diff", &a, &b]).expect(0);
    assert!(ran.out.ends_with("the same\n"), "{}", ran.out);
    assert_eq!(kiln(&["diff", &a, &b, "-q"]).expect(0).out, "");
    // Values and nodes by other names, a constant, too.
    let renamed = |text: &str| {
        let (head, _) = text.split_once("{\n  [first]").unwrap();
        let body = "{ m1 = MatMul(x, w) h1 = Add(m1, b) [q] d1 = Div(h1, root) e1 = Erf(d1) a1 = Add(e1, one) \
                    t1 = Mul(h1, a1) y = Mul(t1, half) z = MatMul(y, w) }";
        format!("{head}{body}\n")
    };
    let (_folder, a, b) = pair(renamed);
    diff(&a, &b).expect(0);
}

#[test]
fn each_kind_of_difference_is_told() {
    type Case = (&'static str, &'static str, &'static [&'static str]);
    let cases: [Case; 8] = [
        ("0.1, 0.2", "0.1, 0.25", &["Add -0 +0 ~1 other constants"]),
        ("Tanh(d)", "Erf(d)", &[]),
        (
            "e = Erf(d)",
            "e = Tanh(d)",
            &["Erf -1 +0 ~0 ", "Tanh -0 +1 ~0 "],
        ),
        ("h = Add(m, b)", "h = Add(b, m)", &[]),
        (
            "a = Add(e, one)",
            "a = Add(d, one)",
            &["Add -0 +0 ~1 reads other values"],
        ),
        (
            "z = MatMul(y, w)",
            "z = Gemm <transB: int = 0> (y, w)",
            &["MatMul -1 +0 ~0 ", "Gemm -0 +1 ~0 "],
        ),
        (
            "[times] t = Mul(h, a)",
            "[times] u = Mul(h, a)\n  [more] t = Neg(u)",
            &["Neg -0 +1 ~0 "],
        ),
        ("[batch, 4] x", "[rows, 4] x", &[]),
    ];
    for (from, to, expected) in cases {
        let (_folder, a, b) = pair(|text| text.replace(from, to));
        let ran = diff(&a, &b);
        let json = ran.json();
        assert_eq!(told(&json), *expected, "{from} → {to}");
        // The order of a sum means nothing.
        let same = !MODEL.contains(from) || to == "h = Add(b, m)";
        assert_eq!(
            (json["same"].as_bool(), ran.code),
            (Some(same), i32::from(!same)),
            "{from} → {to}"
        );
        // The other way round it is as much.
        let back = diff(&b, &a).json();
        assert_eq!(back["only_a"], json["only_b"]);
        assert_eq!(back["changed"], json["changed"]);
    }
    // An attribute, and an operator that both have.
    let with = |k: i64| MODEL.replace("Erf(d)", &format!("Softmax <axis: int = {k}> (d)"));
    let folder = Folder::new();
    let a = folder.write("a.onnxtxt", with(0).as_bytes());
    let b = folder.write("b.onnxtxt", with(1).as_bytes());
    let json = diff(&a, &b).expect(1).json();
    assert_eq!(told(&json), ["Softmax -0 +0 ~1 attribute axis"]);
}

#[test]
fn files_differ_beside_nodes() {
    for (from, to, what) in [
        (": 20]", ": 21]", "operator sets"),
        (
            "(float[batch, 4] x)",
            "(float[batch, 4] x, float more)",
            "input more",
        ),
        (", float[batch, 4] z)", ")", "output z"),
    ] {
        let (_folder, a, b) = pair(|text| text.replace(from, to));
        let ran = diff(&a, &b).expect(1);
        let facts = ran.json()["facts"].clone();
        let facts = facts.as_array().unwrap();
        assert!(
            facts
                .iter()
                .any(|f| f["what"] == what && f["counts"] == true),
            "{facts:?}"
        );
    }
}

#[test]
fn nested_graphs_are_compared() {
    let model = |op: &str| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>\ng (bool c, float[4] x) => (float[4] y)\n{{\n  y = If (c) <\n    then_branch: graph = t () => (float[4] p) {{ p = {op}(x) }},\n    else_branch: graph = e () => (float[4] q) {{ q = Neg(x) }}\n  >\n}}\n"
        )
    };
    let folder = Folder::new();
    let a = folder.write("a.onnxtxt", model("Relu").as_bytes());
    let b = folder.write("b.onnxtxt", model("Tanh").as_bytes());
    diff(&a, &a).expect(0);
    let json = diff(&a, &b).expect(1).json();
    assert_eq!(told(&json), ["Relu -1 +0 ~0 ", "Tanh -0 +1 ~0 "]);
}

#[test]
fn a_bundle_says_which_pass_did_it() {
    let folder = Folder::new();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let model = model.to_str().unwrap();
    let compile = |name: &str, more: &[&str]| {
        let out = folder.path(name);
        let base = [
            "compile",
            model,
            "--target",
            "cpu",
            "--no-check",
            "-o",
            &out,
        ];
        kiln(&[&base[..], more].concat()).expect(0);
        out
    };
    let bundle = compile("half.kiln", &["--fp16"]);
    let reports = ["r.html", "r.md", "r.xml", "r.json"].map(|n| folder.path(n));
    let mut args = vec!["diff", model, &bundle, "--json"];
    for report in &reports {
        args.extend(["--report", report]);
    }
    let json = kiln(&args).expect(1).json();
    let row = |op: &str| {
        let rows = json["operators"].as_array().unwrap().iter();
        rows.clone()
            .find(|r| r["operator"] == op)
            .unwrap_or_else(|| panic!("no {op}"))
            .clone()
    };
    let erf = row("Erf");
    assert_eq!(erf["only_a"][0]["pass"], "fuse-gelu");
    assert_eq!(erf["only_a"][0]["nodes"], erf["a"]);
    // Everything that went or came is known of.
    for side in ["only_a", "only_b"] {
        for r in json["operators"].as_array().unwrap() {
            for count in r[side].as_array().unwrap() {
                assert!(!count["pass"].is_null(), "{side} {r}");
            }
        }
    }
    let retyped = &row("Add")["changed"];
    let convert = |c: &Value| c["what"] == "float → float16" && c["pass"] == "convert-fp16";
    assert!(retyped.as_array().unwrap().iter().any(convert), "{retyped}");
    for report in &reports {
        let text = fs::read_to_string(report).unwrap();
        assert!(
            text.contains("fuse-gelu") || report.ends_with("xml"),
            "{report}"
        );
    }
    let junit = fs::read_to_string(&reports[2]).unwrap();
    assert!(
        junit.contains("<failure") && junit.contains("only in a"),
        "{junit}"
    );
    assert_eq!(diff(&bundle, &bundle).expect(0).json()["same"], true);

    // Between bundles: the pass that one of them did not run, and what they were made for.
    let plain = compile("plain.kiln", &[]);
    let json = diff(&plain, &bundle).expect(1).json();
    let facts = json["facts"].as_array().unwrap();
    assert!(
        facts
            .iter()
            .any(|f| f["what"] == "precision" && f["a"] == "fp32" && f["b"] == "fp16"),
        "{facts:?}"
    );
    let without = compile("without.kiln", &["--passes", "default,-fuse-gelu"]);
    let json = diff(&plain, &without).expect(1).json();
    let named = |p: &Value| p["pass"] == "fuse-gelu" && p["only_a"] != 0 && p["only_b"] != 0;
    assert!(
        json["passes"].as_array().unwrap().iter().any(named),
        "{:#}",
        json["passes"]
    );
}

#[test]
fn blocks_that_changed_alike_are_told_once() {
    let folder = Folder::new();
    let model = common::fixture("models/whisper-enc.dynamo.eager.onnx");
    let (model, out) = (model.to_str().unwrap(), folder.path("b.kiln"));
    kiln(&[
        "compile",
        model,
        "--fp16",
        "--target",
        "cpu",
        "--no-check",
        "-o",
        &out,
    ])
    .expect(0);
    let json = diff(model, &out).expect(1).json();
    // By the modules that torch.export notes.
    assert_eq!(
        json["blocks"][0]["names"],
        serde_json::json!(["m.layers.0", "m.layers.1"])
    );
    let ran = kiln(&["diff", model, &out]).expect(1);
    assert!(
        ran.out.contains("m.layers.0 to 1 (2 alike): "),
        "{}",
        ran.out
    );
}

#[test]
fn two_exports_of_one_model_are_paired_by_weights_and_order() {
    let export = |name: &str| common::fixture(name).to_str().unwrap().to_string();
    let a = export("models/bert-tiny.ts.eager.opset11.onnx");
    let b = export("models/bert-tiny.dynamo.sdpa.opset23.onnx");
    let json = diff(&a, &b).expect(1).json();
    let rows = json["operators"].as_array().unwrap().iter();
    // Each product with a weight has its partner: what is left is between activations.
    let products = rows.clone().find(|r| r["operator"] == "MatMul").unwrap();
    let only: Vec<i64> = products["only_b"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["nodes"].as_i64().unwrap())
        .collect();
    assert!(only.iter().sum::<i64>() <= 4, "{products}");
    let weights = |r: &Value| {
        r["changed"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["what"] == "other constants")
    };
    assert!(!rows.clone().any(weights), "{:#}", json["operators"]);
}

#[test]
fn what_cannot_be_read_is_no_difference() {
    let (folder, a, _) = pair(|text| text.to_string());
    diff(&a, &folder.path("none.onnx"))
        .expect(3)
        .says(&["none.onnx"]);
    diff(&folder.path(""), &a)
        .expect(3)
        .says(&["is not a kiln bundle"]);
    let bad = folder.write("bad.onnx", b"no model");
    diff(&a, &bad).expect(3).says(&["bad.onnx"]);
    fs::create_dir(folder.path("k.kiln")).unwrap();
    folder.write("k.kiln/model.onnx", &common::encode(MODEL));
    folder.write("k.kiln/manifest.json", b"{");
    diff(&a, &folder.path("k.kiln"))
        .expect(3)
        .says(&["manifest.json"]);
    kiln(&["diff", &a]).expect(2);
    kiln(&["diff", &a, &a, "--report", "r.txt"]).expect(2);
}
