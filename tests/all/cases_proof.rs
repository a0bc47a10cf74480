//! What a proof is worth, and the exit codes of what is no fault of the model.

use crate::common;
use crate::common::command::{Ran, kiln};

use kiln::parity::{self, Preset, Tolerance, compare_outputs};
use kiln_graph::Tensor;

use std::fs;
use std::path::Path;

use quick_junit::{Report, TestCaseStatus};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a case of the fixtures.
struct Bench {
    folder: TempDir,
    model: String,
}

impl Bench {
    fn new(case: &str) -> Option<Bench> {
        common::runtime()?;
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(common::fixture(&format!("cases/proof_{case}.onnxtxt")));
        let model = folder.path().join("model.onnx");
        fs::write(&model, common::encode(&text.unwrap())).unwrap();
        let model = model.to_str().unwrap().to_string();
        Some(Bench { folder, model })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    /// Compiles for the CPU without timing.
    #[track_caller]
    fn compile(&self, more: &[&str], code: i32) -> Ran {
        let bundle = self.path("m.kiln");
        let args = ["compile", &self.model, "--target", "cpu", "-o", &bundle];
        let ran = kiln(&[&args, more].concat());
        assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
        ran
    }

    fn manifest(&self) -> Value {
        let text = fs::read_to_string(self.path("m.kiln/manifest.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn report(&self, name: &str) -> String {
        fs::read_to_string(Path::new(&self.path("m.kiln")).join(name)).unwrap()
    }
}

/// What a manifest says of an output, at each case.
fn why(manifest: &Value, output: &str) -> Vec<String> {
    let cases = manifest["parity"]["cases"].as_array().unwrap();
    let outputs = cases.iter().flat_map(|c| c["outputs"].as_array().unwrap());
    let of = outputs.filter(|o| o["name"] == output);
    of.map(|o| o["unproved"]["why"].as_str().unwrap_or("").to_string())
        .collect()
}

#[test]
fn random_outputs_are_said_to_be_random() {
    let Some(bench) = Bench::new("random") else {
        return;
    };
    for more in [&["--no-latency"][..], &["--no-latency", "--fp16"]] {
        let ran = bench.compile(more, 6);
        assert!(ran.out.contains("NOT PROVED"), "{}", ran.out);
        assert!(
            ran.err.contains("'y' is not proved: it is random"),
            "{}",
            ran.err
        );
        assert!(!(ran.out + &ran.err).contains("--keep"));
        let manifest = bench.manifest();
        assert_eq!(manifest["parity_outcome"], "not-proved");
        assert!(why(&manifest, "y").iter().all(|w| w == "random"));
        assert!(why(&manifest, "plain").iter().all(String::is_empty));
        // Nothing was kept for what no precision can mend.
        assert!(manifest["search"].is_null());
        for report in ["report.md", "report.html"] {
            let text = bench.report(report);
            assert!(text.contains("not proved") && text.contains("it is random"));
        }
    }
}

#[test]
fn what_is_the_same_for_all_inputs_proves_nothing() {
    for (case, reason, proved) in [
        ("uniform", "constant", Some("table")),
        ("independent", "independent", None),
        ("nan", "not-finite", Some("good")),
        ("empty", "empty", Some("good")),
    ] {
        let Some(bench) = Bench::new(case) else {
            return;
        };
        let ran = bench.compile(&["--no-latency"], 6);
        let rows: Vec<&str> = (ran.out.lines())
            .filter(|l| l.split_whitespace().any(|w| w == "y"))
            .collect();
        assert!(
            !rows.is_empty() && rows.iter().all(|r| r.ends_with("not proved")),
            "{}",
            ran.out
        );
        let manifest = bench.manifest();
        assert!(why(&manifest, "y").iter().all(|w| w == reason), "{case}");
        if let Some(proved) = proved {
            assert!(
                why(&manifest, proved).iter().all(String::is_empty),
                "{case}"
            );
        }

        for report in ["report.md", "report.html"] {
            let text = bench.report(report).to_lowercase();
            assert!(text.contains("not proved"), "{case}: {report}");
        }

        // The gate says the same, and a CI sees a test that was skipped.
        let xml = bench.path("junit.xml");
        let json = bench.path("check.json");
        let md = bench.path("check.md");
        let args = ["check", &bench.model, "--reference", &bench.model];
        let reports = ["--report", &xml, "--report", &json, "--report", &md];
        let ran = kiln(&[&args[..], &reports].concat());
        assert_eq!(ran.code, 6, "{}{}", ran.out, ran.err);
        let suite = Report::deserialize_from_str(&fs::read_to_string(xml).unwrap()).unwrap();
        for test in &suite.test_suites[0].test_cases {
            let skipped = matches!(test.status, TestCaseStatus::Skipped { .. });
            assert_eq!(
                skipped,
                test.name.as_str() == "y",
                "{case}: {}",
                test.name.as_str()
            );
        }
        assert!(fs::read_to_string(md).unwrap().contains("NOT PROVED"));

        // Judged again by other limits, it is worth no more.
        let again = ["check", "--saved", &json, "--tolerance", "fp16"];
        assert_eq!(kiln(&again).code, 6);
    }
}

/// Lengths, masks that are counted, points beside each other: each shows something on other inputs, the last ones between several
/// samples alone. Zeros of both signs are one number.
#[test]
fn inputs_that_show_something_are_found() {
    if common::runtime().is_none() {
        return;
    }
    let weights = "float[2, 2] w = {1, 0.5, -0.25, 1}, float one = {1}, float zero = {0}";
    let cases = [
        (
            "(int64[b] lens, float[b, s, 2] x) => (float[b, s, 2] y, bool[b, s] z)",
            "int64 i1 = {1}, int64[1] a1 = {1}",
            "h = MatMul(x, w) sh = Shape(x) n = Gather(sh, i1) f = Cast<to = 1>(n) r = Range(zero, f, one) \
             l = Cast<to = 1>(lens) u = Unsqueeze(l, a1) z = Less(r, u) y = Identity(h)",
            true,
        ),
        (
            "(int64[b, s] mask, float[b, s, 2] x) => (float[b, s, 2] y, int64[b, s] z)",
            "int64 i1 = {1}",
            "y = MatMul(x, w) m = Cast<to = 1>(mask) c = CumSum(m, i1) p = Mul(c, m) z = Cast<to = 7>(p)",
            true,
        ),
        (
            "(int64[n, 2] at, float[n, 2] x) => (float[n, 2] y, bool[n, n] z)",
            "int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] last = {-1}, float near = {2.5}",
            "y = MatMul(x, w) f = Cast<to = 1>(at) a = Unsqueeze(f, a0) b = Unsqueeze(f, a1) d = Sub(a, b) \
             q = Mul(d, d) t = ReduceSum<keepdims = 0>(q, last) l = Sqrt(t) z = Less(l, near)",
            true,
        ),
        (
            "(int64[b, s] ids, float[b, s, 2] x) => (float[b, s, 2] y, int64[b] z)",
            "int64 pad = {1}, int64[1] a1 = {1}, int64[1] last = {-1}",
            "e = Equal(ids, pad) n = Not(e) f = Cast<to = 1>(n) u = Unsqueeze(f, last) h = MatMul(x, w) y = Mul(h, u) \
             t = ReduceSum<keepdims = 0>(f, a1) z = Cast<to = 7>(t)",
            true,
        ),
        (
            "(float[b, 2] x) => (float[b, 2] y, float[b, 2] z)",
            "float no = {0}",
            "y = MatMul(x, w) z = Mul(y, no)",
            false,
        ),
    ];
    for (signature, constants, nodes, proved) in cases {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]>\ng {signature}\n<{weights}, {constants}>\n{{ {nodes} }}"
        );
        let outcome = common::compiled(&text, "cpu", |_| {}).unwrap();
        let report = outcome.manifest.parity.unwrap();
        let expected = match proved {
            true => parity::Outcome::Passes,
            false => parity::Outcome::NotProved,
        };
        assert_eq!(report.outcome(), expected, "{text}");
    }
}

/// ONNX Runtime reads no ONNX text.
#[test]
fn a_model_in_text_is_proved_too() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2] x) => (float[batch, 2] y) <float[2, 2] w = {1, 0.5, -0.25, 1}> { h = MatMul(x, w) y = Relu(h) }"#;
    fs::write(path("m.onnxtxt"), text).unwrap();
    let (model, bundle) = (path("m.onnxtxt"), path("m.kiln"));
    let ran = kiln(&[
        "compile", &model, "--fp16", "--target", "cpu", "-o", &bundle,
    ]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    for args in [
        ["check", &bundle, "--reference", &model],
        ["bisect", &model, "--fp16", "-q"],
    ] {
        let ran = kiln(&args);
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    }
}

