//! `kiln check` and `kiln bench` as gates: what passes, what fails, and the files that a CI reads.

use crate::common;
use crate::common::command::{Ran, kiln};

use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::{DType, Graph, Model, Tensor, ValueId, onnx};
use quick_junit::{Report, TestCaseStatus};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a model, and changed copies of it.
struct Setup {
    folder: TempDir,
    original: PathBuf,
}

impl Setup {
    fn new(fixture: &str) -> Option<Setup> {
        common::runtime()?;
        let folder = tempfile::tempdir().unwrap();
        let original = common::fixture(&format!("models/{fixture}"));
        Some(Setup { folder, original })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    fn original(&self) -> &str {
        self.original.to_str().unwrap()
    }

    fn changed(&self, name: &str, change: impl FnOnce(&mut Model)) -> String {
        let mut model = onnx::read(&self.original).unwrap();
        change(&mut model);
        fs::write(self.path(name), onnx::to_bytes(&model).unwrap()).unwrap();
        self.path(name)
    }

    /// Runs a check of the candidate, and gives its JUnit report, too.
    #[track_caller]
    fn check(&self, candidate: &str, more: &[&str], code: i32) -> (Ran, Report) {
        let xml = self.path("junit.xml");
        let mut args = vec![
            "check",
            candidate,
            "--reference",
            self.original(),
            "--report",
            &xml,
        ];
        args.extend(more);
        let ran = kiln(&args);
        assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
        (ran, junit(&xml))
    }
}

fn junit(path: &str) -> Report {
    Report::deserialize_from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The messages of the test cases that failed.
fn failures(report: &Report) -> Vec<String> {
    let cases = report.test_suites.iter().flat_map(|s| &s.test_cases);
    let failed = cases.filter_map(|c| match &c.status {
        TestCaseStatus::NonSuccess { message, .. } => Some(message.as_ref()?.to_string()),
        _ => None,
    });
    failed.collect()
}

/// The constant of the linear layer in the middle, and its node.
fn weight(g: &Graph) -> (ValueId, String) {
    let order = g.topo_order().unwrap();
    let layers: Vec<(ValueId, String)> = (order.iter())
        .filter_map(|&id| {
            let node = g.node(id);
            let v = node
                .input(1)
                .filter(|_| node.op().is("MatMul") || node.op().is("Gemm"))?;
            let matrix = g
                .constant(v)
                .is_some_and(|t| t.rank() == 2 && t.dtype() == DType::F32);
            (matrix && g.value(v).uses().len() == 1).then(|| (v, g.label(id)))
        })
        .collect();
    layers[layers.len() / 2].clone()
}

/// The model with a tenth added to some elements of that weight.
fn perturb(model: &mut Model) {
    replace(model, |k, v| if k % 7 == 0 { v + 0.1 } else { v });
}

fn replace(model: &mut Model, change: impl Fn(usize, f32) -> f32) {
    let g = &mut model.graph;
    let (old, _) = weight(g);
    let tensor = g.constant(old).unwrap().clone();
    let values = tensor.values::<f32>().unwrap();
    let values: Vec<f32> = values
        .into_iter()
        .enumerate()
        .map(|(k, v)| change(k, v))
        .collect();
    let new = Tensor::from_values(tensor.dims(), &values).unwrap();
    let new = g.add_constant("perturbed", new);
    let user = g.value(old).uses()[0].node;
    g.set_input(user, 1, Some(new));
}

const BERT: &str = "bert-tiny.ts.eager.opset11.onnx";

#[test]
fn a_faithful_model_passes_and_every_form_of_report_is_written() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let files = ["r.md", "r.html", "r.json"].map(|name| setup.path(name));
    let more: Vec<&str> = files.iter().flat_map(|f| ["--report", f]).collect();
    let (_, report) = setup.check(setup.original(), &more, 0);
    assert!(report.tests > 0 && report.failures == 0);
    let [md, html, json] = files.map(|f| fs::read_to_string(f).unwrap());
    assert!(md.contains("passes") && md.contains("| case |"), "{md}");
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("cosine"));
    assert!(!html.contains("http"), "no network");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["parity"]["tolerance"]["name"], "fp32-rewrite");
}

