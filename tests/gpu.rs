//! What takes a GPU. Where there is none, or what a test takes beside it is missing, the test is reported as ignored, and
//! the last lines count and name what did not run, with the reason. `cargo test --test gpu -- --list --ignored` prints that
//! alone.
//!
//! libtest swallows what passing tests print, and knows no test that is skipped at run time; so this binary has a harness of
//! its own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use kiln::bundle;
use kiln::engine;
use kiln::engine::run::{EngineRunError, RunOptions, Session};
use kiln::nvidia::driver;
use kiln::nvidia::gpus::Probe;
use kiln::runtime::{DeviceChoice, DeviceRequest, Runtime};
use kiln::targets::Targets;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// What a test takes beside a GPU.
#[derive(Clone, Copy)]
enum Need {
    Nothing,
    /// NVIDIA's management library.
    Nvml,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// TensorRT, for a GPU that it serves.
    Engine,
    /// The plugin of TensorRT for RTX for ONNX Runtime.
    Plugin,
}

type Test = fn(&Path) -> Result<(), Failed>;

/// All tests, and what they take.
const TESTS: &[(&str, Need, Test)] = &[
    ("the_doctor_names_the_gpu", Need::Nothing, doctor),
    ("a_gpu_tells_its_state", Need::Nvml, state),
    (
        "the_cuda_provider_gives_what_the_cpu_gives",
        Need::Cuda,
        cuda,
    ),
    ("the_plugin_gives_what_the_cpu_gives", Need::Plugin, plugin),
    (
        "an_engine_gives_what_the_original_gives",
        Need::Engine,
        parity,
    ),
    (
        "an_engine_generates_what_its_original_does",
        Need::Engine,
        generates,
    ),
    (
        "the_cuda_provider_generates_what_the_cpu_does",
        Need::Cuda,
        generates_on_cuda,
    ),
    (
        "an_engine_is_timed_in_streams_and_layers",
        Need::Engine,
        bench,
    ),
    (
        "an_engine_without_weights_takes_the_models",
        Need::Engine,
        refit,
    ),
    #[cfg(not(feature = "tensorrt-enterprise"))]
    ("an_engine_for_another_gpu_says_so", Need::Engine, elsewhere),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the GPU.
    arguments.test_threads = Some(1);
    let reasons: Vec<Option<String>> = TESTS.iter().map(|(_, need, _)| missing(*need)).collect();
    let trials = TESTS
        .iter()
        .zip(&reasons)
        .map(|(&(name, _, test), reason)| {
            let why = reason.clone();
            let run = move || match why {
                Some(why) => Err(why.into()),
                None => test(tempfile::tempdir()?.path()),
            };
            Trial::test(name, run).with_ignored_flag(reason.is_some())
        });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // A list has the names already.
    summarize(&reasons, !arguments.list);
    conclusion.exit_code()
}

/// The count and the names of what did not run, by the reason.
fn summarize(reasons: &[Option<String>], with_names: bool) {
    let mut skipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for ((name, ..), reason) in TESTS.iter().zip(reasons) {
        if let Some(why) = reason {
            skipped.entry(why).or_default().push(name);
        }
    }
    for (why, names) in skipped {
        let all = TESTS.len();
        println!(
            "skipped: {} of {all} tests that take a GPU: {why}",
            names.len()
        );
        for name in names.iter().filter(|_| with_names) {
            println!("    {name}");
        }
    }
}

/// Why a test cannot run here.
fn missing(need: Need) -> Option<String> {
    if let Err(why) = driver::probe() {
        return Some(format!("no CUDA device: {why} ({})", why.mend()));
    }
    let device = |choice| {
        let request = DeviceRequest {
            choice,
            ..DeviceRequest::default()
        };
        let chosen = Runtime::load(None).and_then(|runtime| runtime.device(request));
        chosen.err().map(|e| e.to_string())
    };
    match need {
        Need::Nothing => None,
        Need::Nvml => Probe::new(None).err(),
        Need::Cuda => device(DeviceChoice::Cuda(0)),
        Need::Plugin => device(DeviceChoice::Rtx(0)),
        Need::Engine => match engine::locate(None) {
            Err(e) => Some(e.to_string()),
            Ok(_) => Targets::resolved(Some(&Targets::Local))
                .err()
                .map(|e| e.to_string()),
        },
    }
}

