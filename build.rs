//! Names the commit that the binary is built from, in `KILN_COMMIT`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLE: &str = "KILN_COMMIT";

fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into()));
    for source in [
        "src",
        "graph",
        "passes",
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={source}");
    }
    let given = env::var(VARIABLE).ok().filter(|c| !c.is_empty());
    if let Some(commit) = given.or_else(|| described(&root)) {
        println!("cargo:rustc-env={VARIABLE}={commit}");
    }
}

/// The commit of the checkout that this is, with `-dirty` where files differ from it. None of an archive, also where that was
/// unpacked inside some other project's checkout.
fn described(root: &Path) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    let same = Path::new(&top).canonicalize().ok()? == root.canonicalize().ok()?;
    if !same {
        return None;
    }
    // A commit, a checkout of another one.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(root, &["rev-parse", "--git-path", file]) {
            // A path that is not there would run this each time.
            let path = root.join(path);
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    git(root, &["describe", "--always", "--dirty"])
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    let ran = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(args)
        .output()
        .ok()?;
    let said = String::from_utf8(ran.stdout).ok()?.trim().to_string();
    (ran.status.success() && !said.is_empty()).then_some(said)
}