#[test]
fn a_perturbed_weight_fails() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let candidate = setup.changed("perturbed.onnx", perturb);
    let (ran, report) = setup.check(&candidate, &[], 1);
    let failed = failures(&report);
    assert!(failed[0].contains("relative_l2"), "{failed:?}");
    assert!(ran.err.contains("limit"), "{}", ran.err);
}

#[test]
fn a_swapped_output_fails() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let candidate = setup.changed("swapped.onnx", |model| {
        let g = &mut model.graph;
        let outputs = g.take_outputs();
        assert!(outputs.len() > 1);
        let n = outputs.len();
        for (k, output) in outputs.iter().enumerate() {
            g.add_output(&outputs[(k + 1) % n].name, output.value);
        }
    });
    let (_, report) = setup.check(&candidate, &[], 1);
    assert!(!failures(&report).is_empty());
}

#[test]
fn nan_fails() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let candidate = setup.changed("nan.onnx", |m| {
        replace(m, |k, v| if k == 5 { f32::NAN } else { v })
    });
    // No limit on errors can let it pass.
    let (_, report) = setup.check(&candidate, &["--tolerance", "int4"], 1);
    let failed = failures(&report);
    assert!(failed.iter().any(|f| f.contains("nonfinite")), "{failed:?}");
}

#[test]
fn a_missing_precision_fails() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let (ran, report) = setup.check(setup.original(), &["--require", "fp16"], 1);
    assert!(ran.err.contains("fp16 is absent"), "{}", ran.err);
    assert_eq!(failures(&report).len(), 1);
    let bundle = setup.path("half.kiln");
    let engine = common::tensorrt();
    let mut args = vec![
        "compile",
        setup.original(),
        "--fp16",
        "--target",
        "sm_89",
        "--no-latency",
        "-o",
        &bundle,
    ];
    if !engine {
        args.push("--no-engine");
    }
    assert_eq!(kiln(&args).code, 0);
    let (ran, _) = setup.check(&bundle, &["--require", "fp16"], 0);
    let of = if engine { "engine" } else { "model" };
    assert!(
        ran.out.contains(&format!("fp16 is in the {of}")),
        "{}",
        ran.out
    );
    setup.check(&bundle, &["--require", "int8"], 1);
}

#[test]
fn a_latency_regression_fails() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    // Slower by construction: every layer norm's input goes through a hundred more operators.
    let slow = setup.changed("slow.onnx", |model| {
        let g = &mut model.graph;
        let output = g.take_outputs();
        for (k, o) in output.into_iter().enumerate() {
            let mut v = o.value;
            if k == 0 {
                for _ in 0..400 {
                    let ty = g.value(v).ty().clone();
                    let node = g.add_node(
                        kiln_graph::Op::onnx("Erf"),
                        "",
                        [Some(v)],
                        1,
                        kiln_graph::Attrs::new(),
                    );
                    v = g.node(node).output(0).unwrap();
                    g.set_type(v, ty);
                }
            }
            g.add_output(&o.name, v);
        }
    });
    let xml = setup.path("bench.xml");
    let json = setup.path("bench.json");
    let quick = ["--duration", "0.2", "--warmup", "2", "--threads", "1"];
    let bench = |model: &str, more: &[&str]| {
        let mut args = vec!["bench", model, "--report", &xml];
        args.extend(quick);
        args.extend(more);
        kiln(&args)
    };
    let ran = bench(
        &slow,
        &["--baseline", setup.original(), "--max-regression", "50%"],
    );
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(failures(&junit(&xml))[0].contains("latency +"));
    // The other way round it is faster, and a recorded baseline says the same.
    assert_eq!(bench(&slow, &["--report", &json]).code, 0);
    let ran = bench(setup.original(), &["--baseline", &json]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(junit(&xml).failures, 0);
    let broken = setup.path("broken.json");
    fs::write(&broken, "{}").unwrap();
    let ran = bench(setup.original(), &["--baseline", &broken]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("kiln bench --json"), "{}", ran.err);
}

