//! The command line as a newcomer meets it: what lets a gate through, what loses a file, and what is said.

use crate::common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use common::command::{Folder, kiln};

#[test]
fn a_limit_for_an_output_that_is_not_there_is_refused() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    folder.compile(&["--no-latency"]).expect(0);
    let bundle = folder.path("model.kiln");
    let said = ["output 'nosuch'", "it has: y, z"];
    let limit = ["--limit", "nosuch:cosine=0.9"];
    let golden = folder.path("model.kiln/parity.npz");
    for against in [["--reference", &model], ["--golden", &golden]] {
        let check = [&["check", &bundle][..], &against, &limit].concat();
        kiln(&check).expect(2).says(&said);
    }
    let check = ["check", &bundle, "--reference", &model];
    kiln(&[&check[..], &["--pieces"], &limit].concat())
        .expect(2)
        .says(&said);
    kiln(&[&check[..], &["--limit", "y:cosine=0.9"]].concat()).expect(0);
    let saved = kiln(&[&check[..], &["--json"]].concat()).expect(0);
    let saved = folder.write("saved.json", saved.out.as_bytes());
    let again = ["check", "--saved", &saved, "--tolerance", "fp16"];
    kiln(&[&again[..], &limit].concat()).expect(2).says(&said);

    let gates = "gates: {parity: {limits: {nosuch: {cosine: 0.9}}}}";
    let recipe = format!("{{model: model.onnx, target: cpu, {gates}}}");
    let recipe = folder.write("kiln.yaml", recipe.as_bytes());
    let before = folder.listing();
    kiln(&["compile", "-c", &recipe]).expect(2).says(&said);
    kiln(&["bisect", "-c", &recipe]).expect(2).says(&said);
    assert_eq!(folder.listing(), before);
}

#[test]
fn what_is_to_be_kept_is_there() {
    let folder = Folder::with_model();
    let before = folder.listing();
    let refused = |args: &[&str], says: &[&str]| {
        let args = [&["--no-check"], args].concat();
        folder.compile(&args).expect(2).says(says);
        assert_eq!(folder.listing(), before);
    };
    refused(&["--fp16", "--keep", "^frist$"], &["'^frist$'", "first"]);
    refused(&["--int4", "--keep", "nosuch"], &["--keep 'nosuch'"]);
    refused(&["--keep", "nosuch"], &["--keep 'nosuch'"]);
    refused(&["--fp16", "--keep-op", "Softmax"], &["Softmax", "Gelu"]);
    // It is part of a Gelu by then.
    refused(
        &["--fp16", "--keep-op", "Erf"],
        &["has become part of other nodes", "Gelu"],
    );
    refused(
        &["--fp16", "--keep", "^erf$"],
        &["has become part of other nodes"],
    );
    let kept = ["--fp16", "--keep", "^first$", "--keep-op", "Gelu"];
    folder
        .compile(&[&kept[..], &["--no-check"]].concat())
        .expect(0);
}

#[test]
fn a_bundle_is_never_its_own_input() {
    let folder = Folder::with_model();
    folder.compile(&["--fp16", "--no-check"]).expect(0);
    let bundle = folder.path("model.kiln");
    let read = |name: &str| fs::read(folder.path(name)).unwrap();
    let manifest = read("model.kiln/manifest.json");
    kiln(&["compile", &bundle, "--no-check"])
        .expect(2)
        .says(&["is a bundle, and would be written over", "-o"]);
    let inside = folder.path("model.kiln/model.onnx");
    let over = ["--no-check", "--force", "-o", &bundle];
    kiln(&[&["compile", &inside][..], &over].concat())
        .expect(2)
        .says(&["model.onnx is read"]);
    assert_eq!(read("model.kiln/manifest.json"), manifest);

    // Elsewhere it is the original again, by the same recipe with other options over it.
    let other = folder.path("other.kiln");
    let keep = ["--keep", "^first$", "-o", &other];
    kiln(&[&["compile", &bundle][..], &keep].concat()).expect(0);
    let made = folder.manifest("other.kiln");
    let path = made["source"]["path"].as_str().unwrap();
    assert!(path.ends_with("model.onnx") && !path.contains("model.kiln"));
    assert_eq!(made["precision"], "fp16");
    let kept = made["kept"].to_string();
    assert!(kept.contains("first"), "{kept}");

    let recipe = folder.write("kiln.yaml", b"{}");
    kiln(&["compile", "-c", &recipe, &bundle])
        .expect(2)
        .says(&["not both"]);
    fs::rename(folder.path("model.onnx"), folder.path("gone.onnx")).unwrap();
    kiln(&["compile", &bundle, "-o", &other])
        .expect(3)
        .says(&["model.onnx, which is not there"]);
}

