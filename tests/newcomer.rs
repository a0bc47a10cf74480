//! The command line as a newcomer meets it: what lets a gate through, what loses a file, and what is said.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

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
    assert!(ran.out.contains("not run: the result serves on sm_89"));
    let gates = &folder.manifest("model.kiln")["gates"];
    assert_eq!(gates[0]["verdict"], "not_run", "{gates}");
    compile(&["--no-latency", "--max-latency-ratio", "off"]).expect(0);
}