#[test]
fn other_inputs_are_tried_where_a_case_has_no_number() {
    let Some(bench) = Bench::new("mask") else {
        return;
    };
    bench.compile(&["--no-latency"], 0);
    let cases = bench.manifest()["parity"]["cases"].clone();
    let mut outputs = (cases.as_array().unwrap().iter()).map(|c| c["outputs"][0].clone());
    assert!(outputs.any(|o| {
        let nonfinite = &o["comparison"]["metrics"]["float"]["nonfinite"];
        o["unproved"].is_null() && nonfinite["reference_nan"] == 0
    }));
}

#[test]
fn numbers_that_are_not_finite_are_counted_where_both_sides_have_them() {
    let Some(bench) = Bench::new("nan") else {
        return;
    };
    let ran = bench.compile(&["--no-latency"], 6);
    let row = ran
        .out
        .lines()
        .find(|l| l.contains("smallest") || l.contains("typical"));
    let row: Vec<&str> = row.unwrap().split_whitespace().collect();
    let (elements, counted) = (row[2], row[row.len() - 3]);
    assert_eq!(elements, counted, "{}", ran.out);
}

#[test]
fn a_result_is_held_to_what_the_original_differs_from_itself() {
    let Some(bench) = Bench::new("amplifies") else {
        return;
    };
    let ran = bench.compile(&["--no-latency"], 0);
    assert!(ran.out.contains("ok, by noise"), "{}", ran.out);
    assert!(
        ran.err.contains("the model amplifies rounding"),
        "{}",
        ran.err
    );
    let manifest = bench.manifest();
    let cases = manifest["parity"]["cases"].as_array().unwrap();
    let noisy = cases
        .iter()
        .map(|c| &c["outputs"][0])
        .find(|o| !o["floor"].is_null());
    let noisy = noisy.unwrap();
    assert!(noisy["floor"]["relative_l2"].as_f64().unwrap() > 1e-3);
    assert!(
        !noisy["comparison"]["verdict"]["forgiven"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    for report in ["report.md", "report.html"] {
        assert!(bench.report(report).contains("amplifies rounding"));
    }

    // What is wrong is beyond that, too.
    let text = fs::read_to_string(common::fixture("cases/proof_amplifies.onnxtxt")).unwrap();
    let wrong = bench.path("wrong.onnx");
    fs::write(&wrong, common::encode(&text.replace("9876.5", "9870.5"))).unwrap();
    let ran = kiln(&["check", &wrong, "--reference", &bench.model]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("the original differs from itself by"),
        "{}",
        ran.err
    );
}

/// The entropy of a distribution all of whose weight is on one place: 1e-26 where the result has 0.
#[test]
fn less_than_the_last_bit_of_an_output_is_no_difference() {
    let Some(bench) = Bench::new("small") else {
        return;
    };
    let ran = bench.compile(&["--no-latency", "--fp16", "--seed", "0"], 0);
    assert!(ran.out.contains("ok"), "{}", ran.out);
    let difference = |largest: &str, found: f32| {
        let (a, b) = (Tensor::vector(&[1e-26f32]), Tensor::vector(&[found]));
        let tolerance = Tolerance::from(Preset::Fp16);
        let named = |t: &Tensor| vec![("y".to_string(), t.clone())];
        let mut report = compare_outputs("typical", &[], &named(&a), &named(&b), &tolerance);
        report.outputs[0].forgive_below(largest.parse().unwrap());
        report.outputs[0].outcome().word()
    };
    assert_eq!(difference("0.5", 0.0), "ok");
    // Where the output is never larger, it is all that there is; and an error of a bit's size is one.
    assert_eq!(difference("1e-26", 0.0), "FAIL");
    assert_eq!(difference("0.5", 1e-7), "FAIL");
    assert_eq!(difference("0.5", f32::NAN), "FAIL");
}

#[test]
fn decisions_are_judged_by_how_close_they_were() {
    let Some(bench) = Bench::new("decides") else {
        return;
    };
    let more = [
        "--no-latency",
        "--fp16",
        "--dim",
        "batch=16",
        "--dim",
        "seq=2048",
    ];
    let ran = bench.compile(&more, 0);
    assert!(ran.out.contains("ok, by margin"), "{}", ran.out);
    let manifest = bench.manifest();
    let outputs = manifest["parity"]["cases"][0]["outputs"]
        .as_array()
        .unwrap();
    let margin = outputs.iter().find(|o| !o["margin"].is_null()).unwrap()["margin"].clone();
    assert!(margin["largest"].as_f64().unwrap() > 0.0);
    assert!(margin["largest"].as_f64() <= margin["limit"].as_f64());
    assert_eq!(margin["limit"], 0.02);

    let text = fs::read_to_string(common::fixture("cases/proof_decides.onnxtxt")).unwrap();
    let wrong = bench.path("wrong.onnx");
    fs::write(&wrong, common::encode(&text.replace("ArgMax", "ArgMin"))).unwrap();
    let args = [
        "check",
        &wrong,
        "--reference",
        &bench.model,
        "--tolerance",
        "fp16",
    ];
    assert_eq!(kiln(&args).code, 1);
}

#[test]
fn types_that_were_asked_for_are_part_of_what_is_compared() {
    let Some(bench) = Bench::new("types") else {
        return;
    };
    let ran = bench.compile(&["--fp16", "--half-io"], 0);
    assert!(ran.out.contains("speed-up"), "{}", ran.out);
    let manifest = bench.manifest();
    let outputs = manifest["parity"]["cases"][0]["outputs"]
        .as_array()
        .unwrap()
        .clone();
    let became = |name: &str| {
        let found = outputs.iter().find(|o| o["name"] == name).unwrap();
        found["became"].clone()
    };
    assert_eq!(became("sum"), "float16");
    assert!(became("half").is_null() && became("same").is_null());
    // The gate knows what the bundle was asked for, and nobody else's types may change.
    let bundle = bench.path("m.kiln");
    let ran = kiln(&["check", &bundle, "--reference", &bench.model]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let file = bench.path("m.kiln/model.onnx");
    assert_ne!(kiln(&["check", &file, "--reference", &bench.model]).code, 0);
}

#[test]
fn what_cannot_be_timed_is_compiled_all_the_same() {
    let Some(bench) = Bench::new("gamma") else {
        return;
    };
    let ran = bench.compile(&[], 0);
    assert!(ran.err.contains("the result was not timed"), "{}", ran.err);
    let manifest = bench.manifest();
    assert!(manifest["latency"].is_null());
    let why = manifest["latency_not_run"].as_str().unwrap();
    assert!(why.contains("SkipLayerNormalization"), "{why}");
    assert!(bench.report("report.md").contains("SkipLayerNormalization"));
    // A gate on the latency has nothing to go by.
    let ran = bench.compile(&["--max-latency-ratio", "2"], 1);
    assert!(ran.err.contains("was not measured"), "{}", ran.err);
    // Timing it is all that `bench` does.
    let ran = kiln(&[
        "bench",
        &bench.model,
        "--grid",
        "batch=1",
        "--grid",
        "seq=4",
    ]);
    assert_eq!(ran.code, 9, "{}{}", ran.out, ran.err);
}

#[test]
fn every_exit_code_is_told() {
    let help = kiln(&["--help"]).out;
    let usage = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/usage.md"));
    let usage = usage.unwrap();
    for code in 0..=9 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}");
        assert!(usage.contains(&format!("\n| {code} |")), "{code}");
    }
}
