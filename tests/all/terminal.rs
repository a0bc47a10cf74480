//! What commands say while they work and where that goes, names of models in `kiln bench`, and what the environment says.

use crate::common;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use common::command::{Folder, MODEL, Ran, kiln};

/// Runs the binary with these variables of the environment and this on stdin.
fn kiln_with(args: &[&str], variables: &[(&str, &str)], stdin: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails at once reads nothing.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const QUICK: [&str; 8] = [
    "--runs",
    "3",
    "--warmup",
    "1",
    "--duration",
    "0",
    "--threads",
    "1",
];

#[test]
fn names_tell_models_apart_and_the_baseline_comes_first() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    folder.compile(&["--no-check"]).expect(0);
    let bundle = folder.path("model.kiln");
    let bench = |args: &[&str]| kiln(&[&["bench", &model, &bundle][..], &QUICK, args].concat());
    let names = |ran: &Ran| -> Vec<String> {
        let models = ran.json()["models"].as_array().unwrap().clone();
        models
            .iter()
            .map(|m| m["name"].as_str().unwrap().to_string())
            .collect()
    };
    // The baseline is called so, and what is measured against it has a speed-up.
    let shown = bench(&[]).expect(0).out;
    let row = |name: &str| {
        let mut rows = shown
            .lines()
            .filter(|l| l.trim_start().starts_with("batch=1") && l.contains(name));
        rows.next().unwrap().to_string()
    };
    assert!(row("model.onnx").ends_with("baseline"), "{shown}");
    assert!(row("model.kiln").ends_with('x'), "{shown}");
    // It comes first, with the name that its place among the models gives it.
    let gate = ["--json", "--max-regression", "100000%", "--baseline"];
    let called = ["--name", "before", "--name", "after"];
    let ran = bench(&[&gate[..], &[&bundle], &called].concat()).expect(0);
    assert_eq!(names(&ran), ["after", "before"]);
    // Of a saved result a model is found by its path, though it is called otherwise now.
    let saved = folder.write("last.json", ran.out.as_bytes());
    let ran = bench(&[&gate[..], &[&saved]].concat()).expect(0);
    assert_eq!(names(&ran), ["model.onnx", "model.kiln"]);
    let verdicts = ran.json()["gate"]["points"].to_string();
    assert!(!verdicts.contains("not_run"), "{verdicts}");

    bench(&["--name", "a", "--name", "a"])
        .expect(2)
        .says(&["--name a is given twice"]);
    let many = ["--name", "a", "--name", "b", "--name", "c"];
    bench(&many)
        .expect(2)
        .says(&["3 names are given for 2 models"]);
}

#[test]
fn numbers_are_exported_as_csv() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let file = folder.path("out.csv");
    let bench = |args: &[&str]| {
        let models = [
            "bench",
            &model,
            &model,
            "--grid",
            "batch=1,3",
            "--name",
            "a, b",
            "--name",
            "c",
        ];
        kiln(&[&models[..], &QUICK, args].concat())
    };
    let shown = bench(&["--export", &file]).expect(0).out;
    assert!(shown.contains("Latency"), "{shown}");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 2, "{text}");
    assert!(
        lines[0].starts_with("model,path,batch,runs,min_ms,"),
        "{text}"
    );
    assert!(
        lines[1].starts_with(&format!("\"a, b\",{model},1,3,")),
        "{text}"
    );
    assert!(lines[4].starts_with(&format!("c,{model},3,3,")), "{text}");
    let width = lines[0].split(',').count();
    assert_eq!(lines[4].split(',').count(), width + 1, "{text}");
    assert!(lines[4].contains(",\"a, b\","), "{text}");
    let out = bench(&["--export", "csv"]).expect(0).out;
    assert!(out.starts_with("model,path,batch,"), "{out}");
    bench(&["--export", "out.txt"])
        .expect(2)
        .says(&["ends in .csv"]);
}

