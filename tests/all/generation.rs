//! Decoders with a cache: found, run token after token, proved.

use std::path::{Path, PathBuf};

use kiln::generate::proof::{self, Outcome, Request};
use kiln::generate::{
    Feed, Generator, Options, Ports, Prompt, Roles, Rules, Source, generate, open,
};
use kiln::parity::{Preset, Tolerance, npz};
use kiln_graph::Tensor;
use kiln_graph::caches::{Holds, Update, caches};
use kiln_graph::onnx;

use crate::common::command::kiln;
use crate::common::{fixture, runtime};

fn model(name: &str) -> PathBuf {
    fixture("generation").join(name)
}

fn array(file: &str, name: &str) -> Tensor {
    let arrays = npz::read(&model(file)).unwrap();
    let found = arrays.into_iter().find(|(n, _)| n == name);
    found.unwrap_or_else(|| panic!("{file} has no {name}")).1
}

fn ids(file: &str, name: &str) -> Vec<i64> {
    array(file, name).to_i64s().unwrap()
}

fn limit(limit: usize) -> Rules {
    Rules {
        limit,
        ..Rules::default()
    }
}

const FORMS: [&str; 4] = ["growing", "merged", "gqa", "scatter"];

#[test]
fn exports_generate_what_pytorch_generates() {
    if runtime().is_none() {
        return;
    }
    for (file, tokens) in [
        ("gpt2.past.ts.sdpa.onnx", "gpt2.past.tokens.npz"),
        ("llama.past.dynamo.sdpa.onnx", "llama.past.tokens.npz"),
        ("qwen3.past.ts.sdpa.onnx", "qwen3.past.tokens.npz"),
        ("mistral.past.ts.sdpa.onnx", "mistral.past.tokens.npz"),
        ("opt.past.ts.sdpa.onnx", "opt.past.tokens.npz"),
    ] {
        let mut decoder = open(&model(file), &Options::default()).unwrap();
        let right = ids(tokens, "tokens");
        let prompt = [ids(tokens, "prompt")];
        let found = generate(
            &mut decoder,
            &prompt,
            &[],
            &limit(right.len()),
            &mut |_, _| {},
        );
        assert_eq!(found.unwrap().tokens, [right], "{file}");
    }
}

#[test]
fn encoders_and_decoders_meet_without_names() {
    if runtime().is_none() {
        return;
    }
    for (name, source) in [("whisper", "input_features"), ("t5", "input_ids")] {
        let file = format!("{name}.tokens.npz");
        let roles = Roles {
            encoder: Some(model(&format!("{name}.encoder.ts.sdpa.onnx"))),
            first: Some(model(&format!("{name}.first.ts.sdpa.onnx"))),
            decoder: model(&format!("{name}.decoder.ts.sdpa.onnx")),
            ..Roles::default()
        };
        let right = ids(&file, "tokens");
        let read = array(&file, source);
        let source = match read.to_i64s() {
            Some(tokens) => Source::Tokens(tokens),
            None => Source::Features(vec![(source.into(), read)]),
        };
        let mut generator = Generator::open(&roles, &Options::default()).unwrap();
        let prompt = Prompt::Source(source, vec![right[0]]);
        let found = generator.run(&prompt, &limit(right.len() - 1), &mut |_, _| {});
        assert_eq!(found.unwrap().tokens, [&right[1..]], "{name}");
    }
}

