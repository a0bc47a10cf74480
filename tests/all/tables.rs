//! Tables of comparisons, as wide as the terminal.

use crate::common;

use std::fs;
use std::process::Command;

use common::command::{Folder, kiln};

/// As [`kiln`], in a terminal of this many columns.
fn in_columns(columns: &str, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("COLUMNS", columns)
        .args(args)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_table_has_a_row_for_each_output_and_fits_the_terminal() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    folder.compile(&["--fp16", "--no-latency"]).expect(0);
    let check = ["check", &folder.path("model.kiln"), "--reference", &model];
    let rows = |text: &str| text.lines().filter(|l| l.ends_with(" ok")).count();
    let brief = kiln(&check).expect(0).out;
    assert_eq!(rows(&brief), 2, "{brief}");
    assert!(brief.contains("worst case") && brief.contains("--verbose"));
    let verbose = kiln(&[&check[..], &["-v"]].concat()).expect(0).out;
    let json = kiln(&[&check[..], &["--json"]].concat()).expect(0).json();
    let cases = json["parity"]["cases"].as_array().unwrap().len();
    assert_eq!(rows(&verbose), 2 * cases, "{verbose}");
    for columns in [70, 80, 110] {
        let text = in_columns(&columns.to_string(), &check);
        let (table, _) = text.split_once("\n\n").unwrap();
        let widest = table.lines().map(|l| l.chars().count()).max();
        assert!(widest <= Some(columns), "{columns}:\n{text}");
        for part in ["rel L2", "cosine", "verdict", "ok"] {
            assert!(table.contains(part), "{columns}:\n{text}");
        }
    }
    assert!(!in_columns("70", &check).contains("NaN/Inf"));
    let page = fs::read_to_string(folder.path("model.kiln/report.html")).unwrap();
    let manifest = fs::read(folder.path("model.kiln/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for case in manifest["parity"]["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        assert!(page.contains(&format!(">{name}<")), "{name}");
    }
}

#[test]
fn outputs_without_floats_share_a_line() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let text = r#"
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] x) => (int64[2] shape, int64[1] count, float[batch, 4] y)
{
  shape = Shape(x)
  count = Size(x)
  y = Relu(x)
}
"#;
    let model = folder.write("m.onnx", &common::encode(text));
    let ran = kiln(&["check", &model, "--reference", &model]).expect(0);
    assert!(
        ran.out
            .contains("2 outputs without floats, 0 differ: shape, count"),
        "{}",
        ran.out
    );
    assert_eq!(ran.out.lines().filter(|l| l.ends_with(" ok")).count(), 1);
}
