//! Files and folders that are no models: what is said of them, and that nothing is left behind.

use crate::common;

use std::fs;
use std::path::Path;

use common::command::{Folder, MODEL, kiln};

/// Every verb refuses the model in one line that names the file and the part, and leaves the folder as it was.
#[track_caller]
fn refused_with(code: i32, folder: &Folder, name: &str, parts: &[&str]) {
    let good = Folder::with_model();
    let before = folder.listing();
    let (file, reference) = (folder.path(name), good.path("model.onnx"));
    let verbs: [&[&str]; 4] = [
        &["inspect", &file],
        &["compile", &file, "--target", "cpu"],
        &["compile", &file, "--target", "cpu", "--no-check", "--fp16"],
        &["check", &file, "--reference", &reference],
    ];
    for args in verbs {
        let mut ran = kiln(args).expect(code).says(parts);
        ran.err = ran.told();
        let base = Path::new(name).file_name().unwrap().to_str().unwrap();
        assert!(
            ran.err.contains(base),
            "{args:?} names no file: {}",
            ran.err
        );
        assert_eq!(ran.err.lines().count(), 1, "{args:?}:\n{}", ran.err);
        assert!(
            ran.err.starts_with("kiln: ") && ran.out.is_empty(),
            "{}",
            ran.err
        );
        assert_eq!(folder.listing(), before, "{args:?}");
    }
}

#[track_caller]
fn refused(folder: &Folder, name: &str, parts: &[&str]) {
    refused_with(3, folder, name, parts);
}

#[track_caller]
fn text_refused(text: &str, parts: &[&str]) {
    let folder = Folder::new();
    folder.write("bad.onnxtxt", text.as_bytes());
    refused(&folder, "bad.onnxtxt", parts);
}

#[test]
fn files_that_are_no_models() {
    let folder = Folder::new();
    folder.write("empty.onnx", b"");
    refused(&folder, "empty.onnx", &["the file is empty"]);
    folder.write(
        "notes.onnx",
        b"These are only some notes.\nThey hold no model.\n",
    );
    refused(&folder, "notes.onnx", &["not an ONNX model", "text file"]);
    folder.write("noise.onnx", &[0xff; 64]);
    refused(&folder, "noise.onnx", &["not an ONNX model"]);
    // Field 1 (the IR version) and nothing else.
    folder.write("bare.onnx", &wire::int(1, 8));
    refused(&folder, "bare.onnx", &["holds no graph"]);
    folder.write("latin.onnxtxt", b"<ir_version: 8> # caf\xe9");
    refused(&folder, "latin.onnxtxt", &["UTF-8"]);
    refused(&folder, "missing.onnx", &["cannot be read"]);
}

#[test]
fn a_folder_that_is_no_bundle() {
    let folder = Folder::new();
    fs::create_dir(folder.path("models")).unwrap();
    refused(&folder, "models", &["is not a kiln bundle"]);
}

#[test]
fn truncated_models() {
    let whole = common::encode(MODEL);
    let folder = Folder::new();
    for tenth in 1..10 {
        folder.write("cut.onnx", &whole[..whole.len() * tenth / 10]);
        refused(&folder, "cut.onnx", &[""]);
    }
    folder.write("cut.onnx", &whole[..whole.len() - 1]);
    refused(&folder, "cut.onnx", &["damaged or truncated"]);
}

#[test]
fn broken_graphs() {
    let graph = |nodes: &str| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>\ng (float[2] x) => (float[2] y) {{\n{nodes}\n}}"
        )
    };
    text_refused(&graph("a = Add(x, b)\nb = Relu(a)\ny = Neg(b)"), &["cycle"]);
    text_refused(
        &graph("[sum] y = Add(x, ghost)"),
        &["node 'sum'", "'ghost'", "nothing defines"],
    );
    text_refused(
        &graph("a = Relu(x)\na = Neg(x)\ny = Add(a, a)"),
        &["'a' is defined twice"],
    );
    text_refused(&graph("a = Relu(x)"), &["'y'", "nothing defines"]);
    text_refused(&graph("y = Relu(x"), &["line"]);
}

/// The external data entry of a tensor of eight bytes.
fn external(location: &str, offset: &str) -> String {
    format!(
        "<ir_version: 8, opset_import: [\"\" : 20]>\n\
         g (float[2] x) => (float[2] y)\n\
         <float[2] w = [\"location\": \"{location}\", \"offset\": \"{offset}\", \"length\": \"8\"]>\n\
         {{\ny = Add(x, w)\n}}"
    )
}