#[test]
fn each_form_of_a_cache_is_found_and_gives_the_same_tokens() {
    if runtime().is_none() {
        return;
    }
    let updates = [
        Update::Grows,
        Update::Grows,
        Update::Shared,
        Update::Written,
    ];
    let mut right = None;
    for (form, update) in FORMS.into_iter().zip(updates) {
        let path = model(&format!("decoder.{form}.onnx"));
        let graph = onnx::read(&path).unwrap().graph;
        let found = caches(&graph);
        assert_eq!(found.len(), 4, "{form}");
        for c in &found {
            assert_eq!((c.update, c.axis), (update, 2), "{form}");
            assert_eq!(
                (c.heads, c.size, c.output.is_some()),
                (Some(2), Some(16), true),
                "{form}"
            );
        }
        let mut decoder = open(&path, &Options::default()).unwrap();
        assert_eq!(decoder.capacity(), Some(64), "{form}");
        let rows = [vec![5, 9, 33, 2], vec![7, 3]];
        let together = generate(&mut decoder, &rows, &[], &limit(24), &mut |_, _| {}).unwrap();
        for (row, tokens) in rows.iter().zip(&together.tokens) {
            let one = std::slice::from_ref(row);
            let alone = generate(&mut decoder, one, &[], &limit(24), &mut |_, _| {}).unwrap();
            assert_eq!(&alone.tokens[0], tokens, "{form}: rows see each other");
        }
        assert_eq!(
            *right.get_or_insert(together.tokens.clone()),
            together.tokens,
            "{form}"
        );
    }
}

fn prove(original: &Path, result: &Path, tolerance: Preset) -> proof::Proof {
    proof::prove(&Request {
        original,
        result,
        steps: 16,
        prompt: None,
        source: None,
        tolerance: Tolerance::from(tolerance),
        seed: 1,
        options: Options::default(),
    })
    .unwrap()
}

fn outcome<'a>(proof: &'a proof::Proof, claim: &str) -> &'a Outcome {
    let found = proof.claims.iter().find(|c| c.name.contains(claim));
    &found.unwrap_or_else(|| panic!("no claim {claim}")).outcome
}

#[test]
fn a_generation_is_proved_across_forms_and_a_wrong_one_fails() {
    if runtime().is_none() {
        return;
    }
    let growing = model("decoder.growing.onnx");
    for form in FORMS {
        let proof = prove(
            &growing,
            &model(&format!("decoder.{form}.onnx")),
            Preset::Fp32Rewrite,
        );
        assert!(!proof.failed(), "{form}: {:?}", proof.claims);
        assert_eq!(proof.tokens, proof.result_tokens, "{form}");
        assert_eq!(*outcome(&proof, "edge"), Outcome::Holds, "{form}");
        assert_eq!(*outcome(&proof, "rows"), Outcome::Holds, "{form}");
    }
    // A factor of attention that is off by 2 %.
    let text = scaled(&growing, 1.02);
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.onnx");
    std::fs::write(&wrong, text).unwrap();
    let proof = prove(&growing, &wrong, Preset::Fp32Rewrite);
    assert!(matches!(outcome(&proof, "scores"), Outcome::Fails(_)));
}

