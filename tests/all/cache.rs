//! `kiln compile --cache`: hits, misses, and entries that are not what they were.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common;
use crate::common::blobs::{AUTHORIZATION, Server};
use crate::common::command::{Folder, Ran, kiln};

struct Setup {
    folder: Folder,
    model: String,
}

impl Setup {
    fn new() -> Option<Setup> {
        common::runtime()?;
        let folder = Folder::new();
        let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
        fs::copy(model, folder.path("m.onnx")).unwrap();
        let model = folder.path("m.onnx");
        Some(Setup { folder, model })
    }

    fn compile(&self, out: &str, more: &[&str]) -> Ran {
        let (out, cache) = (self.folder.path(out), self.folder.path("cache"));
        let base = ["compile", &self.model, "--target", "cpu", "--no-latency"];
        let rest = ["-o", &out, "--cache", &cache];
        kiln(&[&base[..], &rest, more].concat())
    }

    fn manifest(&self, out: &str) -> Value {
        let text = fs::read(self.folder.path(&format!("{out}/manifest.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn entries(&self) -> Vec<PathBuf> {
        let cache = self.folder.path("cache");
        let groups = fs::read_dir(cache).unwrap().map(|e| e.unwrap().path());
        let entries = groups.flat_map(|g| fs::read_dir(g).unwrap().map(|e| e.unwrap().path()));
        entries.collect()
    }
}

#[test]
fn the_same_again_comes_from_the_cache_and_says_so() {
    let Some(s) = Setup::new() else { return };
    s.compile("a.kiln", &["--fp16"]).expect(0);
    let first = s.manifest("a.kiln");
    assert_eq!(first["cache"]["hit"], false);
    let ran = s
        .compile("b.kiln", &["--fp16"])
        .expect(0)
        .says(&["from the cache"]);
    assert!(ran.out.contains("parity"), "{}", ran.out);
    let second = s.manifest("b.kiln");
    assert_eq!(second["cache"]["hit"], true);
    assert_eq!(second["cache"]["key"], first["cache"]["key"]);
    assert_eq!(second["parity"], first["parity"]);
    assert!(
        second["recipe"]["output"]
            .as_str()
            .unwrap()
            .ends_with("b.kiln")
    );
    for name in ["model.onnx", "parity.npz", "report.md"] {
        let read = |out: &str| fs::read(s.folder.path(&format!("{out}/{name}"))).unwrap();
        assert_eq!(read("a.kiln"), read("b.kiln"), "{name}");
    }
    // What is taken is a bundle like any other.
    kiln(&["check", &s.folder.path("b.kiln"), "--reference", &s.model]).expect(0);
    let json = s.compile("c.kiln", &["--fp16", "--json"]).expect(0).json();
    assert_eq!(json["cache"]["hit"], true);
    assert_eq!(s.entries().len(), 1);
    // Another option is another bundle, and so is another model under the same name.
    s.compile("d.kiln", &[]).expect(0);
    assert_eq!(s.manifest("d.kiln")["cache"]["hit"], false);
    let other = common::fixture("models/torch-encoder-small.ts.sdpa.onnx");
    fs::copy(other, &s.model).unwrap();
    s.compile("e.kiln", &["--fp16"]).expect(0);
    assert_eq!(s.manifest("e.kiln")["cache"]["hit"], false);
    assert_eq!(s.entries().len(), 3);
}

#[test]
fn a_broken_entry_is_made_again() {
    let Some(s) = Setup::new() else { return };
    s.compile("a.kiln", &[]).expect(0);
    let right = fs::read(s.folder.path("a.kiln/model.onnx")).unwrap();
    let entry = s.entries().pop().unwrap();
    let break_it = |name: &str, text: &[u8]| fs::write(entry.join(name), text).unwrap();
    let mut changed = right.clone();
    changed[100] ^= 1;
    let cases: [(&str, &[u8], &str); 4] = [
        ("model.onnx", &changed, "model.onnx is not what was kept"),
        (
            "model.onnx",
            &right[..100],
            "model.onnx is not what was kept",
        ),
        ("entry.json", b"{", "entry.json"),
        (
            "entry.json",
            b"{\"facts\": {}, \"files\": {}}",
            "its facts are not those of its key",
        ),
    ];
    for (name, text, said) in cases {
        break_it(name, text);
        s.compile("b.kiln", &[])
            .expect(0)
            .says(&["is thrown away", said]);
        assert_eq!(s.manifest("b.kiln")["cache"]["hit"], false, "{said}");
        assert_eq!(fs::read(s.folder.path("b.kiln/model.onnx")).unwrap(), right);
        assert!(
            s.compile("b.kiln", &[])
                .expect(0)
                .err
                .contains("from the cache")
        );
    }
}

#[test]
fn what_a_hit_cannot_promise_is_compiled() {
    let Some(s) = Setup::new() else { return };
    let ran = s.compile("a.kiln", &["--judge", "true"]);
    ran.expect(0).says(&["the cache is not asked", "judge"]);
    assert!(!Path::new(&s.folder.path("cache")).exists());
    assert!(s.manifest("a.kiln")["cache"].is_null());
    // A gate that fails keeps nothing.
    s.compile("a.kiln", &["--max-size-ratio", "0.01"]).expect(1);
    assert!(!Path::new(&s.folder.path("cache")).exists());
    // A place where nothing can be written is a warning.
    s.folder.write("cache", b"no folder");
    s.compile("b.kiln", &[])
        .expect(0)
        .says(&["is not kept in the cache"]);
}

#[test]
fn a_server_keeps_bundles_and_gives_them_back() {
    let Some(s) = Setup::new() else { return };
    let server = Server::start(false);
    let compile = |out: &str, more: &[&str]| {
        let out = s.folder.path(out);
        let base = [
            "compile",
            &s.model,
            "--target",
            "cpu",
            "--no-latency",
            "--fp16",
        ];
        let rest = ["-o", &out, "--cache", &server.url];
        kiln(&[&base[..], &rest, more].concat())
    };
    compile("a.kiln", &[]).expect(0);
    assert_eq!(s.manifest("a.kiln")["cache"]["hit"], false);
    let key = s.manifest("a.kiln")["cache"]["key"]
        .as_str()
        .unwrap()
        .to_string();
    assert_eq!(server.paths("ac"), [format!("/ac/{key}")]);
    compile("b.kiln", &[]).expect(0).says(&["from the cache"]);
    assert_eq!(s.manifest("b.kiln")["cache"]["hit"], true);
    for name in ["model.onnx", "parity.npz", "report.html"] {
        let read = |out: &str| fs::read(s.folder.path(&format!("{out}/{name}"))).unwrap();
        assert_eq!(read("a.kiln"), read("b.kiln"), "{name}");
    }
    // Another option has another entry; a blob that is there is not sent again.
    let before = server.asked.lock().unwrap().len();
    compile("c.kiln", &["--max-size-ratio", "2"]).expect(0);
    let model = key_of(&s, "a.kiln/model.onnx");
    let asked = server.asked.lock().unwrap()[before..].to_vec();
    assert!(
        asked.contains(&format!("HEAD /cas/{model}"))
            && !asked.contains(&format!("PUT /cas/{model}")),
        "{asked:?}"
    );
    assert_eq!(server.paths("ac").len(), 2);

    // A blob that is another one is refused, sent again, and right afterwards.
    let right = server.blobs.lock().unwrap()[&format!("/cas/{model}")].clone();
    let mut wrong = right.clone();
    wrong[100] ^= 1;
    let list = server.blobs.lock().unwrap()[&format!("/ac/{key}")].clone();
    for (place, blob, said) in [
        (
            format!("/cas/{model}"),
            Some(wrong),
            "model.onnx is not what was kept",
        ),
        (format!("/cas/{model}"), None, "the server answers 404"),
        (
            format!("/ac/{key}"),
            Some(b"\xff\xff".to_vec()),
            "the list of files cannot be read",
        ),
        (
            format!("/ac/{key}"),
            Some(Vec::new()),
            "its list of files is of another tool",
        ),
    ] {
        let mut blobs = server.blobs.lock().unwrap();
        match blob {
            Some(blob) => blobs.insert(place.clone(), blob),
            None => blobs.remove(&place),
        };
        drop(blobs);
        compile("d.kiln", &[])
            .expect(0)
            .says(&["is thrown away", said]);
        let blobs = server.blobs.lock().unwrap();
        assert_eq!(blobs[&format!("/cas/{model}")], right, "{said}");
        // The manifest has times, so only the names are the same.
        assert_eq!(blobs[&format!("/ac/{key}")].len(), list.len());
    }
    compile("e.kiln", &[]).expect(0).says(&["from the cache"]);
}

/// The SHA-256 of a file.
fn key_of(s: &Setup, name: &str) -> String {
    use sha2::{Digest, Sha256};
    let data = fs::read(s.folder.path(name)).unwrap();
    Sha256::digest(data)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[test]
fn a_server_that_gives_nothing_is_a_warning() {
    let Some(s) = Setup::new() else { return };
    let run = |url: &str, authorization: &str| {
        let out = s.folder.path("a.kiln");
        let args = [
            "compile",
            &s.model,
            "--target",
            "cpu",
            "--no-check",
            "-o",
            &out,
            "--cache",
            url,
        ];
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("KILN_CACHE_AUTHORIZATION", authorization)
            .args(args)
            .output()
            .unwrap();
        let err = String::from_utf8(ran.stderr).unwrap();
        (ran.status.code().unwrap(), err)
    };
    // Nobody listens at a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, err) = run(&format!("http://{port}"), "");
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("is not used: ") && !err.contains("not kept"),
        "{err}"
    );
    let server = Server::start(true);
    let (code, err) = run(&server.url, "Bearer wrong");
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("the server answers 401") && !err.contains("wrong"),
        "{err}"
    );
    let (code, err) = run(&server.url, AUTHORIZATION);
    assert_eq!((code, server.paths("ac").len()), (0, 1), "{err}");
    for (url, said) in [
        ("ftp://host/cache", "http:// or https://"),
        ("http://me:secret@host/cache", "KILN_CACHE_AUTHORIZATION"),
        ("http:///cache", "has a host"),
    ] {
        let (code, err) = run(url, "");
        assert!(code == 2 && err.contains(said), "{err}");
    }
}