/// What kiln prints as JSON, if it ends with this code.
fn kiln(code: i32, args: &[&str]) -> Result<Value, Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .arg("--json")
        .output()?;
    let err = String::from_utf8_lossy(&output.stderr);
    let found = output.status.code();
    same(found, Some(code), &format!("exit code of {args:?}: {err}"))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T, what: &str) -> Result<(), Failed> {
    check(found == wanted, || {
        format!("{what}: {found:?}, not {wanted:?}")
    })
}

fn check(holds: bool, else_: impl FnOnce() -> String) -> Result<(), Failed> {
    match holds {
        true => Ok(()),
        false => Err(else_().into()),
    }
}

fn model() -> PathBuf {
    common::fixture("models/bert-tiny.ts.eager.opset11.onnx")
}

/// Compiled in FP16 for this GPU, with engine parity required.
fn compiled(folder: &Path, more: &[&str]) -> Result<(PathBuf, Value), Failed> {
    let bundle = folder.join(format!("bundle{}", more.join("")));
    let (model, output) = (model(), bundle.to_string_lossy().into_owned());
    let fixed = [
        "compile",
        model.to_str().unwrap(),
        "--fp16",
        "--target",
        "local",
        "--require",
        "engine-parity",
        "-o",
        &output,
    ];
    let manifest = kiln(0, &[&fixed[..], more].concat())?;
    Ok((bundle, manifest))
}

fn doctor(_: &Path) -> Result<(), Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["doctor", "--json"])
        .output()?;
    let json: Value = serde_json::from_slice(&output.stdout)?;
    let gpus = driver::probe().map_err(|e| e.to_string())?.gpus;
    let findings = json["findings"].as_array().ok_or("no findings")?;
    for (at, gpu) in gpus.iter().enumerate() {
        let what = format!("GPU {at}");
        let finding = findings.iter().find(|f| f["what"] == what.as_str());
        let detail = finding
            .and_then(|f| f["detail"].as_str())
            .unwrap_or_default();
        check(
            detail.starts_with(&gpu.name) && detail.contains(&gpu.target()),
            || format!("{what}: {detail}"),
        )?;
    }
    Ok(())
}

fn state(_: &Path) -> Result<(), Failed> {
    let state = Probe::new(None)?.state()?;
    let told = state.clock.is_some_and(|mhz| mhz > 0) && state.used.is_some_and(|bytes| bytes > 0);
    check(told, || format!("{state:?}"))
}

fn provider(device: &str) -> Result<(), Failed> {
    let model = model();
    let model = model.to_str().unwrap();
    let json = kiln(
        0,
        &["check", model, "--reference", model, "--device", device],
    )?;
    same(&json["device"]["device"], &device.into(), "device")
}

fn cuda(_: &Path) -> Result<(), Failed> {
    provider("cuda:0")
}

fn plugin(_: &Path) -> Result<(), Failed> {
    provider("rtx:0")
}

fn parity(folder: &Path) -> Result<(), Failed> {
    let (bundle, manifest) = compiled(folder, &[])?;
    same(
        &manifest["engine_parity"]["status"],
        &"run".into(),
        "engine parity",
    )?;
    let model = model();
    let args = [
        "check",
        bundle.to_str().unwrap(),
        "--reference",
        model.to_str().unwrap(),
    ];
    let json = kiln(0, &[&args[..], &["--require", "engine-parity"]].concat())?;
    same(
        &json["engine_parity"]["status"],
        &"run".into(),
        "engine parity",
    )
}

/// Tokens behind a prompt; rows of unequal lengths.
fn tokens(model: &str, more: &[&str]) -> Result<Value, Failed> {
    let args = [
        "generate", model, "--ids", "5,9,33,2", "--ids", "7,3", "--new", "12",
    ];
    Ok(kiln(0, &[&args[..], more].concat())?["tokens"].clone())
}

fn decoder() -> String {
    let path = common::fixture("generation/decoder.growing.onnx");
    path.to_string_lossy().into_owned()
}