#[test]
fn golden_outputs_replace_the_reference() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let golden = setup.path("golden.npz");
    setup.check(setup.original(), &["--record", &golden], 0);
    let check = |model: &str, golden: &str| kiln(&["check", model, "--golden", golden]);
    assert_eq!(check(setup.original(), &golden).code, 0);
    let candidate = setup.changed("perturbed.onnx", perturb);
    let ran = check(&candidate, &golden);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("golden.npz"), "{}", ran.err);
    let inputs = common::fixture("models/bert-tiny.io.npz");
    let ran = check(setup.original(), inputs.to_str().unwrap());
    assert_ne!(ran.code, 101, "{}", ran.err);
}

#[test]
fn saved_numbers_are_judged_again() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let candidate = setup.changed("perturbed.onnx", |m| replace(m, |_, v| v * 1.05));
    let json = setup.path("result.json");
    setup.check(&candidate, &["--report", &json], 1);
    let again = |more: &[&str]| {
        let mut args = vec!["check", "--saved", &json];
        args.extend(more);
        kiln(&args)
    };
    assert_eq!(again(&["--tolerance", "int8"]).code, 0);
    assert_eq!(again(&["--tolerance", "fp32-exact"]).code, 1);
    assert_eq!(again(&[]).code, 1, "its own tolerance");
    let odd = setup.path("odd.json");
    fs::write(&odd, "[]").unwrap();
    let ran = kiln(&["check", "--saved", &odd, "--tolerance", "int8"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("odd.json"), "{}", ran.err);
}

/// Pieces of a check, from its JSON: of each the weight, and whether all its outputs passed.
fn pieces(json: &str) -> Vec<(String, bool)> {
    let json: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let pieces = json["pieces"].as_array().unwrap();
    let cases = json["parity"]["cases"].as_array().unwrap();
    let last = &cases[cases.len() - 1]["name"];
    let of = |k: usize| format!(", piece {} of {}", k + 1, pieces.len());
    assert!(last.as_str().unwrap().ends_with(&of(pieces.len() - 1)));
    let passed = |k: usize| {
        let mut cases = cases
            .iter()
            .filter(|c| c["name"].as_str().unwrap().ends_with(&of(k)));
        cases.all(|c| {
            let outputs = c["outputs"].as_array().unwrap();
            outputs
                .iter()
                .all(|o| o["comparison"]["verdict"]["pass"] == true)
        })
    };
    let weight = |p: &Value| p["weight"].as_str().unwrap().to_string();
    pieces
        .iter()
        .enumerate()
        .map(|(k, p)| (weight(p), passed(k)))
        .collect()
}