#[test]
fn stages_are_lines_where_there_is_no_terminal_and_a_log_has_all() {
    let folder = Folder::with_model();
    let log = folder.path("log.txt");
    let ran = folder.compile(&["--no-check", "--log", &log]).expect(0);
    let stages: Vec<&str> = ran.err.lines().filter(|l| l.starts_with('[')).collect();
    let passes = stages.iter().filter(|l| l.ends_with("] passes"));
    assert_eq!(passes.count(), 1, "{}", ran.err);
    let ran = folder.compile(&["--no-check", "--quiet"]).expect(0);
    assert!(ran.err.is_empty(), "{}", ran.err);

    // A second command appends.
    let missing = folder.path("missing.onnx");
    let refused = kiln_with(&["inspect", &missing], &[("KILN_LOG", &log)], b"").expect(3);
    let text = fs::read_to_string(&log).unwrap();
    for part in [
        "--no-check --log",
        " INFO kiln: passes: fuse-gelu",
        "kiln: exit code 0",
        "kiln: exit code 3",
    ] {
        assert!(text.contains(part), "no '{part}' in {text}");
    }
    let why = refused.err.trim().strip_prefix("kiln: ").unwrap();
    assert!(text.contains(&format!("ERROR kiln: {why}")), "{text}");
    let nowhere = folder.path("no/such/folder/log.txt");
    kiln(&["doctor", "--log", &nowhere])
        .expect(2)
        .says(&["cannot be written"]);
}

#[test]
fn a_log_has_the_runtimes_messages() {
    if !common::tensorrt() {
        return;
    }
    let folder = Folder::with_model();
    let (log, model) = (folder.path("log.txt"), folder.path("model.onnx"));
    let args = [
        "compile",
        &model,
        "--target",
        "sm_89",
        "--no-check",
        "--log",
        &log,
    ];
    kiln(&args).expect(0);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("DEBUG tensorrt: parse begins"), "{text}");
    assert!(text.contains("DEBUG tensorrt: build ends"), "{text}");
}

#[test]
fn a_model_comes_from_stdin() {
    let model = common::encode(MODEL);
    for data in [&model[..], MODEL.as_bytes()] {
        let ran = kiln_with(&["inspect", "-"], &[], data).expect(0);
        assert!(
            ran.out.contains("standard input") && ran.out.contains("nodes        8"),
            "{}",
            ran.out
        );
    }
    let text = kiln_with(&["inspect", "--text", "-"], &[], &model)
        .expect(0)
        .out;
    assert!(text.contains("MatMul"), "{text}");
    for bad in [&b""[..], b"<", b"no model", &model[..40]] {
        kiln_with(&["inspect", "-"], &[], bad)
            .expect(3)
            .says(&["standard input"]);
    }
}

#[test]
fn the_environment_is_asked_after_the_command_line_and_the_recipe() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let target = |args: &[&str], variables: &[(&str, &str)]| {
        let args = [&["compile", "--dry-run", "--json"], args].concat();
        let plan = kiln_with(&args, variables, b"").expect(0).json();
        plan["recipe"]["target"].to_string()
    };
    let sm_86 = [("KILN_TARGET", "sm_86")];
    assert!(target(&[&model], &sm_86).contains("sm_86"));
    assert!(target(&[&model, "--target", "cpu"], &sm_86).contains("cpu"));
    let recipe = folder.write("kiln.yaml", b"{model: model.onnx, target: sm_89}");
    assert!(target(&["-c", &recipe], &sm_86).contains("sm_89"));
    // An empty variable says nothing.
    assert!(
        target(
            &["-c", &recipe],
            &[("KILN_TARGET", ""), ("KILN_DEVICE", "")]
        )
        .contains("sm_89")
    );
    let compile = ["compile", &model, "--dry-run"];
    kiln_with(&compile, &[("KILN_TARGET", "sm_1")], b"")
        .expect(2)
        .says(&["sm_1"]);
    kiln_with(&compile, &[("KILN_DEVICE", "tpu")], b"")
        .expect(2)
        .says(&["tpu"]);
    kiln_with(&compile, &[("KILN_THREADS", "0")], b"")
        .expect(2)
        .says(&["--threads"]);
    let help = kiln(&["compile", "--help"]).expect(0).out;
    for variable in ["KILN_TARGET", "KILN_DEVICE", "KILN_THREADS", "KILN_LOG"] {
        assert!(help.contains(&format!("[env: {variable}=")), "{help}");
        assert!(kiln(&["--help"]).out.contains(variable));
        let usage = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/usage.md"));
        assert!(
            usage.unwrap().contains(&format!("| `{variable}` |")),
            "{variable}"
        );
    }
}

#[test]
fn threads_do_not_change_a_result() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    folder
        .compile(&["--fp16", "--no-latency", "--threads", "1"])
        .expect(0);
    let one = fs::read(folder.path("model.kiln/model.onnx")).unwrap();
    folder
        .compile(&["--fp16", "--no-latency", "--threads", "2"])
        .expect(0);
    assert_eq!(fs::read(folder.path("model.kiln/model.onnx")).unwrap(), one);
    let (model, bundle) = (folder.path("model.onnx"), folder.path("model.kiln"));
    kiln(&["check", &bundle, "--reference", &model, "--threads", "1"]).expect(0);
}

