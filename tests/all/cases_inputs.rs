//! Made inputs show what a model decides, and those that the user fixes are folded.

use crate::common;
use crate::common::command::{Ran, kiln};

use std::path::{Path, PathBuf};

use kiln::parity::{self, npz::Npz};
use kiln::runtime::TensorInfo;
use kiln_graph::{DType, Tensor, onnx};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A case as an ONNX file.
fn case(folder: &Path, name: &str) -> PathBuf {
    let source =
        std::fs::read_to_string(common::fixture(&format!("cases/{name}.onnxtxt"))).unwrap();
    write(folder, name, &source)
}

fn write(folder: &Path, name: &str, source: &str) -> PathBuf {
    let path = folder.join(format!("{name}.onnx"));
    std::fs::write(&path, common::encode(source)).unwrap();
    path
}

fn compile(model: &Path, bundle: &Path, more: &[&str]) -> Ran {
    let fixed = [
        "compile",
        text(model),
        "-o",
        text(bundle),
        "--target",
        "cpu",
        "--no-latency",
    ];
    kiln(&[&fixed, more].concat())
}

/// Ids and what is decided on them as floats of this type; the table has 2^16 rows.
fn decision(number: i64, constants: &str, nodes: &str) -> String {
    let table = vec!["0.5"; 1 << 16].join(", ");
    format!(
        r#"
<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch, seq] ids) => (float[batch, seq, 1] h, int64[a, b] y) <
  float[65536, 1] table = {{{table}}}, int64[1] one = {{1}}, int64[1] two = {{2}}{constants}
>
{{
  h = Gather(table, ids)
  half = Cast <to = {number}> (ids)
  f = Cast <to = 1> (half)
  {nodes}
}}
"#
    )
}

#[test]
fn made_ids_tell_formats_apart_that_round_ids() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let decisions = [
        ("argmax", "", "y = ArgMax <axis = -1, keepdims = 1> (f)"),
        ("topk", "", "x, y = TopK <axis = -1> (f, one)"),
        (
            "equal",
            ", float eos = {50256.0}",
            "e = Equal(f, eos) y = Cast <to = 7> (e)",
        ),
        (
            "greater",
            ", float eos = {50255.5}",
            "e = Greater(f, eos) y = Cast <to = 7> (e)",
        ),
        (
            "less",
            ", float near = {4.0}",
            "a = Unsqueeze(f, one) b = Unsqueeze(f, two) d = Sub(a, b) e = Less(d, near)
          c = Cast <to = 7> (e) y = ReduceSum <keepdims = 0> (c, two)",
        ),
        (
            "floor",
            ", float ten = {10.0}",
            "d = Div(f, ten) e = Floor(d) y = Cast <to = 7> (e)",
        ),
    ];
    for (name, constants, nodes) in decisions {
        let right = write(folder.path(), name, &decision(1, constants, nodes));
        for (format, number) in [("fp16", 10), ("bf16", 16)] {
            let wrong = format!("{name}.{format}");
            let wrong = write(folder.path(), &wrong, &decision(number, constants, nodes));
            let same = [
                "check",
                text(&wrong),
                "--reference",
                text(&right),
                "--tolerance",
                "fp16",
            ];
            let ran = kiln(&same);
            assert_eq!(ran.code, 1, "{name} {format}: {}{}", ran.out, ran.err);
        }
    }
}

