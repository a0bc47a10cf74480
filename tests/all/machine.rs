//! Devices and `kiln doctor` on machines that are made up: drivers and providers are small libraries that a C compiler
//! makes, in folders as wheels and drivers have them. The ONNX Runtime is the real one.

use crate::common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln::nvidia::driver;
use kiln::runtime::{Optimization, Placement, Session, SessionOptions};
use kiln::shapes;
use kiln_graph::{Tensor, onnx};
use serde_json::Value;
use tempfile::TempDir;

/// A driver with one GPU, whose versions the environment says.
const LIBCUDA: &str = r#"
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) { const char *s = getenv(name); return s ? atoi(s) : otherwise; }
int cuInit(unsigned flags) { return number("STUB_INIT", 0); }
int cuDriverGetVersion(int *v) { *v = number("STUB_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *n) { *n = number("STUB_COUNT", 1); return 0; }
int cuDeviceGet(int *d, int k) { *d = k; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA Stub", n); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? number("STUB_MAJOR", 8) : 9; return 0; }
int cuDeviceGetUuid(unsigned char *u, int d) { memset(u, d, 16); return 0; }
int cuGetErrorName(int code, const char **s) { *s = "CUDA_ERROR_STUB"; return 0; }
"#;

/// NVML, with two GPUs in the other order than CUDA's. What is CUDA's device 1 draws 200 W.
const LIBNVML: &str = r#"
#include <string.h>
static char gpus[2];
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned k, void **gpu) { *gpu = gpus + 1 - k; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) { *gpu = gpus + (uuid[5] == '1'); return 0; }
int nvmlDeviceGetName(void *gpu, char *s, unsigned n) { strncpy(s, "NVIDIA Stub", n); return 0; }
int nvmlDeviceGetUUID(void *gpu, char *s, unsigned n) {
    strncpy(s, gpu == gpus ? "GPU-00000000-0000-0000-0000-000000000000" : "GPU-01010101-0101-0101-0101-010101010101", n);
    return 0;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *mw) { *mw = gpu == gpus ? 100000 : 200000; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *gpu, unsigned *mw) { *mw = 300000; return 0; }
"#;

/// A CUDA runtime that tells its version.
const LIBCUDART: &str = "int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }";

/// The provider's library: only what it is linked to matters.
const PROVIDER: &str = "int provider;";

struct Machine {
    folder: TempDir,
    site: PathBuf,
    ort: PathBuf,
}

impl Machine {
    /// ONNX Runtime as a wheel installs it; `None` after saying that the test is skipped.
    fn new() -> Option<Machine> {
        let found = common::runtime()?.library().path.clone();
        let folder = tempfile::tempdir().unwrap();
        let site = folder.path().join("venv/lib/python3.11/site-packages");
        let ort = site
            .join("onnxruntime/capi")
            .join(found.file_name().unwrap());
        fs::create_dir_all(ort.parent().unwrap()).unwrap();
        fs::copy(found, &ort).unwrap();
        let machine = Machine { folder, site, ort };
        let works = machine.library("probe/libprobe.so", PROVIDER, &[]);
        if !works {
            println!("skipped: no C compiler");
        }
        works.then_some(machine)
    }

    /// Makes a library at this path, linked to others, which need not stay.
    fn library(&self, path: &str, source: &str, needs: &[&str]) -> bool {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = self.folder.path().join("source.c");
        fs::write(&text, source).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"])
            .arg(&path)
            .arg(&text)
            .arg(format!("-Wl,-soname,{name}"))
            .args(needs.iter().map(|n| self.folder.path().join(n)))
            .status();
        compiled.is_ok_and(|status| status.success())
    }

    fn driver(&self) {
        assert!(self.library("driver/libcuda.so.1", LIBCUDA, &[]));
    }

    /// The CUDA provider, and of what it is linked to only the CUDA runtime.
    fn provider(&self) {
        let lib = "venv/lib/python3.11/site-packages/nvidia/cu13/lib";
        let cudart = format!("{lib}/libcudart.so.13");
        let cublas = "elsewhere/libcublasLt.so.13";
        assert!(self.library(&cudart, LIBCUDART, &[]));
        assert!(self.library(cublas, PROVIDER, &[]));
        let provider =
            "venv/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so";
        assert!(self.library(provider, PROVIDER, &[cublas, &cudart]));
    }

    fn wheel(&self, name: &str) {
        fs::create_dir_all(self.site.join(format!("{name}.dist-info"))).unwrap();
    }

    fn kiln(&self, args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(args)
            .arg("--ort-lib")
            .arg(&self.ort)
            .env("LD_LIBRARY_PATH", self.folder.path().join("driver"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        let code = output.status.code().unwrap_or_else(|| panic!("{err}"));
        (code, out, err)
    }

    fn doctor(&self, variables: &[(&str, &str)]) -> (i32, Value) {
        let (code, out, err) = self.kiln(&["doctor", "--json"], variables);
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        (code, json)
    }

    fn check(&self, args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
        let model = model.to_str().unwrap();
        let all = [&["check", model, "--reference", model][..], args].concat();
        self.kiln(&all, variables)
    }
}

fn finding<'j>(json: &'j Value, what: &str) -> &'j Value {
    let all = json["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["what"] == what);
    found.unwrap_or_else(|| panic!("no {what} in {json:#}"))
}

/// Whether this machine has a GPU, which the test cannot be run on; says so.
fn has_gpu() -> bool {
    let has = driver::probe().is_ok();
    if has {
        println!("skipped: this machine has a CUDA device");
    }
    has
}

#[test]
fn without_a_driver_the_doctor_is_content_and_says_what_is_missing() {
    let Some(machine) = Machine::new().filter(|_| !has_gpu()) else {
        return;
    };
    let (_, json) = machine.doctor(&[]);
    assert_eq!(finding(&json, "ONNX Runtime")["found"], true);
    let driver = finding(&json, "NVIDIA driver");
    assert_eq!(
        (&driver["found"], &driver["needed"]),
        (&false.into(), &false.into())
    );
    assert!(
        driver["mend"].as_str().unwrap().contains("--gpus all"),
        "{driver}"
    );
    let provider = finding(&json, "CUDA provider of ONNX Runtime");
    assert!(
        provider["mend"]
            .as_str()
            .unwrap()
            .contains("onnxruntime-gpu[cuda,cudnn]"),
        "{provider}"
    );
    assert!(json["no_device"]["reason"].is_string() && json["driver"].is_null());
}

#[test]
fn a_provider_without_its_libraries_is_told_library_by_library() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.driver();
    machine.provider();
    machine.wheel("nvidia_cudnn_cu12-9.1.0");
    let (code, json) = machine.doctor(&[]);
    assert_eq!(code, 5, "{json:#}");
    assert_eq!(
        finding(&json, "GPU 0")["detail"],
        "NVIDIA Stub, sm_89, 25.8 GB"
    );
    let provider = finding(&json, "CUDA provider of ONNX Runtime");
    let detail = provider["detail"].as_str().unwrap();
    assert!(detail.starts_with("for CUDA 13 at "), "{detail}");
    assert!(
        detail.ends_with("needs libcublasLt.so.13, which no folder has"),
        "{detail}"
    );
    assert!(
        provider["mend"]
            .as_str()
            .unwrap()
            .ends_with("install nvidia-cublas~=13.0")
    );
    let runtime = finding(&json, "CUDA runtime")["detail"].as_str().unwrap();
    assert!(
        runtime.starts_with("13.0 at ") && runtime.ends_with("libcudart.so.13"),
        "{runtime}"
    );
    // The library of the CPU wheel does not load the provider of the other wheel.
    let over = finding(&json, "ONNX Runtime without CUDA beside its CUDA provider");
    assert_eq!(over["needed"], true);
    let missing = &json["cuda_provider"]["needs"]["missing"][0];
    assert_eq!(missing["name"], "libcublasLt.so.13");
}

#[test]
fn an_old_driver_and_an_old_gpu_are_told() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.driver();
    machine.provider();
    let (code, json) = machine.doctor(&[("STUB_CUDA", "12040"), ("STUB_MAJOR", "6")]);
    assert_eq!(code, 5);
    let old = finding(&json, "driver older than the CUDA provider");
    assert!(
        old["detail"].as_str().unwrap().contains("serves CUDA 12.4"),
        "{old}"
    );
    assert!(old["mend"].as_str().unwrap().contains("580"), "{old}");
    let gpu = finding(&json, "GPU older than the CUDA provider");
    assert!(gpu["detail"].as_str().unwrap().contains("sm_69"), "{gpu}");
}

#[test]
fn gpus_are_told_apart_by_their_uuids() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.driver();
    assert!(machine.library("driver/libnvidia-ml.so.1", LIBNVML, &[]));
    let (_, json) = machine.doctor(&[("STUB_COUNT", "2")]);
    for (gpu, power) in [("GPU 0", "100 of 300 W"), ("GPU 1", "200 of 300 W")] {
        let detail = finding(&json, gpu)["detail"].as_str().unwrap();
        assert!(detail.ends_with(power), "{detail}");
    }
    let mut watch = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args([
            "bench",
            "--watch",
            "--interval",
            "0.01",
            "--device",
            "cuda:1",
        ])
        .env("LD_LIBRARY_PATH", machine.folder.path().join("driver"))
        .env("STUB_COUNT", "2")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(watch.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    // Whoever has read enough closes the pipe, which ends it.
    drop(out);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert!(line.contains("200 W"), "{line}");
}

#[test]
fn wheels_over_each_other_are_told() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.driver();
    machine.wheel("onnxruntime-1.31.1");
    machine.wheel("onnxruntime_gpu-1.31.1");
    let (code, json) = machine.doctor(&[]);
    assert_eq!(code, 5);
    let two = finding(&json, "two wheels of ONNX Runtime");
    let detail = two["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 write"),
        "{detail}"
    );
}

