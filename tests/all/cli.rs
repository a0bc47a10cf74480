//! The binary: what it says, what it returns, and what it leaves on the disk.

use crate::common;

use std::fs;

use kiln_graph::{DType, onnx};
use serde_json::Value;

use common::command::{Folder, MODEL, kiln};

#[test]
fn usage_errors() {
    let folder = Folder::with_model();
    let before = folder.listing();
    let model = folder.path("model.onnx");
    kiln(&["compile", &model, "--target", "sm_42"])
        .expect(2)
        .says(&["unknown target 'sm_42'", "sm_89"]);
    kiln(&["compile", &model, "--target", "cpu,sm_89"]).expect(2);
    folder
        .compile(&["--passes", "default,-fuse-gelo"])
        .expect(2)
        .says(&["unknown pass 'fuse-gelo'", "fuse-gelu"]);
    folder
        .compile(&["--explain", "fuse-gelo"])
        .expect(2)
        .says(&["fuse-gelu"]);
    folder
        .compile(&["--dump-after", "fuse-gelo", &folder.path("dump")])
        .expect(2)
        .says(&["fuse-gelu"]);
    folder
        .compile(&["--dim", "length=4"])
        .expect(2)
        .says(&["--dim length", "it has: batch"]);
    folder.compile(&["--dim", "batch=0"]).expect(2);
    folder
        .compile(&["--dim", "batch=8:4:1"])
        .expect(2)
        .says(&["MIN <= OPT <= MAX"]);
    folder
        .compile(&["--shape", "q=1x4"])
        .expect(2)
        .says(&["--shape q", "it has: x"]);
    folder
        .compile(&["--shape", "x=1x5"])
        .expect(2)
        .says(&["dimension 1 is 4 in the model"]);
    folder.compile(&["--fp16-io"]).expect(2).says(&["--fp16"]);
    folder.compile(&["--fp16", "--keep", "("]).expect(2);
    kiln(&[
        "check",
        &model,
        "--reference",
        &model,
        "--tolerance",
        "close",
    ])
    .expect(2)
    .says(&["--tolerance", "fp16"]);
    kiln(&["compile"]).expect(2);
    kiln(&["bake", &model]).expect(2);
    assert_eq!(folder.listing(), before);
}

#[test]
fn help_and_version() {
    let help = kiln(&["--help"]).expect(0);
    assert!(help.out.contains("EXIT CODES") && help.err.is_empty());
    assert!(kiln(&["--version"]).expect(0).out.starts_with("kiln "));
    assert!(
        kiln(&["compile", "--help"])
            .expect(0)
            .out
            .contains("--fp16")
    );
    let completions = kiln(&["completions", "bash"]).expect(0);
    assert!(completions.out.contains("complete -F _kiln"));
    assert!(completions.out.contains("--dump-after"));
}

#[test]
fn passes_are_listed_and_explained() {
    let list = kiln(&["passes", "list"]).expect(0).out;
    for pass in kiln_passes::registry::ALL {
        assert!(list.contains(pass.name()), "{}", pass.name());
        let explained = kiln(&["passes", "explain", pass.name()]).expect(0).out;
        assert!(explained.starts_with(pass.name()) && explained.contains(pass.about()));
    }
    assert_eq!(kiln(&["passes"]).expect(0).out, list);
    let gelu = kiln(&["passes", "explain", "fuse-gelu"]).expect(0).out;
    assert!(gelu.contains("Erf(d)"));
    kiln(&["passes", "explain", "fuse-gelo"])
        .expect(2)
        .says(&["unknown pass 'fuse-gelo'"]);
}

#[test]
fn models_are_inspected() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let json = kiln(&["inspect", &model, "--json"]).expect(0).json();
    assert_eq!(json["nodes"], 8);
    assert_eq!(json["opsets"], serde_json::json!([["", 20]]));
    assert_eq!(json["inputs"][0][0], "x");
    let shown = kiln(&["inspect", &model]).expect(0).out;
    assert!(shown.contains("model.onnx") && shown.contains("MatMul"));

    let text = kiln(&["inspect", &model, "--text"]).expect(0).out;
    let written = folder.write("model.onnxtxt", text.as_bytes());
    let again = kiln(&["inspect", &written, "--json"]).expect(0).json();
    assert_eq!(again["ops"], json["ops"]);
}

