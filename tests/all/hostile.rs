//! Small files that claim much: kiln refuses or compiles them, in little memory, and never dies of them.

#![cfg(target_os = "linux")]
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kiln::parity::Npz;
use kiln_graph::{limits, text};
use prost::Message;

/// KiB of address space that kiln gets, with ONNX Runtime's library in it.
const SPACE: usize = 3 << 20;

/// Runs kiln with so little memory that what a file claims cannot be had.
fn kiln(args: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", &format!("ulimit -v {SPACE}; exec \"$@\""), "sh"])
        .arg(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .output()
        .unwrap()
}

fn file(folder: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, data).unwrap();
    path
}

/// The encoded form of a text, as it stands: nothing is checked.
fn encode(source: &str) -> Vec<u8> {
    text::parse_model(source).unwrap().encode_to_vec()
}

fn model(inputs: &str, constants: &str, nodes: &str) -> String {
    format!(
        "<ir_version: 8, opset_import: [\"\" : 18]>\ng ({inputs}) => (float[] y)\n<{constants}>\n{{ {nodes} }}"
    )
}

/// Exits with a code of kiln's, not by a signal or by an abort.
fn is_handled(name: &str, output: &Output) -> bool {
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        matches!(code, Some(0 | 2 | 3)) && !said.contains("panicked"),
        "{name}: {:?}\n{said}",
        output.status
    );
    code == Some(0)
}

/// Small models that claim terabytes, with what makes them large.
fn claims() -> Vec<(&'static str, String)> {
    let large = "1099511627776";
    vec![
        (
            "made by a node",
            model(
                "float[1] x",
                &format!("int64[1] s = {{{large}}}"),
                "c = ConstantOfShape(s) y = Add(x, c)",
            ),
        ),
        (
            "with a type that lies",
            model(
                "float[1] x",
                &format!("int64[1] s = {{{large}}}, float[1] c"),
                "c = ConstantOfShape(s) y = Add(x, c)",
            ),
        ),
        (
            "expanded",
            model(
                "float[1] x",
                "float[1] a = {1.0}, int64[2] s = {4194304, 4194304}, float[2] e",
                "e = Expand(a, s) y = Add(x, e)",
            ),
        ),
        (
            "tiled",
            model(
                "float[1] x",
                &format!("float[1] a = {{1.0}}, int64[1] s = {{{large}}}, float[3] e"),
                "e = Tile(a, s) y = Add(x, e)",
            ),
        ),
        (
            "counted",
            model(
                "float[1] x",
                &format!("int64 a = {{0}}, int64 b = {{{large}}}, int64 d = {{1}}, int64[4] r"),
                "r = Range(a, b, d) f = Cast<to = 1>(r) y = Add(x, f)",
            ),
        ),
        (
            "padded",
            model(
                "float[1] x",
                &format!("float[1] a = {{1.0}}, int64[2] s = {{0, {large}}}, float[2] e"),
                "e = Pad(a, s) y = Add(x, e)",
            ),
        ),
        (
            "one hot",
            model(
                "float[1] x",
                &format!(
                    "int64[1] a = {{1}}, int64 n = {{{large}}}, float[2] v = {{0.0, 1.0}}, float[2] e"
                ),
                "e = OneHot(a, n, v) y = Add(x, e)",
            ),
        ),
        (
            "resized",
            model(
                "float[1] x",
                "float[1, 1, 1, 1] a = {1.0}, float[4] s = {1.0, 1.0, 1048576.0, 1048576.0}, float[1, 1, 2, 2] e",
                "e = Resize(a, , s) y = Add(x, e)",
            ),
        ),
        (
            "overflowing",
            model(
                "float[4294967296, 4294967296, 4294967296] x",
                "int64[1] s = {-1}",
                "a = Reshape(x, s) y = Neg(a)",
            ),
        ),
        (
            "as an input",
            model(
                "float[1048576, 1048576] x",
                "float[1] a = {1.0}",
                "y = Add(x, a)",
            ),
        ),
        ("many times a little", {
            let names: Vec<String> = (0..2000).map(|k| format!("c{k}")).collect();
            let nodes: Vec<String> = names
                .iter()
                .map(|n| format!("{n} = Expand(a, s)"))
                .collect();
            model(
                "float[1] x",
                "float[1] a = {1.0}, int64[2] s = {1000, 1000}",
                &format!("{} y = Sum(x, {})", nodes.join(" "), names.join(", ")),
            )
        }),
    ]
}