/// Sections in the order of what one wants, lines that fit, and details in the full help alone.
#[test]
fn help_has_sections_and_fits_80_columns() {
    let help = |args: &[&str]| kiln_with(args, &[("COLUMNS", "80")], b"").expect(0).out;
    let order = |text: &str, sections: &[&str]| {
        let places = sections.iter().map(|s| text.find(&format!("\n{s}:\n")));
        let places: Vec<usize> = places
            .map(|p| p.unwrap_or_else(|| panic!("{text}")))
            .collect();
        assert!(places.is_sorted(), "{text}");
    };
    for flag in ["-h", "--help"] {
        let text = help(&["compile", flag]);
        order(
            &text,
            &[
                "Input",
                "Target and precision",
                "Sizes",
                "Data",
                "Proof",
                "Output",
                "Engine",
                "Device and runtimes",
                "Diagnostics",
            ],
        );
    }
    for verb in [
        "compile",
        "check",
        "bench",
        "bisect",
        "inspect",
        "attention",
        "passes",
        "doctor",
        "gpu-check",
        "schema",
        "completions",
        "man",
    ] {
        let (short, long) = (help(&[verb, "-h"]), help(&[verb, "--help"]));
        assert!(short.len() <= long.len(), "{verb}");
        for text in [&short, &long] {
            let wide = text.lines().find(|l| l.chars().count() > 80);
            assert_eq!(wide, None, "{verb}");
        }
    }
    let (short, long) = (help(&["-h"]), help(&["--help"]));
    assert!(
        !short.contains("EXIT CODES")
            && long.contains("EXIT CODES")
            && long.contains("ENVIRONMENT")
    );
    let details = "External data is looked for";
    assert!(!help(&["compile", "-h"]).contains(details));
    assert!(help(&["compile", "--help"]).contains(details));
}

#[test]
fn man_pages_are_written() {
    let folder = Folder::new();
    let man = folder.path("man/man1");
    kiln(&["man", &man]).expect(0);
    let page = fs::read_to_string(folder.path("man/man1/kiln-compile.1")).unwrap();
    assert!(
        page.contains("KILN_TARGET") && page.contains("TARGET AND PRECISION"),
        "{page}"
    );
    let page = fs::read_to_string(folder.path("man/man1/kiln.1")).unwrap();
    assert!(page.contains("EXIT CODES"), "{page}");
    assert!(
        !folder
            .listing()
            .iter()
            .any(|p| p.to_string_lossy().contains("build-engine"))
    );
}

#[test]
fn names_of_files_need_not_be_text() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let path = |name: &[u8]| {
        let mut path = folder.path("").into_bytes();
        path.extend_from_slice(name);
        OsString::from_vec(path)
    };
    let (model, bundle) = (path(b"m\xffdel.onnx"), path(b"b\xfendle.kiln"));
    fs::write(&model, common::encode(MODEL)).unwrap();
    let run = |args: &[&OsString]| {
        let ran = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(0), "{args:?}\n{err}");
    };
    let word = |text: &str| OsString::from(text);
    let (cpu, out) = ([word("--target"), word("cpu")], word("-o"));
    let report = path(b"r\xfdport.html");
    let log = path(b"l\xfcg.txt");
    run(&[
        &word("compile"),
        &model,
        &cpu[0],
        &cpu[1],
        &word("--no-latency"),
        &out,
        &bundle,
        &word("--report"),
        &report,
        &word("--log"),
        &log,
    ]);
    let inside = |name: &[u8]| path(name);
    assert!(fs::metadata(&report).is_ok() && fs::metadata(&log).is_ok());
    let golden = path(b"g\xfblden.npz");
    let reference = word("--reference");
    run(&[
        &word("check"),
        &bundle,
        &reference,
        &model,
        &word("--record"),
        &golden,
    ]);
    run(&[&word("check"), &bundle, &word("--golden"), &golden]);
    run(&[&word("inspect"), &bundle]);
    run(&[&word("inspect"), &model]);
    let csv = inside(b"n\xfambers.csv");
    let quick = QUICK.map(OsString::from);
    let mut bench = vec![
        word("bench"),
        model.clone(),
        bundle.clone(),
        word("--export"),
        csv,
    ];
    bench.extend(quick);
    run(&bench.iter().collect::<Vec<_>>());
    run(&[&word("bisect"), &model, &cpu[0], &cpu[1]]);
}