#[test]
fn a_gpu_that_was_asked_for_and_cannot_be_used_is_an_error_with_its_remedy() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let refused = |variables: &[(&str, &str)], parts: &[&str]| {
        let (code, out, err) = machine.check(&["--device", "cuda"], variables);
        assert_eq!(code, 5, "{out}{err}");
        for part in parts {
            assert!(err.contains(part), "{part}: {err}");
        }
    };
    if !has_gpu() {
        refused(
            &[],
            &[
                "the device cuda:0 cannot be used",
                "--device cpu",
                "docker run --gpus all",
            ],
        );
    }
    machine.driver();
    refused(
        &[],
        &[
            "is not beside it",
            "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'",
        ],
    );
    refused(
        &[("STUB_INIT", "802")],
        &[
            "cuInit returned CUDA_ERROR_STUB (802)",
            "nvidia-fabricmanager",
        ],
    );
    refused(
        &[("STUB_COUNT", "0"), ("CUDA_VISIBLE_DEVICES", "7")],
        &[
            "CUDA_VISIBLE_DEVICES is \"7\"",
            "unset CUDA_VISIBLE_DEVICES",
        ],
    );
    let (code, _, err) = machine.check(&["--device", "cuda:4"], &[]);
    assert!(code == 5 && err.contains("numbered from 0 to 0"), "{err}");
    machine.provider();
    refused(
        &[],
        &[
            "was built without CUDA",
            "onnxruntime was installed over onnxruntime-gpu",
        ],
    );
    let (code, _, err) = machine.check(&["--device", "gpu"], &[]);
    assert!(code == 2 && err.contains("unknown device 'gpu'"), "{err}");
}