#[test]
fn the_doctor_reports() {
    let ran = kiln(&["doctor", "--json"]);
    let all = ran.json();
    let findings = all["findings"].as_array().unwrap();
    let broken = |f: &&Value| f["found"] == false && f["needed"] == true;
    let broken = findings.iter().find(broken);
    assert_eq!(ran.code, if broken.is_some() { 5 } else { 0 });
    let names: Vec<_> = findings
        .iter()
        .map(|f| f["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        names[..3],
        ["ONNX Runtime", "TensorRT for RTX", "NVIDIA driver"]
    );

    let broken = kiln(&["doctor", "--ort-lib", "/nonexistent", "--json"])
        .expect(5)
        .json();
    let broken = &broken["findings"][0];
    assert_eq!(broken["found"], false);
    assert!(
        broken["mend"]
            .as_str()
            .unwrap()
            .starts_with("pip install onnxruntime")
    );
}

#[test]
fn a_missing_runtime() {
    let folder = Folder::with_model();
    let before = folder.listing();
    folder
        .compile(&["--ort-lib", "/nonexistent"])
        .expect(5)
        .says(&["/nonexistent", "pip install onnxruntime"]);
    let model = folder.path("model.onnx");
    kiln(&[
        "check",
        &model,
        "--reference",
        &model,
        "--ort-lib",
        "/nonexistent",
    ])
    .expect(5)
    .says(&["pip install onnxruntime"]);
    let trt = [
        "compile",
        &model,
        "--no-check",
        "--target",
        "sm_89",
        "--trt-lib",
        "/nonexistent",
    ];
    kiln(&trt).expect(5).says(&["pip install tensorrt-rtx"]);
    assert_eq!(folder.listing(), before);

    // What needs no runtime works without one.
    folder
        .compile(&["--no-check", "--ort-lib", "/nonexistent"])
        .expect(0);
    assert_eq!(folder.manifest("model.kiln")["parity"], Value::Null);
}

#[test]
fn a_bundle_is_written_and_replaced() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let ran = folder.compile(&[]).expect(0);
    for part in ["fuse-gelu", "parity", "model.kiln", "not built"] {
        assert!(ran.out.contains(part), "no '{part}' in:\n{}", ran.out);
    }
    let manifest = folder.manifest("model.kiln");
    assert_eq!(manifest["target"], "cpu");
    assert_eq!(manifest["options"]["seed"], 1);
    assert_eq!(manifest["after"]["nodes"], 4);
    let names = |folder: &Folder| {
        let mut names: Vec<_> = fs::read_dir(folder.path("model.kiln"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let expected = [
        "manifest.json",
        "model.onnx",
        "parity.npz",
        "report.html",
        "report.md",
    ];
    assert_eq!(names(&folder), expected);

    folder.write("model.kiln/model.engine", b"");
    let json = folder.compile(&["--seed", "2", "--json"]).expect(0).json();
    assert_eq!(json["options"]["seed"], 2);
    assert_eq!(folder.manifest("model.kiln"), json);
    assert_eq!(names(&folder), expected);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 2);

    let inspected = kiln(&["inspect", &folder.path("model.kiln"), "--json"])
        .expect(0)
        .json();
    assert_eq!(inspected["nodes"], 4);
}

#[test]
fn a_folder_that_is_not_ours_is_left_alone() {
    let folder = Folder::with_model();
    fs::create_dir(folder.path("precious")).unwrap();
    folder.write("precious/thesis.txt", b"years of work");
    folder.write("file", b"text");
    let before = folder.listing();
    for taken in ["precious", "file"] {
        folder
            .compile(&["--no-check", "-o", &folder.path(taken)])
            .expect(2)
            .says(&[taken, "is not a kiln bundle"]);
        assert_eq!(folder.listing(), before);
    }
    assert_eq!(
        fs::read(folder.path("precious/thesis.txt")).unwrap(),
        b"years of work"
    );
    assert_eq!(fs::read(folder.path("file")).unwrap(), b"text");
}

#[test]
fn kept_nodes_stay_in_fp32() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    folder.compile(&["--fp16", "--keep", "^second$"]).expect(0);
    let manifest = folder.manifest("model.kiln");
    let kept: Vec<_> = (manifest["kept"].as_array().unwrap().iter())
        .map(|k| k["node"].as_str().unwrap())
        .collect();
    assert!(kept.iter().any(|k| k.contains("second")), "{kept:?}");
    assert_eq!(manifest["precision"], "fp16");

    let mut model = onnx::read(folder.path("model.kiln/model.onnx")).unwrap();
    kiln_graph::infer::annotate(&mut model.graph);
    let operands = |name: &str| {
        let mut nodes = model.graph.nodes();
        let (_, node) = nodes.find(|(_, n)| n.name() == name).unwrap();
        let inputs = node.inputs().iter().flatten();
        let types = inputs.map(|&v| model.graph.value(v).ty().dtype());
        types.collect::<Vec<_>>()
    };
    assert_eq!(operands("first"), [Some(DType::F16); 2]);
    assert_eq!(operands("second"), [Some(DType::F32); 2]);
}

#[test]
fn operators_keep_fp32_by_name() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let by_op = ["--fp16", "--keep-op", "Gelu"];
    folder.compile(&by_op).expect(0);
    let manifest = folder.manifest("model.kiln");
    let kept = manifest["kept"].as_array().unwrap();
    let mut whys = kept.iter().map(|k| k["why"].as_str().unwrap());
    assert!(
        whys.any(|why| why == "kept by its operator Gelu"),
        "{kept:?}"
    );
    folder.compile(&["--fp16", "--keep-op", "a b"]).expect(2);
}