#[test]
fn what_a_buffer_holds_behind_its_tokens_reaches_no_score() {
    if runtime().is_none() {
        return;
    }
    let claim = |path: &Path| {
        let proof = prove(path, path, Preset::Fp32Rewrite);
        let found = proof
            .claims
            .into_iter()
            .find(|c| c.name.contains("unwritten"));
        found.unwrap()
    };
    // Who counts tokens reads no NaN; a mask hides numbers, not NaN.
    for (form, said) in [("gqa", "neither numbers nor NaN"), ("scatter", "NaN does")] {
        let found = claim(&model(&format!("decoder.{form}.onnx")));
        assert_eq!(found.outcome, Outcome::Holds, "{form}");
        assert!(found.details.contains(said), "{form}: {}", found.details);
    }
    // A mask that hides nothing.
    let mut read = onnx::read(model("decoder.scatter.onnx")).unwrap();
    let g = &mut read.graph;
    let places = g.values().find(|(_, v)| v.name() == "places").unwrap().0;
    let dims = g.constant(places).unwrap().dims().to_vec();
    let zeros = vec![0i64; dims.iter().product()];
    g.set_constant(places, Tensor::from_values(dims, &zeros).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("open.onnx");
    std::fs::write(&wrong, onnx::to_bytes(&read).unwrap()).unwrap();
    let found = claim(&wrong);
    assert!(
        matches!(&found.outcome, Outcome::Fails(why) if why.contains("an earlier generation")),
        "{found:?}"
    );
}

/// The model with its constant "scale" multiplied.
fn scaled(path: &Path, by: f32) -> Vec<u8> {
    let mut read = onnx::read(path).unwrap();
    let scale = read
        .graph
        .values()
        .find(|(_, v)| v.name() == "scale")
        .unwrap()
        .0;
    let old = read.graph.constant(scale).unwrap().as_f64().unwrap() as f32;
    read.graph.set_constant(scale, Tensor::scalar(old * by));
    onnx::to_bytes(&read).unwrap()
}

#[test]
fn rows_of_a_model_whose_padding_moves_positions_are_not_judged() {
    if runtime().is_none() {
        return;
    }
    let gpt2 = model("gpt2.past.ts.sdpa.onnx");
    let proof = prove(&gpt2, &gpt2, Preset::Fp32Rewrite);
    assert!(!proof.failed(), "{:?}", proof.claims);
    assert!(matches!(outcome(&proof, "rows"), Outcome::NotRun(why) if why.contains("original")));
}

#[test]
fn a_pair_compiles_by_its_roles_and_still_generates_the_same() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let roles = Roles {
        encoder: Some(model("t5.encoder.ts.sdpa.onnx")),
        first: Some(model("t5.first.ts.sdpa.onnx")),
        decoder: model("t5.decoder.ts.sdpa.onnx"),
        start: vec![0],
        ..Roles::default()
    };
    roles.write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, bundle) = (path("generation.json"), path("pair.kiln"));
    let compile = [
        "compile",
        &file,
        "--target",
        "cpu",
        "--no-latency",
        "-o",
        &bundle,
    ];
    kiln(&compile).expect(0);
    let source: Vec<String> = (ids("t5.tokens.npz", "input_ids").iter())
        .map(i64::to_string)
        .collect();
    let right: Vec<String> = (ids("t5.tokens.npz", "tokens")[1..].iter())
        .map(i64::to_string)
        .collect();
    let generate = [
        "generate",
        &bundle,
        "--ids",
        &source.join(","),
        "--new",
        "24",
    ];
    let out = kiln(&generate).expect(0).out;
    assert_eq!(out.trim(), right.join(","));
    // A compilation that fails leaves it, with what its user put there, and nothing beside it.
    let noted = Path::new(&bundle).join("notes.txt");
    std::fs::write(&noted, "mine").unwrap();
    let failing = [&compile[..], &["--max-size-ratio", "0.001"]].concat();
    kiln(&failing).expect(1);
    kiln(&generate).expect(0);
    kiln(&compile).expect(0);
    assert_eq!(kiln(&generate).expect(0).out.trim(), right.join(","));
    assert_eq!(std::fs::read_to_string(&noted).unwrap(), "mine");
    let beside = std::fs::read_dir(folder.path()).unwrap().flatten();
    let parts = beside.filter(|e| e.file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0);
    // Without its encoder it says so.
    std::fs::remove_dir_all(Path::new(&bundle).join("encoder")).unwrap();
    kiln(&generate)
        .expect(3)
        .says(&["its encoder", "is not there"]);
}