#[test]
fn by_default_a_gpu_that_cannot_be_used_is_left_alone_and_the_reason_told() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.driver();
    let (code, out, err) = machine.check(&[], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("device: cpu (not the GPU: ") && out.contains("onnxruntime-gpu"),
        "{out}"
    );
    let (code, out, _) = machine.check(&["--device", "cpu", "--json"], &[]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["device"]["device"]), (0, &"cpu".into()));
    assert_eq!(json["placements"], Value::Array(Vec::new()));
}

/// The bundle's engine is no engine: nothing may try to run it where there is no GPU.
fn bundle(folder: &Path, with_engine: bool) -> String {
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    fs::copy(model, folder.join("model.onnx")).unwrap();
    fs::write(folder.join("manifest.json"), "{}").unwrap();
    if with_engine {
        fs::write(folder.join("model.engine"), "not an engine").unwrap();
    }
    folder.to_str().unwrap().to_string()
}

#[test]
fn engine_parity_that_is_required_and_not_run_fails() {
    let Some(machine) = Machine::new().filter(|_| !has_gpu()) else {
        return;
    };
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let model = model.to_str().unwrap();
    let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with = bundle(with.path(), true);
    let without = bundle(without.path(), false);
    let check = |bundle: &str, more: &[&str]| {
        let args = [&["check", bundle, "--reference", model][..], more].concat();
        machine.kiln(&args, &[])
    };
    let (code, out, err) = check(&with, &["--require", "engine-parity"]);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("kiln: engine parity: not run, no CUDA device"),
        "{err}"
    );
    assert!(
        out.contains("engine parity: not run: no CUDA device"),
        "{out}"
    );
    // What is not required is said all the same.
    let (code, out, _) = check(&with, &["--json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["engine_parity"]["status"]),
        (0, &"not-run".into())
    );
    assert_eq!(json["engine_parity"]["why"], "no CUDA device");
    let (code, _, err) = check(
        &without,
        &["--require", "engine-parity", "--require", "fp32"],
    );
    assert!(
        code == 1 && err.contains("engine parity: not run, no engine was built"),
        "{err}"
    );

    let output = machine.folder.path().join("bundle");
    let args = [
        "compile",
        model,
        "--require",
        "engine-parity",
        "-o",
        output.to_str().unwrap(),
    ];
    let (code, _, err) = machine.kiln(&args, &[]);
    assert!(
        code == 1 && err.contains("engine parity: not run, no CUDA device"),
        "{err}"
    );
    assert!(!output.exists());
}