#[test]
fn a_mask_that_hides_where_it_is_true_hides_a_tail_of_each_row() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = case(folder.path(), "mask_true_hides");
    let bundle = folder.path().join("b.kiln");
    let ran = compile(&model, &bundle, &["--dim", "batch=2", "--dim", "seq=8"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let mut saved = Npz::open(&bundle.join("parity.npz")).unwrap();
    let mask = saved.read("in.key_padding_mask", None).unwrap().unwrap();
    let mut expected = [0i64; 16];
    expected[14..].fill(1);
    assert_eq!(mask.to_i64s().unwrap(), expected);
    let y = saved.read("out.y", None).unwrap().unwrap();
    assert!(y.to_f64s().unwrap().iter().all(|v| v.is_finite()));
}

#[test]
fn a_number_that_selects_is_proved_on_every_side() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = case(folder.path(), "control");
    let bundle = folder.path().join("b.kiln");
    let ran = compile(&model, &bundle, &["--verbose"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("typical"), "{}", ran.out);
    assert!(ran.out.contains("sr=16001"), "{}", ran.out);
    assert!(ran.err.contains("16000 or 16001"), "{}", ran.err);
    assert!(ran.err.contains("--input sr=VALUE"), "{}", ran.err);
}

#[test]
fn an_input_that_is_fixed_folds_and_stays_or_goes() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = case(folder.path(), "control");
    let inputs = |bundle: &Path| -> Vec<String> {
        let written = onnx::read(bundle.join("model.onnx")).unwrap();
        let g = &written.graph;
        assert!(g.nodes().all(|(_, n)| !n.op().is("If")));
        g.inputs()
            .iter()
            .map(|&v| g.value(v).name().to_string())
            .collect()
    };
    let kept = folder.path().join("kept.kiln");
    let ran = compile(&model, &kept, &["--input", "sr=8000"]);
    assert_eq!(
        (ran.code, ran.err.contains("warning")),
        (0, false),
        "{}",
        ran.err
    );
    assert_eq!(inputs(&kept), ["x", "sr"]);
    let dropped = folder.path().join("dropped.kiln");
    let ran = compile(
        &model,
        &dropped,
        &["--input", "sr=8000", "--drop-inputs", "--fp16"],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.err.contains("sr"), "{}", ran.err);
    assert_eq!(inputs(&dropped), ["x"]);
    // The bundle says what it was compiled with, to a check and to whoever makes it again.
    let check = ["check", text(&dropped), "--reference", text(&model)];
    assert_eq!(kiln(&check).code, 0);
    let other = kiln(&[&check[..], &["--input", "sr=16000"]].concat());
    assert_eq!(other.code, 1, "{}", other.out);
    let manifest = dropped.join("manifest.json");
    let again = folder.path().join("again.kiln");
    let ran = kiln(&[
        "compile",
        "-c",
        text(&manifest),
        "-o",
        text(&again),
        "--no-latency",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(inputs(&again), ["x"]);
    let bench = ["bench", text(&model), text(&dropped), "--input", "sr=8000"];
    let quick = ["--duration", "0", "--runs", "1", "--warmup", "1"];
    let ran = kiln(&[&bench[..], &quick].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn a_recipe_fixes_inputs() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    case(folder.path(), "widths");
    let recipe = folder.path().join("kiln.yaml");
    let source = "model: widths.onnx\ntarget: cpu\nlatency: false\ninput-values: {widths: [1, 3]}\ndrop-inputs: true\n";
    std::fs::write(&recipe, source).unwrap();
    let ran = kiln(&["compile", "-c", text(&recipe)]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let written = onnx::read(folder.path().join("widths.kiln/model.onnx")).unwrap();
    assert_eq!(written.graph.inputs().len(), 1);
}

#[test]
fn values_that_do_not_fit_are_refused_with_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let model = case(folder.path(), "control");
    let bundle = folder.path().join("b.kiln");
    let refused = [
        (
            vec!["--input", "sr=1.5"],
            "it is int64[], and 1.5 is not a int64",
        ),
        (vec!["--input", "rs=1"], "no such input; it has: x, sr"),
        (
            vec!["--input", "x=0"],
            "give those of its dimensions with --dim",
        ),
        (vec!["--input", "sr"], "it has no '='"),
        (vec!["--drop-inputs"], "--drop-inputs leaves out"),
    ];
    for (args, reason) in refused {
        let ran = compile(&model, &bundle, &args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(reason), "{args:?}: {}", ran.err);
    }
}

#[test]
fn real_inputs_are_enough_where_made_ones_do_not_run() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Only shapes that end in 2 run, and nothing tells that.
    let model = case(folder.path(), "picky");
    let bundle = folder.path().join("b.kiln");
    let without = compile(&model, &bundle, &[]);
    assert_eq!(without.code, 2, "{}", without.err);
    let data = folder.path().join("real.npz");
    let x: Vec<f32> = (0..8).map(|n| n as f32 / 8.0 - 0.5).collect();
    let arrays = [
        ("x", Tensor::from_values(vec![2, 4], &x).unwrap()),
        ("shape", Tensor::vector(&[0i64, 2, 2])),
    ];
    parity::npz::write(&data, &arrays).unwrap();
    let ran = compile(&model, &bundle, &["--inputs", text(&data)]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("the proof is on real.npz alone"),
        "{}",
        ran.err
    );
    assert!(!ran.out.contains("typical"), "{}", ran.out);
    let info = TensorInfo {
        name: "x".into(),
        dtype: DType::F32,
        shape: Vec::new(),
    };
    let mut saved = Npz::open(&bundle.join("parity.npz")).unwrap();
    let saved = parity::from_npz(&mut saved, &[info]).unwrap();
    assert_eq!(saved[0].1.dims(), [2, 4]);
}