#[test]
fn pieces_stand_for_a_model_that_is_too_large() {
    // Decoders and encoders, normed before and after, and one that reads an encoder's output in each layer.
    let fixtures = [
        ("llama.dynamo.eager.onnx", "seq=1:8:32"),
        ("gpt2.ts.sdpa.onnx", "seq=1:8:32"),
        (BERT, "seq=1:8:32"),
        ("t5-dec.ts.eager.onnx", "dec_seq=1:8:32"),
        ("vit.ts.eager.onnx", "batch=1:2:3"),
    ];
    for (fixture, sizes) in fixtures {
        let Some(setup) = Setup::new(fixture) else {
            return;
        };
        let (bundle, json) = (setup.path("half.kiln"), setup.path("pieces.json"));
        let half = ["--fp16", "--target", "sm_89", "--no-engine", "--no-check"];
        let compile = [&["compile", setup.original(), "-o", &bundle], &half[..]].concat();
        assert_eq!(kiln(&compile).code, 0);
        let report = ["--pieces", "--report", &json, "--dim", sizes];
        let (ran, _) = setup.check(&bundle, &report, 0);
        let found = pieces(&json);
        assert!(found.len() > 2, "{fixture}: {found:?}");
        assert!(
            ran.out.contains(&format!("{} pieces", found.len())),
            "{}",
            ran.out
        );
        // Each gets what the one before it gives, and all weights are in them.
        let value: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let pieces = value["pieces"].as_array().unwrap();
        let bytes: u64 = pieces.iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
        let original = onnx::read(&setup.original).unwrap();
        let tensors = original.graph.values().filter(|(_, v)| !v.is_unused());
        let all: usize = tensors
            .filter_map(|(_, v)| Some(v.constant()?.byte_len()))
            .sum();
        assert_eq!(bytes, all as u64, "{fixture}");
        for pair in pieces.windows(2) {
            let known = |name: &Value| {
                let of = |list: &str, p: &Value| p[list].as_array().unwrap().contains(name);
                of("gives", &pair[0]) || of("given", &pair[0])
            };
            assert!(
                pair[1]["given"].as_array().unwrap().iter().all(known),
                "{pair:?}"
            );
        }
        // An error is of the piece that has it alone.
        let broken = setup.changed("perturbed.onnx", perturb);
        setup.check(&broken, &report, 1);
        let failed = self::pieces(&json).iter().filter(|(_, pass)| !pass).count();
        assert_eq!(failed, 1, "{fixture}");
    }
}