#[test]
fn a_compiled_decoder_has_the_proof_of_its_generation() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("d.kiln").display().to_string();
    let scatter = model("decoder.scatter.onnx").display().to_string();
    kiln(&[
        "compile",
        &scatter,
        "--target",
        "cpu",
        "--fp16",
        "--no-latency",
        "-o",
        &bundle,
    ])
    .expect(0);
    let manifest = std::fs::read_to_string(Path::new(&bundle).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let steps = manifest["generation"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 8);
    let report = std::fs::read_to_string(Path::new(&bundle).join("report.md")).unwrap();
    for part in [
        "## Generation",
        "scores at each step",
        "Cache: 2 layers of 2 heads of 16",
    ] {
        assert!(report.contains(part), "no {part} in {report}");
    }
    let reports = folder.path().join("check.xml");
    let xml = reports.display().to_string();
    let check = [
        "check",
        &bundle,
        "--reference",
        &scatter,
        "--generate",
        "8",
        "--report",
        &xml,
    ];
    kiln(&check).expect(0);
    let xml = std::fs::read_to_string(reports).unwrap();
    assert!(
        xml.contains("tokens of a greedy generation") && xml.contains("skipped"),
        "{xml}"
    );
}

#[test]
fn a_table_that_begins_with_rows_for_padding_holds_fewer_tokens() {
    let capacity = |path: &Path| {
        let read = onnx::read(path).unwrap();
        Ports::of(&read.graph).unwrap().capacity
    };
    // 128 positions and two rows in front of them.
    assert_eq!(capacity(&model("bart.decoder.ts.sdpa.onnx")), Some(128));
    assert_eq!(capacity(&model("whisper.decoder.ts.sdpa.onnx")), Some(128));
}

#[test]
fn caches_that_are_only_read_are_found_where_sizes_are_computed() {
    let read = onnx::read(model("bart.decoder.dynamo.sdpa.onnx")).unwrap();
    let found = caches(&read.graph);
    let kept = found.iter().filter(|c| c.update == Update::Kept);
    let kept: Vec<_> = kept.map(|c| (c.holds, c.axis, c.attention)).collect();
    let right = [
        (Holds::Keys, 2, 1),
        (Holds::Values, 2, 1),
        (Holds::Keys, 2, 3),
        (Holds::Values, 2, 3),
    ];
    assert_eq!(kept, right);
    assert_eq!(found.len(), 8);
}

#[test]
fn the_branch_with_a_cache_is_written_into_for_engines() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("m.kiln").display().to_string();
    let merged = model("decoder.merged.onnx");
    let path = merged.display().to_string();
    let target = ["--target", "sm_89", "--no-engine", "--no-latency"];
    kiln(&[&["compile", &path, "-o", &bundle][..], &target].concat())
        .expect(0)
        .says(&["use_cache_branch", "takes an empty one"]);
    let ports = Ports::of(
        &onnx::read(folder.path().join("m.kiln/model.onnx"))
            .unwrap()
            .graph,
    )
    .unwrap();
    assert!(
        ports
            .caches
            .iter()
            .all(|c| c.cache.update == Update::Written)
    );
    assert!(!ports.feeds.iter().any(|(_, f)| *f == Feed::Past));
    let proof = prove(&merged, Path::new(&bundle), Preset::Fp32Rewrite);
    assert!(!proof.failed(), "{:?}", proof.claims);
    assert_eq!(proof.tokens, proof.result_tokens);
}

