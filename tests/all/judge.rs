//! One's own judge as a gate of `check` and `compile`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::common;
use crate::common::command::{Folder, kiln};

const MODEL: &str = "models/bert-tiny.ts.eager.opset11.onnx";

fn model() -> Option<String> {
    common::runtime()?;
    Some(common::fixture(MODEL).to_str().unwrap().to_string())
}

/// A judge that ends in this way after looking at what it was given.
const PASSES: &str =
    "test -s \"$1\"/cases.json && echo '{\"metric\": \"recall\", \"value\": 0.97}' #";
const FAILS: &str = "echo '{\"metric\": \"recall\", \"value\": 0.4}'; exit 1 #";
const CRASHES: &str = "echo out of luck >&2; exit 7 #";
const SILENT: &str = "true";

#[test]
fn check_has_the_judge_in_every_report() {
    let Some(model) = model() else { return };
    let folder = Folder::new();
    for (judge, code, said) in [
        (PASSES, 0, "judge: passes: recall 0.97"),
        (FAILS, 1, "judge: FAILS: recall 0.4"),
        (
            CRASHES,
            1,
            "judge: FAILS: the judge crashed, exit code 7: out of luck",
        ),
        (SILENT, 0, "judge: passes: it printed no JSON"),
    ] {
        let reports = ["r.md", "r.html", "r.xml"].map(|name| folder.path(name));
        let mut args = vec!["check", &model, "--reference", &model, "--judge", judge];
        for report in &reports {
            args.extend(["--report", report]);
        }
        let ran = kiln(&args).expect(code);
        assert!(ran.out.contains(said), "{}", ran.out);
        let why = said.split(": ").last().unwrap();
        for report in &reports {
            let text = fs::read_to_string(report).unwrap();
            assert!(text.contains(why), "{report}:\n{text}");
        }
        let junit = fs::read_to_string(&reports[2]).unwrap();
        assert_eq!(junit.contains("<failure"), code == 1, "{junit}");
        let page = fs::read_to_string(&reports[1]).unwrap();
        assert!(page.contains("own judge"));
        args.push("--json");
        let ran = kiln(&args).expect(code);
        let json: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(json["judge"]["pass"], code == 0);
        assert_eq!(json["judge"]["cases"].as_u64().unwrap(), 5);
    }
}

#[test]
fn compile_writes_no_bundle_that_the_judge_refuses() {
    let Some(model) = model() else { return };
    let folder = Folder::new();
    let bundle = folder.path("b.kiln");
    let compile = |judge: &str| {
        let args = [
            "compile",
            &model,
            "--fp16",
            "--target",
            "cpu",
            "--no-latency",
        ];
        let report = folder.path("r.xml");
        let more = ["-o", &bundle, "--judge", judge, "--report", &report];
        kiln(&[&args[..], &more].concat())
    };
    let ran = compile(FAILS)
        .expect(1)
        .says(&["recall 0.4", "no bundle was written"]);
    assert!(
        ran.out.contains("judge gate   FAILS: recall 0.4"),
        "{}",
        ran.out
    );
    assert!(!PathBuf::from(&bundle).exists());
    let junit = fs::read_to_string(folder.path("r.xml")).unwrap();
    assert!(
        junit.contains("<failure") && junit.contains("recall 0.4"),
        "{junit}"
    );
    compile(CRASHES)
        .expect(1)
        .says(&["the judge crashed, exit code 7: out of luck"]);

    let ran = compile(PASSES).expect(0);
    assert!(
        ran.out.contains("judge gate   passes: recall 0.97"),
        "{}",
        ran.out
    );
    for report in ["report.md", "report.html"] {
        let text = fs::read_to_string(format!("{bundle}/{report}")).unwrap();
        assert!(text.contains("recall 0.97"), "{report}");
    }
    let manifest = fs::read(format!("{bundle}/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["judge"]["value"], 0.97);
    assert_eq!(manifest["judge"]["metric"], "recall");
    assert_eq!(manifest["recipe"]["gates"]["judge"]["command"], PASSES);
}

#[test]
fn a_judge_wants_outputs() {
    let Some(model) = model() else { return };
    let folder = Folder::new();
    let out = folder.path("b.kiln");
    let base = ["compile", &model, "--target", "cpu", "-o", &out];
    let ran = kiln(&[&base[..], &["--judge", "true", "--no-check"]].concat());
    ran.expect(1).says(&["no outputs to judge (--no-check)"]);
    let ran = kiln(&[&base[..], &["--judge-data", "x.npz"]].concat());
    ran.expect(2);
    let ran = kiln(
        &[
            &base[..],
            &["--judge", "true", "--judge-data", "/no/such.npz"],
        ]
        .concat(),
    );
    ran.expect(2).says(&["/no/such.npz"]);
    let recipe = format!("model: {model}\ntarget: cpu\ngates: {{judge: {{data: x.npz}}}}\n");
    folder.write("k.yaml", recipe.as_bytes());
    let ran = kiln(&["compile", "-c", &folder.path("k.yaml")]);
    ran.expect(2).says(&["gates.judge", "there is no command"]);
}

/// The example that README's users start from, on texts.
#[test]
fn neighbours_are_judged_on_texts() {
    let Some(model) = common::demo_model() else {
        println!("skipped: the demo's model is not there");
        return;
    };
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let numpy = Command::new(&python).args(["-c", "import numpy"]).status();
    if common::runtime().is_none() || !numpy.is_ok_and(|s| s.success()) {
        println!("skipped: no ONNX Runtime, or no NumPy for Python");
        return;
    }
    let folder = Folder::new();
    let lines: Vec<String> = ["a cat", "the dog", "rain", "a red car", "music"]
        .iter()
        .flat_map(|noun| ["I like", "we saw", "nobody wants"].map(|verb| format!("{verb} {noun}")))
        .collect();
    folder.write("lines.txt", lines.join("\n").as_bytes());
    let tokenizer = model.parent().unwrap().join("tokenizer.json");
    let tokenizer = match tokenizer.is_file() {
        true => tokenizer,
        false => common::fixture("tokenizers/words.json"),
    };
    let judge = |limit: &str| {
        let script = common::fixture("../examples/judges/retrieval.py");
        format!(
            "{} {} --nearest 3 --at-least {limit}",
            python.display(),
            script.display()
        )
    };
    let (model, tokenizer) = (model.to_str().unwrap(), tokenizer.to_str().unwrap());
    let texts = folder.path("lines.txt");
    let check = |limit: &str| {
        let judge = judge(limit);
        let args = ["check", model, "--reference", model, "--judge", &judge];
        let more = [
            "--judge-data",
            &texts,
            "--judge-tokenizer",
            tokenizer,
            "--json",
        ];
        kiln(&[&args[..], &more].concat())
    };
    let ran = check("0.9").expect(0);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    // The same model finds the same.
    assert_eq!(json["judge"]["value"], 1.0);
    assert_eq!(json["judge"]["cases"], lines.len());
    check("1.1").expect(1).says(&["neighbours kept of 3 1"]);
}
