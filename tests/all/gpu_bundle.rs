//! `scripts/gpu-bundle.sh` and the check out of what it packs, on a machine without a toolchain, a Python, or a GPU.

use crate::common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kiln::engine;
use kiln::nvidia::driver;
use serde_json::Value;
use tempfile::TempDir;

const SITE: &str = "lib/python3.11/site-packages";
const CAPI: &str = "lib/python3.11/site-packages/onnxruntime/capi";

/// Tells how it was called, and ends with a code of its own.
const ECHO: &str = "#!/bin/sh\necho \"$@\"\nexit 5\n";

struct Bundle {
    folder: TempDir,
    said: String,
}

impl Bundle {
    /// Packed with a binary that tells how it was called, out of an environment with these libraries, which are empty, and
    /// unpacked elsewhere.
    fn pack(libraries: &[&str]) -> Bundle {
        // Beside the build, so that files can be linked and not copied.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |path: &str| folder.path().join(path);
        write(&at("binary"), ECHO, 0o755);
        write(&at("model.onnx"), "", 0o644);
        for library in libraries {
            write(&at("venv").join(library), "", 0o644);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-bundle.sh");
        let packed = Command::new(script)
            .args([at("binary"), at("venv"), at("kiln-gpu"), at("model.onnx")])
            .output()
            .unwrap();
        let said = String::from_utf8(packed.stderr).unwrap();
        assert!(packed.status.success(), "{said}");
        fs::create_dir(at("bare")).unwrap();
        let unpacked = Command::new("tar")
            .args(["-xzf".as_ref(), at("kiln-gpu.tar.gz").as_os_str()])
            .current_dir(at("bare"))
            .status();
        assert!(unpacked.unwrap().success());
        Bundle { folder, said }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("bare/kiln-gpu")
    }

    /// In an environment with nothing in it.
    fn run(&self, program: &str, args: &[&str]) -> Output {
        Command::new(self.path().join(program))
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap()
    }
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn libraries_lie_as_in_the_environment_and_what_is_missing_is_told() {
    let cuda = format!("{CAPI}/libonnxruntime_providers_cuda.so");
    let ort = format!("{CAPI}/libonnxruntime.so.1.31.1");
    let cudart = format!("{SITE}/nvidia/cu13/lib/libcudart.so.13");
    let numpy = format!("{SITE}/numpy/core/core.so");
    let python = format!("{CAPI}/onnxruntime_pybind11_state.so");
    let bundle = Bundle::pack(&[&cuda, &ort, &cudart, &numpy, &python]);
    let venv = bundle.path().join(".venv");
    for packed in [&cuda, &ort, &cudart] {
        assert!(venv.join(packed).is_file(), "{packed}");
    }
    for left in [&numpy, &python] {
        assert!(!venv.join(left).exists(), "{left}");
    }
    assert!(
        bundle.said.contains("no libtensorrt_rtx.so"),
        "{}",
        bundle.said
    );
    assert!(!bundle.said.contains("no CUDA provider"), "{}", bundle.said);

    let bundle = Bundle::pack(&[]);
    let mend = "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'";
    assert!(bundle.said.contains(mend), "{}", bundle.said);
}

#[test]
fn the_check_takes_the_bundles_folders_unless_told_others() {
    let bundle = Bundle::pack(&[]);
    let called = |args: &[&str]| {
        let output = bundle.run("gpu-check.sh", args);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_string()
    };
    let at = |name| bundle.path().join(name).display().to_string();
    let (models, results) = (at("models"), at("results"));
    assert_eq!(
        called(&[]),
        format!("gpu-check --results {results} --models {models}")
    );
    assert_eq!(
        called(&["--models=others", "--results", "there", "--dry-run"]),
        "gpu-check --models=others --results there --dry-run"
    );
}

#[test]
fn without_a_gpu_the_check_says_what_would_run_and_how_to_mend_it() {
    let (Some(runtime), Ok(tensorrt)) = (common::runtime(), engine::locate(None)) else {
        println!("skipped: TensorRT for RTX not found");
        return;
    };
    if driver::probe().is_ok() {
        println!("skipped: this machine has a CUDA device");
        return;
    }
    let ort = &runtime.library().path;
    let bundle = Bundle::pack(&[]);
    let place = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&to);
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to).unwrap();
        }
    };
    place(
        env!("CARGO_BIN_EXE_kiln").as_ref(),
        bundle.path().join("kiln"),
    );
    let venv = bundle.path().join(".venv");
    place(ort, venv.join(CAPI).join(ort.file_name().unwrap()));
    for library in [&tensorrt.core, &tensorrt.parser] {
        let into = venv.join(SITE).join("tensorrt_rtx_libs");
        place(library, into.join(library.file_name().unwrap()));
    }

    let output = bundle.run("gpu-check.sh", &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    for part in [
        "skipped: no CUDA device",
        "docker run --gpus all",
        "on a machine with a GPU this would run:",
        "bert-base (made)",
        "\n  model: parity and latency",
        "results/<gpu>.json",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Every other command finds the bundle's libraries, too.
    let output = bundle.run("kiln", &["doctor", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{json:#}");
    for what in ["ONNX Runtime", "TensorRT for RTX"] {
        let all = json["findings"].as_array().unwrap();
        let finding = all.iter().find(|f| f["what"] == what).unwrap();
        let detail = finding["detail"].as_str().unwrap();
        assert!(detail.contains("bare/kiln-gpu/.venv"), "{detail}");
    }
}