#[test]
fn external_data_outside_the_folder() {
    let outside = Folder::new();
    let secret = outside.write("secret.data", &[0; 8]);
    let folder = Folder::new();
    fs::create_dir(folder.path("models")).unwrap();
    folder.write("near.data", &[0; 8]);
    std::os::unix::fs::symlink(&secret, folder.path("models/link.data")).unwrap();
    for (location, why) in [
        ("../near.data", "relative path without '..'"),
        ("sub/../../near.data", "relative path without '..'"),
        (secret.as_str(), "relative path without '..'"),
        ("", "relative path without '..'"),
        ("link.data", "outside the model's folder"),
        ("gone.data", "cannot open"),
    ] {
        folder.write("models/bad.onnxtxt", external(location, "0").as_bytes());
        refused(&folder, "models/bad.onnxtxt", &["tensor 'w'", why]);
    }
    folder.write("models/good.data", &[0; 8]);
    let good = folder.write("models/good.onnxtxt", external("good.data", "0").as_bytes());
    kiln(&["inspect", &good]).expect(0);
}

#[test]
fn external_data_that_does_not_fit() {
    let folder = Folder::new();
    folder.write("w.data", &[0; 16]);
    for (offset, why) in [
        ("12", "bytes 12 to 20 are wanted, but the file has 16"),
        ("16", "bytes 16 to 24 are wanted"),
        ("18446744073709551612", "are wanted"),
        ("-8", "is no number"),
    ] {
        folder.write("bad.onnxtxt", external("w.data", offset).as_bytes());
        refused(&folder, "bad.onnxtxt", &["tensor 'w'", why]);
    }
    let wrong_length = external("w.data", "0").replace("\"8\"", "\"12\"");
    folder.write("bad.onnxtxt", wrong_length.as_bytes());
    refused(
        &folder,
        "bad.onnxtxt",
        &["tensor 'w'", "12 bytes", "need 8"],
    );

    let overlap = external("w.data", "0").replace(
        "\"8\"]>",
        "\"8\"],\nfloat[2] v = [\"location\": \"w.data\", \"offset\": \"4\", \"length\": \"8\"]>",
    );
    folder.write("bad.onnxtxt", overlap.as_bytes());
    refused(&folder, "bad.onnxtxt", &["tensor 'v'", "overlap", "'w'"]);
}

/// Protobuf by hand, for what ONNX text refuses to say.
mod wire {
    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    pub fn int(field: u64, value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3, &mut out);
        varint(value as u64, &mut out);
        out
    }

    pub fn block(field: u64, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3 | 2, &mut out);
        varint(content.len() as u64, &mut out);
        out.extend_from_slice(content);
        out
    }

    /// A good model with one more initializer: protobuf merges the second graph into the first.
    pub fn with_initializer(dims: &[i64], data_type: i64, data: &[u8]) -> Vec<u8> {
        let mut tensor: Vec<u8> = dims.iter().flat_map(|&d| int(1, d)).collect();
        tensor.extend(int(2, data_type));
        tensor.extend(block(8, b"odd"));
        tensor.extend(block(9, data));
        let mut model = super::common::encode(super::MODEL);
        model.extend(block(7, &block(5, &tensor)));
        model
    }
}

#[test]
fn tensors_that_cannot_be() {
    let folder = Folder::new();
    let sound = folder.write("sound.onnx", &wire::with_initializer(&[2], 1, &[0; 8]));
    kiln(&["inspect", &sound]).expect(0);
    let float = 1;
    for (dims, data_type, data) in [
        (&[1 << 62, 8][..], float, &[0; 8][..]),
        (&[i64::MAX, i64::MAX], float, &[]),
        (&[-1], float, &[0; 4]),
        (&[i64::MIN, 2], float, &[]),
        (&[3], float, &[0; 8]),
        (&[2], 0, &[0; 8]),
        (&[2], 99, &[0; 8]),
        (&[2], -7, &[0; 8]),
    ] {
        folder.write("bad.onnx", &wire::with_initializer(dims, data_type, data));
        refused(&folder, "bad.onnx", &["tensor 'odd'"]);
    }
}

#[test]
fn a_model_without_an_operator_set() {
    let folder = Folder::new();
    let node = [wire::block(2, b"y"), wire::block(4, b"Relu")].concat();
    folder.write(
        "old.onnx",
        &[wire::int(1, 8), wire::block(7, &wire::block(1, &node))].concat(),
    );
    refused(&folder, "old.onnx", &["names no operator set"]);
}