#[test]
fn bad_input_is_named_with_its_exit_code() {
    if runtime().is_none() {
        return;
    }
    let path = |name: &str| model(name).display().to_string();
    let (growing, scatter) = (path("decoder.growing.onnx"), path("decoder.scatter.onnx"));
    let decoder = path("whisper.decoder.ts.sdpa.onnx");
    let first = path("whisper.first.ts.sdpa.onnx");
    let bert = fixture("models/bert-tiny.ts.eager.opset11.onnx")
        .display()
        .to_string();
    let features = path("whisper.tokens.npz");
    let t5 = path("t5.encoder.ts.sdpa.onnx");
    let t5_first = path("t5.first.ts.sdpa.onnx");
    let long = vec!["3"; 65].join(",");
    let cases: &[(&[&str], i32, &str)] = &[
        (&[&scatter, "--ids", &long], 2, "the prompt has 65 tokens"),
        (&[&growing, "--ids", &long], 2, "holds 64"),
        (&[&growing, "--ids", "3,64"], 2, "token 64"),
        (&[&growing], 2, "nothing to go on from"),
        (&[&growing, "--text", "a"], 2, "--tokenizer"),
        (&[&bert, "--ids", "3"], 3, "it has no cache"),
        (
            &[&decoder, "--ids", "3"],
            3,
            "which an encoder or a first step computes",
        ),
        (&[&decoder, "--first", &first, "--ids", "3"], 3, "--encoder"),
        (&[&decoder, "--features", &features], 3, "--encoder"),
        (
            &[
                &decoder,
                "--first",
                &first,
                "--encoder",
                &t5,
                "--ids",
                "3",
                "--start",
                "1",
            ],
            3,
            "",
        ),
        (&["no-such.json", "--ids", "3"], 3, "there is no such file"),
        // A past of other heads.
        (
            &[
                &decoder,
                "--first",
                &t5_first,
                "--encoder",
                &t5,
                "--ids",
                "3",
                "--start",
                "1",
            ],
            3,
            "the models do not belong together",
        ),
    ];
    for (args, code, said) in cases {
        let mut all = vec!["generate"];
        all.extend(*args);
        kiln(&all).expect(*code).says(&[said]);
    }
    // Before anything is calibrated or searched.
    let grouped = model("decoder.gqa.onnx").display().to_string();
    let growing_caches = ["--growing-caches", "--fp16", "--target", "sm_89"];
    let refused = kiln(&[&["compile", &grouped][..], &growing_caches].concat()).expect(4);
    refused.says(&["GroupQueryAttention", "a plugin that it does not come with"]);
    let engine = ["--target", "sm_89", "--no-engine", "--max-length"];
    for (length, said) in [("65", "holds 64 tokens"), ("0", "one token at least")] {
        let compile = [&["compile", &growing][..], &engine, &[length]].concat();
        let option = format!("--max-length {length}");
        kiln(&compile).expect(2).says(&[&option, said]);
    }
}

#[test]
fn a_pair_is_proved_by_what_it_generates() {
    if runtime().is_none() {
        return;
    }
    for (name, start) in [("t5", 0), ("whisper", 1)] {
        let folder = tempfile::tempdir().unwrap();
        let roles = Roles {
            encoder: Some(model(&format!("{name}.encoder.ts.sdpa.onnx"))),
            first: Some(model(&format!("{name}.first.ts.sdpa.onnx"))),
            decoder: model(&format!("{name}.decoder.ts.sdpa.onnx")),
            start: vec![start],
            ..Roles::default()
        };
        roles.write(folder.path()).unwrap();
        let file = folder.path().join("generation.json");
        let proof = prove(&file, &file, Preset::Fp32Rewrite);
        assert!(!proof.failed(), "{name}: {:?}", proof.claims);
        assert_eq!(proof.tokens.len(), 16);
        for claim in ["scores", "tokens", "one run", "caches hold"] {
            assert_eq!(*outcome(&proof, claim), Outcome::Holds, "{name}: {claim}");
        }
        let rows = outcome(&proof, "rows");
        assert!(matches!(rows, Outcome::NotRun(why) if why.contains("one source")));
        let decoder = scaled_head(&roles.decoder, folder.path());
        let wrong = Roles { decoder, ..roles };
        let other = tempfile::tempdir().unwrap();
        wrong.write(other.path()).unwrap();
        let proof = prove(
            &file,
            &other.path().join("generation.json"),
            Preset::Fp32Rewrite,
        );
        assert!(
            matches!(outcome(&proof, "scores"), Outcome::Fails(_)),
            "{name}"
        );
    }
}