#[test]
fn dumps_are_models() {
    let folder = Folder::with_model();
    let dump = folder.path("dump");
    folder
        .compile(&["--no-check", "--dump-after", "all", &dump])
        .expect(0);
    let manifest = folder.manifest("model.kiln");
    let passes = manifest["passes"].as_array().unwrap();
    let mut dumps: Vec<_> = fs::read_dir(&dump)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    dumps.sort();
    assert_eq!(dumps.len(), passes.len());
    for (path, pass) in dumps.iter().zip(passes) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name.ends_with(pass["name"].as_str().unwrap()), "{name}");
        kiln(&["inspect", path.to_str().unwrap()]).expect(0);
    }

    let one = folder.path("one");
    folder
        .compile(&["--no-check", "--dump-after", "fuse-gelu", &one])
        .expect(0);
    assert_eq!(fs::read_dir(&one).unwrap().count(), 1);
}

#[test]
fn misses_are_explained() {
    let folder = Folder::new();
    let text = MODEL.replace("1.4142135381698608", "1.5");
    folder.write("model.onnx", &common::encode(&text));
    let ran = folder
        .compile(&["--no-check", "--explain", "fuse-gelu"])
        .expect(0);
    let missed = "fuse-gelu: 0 matched, 2 did not\n";
    assert!(ran.out.starts_with(missed), "{}", ran.out);
    let row = ran.out.lines().nth(4).unwrap();
    let cells: Vec<_> = row
        .split("  ")
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .collect();
    let why = "it multiplies by 1/1.5, not by 0.70710677 (1/1.4142135)";
    assert_eq!(cells[..3], ["halve (Mul)", "5", "div (Div)"], "{row}");
    assert!(cells[3].contains(why), "{row}");

    // Several passes, in the order in which they are asked for; one that did not run, and one without a miss.
    let asked = ["fuse-layer-norm", "convert-fp16", "fuse-gelu", "fuse-gelu"];
    let mut args = vec!["--no-check"];
    asked
        .iter()
        .for_each(|pass| args.extend(["--explain", pass]));
    let ran = folder.compile(&args).expect(0);
    let at = |part: &str| {
        let found = ran.out.find(part);
        found.unwrap_or_else(|| panic!("no '{part}' in:\n{}", ran.out))
    };
    let norm = at("fuse-layer-norm: 0 matched, 4 did not\n");
    let fp16 = at("convert-fp16: it is not among the passes that ran\n");
    assert!(norm < fp16 && fp16 < at(missed));
    assert_eq!(ran.out.matches("fuse-gelu: ").count(), 1, "{}", ran.out);

    // All passes, for machines: each root once, in the graph's order, though a pass may run twice.
    args.truncate(1);
    args.extend(["--explain", "all", "--json"]);
    let json = folder.compile(&args).expect(0).json();
    let pass = |name: &str| {
        let mut all = json["explain"].as_array().unwrap().iter();
        all.find(|e| e["pass"] == name).unwrap().clone()
    };
    assert_eq!(
        pass("eliminate-noop")["missed"].as_array().unwrap().len(),
        3
    );
    let roots = pass("fuse-layer-norm");
    let roots: Vec<_> = (roots["missed"].as_array().unwrap().iter())
        .map(|m| m["root"].as_str().unwrap())
        .collect();
    let names = ["bias (Add)", "plus (Add)", "times (Mul)", "halve (Mul)"];
    assert_eq!(roots, names);
    assert_eq!(pass("fuse-gelu")["missed"][1]["depth"], 5);
    assert_eq!(pass("fold-shapes")["missed"], serde_json::json!([]));

    folder.write("model.onnx", &common::encode(MODEL));
    let ran = folder
        .compile(&["--no-check", "--explain", "fuse-gelu"])
        .expect(0);
    let hit = "fuse-gelu: 1 matched, and nothing came close without matching\n";
    assert!(ran.out.starts_with(hit), "{}", ran.out);
}

