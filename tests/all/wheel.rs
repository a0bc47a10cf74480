//! The wheel: its pins, and its Python package against this build. `make wheel-check` tests the wheel itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The requirements of an extra in pyproject.toml.
fn extra(name: &str) -> BTreeSet<String> {
    let text = read("pyproject.toml");
    let (_, after) = text.split_once(&format!("\n{name} = [")).unwrap();
    let list = after.split(']').next().unwrap();
    let quoted = list.split('"').skip(1).step_by(2);
    quoted.map(str::to_string).collect()
}

/// The requirements of a file, without digests.
fn requirements(name: &str) -> BTreeSet<String> {
    let text = read(name);
    let lines = text.lines().filter(|l| l.contains("=="));
    lines
        .map(|l| l.split_whitespace().next().unwrap().to_string())
        .collect()
}

#[test]
fn extras_bring_the_versions_that_the_project_is_tested_with() {
    let setup = requirements("requirements.txt");
    let (cpu, rtx) = (extra("cpu"), extra("rtx"));
    assert!(cpu.is_subset(&rtx) && !cpu.is_empty());
    assert!(rtx.is_subset(&setup), "{rtx:?} and {setup:?}");
    assert_eq!(rtx, requirements("docker/cpu.txt"));
    assert_eq!(extra("cuda"), requirements("docker/cuda.txt"));
}

#[test]
fn the_version_has_its_notes() {
    let notes = |version: &str| {
        let script = root().join("scripts/release-notes.sh");
        Command::new(script).arg(version).output().unwrap()
    };
    let this = notes(env!("CARGO_PKG_VERSION"));
    assert!(
        this.status.success(),
        "{}",
        String::from_utf8_lossy(&this.stderr)
    );
    assert!(!this.stdout.is_empty());
    assert!(!notes("9.9.9").status.success());
}

#[test]
fn the_python_package_speaks_to_the_binary() {
    if common::runtime().is_none() {
        return;
    }
    let tests = root().join("python/tests");
    let ran = Command::new("python3")
        .args(["-m", "unittest", "discover", "-s"])
        .arg(&tests)
        .current_dir(root())
        .env("PYTHONPATH", root().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("KILN_BINARY", env!("CARGO_BIN_EXE_kiln"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(
        Path::new(&tests).is_dir() && said.contains("Ran "),
        "{said}"
    );
}