fn generates(folder: &Path) -> Result<(), Failed> {
    let (model, bundle) = (decoder(), folder.join("b").to_string_lossy().into_owned());
    let args = [
        "compile",
        &model,
        "--target",
        "local",
        "--max-length",
        "32",
        "-o",
        &bundle,
    ];
    kiln(0, &args)?;
    let right = tokens(&model, &["--device", "cpu"])?;
    same(tokens(&bundle, &["--engine"])?, right, "tokens")?;
    let args = ["check", &bundle, "--reference", &model, "--generate", "12"];
    let proof = kiln(0, &args)?;
    let claims = proof["claims"].as_array().ok_or("no claims")?;
    let of_engine = |c: &&Value| c["name"].as_str().is_some_and(|n| n.contains("engine"));
    let claim = claims
        .iter()
        .find(of_engine)
        .ok_or("nothing of the engine")?;
    same(&claim["outcome"], &"holds".into(), "the engine")
}

fn generates_on_cuda(folder: &Path) -> Result<(), Failed> {
    let (model, bundle) = (decoder(), folder.join("b").to_string_lossy().into_owned());
    kiln(0, &["compile", &model, "--target", "cuda", "-o", &bundle])?;
    let right = tokens(&model, &["--device", "cpu"])?;
    same(tokens(&bundle, &["--device", "cuda:0"])?, right, "tokens")
}

fn bench(folder: &Path) -> Result<(), Failed> {
    let (bundle, _) = compiled(folder, &[])?;
    let cache = folder.join("kernels").to_string_lossy().into_owned();
    let args = [
        "bench",
        bundle.to_str().unwrap(),
        "--engine",
        "--duration",
        "0.1",
        "--streams",
        "1,2",
        "--layers",
        "--runtime-cache",
        &cache,
    ];
    kiln(0, &args)?;
    let again = kiln(0, &args)?;
    let engine = &again["engines"][0];
    let point = &engine["points"][0];
    let compute = point["compute"]["p50"].as_f64().unwrap_or_default();
    let loads = point["loads"].as_array().map_or(0, Vec::len);
    check(compute > 0.0 && loads == 2, || format!("{point:#}"))?;
    check(
        engine["layers"].as_array().is_some_and(|l| !l.is_empty()),
        || "no layers".into(),
    )?;
    // TensorRT proper compiles no kernels here, and keeps none.
    let kept = engine["facts"]["cached"] == true || cfg!(feature = "tensorrt-enterprise");
    check(kept, || format!("{:#}", engine["facts"]))
}

fn refit(folder: &Path) -> Result<(), Failed> {
    let (whole, _) = compiled(folder, &[])?;
    let (stripped, manifest) = compiled(folder, &["--weight-stripped"])?;
    same(
        &manifest["engine_parity"]["status"],
        &"run".into(),
        "engine parity",
    )?;
    let size = |bundle: &Path| fs::metadata(bundle.join(bundle::ENGINE)).map(|m| m.len());
    check(size(&stripped)? < size(&whole)?, || {
        "it is as large as the whole one".into()
    })?;
    let plan = fs::read(stripped.join(bundle::ENGINE))?;
    match Session::open(&plan, None, &RunOptions::default()) {
        Err(EngineRunError::WithoutWeights { bytes }) => check(bytes > 0, || "no bytes".into()),
        Err(other) => Err(other.to_string().into()),
        Ok(_) => Err("it opened without weights".into()),
    }
}

/// TensorRT for RTX reads in a plan's header which GPUs it is for.
#[cfg(not(feature = "tensorrt-enterprise"))]
fn elsewhere(folder: &Path) -> Result<(), Failed> {
    let here = kiln::targets::local_gpu()
        .and_then(Result::ok)
        .map(|c| c.to_string());
    let other = match here.as_deref() {
        Some("sm_75") => "sm_89",
        _ => "sm_75",
    };
    let output = folder.join("other").to_string_lossy().into_owned();
    let model = model();
    let args = [
        "compile",
        model.to_str().unwrap(),
        "--fp16",
        "--target",
        other,
        "-o",
        &output,
    ];
    let manifest = kiln(0, &args)?;
    let why = manifest["engine_parity"]["why"]
        .as_str()
        .unwrap_or_default();
    check(why.contains("compute capability"), || {
        format!("{:#}", manifest["engine_parity"])
    })
}