#[test]
fn right_and_wrong_candidates() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    folder.compile(&["--fp16"]).expect(0);
    let (model, bundle) = (folder.path("model.onnx"), folder.path("model.kiln"));
    kiln(&["check", &bundle, "--reference", &model]).expect(0);
    let json = kiln(&["check", &bundle, "--reference", &model, "--json"])
        .expect(0)
        .json();
    assert_eq!(json["parity"]["tolerance"]["name"], "fp16");
    kiln(&[
        "check",
        &bundle,
        "--reference",
        &model,
        "--tolerance",
        "fp32-exact",
    ])
    .expect(1);
    kiln(&[
        "check",
        &bundle,
        "--reference",
        &model,
        "--limit",
        "y:max_abs=0",
    ])
    .expect(1)
    .says(&["output 'y'", "max_abs"]);
    let proof = folder.path("model.kiln/parity.npz");
    kiln(&["check", &bundle, "--reference", &model, "--inputs", &proof]).expect(0);

    // One weight of the last product, so that only z differs.
    let text = MODEL.replace("MatMul(y, w)", "MatMul(y, v)").replace(
        "<float[4, 4] w = {",
        "<float[4, 4] v = {WEIGHTS}, float[4, 4] w = {",
    );
    let weights = MODEL
        .split("w = {")
        .nth(1)
        .unwrap()
        .split('}')
        .next()
        .unwrap();
    let wrong = text.replace("WEIGHTS", &weights.replacen("0.125", "0.5", 1));
    let wrong = folder.write("wrong.onnx", &common::encode(&wrong));
    let ran = kiln(&["check", &wrong, "--reference", &model])
        .expect(1)
        .says(&["output 'z'"]);
    assert!(!ran.err.contains("output 'y'"), "{}", ran.err);
    let right = text.replace("WEIGHTS", weights);
    let right = folder.write("right.onnx", &common::encode(&right));
    kiln(&[
        "check",
        &right,
        "--reference",
        &model,
        "--tolerance",
        "fp32-exact",
    ])
    .expect(0);
}