/// The model with a weight of its last product made 2 % larger.
fn scaled_head(path: &Path, folder: &Path) -> PathBuf {
    let mut read = onnx::read(path).unwrap();
    let g = &mut read.graph;
    let products = g.nodes().filter(|(_, n)| n.op().is("MatMul"));
    let weights = products.filter_map(|(_, n)| n.input(1).filter(|v| g.constant(*v).is_some()));
    let weight = weights.last().unwrap();
    let old = g.constant(weight).unwrap();
    let dims = old.dims().to_vec();
    let numbers: Vec<f32> = old
        .to_f64s()
        .unwrap()
        .iter()
        .map(|x| *x as f32 * 1.02)
        .collect();
    g.set_constant(weight, Tensor::from_values(dims, &numbers).unwrap());
    let out = folder.join("wrong.onnx");
    std::fs::write(&out, onnx::to_bytes(&read).unwrap()).unwrap();
    out
}

#[test]
fn a_real_source_is_proved_to_its_stop_token() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let right = ids("t5.tokens.npz", "tokens");
    // The fourth new token ends it; the second is never taken.
    let roles = Roles {
        encoder: Some(model("t5.encoder.ts.sdpa.onnx")),
        first: Some(model("t5.first.ts.sdpa.onnx")),
        decoder: model("t5.decoder.ts.sdpa.onnx"),
        start: vec![0],
        stop: vec![right[4]],
        ..Roles::default()
    };
    let ends = (1..=4).find(|&k| right[k] == right[4]).unwrap();
    roles.write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let source = Tensor::from_values(
        vec![1, ids("t5.tokens.npz", "input_ids").len()],
        &ids("t5.tokens.npz", "input_ids"),
    );
    let arrays = [("input_ids", source.unwrap())];
    kiln::parity::npz::write(&folder.path().join("source.npz"), &arrays).unwrap();
    let (file, bundle, source) = (
        path("generation.json"),
        path("pair.kiln"),
        path("source.npz"),
    );
    let compile = ["compile", &file, "--target", "cpu", "--no-latency"];
    kiln(&[&compile[..], &["--inputs", &source, "-o", &bundle]].concat()).expect(0);
    let check = ["check", &bundle, "--reference", &file, "--generate", "24"];
    let read = |more: &[&str]| -> serde_json::Value {
        let out = kiln(&[&check[..], more, &["--json"]].concat())
            .expect(0)
            .out;
        serde_json::from_str(&out).unwrap()
    };
    let found = read(&["--inputs", &source]);
    assert_eq!(found["tokens"], serde_json::json!(right[1..=ends]));
    assert_eq!(found["tokens"], found["result_tokens"]);
    // Without one it is made, and has no end.
    assert_eq!(read(&[])["tokens"].as_array().unwrap().len(), 24);
    let never = Roles {
        suppress_first: vec![right[1]],
        ..roles
    };
    never.write(folder.path()).unwrap();
    let found = read(&["--inputs", &source]);
    assert_ne!(found["tokens"][0], right[1]);
    assert_eq!(found["steps"][0]["original"], found["tokens"][0]);
}

#[test]
fn a_real_prompt_is_one_row_of_the_decoders_tokens() {
    if runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, dims: Vec<usize>, ids: &[i64]| {
        let path = folder.path().join(format!("{name}.npz"));
        let arrays = [(name, Tensor::from_values(dims, ids).unwrap())];
        kiln::parity::npz::write(&path, &arrays).unwrap();
        path.display().to_string()
    };
    let llama = model("llama.past.dynamo.sdpa.onnx").display().to_string();
    let check = ["check", &llama, "--reference", &llama, "--generate", "4"];
    let with = |inputs: &str| kiln(&[&check[..], &["--json", "--inputs", inputs]].concat());
    let out = with(&file("in.input_ids", vec![1, 3], &[5, 9, 33]))
        .expect(0)
        .out;
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["prompt"], serde_json::json!([5, 9, 33]));
    with(&file("rows", vec![2, 2], &[5, 9, 33, 2]))
        .expect(2)
        .says(&["rows.npz", "one row of token ids", "[2, 2]"]);
    with(&file("beyond", vec![2], &[5, 96]))
        .expect(2)
        .says(&["token 96", "0 to 95"]);
}
