//! The templates of docs/ci: their own steps, run by a shell with this kiln.

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use quick_junit::Report;
use serde_json::Value;
use tempfile::TempDir;

fn template(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/ci")
        .join(name);
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The scripts of a GitHub job in their order, without the one that installs kiln, and which of them always run.
fn github() -> Vec<(String, bool)> {
    let file = template("github.yml");
    let steps = file["jobs"]["model"]["steps"].as_array().unwrap();
    let scripts = steps.iter().filter(|s| s["run"].is_string());
    let (install, others): (Vec<_>, Vec<_>) = scripts.partition(|s| s["name"] == "Install kiln");
    assert!(install.len() == 1 && others.len() >= 4);
    let script = |s: &&Value| {
        (
            s["run"].as_str().unwrap().to_string(),
            s["if"] == "always()",
        )
    };
    others.iter().map(script).collect()
}

/// The lines of the GitLab job and its variables.
fn gitlab() -> (Vec<(String, bool)>, BTreeMap<String, String>) {
    let file = template("gitlab.yml");
    let lines = file["model"]["script"].as_array().unwrap().iter();
    let lines = lines
        .map(|l| (l.as_str().unwrap().to_string(), false))
        .collect();
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let variables = file["model"]["variables"].as_object().unwrap();
    (
        lines,
        variables
            .iter()
            .map(|(k, v)| (k.clone(), text(v)))
            .collect(),
    )
}

/// A project: a model and a recipe.
fn project(recipe: &str) -> Option<TempDir> {
    common::runtime()?;
    let folder = tempfile::tempdir().unwrap();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    fs::copy(model, folder.path().join("model.onnx")).unwrap();
    fs::write(folder.path().join("kiln.yaml"), recipe).unwrap();
    Some(folder)
}

/// Runs the scripts as a CI does: each in a shell that stops at errors, those after a failure only if they always run. Gives
/// whether all succeeded, and what they said.
fn run(
    folder: &Path,
    scripts: &[(String, bool)],
    variables: &BTreeMap<String, String>,
) -> (bool, String) {
    let kiln = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().unwrap();
    let path = format!("{}:{}", kiln.display(), std::env::var("PATH").unwrap());
    let mut said = String::new();
    let mut good = true;
    for (script, always) in scripts {
        if !good && !always {
            continue;
        }
        let mut bash = Command::new("bash");
        bash.args(["-e", "-o", "pipefail", "-c", script])
            .current_dir(folder);
        bash.envs(variables).env("PATH", &path);
        bash.env("GITHUB_STEP_SUMMARY", folder.join("summary.md"));
        let output = bash.output().unwrap();
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
        good &= output.status.success();
    }
    (good, said)
}

/// Short measurements whose verdict no noise changes: the result may take ten times as long.
fn quick(mut variables: BTreeMap<String, String>) -> BTreeMap<String, String> {
    variables.insert("BENCH_SECONDS".into(), "0.05".into());
    variables.insert("MAX_REGRESSION".into(), "1000%".into());
    variables
}

const RECIPE: &str =
    "model: model.onnx\ntarget: cpu\nlatency: false\ngates: {size: {max-ratio: 1.5}}\n";

#[track_caller]
fn attached(folder: &Path) {
    for name in ["check", "bench"] {
        let read =
            |kind: &str| fs::read_to_string(folder.join(format!("reports/{name}.{kind}"))).unwrap();
        let junit = Report::deserialize_from_str(&read("xml")).unwrap();
        assert!(junit.tests > 0 && junit.failures == 0, "{name}");
        assert!(read("md").starts_with("# kiln") && read("html").starts_with("<!DOCTYPE html>"));
        assert!(serde_json::from_str::<Value>(&read("json")).is_ok());
    }
    assert!(folder.join("reports/report.html").exists());
}

#[test]
fn the_github_template_runs() {
    let Some(project) = project(RECIPE) else {
        return;
    };
    let (good, said) = run(project.path(), &github(), &quick(BTreeMap::new()));
    assert!(good, "{said}");
    attached(project.path());
    let summary = fs::read_to_string(project.path().join("summary.md")).unwrap();
    assert!(
        summary.contains("kiln check") && summary.contains("kiln bench"),
        "{summary}"
    );
}

#[test]
fn the_gitlab_template_runs() {
    let Some(project) = project(RECIPE) else {
        return;
    };
    let (lines, variables) = gitlab();
    let (good, said) = run(project.path(), &lines, &quick(variables));
    assert!(good, "{said}");
    attached(project.path());
}

#[test]
fn a_gate_that_fails_stops_the_job() {
    let Some(project) = project(&RECIPE.replace("1.5", "0.01")) else {
        return;
    };
    let (good, said) = run(project.path(), &github(), &quick(BTreeMap::new()));
    assert!(!good && said.contains("the limit is 0.01"), "{said}");
    assert!(!project.path().join("model.kiln").exists());
}
