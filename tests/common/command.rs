//! The binary as users run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// A Gelu between two products.
pub const MODEL: &str = r#"
<ir_version: 8, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z)
<float[4, 4] w = {
  0.5, -0.25, 0.125, 1.0,
  0.75, 0.5, -0.5, 0.25,
  -1.0, 0.5, 0.25, 0.125,
  0.25, 1.0, -0.75, 0.5
}, float[4] b = {0.1, 0.2, 0.3, 0.4}, float root = {1.4142135381698608}, float one = {1.0}, float half = {0.5}>
{
  [first] m = MatMul(x, w)
  [bias] h = Add(m, b)
  [div] d = Div(h, root)
  [erf] e = Erf(d)
  [plus] a = Add(e, one)
  [times] t = Mul(h, a)
  [halve] y = Mul(t, half)
  [second] z = MatMul(y, w)
}
"#;

/// What the binary returned and said.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        let Ran {
            code: found,
            out,
            err,
        } = &self;
        assert_eq!(*found, code, "stdout:\n{out}\nstderr:\n{err}");
        assert!(
            !err.contains("panicked") && !err.contains("RUST_BACKTRACE"),
            "{err}"
        );
        self
    }

    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Ran {
        for part in parts {
            assert!(self.err.contains(part), "no '{part}' in:\n{}", self.err);
        }
        self
    }

    /// What it said on stderr beside the stages.
    pub fn told(&self) -> String {
        let lines = self.err.lines().filter(|l| !l.starts_with('['));
        lines.map(|l| format!("{l}\n")).collect()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}:\n{}", self.out))
    }
}

/// Runs the binary in the project's folder, where it finds the runtimes.
pub fn kiln<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .output()
        .unwrap();
    Ran {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with models in it.
pub struct Folder(pub TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn with_model() -> Folder {
        let folder = Folder::new();
        folder.write("model.onnx", &super::encode(MODEL));
        folder
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }

    pub fn write(&self, name: &str, data: &[u8]) -> String {
        fs::write(self.path(name), data).unwrap();
        self.path(name)
    }

    pub fn listing(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut todo = vec![self.0.path().to_path_buf()];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    todo.push(path.clone());
                }
                all.push(path);
            }
        }
        all.sort();
        all
    }

    pub fn compile(&self, args: &[&str]) -> Ran {
        let model = self.path("model.onnx");
        let mut all = vec!["compile", &model, "--target", "cpu"];
        all.extend_from_slice(args);
        kiln(&all)
    }

    pub fn manifest(&self, bundle: &str) -> Value {
        let text = fs::read(Path::new(&self.path(bundle)).join("manifest.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}
