//! What happens to a compilation when the machine fails it: nothing corrupt is left, an older bundle stays as it was, and
//! the error says what happened.

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kiln::engine::{
    self, BuildRequest, ChildBuilder, ComputeCapability, EngineBuilder, EngineError, NoProgress,
};
use tempfile::TempDir;

const KILN: &str = env!("CARGO_BIN_EXE_kiln");
const SIGINT: &str = "INT";
const SIGKILL: &str = "KILL";

/// A folder with a copy of a small model, and a bundle of it that must survive.
struct Bench {
    folder: TempDir,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Bench {
    fn new(model: &str) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(
            common::fixture(&format!("models/{model}.onnx")),
            folder.path().join("m.onnx"),
        )
        .unwrap();
        let mut bench = Bench {
            folder,
            before: BTreeMap::new(),
        };
        let made = bench.kiln(&["--no-engine", "--no-check"]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        bench.before = bench.bundle();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `kiln compile m.onnx`, to the bundle that is there.
    fn kiln(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KILN);
        command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .arg("compile")
            .arg(self.path("m.onnx"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn bundle(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        read_folder(&self.path("m.kiln"))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Nothing but the model and the bundle, which is the old one.
    #[track_caller]
    fn is_as_before(&self) {
        assert_eq!(self.names(), ["m.kiln", "m.onnx"]);
        assert!(self.bundle() == self.before, "the older bundle changed");
    }

    /// Nothing but the model and a whole bundle, old or new.
    #[track_caller]
    fn has_a_whole_bundle(&self) {
        assert_eq!(self.names(), ["m.kiln", "m.onnx"]);
        self.bundle_is_whole();
    }

    #[track_caller]
    fn bundle_is_whole(&self) {
        let bundle = self.bundle();
        let manifest = fs::read(self.path("m.kiln/manifest.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&manifest).unwrap();
        kiln_graph::onnx::read(self.path("m.kiln/model.onnx")).unwrap();
        let names: Vec<_> = bundle.keys().map(|p| p.display().to_string()).collect();
        let strange = |n: &&String| n.contains("part") || n.contains("input");
        assert_eq!(names.iter().find(strange), None, "{names:?}");
    }
}

fn read_folder(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|e| e.unwrap().path());
    paths.map(|p| (p.clone(), fs::read(p).unwrap())).collect()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(err.contains(says), "no '{says}' in: {err}");
    assert!(!err.contains("panicked"), "{err}");
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status();
    assert!(sent.is_ok(), "there is no command `kill`");
}

/// Whether the machine's own builder and runtime are here; says which tests go without.
fn runtimes() -> bool {
    common::runtime().is_some() && common::tensorrt()
}

fn waits_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_file_over_the_limit_is_an_error_at_every_size() {
    let bench = Bench::new("vit.ts.eager");
    let full = runtimes();
    let mut failed = 0;
    // In blocks of 1024 bytes: the model has 350 of them, the rest of the bundle less.
    for limit in [0, 8, 60, 300, 400, 2000] {
        let mut command = Command::new("bash");
        command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .arg("-c")
            .arg(format!("ulimit -f {limit}; exec \"$@\""))
            .args(["bash", KILN, "compile"])
            .arg(bench.path("m.onnx"))
            .args(["--no-latency", "--target", "sm_89", "--fp16"]);
        if !full {
            command.args(["--no-engine", "--no-check"]);
        }
        let output = command.output().unwrap();
        if output.status.success() {
            bench.has_a_whole_bundle();
            break;
        }
        fails(&output, 2, "File too large");
        bench.is_as_before();
        failed += 1;
    }
    assert!(failed >= 3, "{failed}");
}

/// A file system of so many bytes in memory; `None`, said, where this user may not mount one.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Option<Mounted> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        match mount.output() {
            Ok(done) if done.status.success() => Some(Mounted(at.to_path_buf())),
            Ok(done) => {
                let why = String::from_utf8_lossy(&done.stderr).trim().to_string();
                println!("skipped: no file system can be mounted here: {why}");
                None
            }
            Err(e) => {
                println!("skipped: there is no command `mount`: {e}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let bench = Bench::new("vit.ts.eager");
    let place = tempfile::tempdir().unwrap();
    for kilobytes in [8, 200, 500] {
        let at = place.path().join(kilobytes.to_string());
        let Some(mounted) = Mounted::tmpfs(&at, &format!("size={kilobytes}k")) else {
            return;
        };
        let target = at.join("out.kiln");
        let output = bench
            .kiln(&["--no-engine", "--no-check", "-o"])
            .arg(&target)
            .output()
            .unwrap();
        fails(&output, 2, "No space left on device");
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        drop(mounted);
    }
}

#[test]
fn output_that_cannot_be_printed_is_an_error() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let args = ["--no-engine", "--no-check"];
    let output = bench.kiln(&args).stdout(full()).output().unwrap();
    fails(&output, 2, "No space left on device");
    bench.has_a_whole_bundle();
    let silent = bench.kiln(&args).stderr(full()).output().unwrap();
    assert_eq!(silent.status.code(), Some(0), "{silent:?}");
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_before_any_work() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let refused = |target: &Path, says: &str| {
        let output = bench.kiln(&["--fp16", "-o"]).arg(target).output().unwrap();
        fails(&output, 2, says);
        bench.is_as_before();
    };
    refused(
        &bench.path("m.onnx").join("out.kiln"),
        "cannot be made here",
    );
    refused(Path::new("/proc/out.kiln"), "cannot be made here");

    let place = tempfile::tempdir().unwrap();
    let locked = place.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), "").is_ok() {
        // Root writes anywhere but to a file system that is read-only.
        let Some(_mounted) = Mounted::tmpfs(&place.path().join("ro"), "ro") else {
            return;
        };
        refused(&place.path().join("ro/out.kiln"), "Read-only file system");
        return;
    }
    refused(&locked.join("out.kiln"), "Permission denied");
}

fn interrupted(child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    let early = output.status.signal();
    // Before the command has come to answering it, the signal ends the process.
    let code = output.status.code();
    assert!(
        matches!(code, Some(0 | 130)) || early == Some(2),
        "{output:?}"
    );
    output
}

#[test]
fn an_interrupt_at_any_point_leaves_the_older_bundle_or_the_new_one() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let args: &[&str] = match runtimes() {
        true => &["--fp16", "--target", "sm_89", "--no-latency"],
        false => &["--fp16", "--no-engine", "--no-check"],
    };
    let start = Instant::now();
    let whole = bench.kiln(args).output().unwrap();
    assert!(whole.status.success(), "{whole:?}");
    let whole = start.elapsed();
    let mut caught = 0;
    for part in 0..8 {
        let child = bench.kiln(args).spawn().unwrap();
        std::thread::sleep(whole * part / 8);
        send(SIGINT, child.id());
        let output = interrupted(child);
        bench.has_a_whole_bundle();
        if output.status.code() == Some(130) {
            caught += 1;
            let err = String::from_utf8_lossy(&output.stderr);
            assert!(err.contains("kiln: interrupted"), "{err}");
        }
    }
    assert!(caught > 0, "no interrupt came while the command ran");
}

#[test]
fn a_kill_at_any_point_leaves_a_whole_bundle_and_the_next_run_sweeps() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let args: &[&str] = match runtimes() {
        true => &["--fp16", "--target", "sm_89", "--no-latency"],
        false => &["--fp16", "--no-engine", "--no-check"],
    };
    let start = Instant::now();
    assert!(bench.kiln(args).output().unwrap().status.success());
    let whole = start.elapsed();
    let left = |bench: &Bench| bench.names().len() - 2;
    let mut found = 0;
    for part in 1..8 {
        let mut child = bench.kiln(args).spawn().unwrap();
        std::thread::sleep(whole * part / 8);
        send(SIGKILL, child.id());
        child.wait().unwrap();
        bench.bundle_is_whole();
        found = found.max(left(&bench));
    }
    assert!(found > 0, "no kill came while the command wrote");
    let swept = bench.kiln(args).output().unwrap();
    assert!(swept.status.success(), "{swept:?}");
    bench.has_a_whole_bundle();
}

#[test]
fn what_a_kill_left_is_reported() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    fs::create_dir(bench.path("m.kiln.1.0.part")).unwrap();
    fs::write(bench.path("m.kiln.1.0.part/model.onnx"), "half").unwrap();
    let output = bench.kiln(&["--no-engine", "--no-check"]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        err.contains("m.kiln.1.0.part, which a compilation that was killed had left"),
        "{err}"
    );
    bench.has_a_whole_bundle();
}

#[test]
fn compilations_into_one_bundle_at_once_leave_a_whole_one() {
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let args = [
        ["--no-engine", "--no-check", "--fp16"],
        ["--no-engine", "--no-check", "--quiet"],
    ];
    for _ in 0..3 {
        let children: Vec<Child> = (0..4)
            .map(|k| bench.kiln(&args[k % 2]).spawn().unwrap())
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        bench.has_a_whole_bundle();
    }
}

/// A model of 64 MB whose weights are one hole.
fn large(folder: &Path) -> PathBuf {
    let text = r#"<ir_version: 8, opset_import: ["" : 20]>
        g (float[n, 4096] x) => (float[n, 4096] y) { y = MatMul(x, w) }"#;
    let text = text.replace(
        "(float[n, 4096] y)",
        r#"(float[n, 4096] y) <float[4096, 4096] w = ["location": "w.bin", "offset": "0", "length": "67108864"]>"#,
    );
    let path = folder.join("large.onnxtxt");
    fs::write(&path, text).unwrap();
    let data = fs::File::create(folder.join("w.bin")).unwrap();
    data.set_len(4096 * 4096 * 4).unwrap();
    path
}

/// Starts to compile and changes a file as soon as the bundle is begun.
fn compile_while(model: &Path, args: &[&str], change: impl FnOnce()) -> Output {
    let folder = model.parent().unwrap();
    let child = Command::new(KILN)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("compile")
        .arg(model)
        .args(args)
        .args(["-o"])
        .arg(folder.join("out.kiln"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    waits_until("the compilation begins no bundle", || {
        let mut entries = fs::read_dir(folder).unwrap();
        entries.any(|e| e.unwrap().path().extension().is_some_and(|x| x == "part"))
    });
    change();
    let output = child.wait_with_output().unwrap();
    let names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let bundles = |p: &&PathBuf| p.to_string_lossy().contains("out.kiln");
    assert_eq!(names.iter().find(bundles), None);
    output
}

#[test]
fn a_model_that_gets_shorter_while_it_is_mapped_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(folder.path());
    let data = folder.path().join("w.bin");
    let shorten = || {
        fs::OpenOptions::new()
            .write(true)
            .open(&data)
            .unwrap()
            .set_len(5000)
            .unwrap()
    };
    // By SIGBUS where kiln reads what is gone, else by the error of a system call, or because the file is another in the
    // end: which of them depends on the moment.
    let output = compile_while(&model, &["--fp16", "--no-engine", "--no-check"], shorten);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(2 | 3)), "{output:?}");
    let said = ["w.bin got shorter", "w.bin changed", "Bad address"];
    assert!(said.iter().any(|s| err.contains(s)), "{err}");
}