/// A real profile of an export that makes its masks of sizes: on a GPU, ONNX Runtime may leave those nodes on the CPU, and
/// no other.
#[test]
fn of_a_real_export_only_what_follows_from_sizes_may_stay_on_the_cpu() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let path = common::fixture("models/modernbert.ts.sdpa.onnx");
    let options = SessionOptions {
        optimization: Optimization::Disabled,
        ..SessionOptions::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("profile");
    let mut session = Session::profiled(runtime, &path, &options, &prefix).unwrap();
    let ids = Tensor::from_values(vec![1, 16], &[1i64; 16]).unwrap();
    let inputs: Vec<_> = (session.inputs().iter())
        .map(|i| (i.name.clone(), ids.clone()))
        .collect();
    session.run(&inputs).unwrap();
    let profile = PathBuf::from(session.end_profile().unwrap());
    let judge = |excused| Placement::read(&profile, "CUDAExecutionProvider", &excused).unwrap();
    let by_graph = judge(shapes::derived(&onnx::read(&path).unwrap()));
    let by_size = judge(Default::default());
    let ops = |p: &Placement| -> Vec<String> { p.fallbacks.iter().map(|f| f.op.clone()).collect() };
    // All that ran on the CPU and computes on elements: 18 products among them.
    let products = |p: &Placement| ops(p).iter().filter(|op| *op == "MatMul").count();
    assert_eq!((products(&by_graph), products(&by_size)), (18, 18));
    assert!(
        !ops(&by_graph)
            .iter()
            .any(|op| op == "Range" || op == "LessOrEqual")
    );
    assert!(
        by_graph.shapes > by_size.shapes,
        "{} {}",
        by_graph.shapes,
        by_size.shapes
    );
}