#[test]
fn what_others_put_into_a_bundle_stays_and_what_is_there_can_be_left() {
    let folder = Folder::with_model();
    let compile = |more: &[&str], code| {
        let ran = folder.compile(&[&["--no-check"], more].concat());
        ran.expect(code)
    };
    fs::create_dir(folder.path("model.kiln")).unwrap();
    compile(&[], 0);
    folder.write("model.kiln/notes.txt", b"mine");
    compile(&["--fp16"], 0).says(&["kept in the bundle: notes.txt"]);
    assert_eq!(
        fs::read(folder.path("model.kiln/notes.txt")).unwrap(),
        b"mine"
    );
    assert_eq!(folder.manifest("model.kiln")["precision"], "fp16");
    compile(&["--no-clobber"], 2).says(&["model.kiln exists"]);
    compile(&["--no-clobber", "--force"], 2);
    assert_eq!(folder.manifest("model.kiln")["precision"], "fp16");

    fs::create_dir(folder.path("results")).unwrap();
    folder.write("results/thesis.txt", b"years of work");
    let place = folder.path("results");
    compile(&["-o", &place], 2).says(&["--force"]);
    compile(&["-o", &place, "--force"], 0);
    assert!(folder.manifest("results")["kiln"].is_string());
    assert_eq!(
        fs::read(folder.path("results/thesis.txt")).unwrap(),
        b"years of work"
    );
}

#[test]
fn a_precision_that_the_target_has_not_is_refused_at_once() {
    let folder = Folder::with_model();
    let before = folder.listing();
    for (precision, instead) in [("--fp8", "--int8"), ("--bf16", "--fp16")] {
        for more in [&[][..], &["--dialect", "standard"], &["--no-check"]] {
            let args = [&[precision], more].concat();
            folder
                .compile(&args)
                .expect(2)
                .says(&[precision, "CPU provider has no", instead]);
        }
    }
    assert_eq!(folder.listing(), before);
}

#[test]
fn a_latency_gate_belongs_to_where_the_result_serves() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let limit = |ratio| ["--max-latency-ratio", ratio];
    for option in ["--no-latency", "--no-check"] {
        folder
            .compile(&[&limit("2")[..], &[option]].concat())
            .expect(1)
            .says(&["the latency was not measured", option, "off drops the gate"]);
    }
    let ran = folder.compile(&limit("0.0001")).expect(1);
    ran.says(&["of the original's, between ", "with 95 %, the limit 0.0001"]);
    let ran = folder.compile(&limit("10000")).expect(0);
    assert!(ran.out.contains("latency gate"), "{}", ran.out);
    let gates = &folder.manifest("model.kiln")["gates"];
    assert_eq!(gates[0]["gate"], "latency", "{gates}");
    assert_eq!(gates[0]["verdict"], "pass", "{gates}");
    folder.compile(&limit("none")).expect(2).says(&["or off"]);

    // What a GPU serves is not judged by this machine's CPU.
    let gates = "gates: {latency: {max-ratio: 0.0001}}, engine: false";
    let recipe = format!("{{model: model.onnx, target: sm_89, {gates}}}");
    let recipe = folder.write("kiln.yaml", recipe.as_bytes());
    let compile = |more: &[&str]| kiln(&[&["compile", "-c", &recipe], more].concat());
    let ran = compile(&["--device", "cpu"]).expect(0);
    assert!(ran.out.contains(
        "not run: the result serves on sm_89, and ONNX Runtime ran on this machine's CPU"
    ));
    let gates = &folder.manifest("model.kiln")["gates"];
    assert_eq!(gates[0]["verdict"], "not_run", "{gates}");
    compile(&["--no-latency", "--max-latency-ratio", "off"]).expect(0);
}