#[test]
fn a_model_that_is_replaced_while_it_is_mapped_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(folder.path());
    let data = folder.path().join("w.bin");
    let args = ["--no-engine", "--no-check"];
    let replace = || {
        let other = folder.path().join("other");
        fs::File::create(&other)
            .unwrap()
            .set_len(4096 * 4096 * 4)
            .unwrap();
        fs::rename(other, &data).unwrap();
    };
    fails(
        &compile_while(&model, &args, replace),
        3,
        "w.bin changed while it was compiled",
    );
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).open(&data).unwrap();
        file.write_all(&[1]).unwrap();
    };
    fails(
        &compile_while(&model, &args, write),
        3,
        "w.bin changed while it was compiled",
    );
    let touch = || fs::write(&model, fs::read(&model).unwrap()).unwrap();
    fails(
        &compile_while(&model, &args, touch),
        3,
        "large.onnxtxt changed",
    );
}

/// Attention whose operands are one tensor: TensorRT for RTX 1.7 ends the process on it.
const FATAL: &str = r#"<ir_version: 10, opset_import: ["" : 23]>
    g (float16[1, 2, 4, 8] q) => (float16[1, 2, 4, 8] y) { y = Attention(q, q, q) }"#;

#[test]
fn a_builder_that_dies_is_an_error_with_what_it_was_doing() {
    let Ok(libraries) = engine::locate(None) else {
        println!("skipped: TensorRT for RTX not found");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let builder = ChildBuilder::new(Path::new(KILN), &libraries, folder.path());
    let bytes = common::encode(FATAL);
    let request = BuildRequest::new(&bytes, ComputeCapability::Sm89);
    let died = builder.build(&request, &NoProgress).unwrap_err();
    assert!(
        matches!(&died, EngineError::Died { how, .. } if how.contains("signal 11")),
        "{died}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_child_builds_and_refuses_what_this_process_does() {
    let Ok(libraries) = engine::locate(None) else {
        println!("skipped: TensorRT for RTX not found");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let here = engine::RtxBuilder::new(&libraries).unwrap();
    let child = ChildBuilder::new(Path::new(KILN), &libraries, folder.path()).warm();
    let good = common::encode(
        r#"<ir_version: 10, opset_import: ["" : 20]>
        g (float16[2, 4] x) => (float16[2, 4] y) { y = Relu(x) }"#,
    );
    let bad = common::encode(
        r#"<ir_version: 10, opset_import: ["" : 20, "odd" : 1]>
        g (float16[2, 4] x) => (float16[2, 4] y) { y = odd.Strange(x) }"#,
    );
    let request = BuildRequest::new(&good, ComputeCapability::Sm89);
    let (a, b) = (
        here.build(&request, &NoProgress).unwrap(),
        child.build(&request, &NoProgress).unwrap(),
    );
    assert_eq!(
        (a.network, a.inputs, a.outputs),
        (b.network, b.inputs, b.outputs)
    );
    assert_eq!((a.version, a.plan.len()), (b.version, b.plan.len()));
    let request = BuildRequest::new(&bad, ComputeCapability::Sm89);
    let said = |e: Result<engine::Built, EngineError>| e.unwrap_err().to_string();
    assert_eq!(
        said(here.build(&request, &NoProgress)),
        said(child.build(&request, &NoProgress))
    );
}

/// The child that builds, found by its name among the children of a process.
fn builder_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let builds = |child: &u32| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(engine::SUBCOMMAND)
    };
    children
        .split_whitespace()
        .filter_map(|c| c.parse().ok())
        .find(builds)
}

#[test]
fn a_builder_that_is_killed_leaves_the_older_bundle() {
    if !common::tensorrt() {
        return;
    }
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let args = ["--fp16", "--target", "sm_89", "--no-check"];
    let child = bench.kiln(&args).spawn().unwrap();
    let mut builder = None;
    waits_until("no process builds", || {
        builder = builder_of(child.id());
        builder.is_some()
    });
    send(SIGKILL, builder.unwrap());
    let output = child.wait_with_output().unwrap();
    fails(
        &output,
        4,
        "ended by signal 9 (killed; the machine may be short of memory)",
    );
    bench.is_as_before();
}

#[test]
fn a_builder_does_not_outlive_a_parent_that_is_killed() {
    if !common::tensorrt() {
        return;
    }
    let bench = Bench::new("bert-tiny.ts.eager.opset11");
    let args = ["--fp16", "--target", "sm_89", "--no-check"];
    let mut child = bench.kiln(&args).spawn().unwrap();
    let mut builder = None;
    waits_until("no process builds", || {
        builder = builder_of(child.id());
        builder.is_some()
    });
    send(SIGKILL, child.id());
    child.wait().unwrap();
    let builder = builder.unwrap();
    let gone = || match fs::read_to_string(format!("/proc/{builder}/stat")) {
        Err(e) => e.kind() == io::ErrorKind::NotFound,
        // A zombie, if nobody here waits for orphans.
        Ok(stat) => stat.contains(") Z "),
    };
    waits_until("the builder goes on without its parent", gone);
    bench.bundle_is_whole();
}