#[test]
fn a_compilation_proves_in_pieces_and_says_what_they_do_not_show() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let bundle = setup.path("half.kiln");
    let compile = |more: &[&str]| {
        let dims = ["--dim", "seq=1:8:32", "--fp16", "--target", "cpu"];
        let proof = [
            "compile",
            setup.original(),
            "-o",
            &bundle,
            "--proof",
            "pieces",
        ];
        kiln(&[&proof[..], &dims, more].concat())
    };
    let ran = compile(&[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let manifest = fs::read_to_string(format!("{bundle}/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let shows = manifest["parted"].as_str().unwrap();
    assert!(shows.contains(" pieces, as it was asked for") && shows.contains("was not seen"));
    assert_eq!(manifest["parity_outcome"], "passes");
    assert_eq!(manifest["latency"], Value::Null);
    let cases = manifest["parity"]["cases"].as_array().unwrap();
    let named = |name: &str| {
        cases
            .iter()
            .any(|c| c["name"].as_str().unwrap().starts_with(name))
    };
    assert!(named("smallest, piece 1") && named("typical, piece 1") && !named("largest"));
    assert!(
        fs::read_to_string(format!("{bundle}/report.md"))
            .unwrap()
            .contains(shows)
    );
    // Pieces have no outputs of other types.
    let ran = compile(&["--half-io"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("run whole because of --half-io"),
        "{}",
        ran.err
    );
}

#[test]
fn sizes_at_which_pieces_do_not_run_are_named() {
    // Its table of positions ends at 128.
    let Some(setup) = Setup::new("gpt2.ts.sdpa.onnx") else {
        return;
    };
    let pieces = ["--pieces", "--dim", "seq=1:8:256"];
    let args = [
        &["check", setup.original(), "--reference", setup.original()],
        &pieces[..],
    ]
    .concat();
    let ran = kiln(&args);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err.contains("--dim") && ran.err.contains("largest, piece 1 of"),
        "{}",
        ran.err
    );
}

#[test]
fn layers_find_the_perturbed_node() {
    for fixture in [BERT, "gpt2.ts.sdpa.onnx", "vit.ts.eager.onnx"] {
        let Some(setup) = Setup::new(fixture) else {
            return;
        };
        let candidate = setup.changed("perturbed.onnx", perturb);
        let (_, node) = weight(&onnx::read(&setup.original).unwrap().graph);
        let json = setup.path("result.json");
        let (ran, _) = setup.check(&candidate, &["--layers", "--report", &json], 1);
        let result: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let first = &result["layers"]["first"];
        assert_eq!(
            first["layer"]["node"],
            node.as_str(),
            "{fixture}: {}",
            ran.out
        );
        let operands = first["operands"].as_array().unwrap();
        assert!(
            operands.iter().any(|o| o["value"] == "perturbed"),
            "{operands:?}"
        );
        assert!(ran.out.contains("first divergence"), "{}", ran.out);
    }
}

#[test]
fn a_grid_is_measured_and_profiled() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let html = setup.path("bench.html");
    let ran = kiln(&[
        "bench",
        setup.original(),
        "--grid",
        "batch=1,2",
        "--grid",
        "seq=4,8",
        "--duration",
        "0.05",
        "--runs",
        "7",
        "--profile",
        "--json",
        "--report",
        &html,
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    let points = result["points"].as_array().unwrap();
    assert_eq!(points.len(), 4);
    let flops = |k: usize| points[k]["work"][0]["flops"].as_u64().unwrap();
    assert!(flops(0) > 0 && flops(3) > 2 * flops(0));
    assert_eq!(points[0]["work"][0]["uncounted"], 0);
    assert!(result["machine"]["gflops"].as_f64() > Some(0.0));
    let operators = result["profiles"][0]["operators"].as_array().unwrap();
    assert!(
        operators
            .iter()
            .any(|o| o["name"].as_str().unwrap().contains("MatMul"))
    );
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("p50 by batch") && page.contains("<svg"));
    let ran = kiln(&["bench", setup.original(), "--grid", "tokens=1"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("tokens"), "{}", ran.err);
    assert!(!Path::new(&setup.path("none")).exists());
}

#[test]
fn results_are_what_their_schemas_say() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let schema = |of: &str| -> Value { serde_json::from_str(&kiln(&["schema", of]).out).unwrap() };
    let candidate = setup.changed("perturbed.onnx", perturb);
    let more = ["--layers", "--require", "fp16", "--json"];
    let (ran, _) = setup.check(&candidate, &more, 1);
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        common::schema::misfits(&result, &schema("check"), "check"),
        [""; 0]
    );
    let mut args = vec![
        "bench",
        &candidate,
        "--baseline",
        setup.original(),
        "--json",
        "--profile",
    ];
    args.extend([
        "--runs",
        "5",
        "--duration",
        "0.01",
        "--grid",
        "batch=1,2",
        "--quiet",
    ]);
    let ran = kiln(&args);
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        common::schema::misfits(&result, &schema("bench"), "bench"),
        [""; 0]
    );
    assert!(ran.err.is_empty(), "quiet: {}", ran.err);
    let described = schema("bench").to_string();
    assert!(described.contains("What the process holds more after it was loaded"));
    assert!(
        common::schema::misfits(&result, &schema("check"), "").len() > 3,
        "the test can fail"
    );
}

#[test]
fn several_samples_and_padding_are_compared() {
    let Some(setup) = Setup::new(BERT) else {
        return;
    };
    let (ran, _) = setup.check(setup.original(), &["--dim", "seq=16", "--json"], 0);
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    let cases = result["parity"]["cases"].as_array().unwrap();
    let shapes: Vec<_> = (cases.iter())
        .map(|c| {
            (
                c["name"].as_str().unwrap(),
                c["inputs"][0]["shape"].to_string(),
            )
        })
        .collect();
    let expected = [
        ("typical", "[1,16]"),
        ("largest", "[8,16]"),
        ("several samples", "[4,16]"),
        ("padded", "[1,16]"),
    ];
    assert_eq!(
        shapes,
        expected.map(|(name, shape)| (name, shape.to_string()))
    );
}