#[test]
fn quiet_prints_errors_and_data_alone() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let silent = |ran: common::command::Ran| assert_eq!((&*ran.out, &*ran.err), ("", ""));
    silent(folder.compile(&["-q", "--fp16", "--no-latency"]).expect(0));
    let (bundle, model) = (folder.path("model.kiln"), folder.path("model.onnx"));
    let check = ["check", &bundle, "--reference", &model, "-q"];
    silent(kiln(&check).expect(0));
    silent(kiln(&["bisect", &model, "--fp16", "--target", "cpu", "-q"]).expect(0));
    let bench = ["bench", &bundle, "-q", "--duration", "0", "--runs", "1"];
    silent(kiln(&bench).expect(0));
    // What fails is said, and what was asked for as data is printed.
    let exact = [&check[..], &["--tolerance", "fp32-exact"]].concat();
    let ran = kiln(&exact).expect(1).says(&["its bits differ"]);
    assert_eq!(ran.out, "");
    let json = [&check[..], &["--json"]].concat();
    assert!(kiln(&json).expect(0).json()["parity"].is_object());
    assert!(!kiln(&["inspect", &bundle, "-q"]).expect(0).out.is_empty());
}

#[test]
fn options_are_called_by_their_names() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let tolerance = ["--tolerance", "fp17"];
    let said = ["--tolerance", "fp16", "int4"];
    folder.compile(&tolerance).expect(2).says(&said);
    let check = ["check", &model, "--reference", &model];
    kiln(&[&check[..], &tolerance].concat())
        .expect(2)
        .says(&said);
    kiln(&["bisect", &model, "--tolerance", "fp17"])
        .expect(2)
        .says(&said);
    let recipe = folder.write(
        "kiln.yaml",
        b"{model: model.onnx, gates: {parity: {tolerance: fp17}}}",
    );
    kiln(&["compile", "-c", &recipe])
        .expect(2)
        .says(&["gates.parity.tolerance"]);
    let quick = ["--duration", "0", "--runs", "1"];
    let bench = ["bench", &model, "--grid", "size=1"];
    let ran = kiln(&[&bench[..], &quick].concat());
    if common::runtime().is_some() {
        ran.expect(2).says(&["--grid size", "it has: batch"]);
    }
}

#[test]
fn a_saved_result_is_judged_by_its_own_tolerance_unless_told() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let check = ["check", &model, "--reference", &model, "--json"];
    let limits = ["--tolerance", "fp32-exact", "--limit", "y:cosine=0.25"];
    let saved = kiln(&[&check[..], &limits].concat()).expect(0);
    let saved = folder.write("saved.json", saved.out.as_bytes());
    let again = |more: &[&str], code| {
        let ran = kiln(&[&["check", "--saved", &saved, "--json"], more].concat());
        ran.expect(code).json()["tolerance"].clone()
    };
    let own = again(&[], 0);
    assert_eq!(own["name"], "fp32-exact");
    assert_eq!(own["overrides"][0][1]["cosine"], 0.25, "{own}");
    let other = again(&["--limit", "z:cosine=1.5"], 1);
    assert_eq!(other["overrides"][1][1]["cosine"], 1.5, "{other}");
    let named = again(&["--tolerance", "fp16"], 0);
    assert_eq!(named["overrides"].as_array().unwrap().len(), 0, "{named}");
}

#[test]
fn nodes_are_counted_as_the_file_has_them() {
    let folder = Folder::new();
    // Two outputs are one value, which can bear one name.
    let text = r#"
<ir_version: 8, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z, float[batch, 4] w)
{ y = Relu(x) z = Identity(y) w = Identity(x) }
"#;
    folder.write("model.onnx", &common::encode(text));
    folder.compile(&["--no-check"]).expect(0);
    let bundle = folder.path("model.kiln");
    let read = kiln(&["inspect", &bundle, "--json"]).expect(0).json();
    let made = folder.manifest("model.kiln");
    assert_eq!(read["nodes"], 3);
    assert_eq!(made["after"]["nodes"], read["nodes"]);
    assert_eq!(made["ops_after"]["Identity"], 2);
}

#[test]
fn what_is_no_bundle_is_called_so() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    fs::create_dir(folder.path("models")).unwrap();
    let models = folder.path("models");
    let none = ["models is not a kiln bundle"];
    kiln(&["inspect", &models]).expect(3).says(&none);
    kiln(&["compile", &models, "--target", "cpu"])
        .expect(3)
        .says(&none);
    kiln(&["check", &models, "--reference", &model])
        .expect(3)
        .says(&none);
    kiln(&["bench", &models]).expect(3).says(&none);
    folder.write("models/a.onnx", b"");
    kiln(&["inspect", &models])
        .expect(3)
        .says(&["it holds a.onnx: name one"]);

    folder.compile(&["--no-check"]).expect(0);
    let bundle = folder.path("model.kiln");
    for command in [["bench", "--engine"], ["inspect", "--engine"]] {
        let run = |path: &str| kiln(&[&command[..], &[path]].concat());
        let said = run(&bundle).says(&["model.kiln has no engine: compile it"]);
        assert!(matches!(said.code, 2 | 3));
        run(&model).says(&["model.onnx is not a kiln bundle, and engines are in bundles"]);
    }
}

