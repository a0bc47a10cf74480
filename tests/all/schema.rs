//! The checked-in tables of operators against the wheels that they come from.

use std::path::Path;
use std::process::Command;

/// What `tools/schema/generate.py` exits with where a wheel is not installed.
const NO_WHEEL: i32 = 3;

#[test]
fn tables_are_what_the_wheels_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venvs = [".venv-conformance", ".venv"];
    let pythons = venvs.iter().map(|venv| root.join(venv).join("bin/python"));
    for python in pythons.filter(|python| python.exists()) {
        let mut command = Command::new(&python);
        command.arg(root.join("tools/schema/generate.py"));
        let output = command.arg("--check").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => return,
            Some(NO_WHEEL) => {}
            _ => panic!("{text}"),
        }
    }
    eprintln!(
        "skipped: no environment has the wheels onnx and onnxruntime (`make conformance` makes one)"
    );
}