#[test]
fn fp16_that_overflows_is_no_result() {
    if common::runtime().is_none() {
        return;
    }
    let text = r#"
<ir_version: 8, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w = {
  300.0, 200.0, -300.0, 250.0, -300.0, 300.0, 200.0, -250.0,
  250.0, -300.0, 300.0, 200.0, 200.0, 250.0, -300.0, 300.0
}>
{
  a = MatMul(x, w)
  b = MatMul(a, w)
  c = MatMul(b, w)
  y = Tanh(c)
}
"#;
    let folder = Folder::new();
    folder.write("model.onnx", &common::encode(text));
    let before = folder.listing();
    folder.compile(&[]).expect(0);
    let manifest = folder.manifest("model.kiln");
    fs::remove_dir_all(folder.path("model.kiln")).unwrap();

    let text = text.replace("y = Tanh(c)", "y = Neg(c)");
    folder.write("model.onnx", &common::encode(&text));
    folder.compile(&["--fp16", "--no-search"]).expect(1).says(&[
        "not the same function",
        "model.onnx",
        "output 'y'",
        "--keep",
    ]);
    assert_eq!(folder.listing(), before);

    // A failure leaves an older bundle as it was.
    folder.compile(&[]).expect(0);
    let older = folder.manifest("model.kiln");
    folder.compile(&["--fp16", "--no-search"]).expect(1);
    assert_eq!(folder.manifest("model.kiln"), older);
    assert_ne!(older["source"]["sha256"], manifest["source"]["sha256"]);

    // A search keeps what overflows, and converts the rest.
    folder.compile(&["--fp16"]).expect(0);
    let found = folder.manifest("model.kiln");
    let kept = found["search"]["kept"].as_array().unwrap();
    assert!(!kept.is_empty() && found["converted"].as_u64() > Some(0));
    let reasons = found["kept"].as_array().unwrap();
    for node in kept {
        let why = reasons.iter().find(|r| r["node"] == *node).unwrap();
        assert_eq!(why["why"], "the result is out of tolerance without it");
    }
    let curve = found["search"]["curve"].as_array().unwrap();
    assert_eq!(curve[0]["kept"], 0);
    assert_eq!(curve[0]["pass"], false);
    let smallest = curve.iter().filter(|t| t["pass"] == true);
    let smallest = smallest.map(|t| t["kept"].as_u64()).min().unwrap();
    assert_eq!(smallest, Some(kept.len() as u64));
}

#[test]
fn int4_weights_are_asked_for_and_proved() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let model = common::fixture("models/gpt2.ts.sdpa.onnx");
    std::fs::copy(model, folder.path("model.onnx")).unwrap();
    let ran = folder.compile(&["--no-latency", "--int4"]).expect(0);
    assert!(ran.out.contains("blocks of 32"), "{}", ran.out);
    let manifest = folder.manifest("model.kiln");
    assert_eq!(manifest["precision"], "int4");
    assert_eq!(manifest["parity"]["tolerance"]["name"], "int4");
    assert!(manifest["quantized"].as_u64() > Some(0));
    let model = onnx::read(folder.path("model.kiln/model.onnx")).unwrap();
    let products = (model.graph.nodes())
        .filter(|(_, n)| n.op().name() == "MatMulNBits")
        .count();
    assert_eq!(Some(products as u64), manifest["quantized"].as_u64());
    folder
        .compile(&["--int4=24"])
        .expect(3)
        .says(&["24", "power of two"]);
}

#[test]
fn plain_onnx_on_request() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    std::fs::copy(model, folder.path("model.onnx")).unwrap();
    let foreign = |args: &[&str]| {
        folder.compile(args).expect(0);
        let model = onnx::read(folder.path("model.kiln/model.onnx")).unwrap();
        let nodes = model.graph.nodes();
        nodes.filter(|(_, n)| !n.op().domain().is_empty()).count()
    };
    assert_eq!(foreign(&["--no-latency", "--dialect", "standard"]), 0);
    assert_ne!(foreign(&["--no-latency"]), 0);
    let refused = folder.compile(&["--dialect", "other"]).expect(2);
    assert!(refused.err.contains("possible values"), "{}", refused.err);
}