#[test]
fn the_target_is_warned_of_where_an_engine_is_built() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let ran = kiln(&["compile", &model, "--no-engine", "--no-check"]).expect(0);
    assert!(!ran.err.contains("target:"), "{}", ran.err);
}

#[test]
fn a_size_that_does_not_run_is_told_before_what_the_runtime_says() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    // A table of six rows, of which one for each position is taken.
    let text = r#"
<ir_version: 8, opset_import: ["" : 20]>
g (float[batch, seq] x) => (float[batch, seq] y)
<float[6] table = {1, 2, 3, 4, 5, 6}, int64 zero = {0}, int64 one = {1}, int64[1] at = {1}>
{
  s = Shape(x)
  n1 = Gather(s, at)
  axes = Constant <value_ints = [0]> ()
  n = Squeeze(n1, axes)
  ids = Range(zero, n, one)
  t = Gather(table, ids)
  y = Add(x, t)
}
"#;
    folder.write("model.onnx", &common::encode(text));
    let dim = ["--dim", "seq=9", "--no-latency"];
    let ran = folder.compile(&dim).expect(2);
    let own = ran.err.find("give others with --dim").expect(&ran.err);
    let raw = ran.err.find("Gather").expect(&ran.err);
    assert!(own < raw, "{}", ran.err);
    let bench = ["bench", &folder.path("model.onnx"), "--grid", "seq=9"];
    let ran = kiln(&bench).expect(9);
    ran.says(&["model at batch=1 seq=9 failed while it was measured"]);
}

#[test]
fn int4_without_data_says_what_data_would_do() {
    if common::runtime().is_none() {
        return;
    }
    // Its layers are too small for blocks, which is found out later.
    let said = ["without --calibrate", "nearest of 16 steps"];
    let folder = Folder::with_model();
    folder.compile(&["--int4"]).expect(3).says(&said);
    let ran = folder.compile(&["--int4", "--no-check"]).expect(3);
    assert!(!ran.err.contains("--calibrate"), "{}", ran.err);
}

#[test]
fn an_interrupted_bench_speaks_of_no_bundle() {
    if common::runtime().is_none() {
        return;
    }
    let model = common::fixture("models/vit.ts.eager.onnx");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let bench = bench.arg("bench").arg(&model).args(["--runs", "100000000"]);
    let bench = bench.current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut running = bench.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(running.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("measure") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    let id = running.id().to_string();
    Command::new("kill").args(["-INT", &id]).status().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let ended = running.wait().unwrap();
    assert_eq!(ended.code(), Some(130));
    let mut stages = said.lines().filter(|l| !l.starts_with('['));
    assert_eq!(stages.next_back(), Some("kiln: interrupted"));
    assert!(!said.contains("bundle"), "{said}");
}

#[test]
fn all_cores_are_not_too_many_threads() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let bench = ["bench", &model, "--duration", "0", "--runs", "1", "--json"];
    let result = kiln(&bench).expect(0);
    assert!(!result.err.contains(" cores"), "{}", result.err);
    let result = result.json();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(result["points"][0]["measured"]["cores"], cores);
}

#[test]
fn dynamic_quantization_is_for_no_engine_in_any_dialect() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let compile = ["compile", &model, "--int8=dynamic", "--target", "sm_89"];
    for more in [&[][..], &["--dialect", "standard"]] {
        kiln(&[&compile[..], more].concat())
            .expect(2)
            .says(&["TensorRT has no dynamic quantization"]);
    }
}

