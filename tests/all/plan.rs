//! What an engine's plan says of itself: sizes of dynamic engines, bytes, the price on paper, and who shows them.

use crate::common;

use std::collections::BTreeMap;
use std::path::Path;

use common::command::kiln;
use common::schema::misfits;
use kiln::engine::{self, Kernel};
use kiln::manifest::{self, EngineKernels};
use serde_json::Value;

const MODELS: [&str; 4] = [
    "bert-tiny.ts.eager.opset11",
    "gpt2.ts.sdpa",
    "llama.dynamo.eager",
    "t5-dec.ts.eager",
];

fn installed() -> bool {
    let found = engine::locate(None).is_ok();
    if !found {
        println!("skipped: TensorRT for RTX not found");
    }
    found
}

/// Compiles a fixture without a proof, and gives its engine's kernels.
fn compiled(model: &str, folder: &Path, options: &[&str]) -> EngineKernels {
    let model = common::fixture(&format!("models/{model}.onnx"));
    let bundle = folder.join("bundle");
    let mut args = vec![
        "compile",
        model.to_str().unwrap(),
        "-o",
        bundle.to_str().unwrap(),
    ];
    args.extend(["--fp16", "--target", "sm_89", "--no-check", "--force"]);
    args.extend(options);
    kiln(&args).expect(0);
    manifest::kernels(&bundle).unwrap()
}

/// What is the same of a kernel in two builds: its name but for counters, and its nodes.
type Alike = (String, Vec<String>);

fn alike(kernel: &Kernel) -> Alike {
    let name = kernel.name.split("_myl0").next().unwrap();
    let name = if name.starts_with("__mye") {
        "product"
    } else {
        name
    };
    let mut nodes = kernel.nodes.clone();
    nodes.sort();
    (name.to_string(), nodes)
}

/// Bytes and operations of the kernels of one name and the same nodes, where there is one.
fn costs(engine: &EngineKernels) -> BTreeMap<Alike, Vec<[Option<u64>; 2]>> {
    let paper = engine.paper.as_ref().unwrap();
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (kernel, cost) in engine.kernels.launched().zip(&paper.kernels) {
        let own = [cost.activations, cost.operations];
        found.entry(alike(kernel)).or_default().push(own);
    }
    found
}

#[test]
fn a_dynamic_engine_moves_what_the_same_kernels_move_at_fixed_sizes() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for model in MODELS {
        // Three samples of lengths that nothing else in these models has.
        let (open, fixed): (&[&str], &[&str]) = match model.starts_with("t5") {
            true => (
                &["batch=1:3:8", "dec_seq=1:40:64", "enc_seq=1:56:64"],
                &["batch=3", "dec_seq=40", "enc_seq=56"],
            ),
            false => (&["batch=1:3:8", "seq=1:40:64"], &["batch=3", "seq=40"]),
        };
        let [open, fixed] = [open, fixed].map(|dims| {
            let options: Vec<&str> = dims.iter().flat_map(|d| ["--dim", d]).collect();
            compiled(model, folder.path(), &options)
        });
        let paper = open.paper.as_ref().unwrap();
        assert_eq!(paper.at["batch"], 3);
        let moved = paper.moved();
        let few = paper.kernels.len() / 20;
        assert!(moved.unknown <= few, "{model}: {:?}", paper.kernels);
        let twins = costs(&fixed);
        let open = costs(&open);
        let same = open
            .iter()
            .filter_map(|(k, own)| Some((k, own, twins.get(k)?)));
        let same: Vec<_> = same
            .filter(|(_, a, b)| a.len() == 1 && b.len() == 1)
            .collect();
        assert!(
            2 * same.len() > open.len(),
            "{model}: most kernels are the same"
        );
        for (kernel, own, twin) in same {
            assert_eq!(own, twin, "{model}: {kernel:?}");
        }
    }
}

#[test]
fn everyone_shows_the_same_plan() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let engine = compiled(MODELS[0], folder.path(), &[]);
    let bundle = folder.path().join("bundle");
    let path = bundle.to_str().unwrap();
    let all = engine.kernels.launched().count();
    let least = &engine.paper.as_ref().unwrap().prices[0];
    assert_eq!(least.card, "NVIDIA L4");
    assert_eq!(least.kernels.len(), all);
    let parts = [
        format!("{all} kernels, "),
        " moved, products ".into(),
        ", attention 2 dedicated, at least ".into(),
        " µs on L4 on paper (batch 1, seq 128)".into(),
    ];
    let shown = kiln(&["inspect", path, "--engine"]).expect(0).out;
    let report = std::fs::read_to_string(bundle.join("report.md")).unwrap();
    let page = std::fs::read_to_string(bundle.join("report.html")).unwrap();
    for text in [&shown, &report, &page] {
        for part in &parts {
            assert!(text.contains(part), "no '{part}' in:\n{text}");
        }
    }
    assert!(
        shown.contains("layer.0") && report.contains("layer.1"),
        "{shown}"
    );
    assert!(report.contains("no latency; nothing of it was measured"));
    assert!(page.contains("Where bytes go"));
    let json = kiln(&["inspect", path, "--engine", "--json"]).expect(0).out;
    let json: Value = serde_json::from_str(&json).unwrap();
    let schema = kiln(&["schema", "engine"]).expect(0).out;
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(misfits(&json, &schema, "engine"), [""; 0]);
    assert_eq!(json["paper"]["kernels"].as_array().unwrap().len(), all);
}