#[test]
fn a_small_file_that_claims_terabytes_costs_little() {
    let folder = tempfile::tempdir().unwrap();
    let cases = claims();
    let out = folder.path().join("out.kiln");
    for (name, source) in &cases {
        let path = file(folder.path(), "m.onnx", &encode(source));
        let args = [
            "compile",
            path.to_str().unwrap(),
            "--target",
            "cpu",
            "--no-check",
            "-o",
            out.to_str().unwrap(),
        ];
        is_handled(name, &kiln(&args));
    }
    // What is made to run a model on has a limit too, and so have tensors that lie about their length.
    let path = file(folder.path(), "m.onnx", &encode(&cases[9].1));
    let args = [
        "compile",
        path.to_str().unwrap(),
        "--target",
        "cpu",
        "-o",
        out.to_str().unwrap(),
    ];
    assert!(!is_handled("proved", &kiln(&args)));
    let mut message =
        text::parse_model(&model("float[1] x", "float[1] a = {1.0}", "y = Add(x, a)")).unwrap();
    for dims in [
        vec![1 << 40],
        vec![1 << 32, 1 << 32, 1 << 32],
        vec![-1],
        vec![i64::MAX, i64::MAX],
    ] {
        message.graph.as_mut().unwrap().initializer[0].dims = dims;
        let path = file(folder.path(), "m.onnx", &message.encode_to_vec());
        let output = kiln(&["inspect", path.to_str().unwrap()]);
        assert!(!is_handled("a tensor that lies", &output));
    }
}

#[test]
fn external_data_stays_in_the_folder_and_in_the_file() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::write(root.path().join("secret"), [1; 64]).unwrap();
    fs::write(folder.join("w"), [1; 64]).unwrap();
    std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    std::os::unix::fs::symlink("w", folder.join("within")).unwrap();
    // Opening a pipe would wait for somebody who writes.
    assert!(
        Command::new("mkfifo")
            .arg(folder.join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let read = |entry: &str| {
        let source = model(
            "float[16] x",
            &format!("float[16] w = [{entry}]"),
            "y = Add(x, w)",
        );
        kiln_graph::onnx::read(file(&folder, "m.onnx", &encode(&source)))
    };
    for good in [
        r#""location": "w""#,
        r#""location": "./within", "offset": "0", "length": "64""#,
    ] {
        read(good).unwrap();
    }
    let bad = [
        r#""location": "../secret""#,
        r#""location": "link""#,
        r#""location": "up/secret""#,
        r#""location": "/etc/hostname""#,
        r#""location": "pipe""#,
        r#""location": ".""#,
        r#""location": "/dev/zero""#,
        r#""location": "w", "offset": "1""#,
        r#""location": "w", "offset": "18446744073709551615""#,
        r#""location": "w", "length": "18446744073709551615""#,
        r#""location": "w", "offset": "-1""#,
    ];
    for entry in bad {
        let error = read(entry).unwrap_err();
        assert!(error.to_string().contains("tensor 'w'"), "{entry}: {error}");
    }
}

#[test]
fn an_archive_unpacks_to_no_more_than_its_size_allows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.npz");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("x.npy", options).unwrap();
    let size = limits::UNPACKED_FREE + 1;
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}").into_bytes();
    header.push(b'\n');
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(&header).unwrap();
    let zeros = vec![0u8; 1 << 20];
    for _ in 0..=limits::UNPACKED_FREE >> 20 {
        zip.write_all(&zeros).unwrap();
    }
    zip.finish().unwrap();
    let error = Npz::open(&path).unwrap().read("x", None).unwrap_err();
    assert!(error.to_string().contains("no more than"), "{error}");
}

#[test]
fn too_many_nodes_are_refused_before_they_are_decoded() {
    let folder = tempfile::tempdir().unwrap();
    // The graph, field 7, with nodes of no bytes in field 1.
    let nodes = [0x0a, 0].repeat(limits::NODES + 1);
    let mut data = vec![0x3a];
    let mut length = nodes.len();
    while length >= 0x80 {
        data.push(length as u8 | 0x80);
        length >>= 7;
    }
    data.push(length as u8);
    data.extend(nodes);
    let path = file(folder.path(), "m.onnx", &data);
    has_too_many_nodes(&path);
}

fn has_too_many_nodes(path: &Path) {
    let output = kiln(&["inspect", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("more than 2097152 nodes"), "{said}");
}

#[test]
fn too_many_nodes_of_text_are_refused_too() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = "=A()".repeat(limits::NODES + 1);
    let text = format!("g () => () {{{nodes}}}");
    let path = file(folder.path(), "m.onnxtxt", text.as_bytes());
    has_too_many_nodes(&path);
}

#[test]
fn a_recipe_without_an_end_is_refused() {
    for device in ["/dev/zero", "/dev/urandom"] {
        let output = kiln(&["compile", "-c", device]);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(device), "{said}");
    }
    let output = kiln(&["compile", "-c", "/dev/null"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no model"), "{said}");
}

#[test]
fn operators_of_the_compiler_are_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(
        "float[2, 3] x",
        "float[3] w = {1.0, 2.0, 3.0}",
        "y = internal.RMSNormalization<axis = -1, epsilon = 1e-6>(x, w)",
    );
    let path = file(folder.path(), "m.onnx", &encode(&source));
    let out = folder.path().join("out.kiln");
    let output = kiln(&[
        "compile",
        path.to_str().unwrap(),
        "--target",
        "cpu",
        "-o",
        out.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the compiler's own"), "{said}");
}