#[test]
fn a_gate_that_fails_shows_its_table_and_is_reported() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let files = ["md", "html", "json", "xml"].map(|form| folder.path(&format!("r.{form}")));
    let reports: Vec<&str> = files
        .iter()
        .flat_map(|f| ["--report", f.as_str()])
        .collect();
    let read = || files.clone().map(|f| fs::read_to_string(f).unwrap());

    // FP16 is not the same to the bit, and no search makes it so.
    let args = ["--fp16", "--tolerance", "fp32-exact", "--no-search"];
    let ran = folder.compile(&[&args[..], &reports].concat()).expect(1);
    assert!(ran.err.lines().all(|line| line.len() < 500), "{}", ran.err);
    let first = ran.out.lines().nth(2).unwrap();
    assert!(first.contains("FAIL"), "{}", ran.out);
    assert!(ran.out.contains("verdict"), "{}", ran.out);
    let [md, html, json, xml] = read();
    assert!(md.starts_with("# kiln compile: ❌ FAILS"), "{md}");
    assert!(md.contains("| case |"), "{md}");
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("fails"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["parity"]["tolerance"]["name"], "fp32-exact");
    assert!(xml.contains("<failure"), "{xml}");
    let quiet = folder.compile(&[&args[..], &["-q"]].concat()).expect(1);
    assert_eq!(quiet.out, "");
    assert!(!folder.0.path().join("model.kiln").exists());

    let args = ["--max-size-ratio", "0.001", "--no-latency"];
    let ran = folder.compile(&[&args[..], &reports].concat()).expect(1);
    assert!(ran.out.contains("size gate   FAILS"), "{}", ran.out);
    let [md, html, json, xml] = read();
    assert!(md.contains("gate on size") && html.contains("gate on size"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["gates"][0]["verdict"], "fail");
    assert!(xml.contains("<failure"), "{xml}");

    folder
        .compile(&[&["--no-check"][..], &reports].concat())
        .expect(0);
    let [_, _, json, _] = read();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["target"], "cpu");
}

#[test]
fn a_failure_names_the_worst_and_counts_the_others() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let gates = "gates: {parity: {limits: {y: {cosine: 1.0001}}}}";
    let recipe = format!("{{model: model.onnx, target: cpu, latency: false, {gates}}}");
    let recipe = folder.write("kiln.yaml", recipe.as_bytes());
    kiln(&["compile", "-c", &recipe])
        .expect(1)
        .says(&["cosine 1, limit 1.0001", "and 1 more of 4 comparisons"]);
}

#[test]
fn a_dry_run_writes_a_recipe_and_nothing_else() {
    let folder = Folder::with_model();
    let before = folder.listing();
    let args = ["--fp16", "--dim", "batch=2:4:8", "--keep-op", "Gelu"];
    let ran = folder
        .compile(&[&args[..], &["--dry-run"]].concat())
        .expect(0);
    assert_eq!(folder.listing(), before);
    assert!(ran.out.contains("# sizes: batch 2:4:8"), "{}", ran.out);
    assert!(ran.out.contains("convert-fp16"), "{}", ran.out);
    let recipe = folder.write("kiln.yaml", ran.out.as_bytes());
    kiln(&["compile", "-c", &recipe, "--no-check"]).expect(0);
    let made = folder.manifest("model.kiln");
    assert_eq!(made["precision"], "fp16");
    assert_eq!(made["sizes"]["batch"]["opt"], 4);
    folder
        .compile(&["--dry-run", "--dim", "nosuch=2"])
        .expect(2);
    let missing = folder.path("gone.npz");
    let args = ["--inputs", &missing, "--dry-run"];
    folder.compile(&args).expect(2).says(&["gone.npz"]);
}

#[test]
fn a_bundle_says_what_it_is() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    folder.compile(&["--fp16", "--no-latency"]).expect(0);
    let bundle = folder.path("model.kiln");
    let shown = kiln(&["inspect", &bundle]).expect(0).out;
    for part in [
        "target       cpu",
        "precision    fp16",
        "parity       passes (fp16) at ",
        "engine       none",
        "made by      kiln ",
        "recipe       (`kiln compile -c ",
        "floats: fp16",
        "operator",
    ] {
        assert!(shown.contains(part), "no '{part}' in:\n{shown}");
    }
    let json = kiln(&["inspect", &bundle, "--json"]).expect(0).json();
    assert_eq!(json["bundle"]["precision"], "fp16");
    let model = folder.path("model.kiln/model.onnx");
    let alone = kiln(&["inspect", &model, "--json"]).expect(0).json();
    assert!(alone.get("bundle").is_none() && json["nodes"] == alone["nodes"]);
    folder.write("model.kiln/manifest.json", b"{");
    kiln(&["inspect", &bundle])
        .expect(0)
        .says(&["model.kiln/manifest.json cannot be read"]);
}

#[test]
fn the_version_names_what_it_was_made_of() {
    let short = kiln(&["--version"]).expect(0).out;
    assert_eq!(short.lines().count(), 1);
    for args in [&["--version", "--verbose"][..], &["-v", "-V"], &["-Vv"]] {
        let long = kiln(args).expect(0).out;
        assert!(long.starts_with(&short), "{long}");
        for part in ["commit", "features", "ONNX Runtime", "TensorRT", "driver"] {
            assert!(long.contains(part), "no {part} in:\n{long}");
        }
    }
}
