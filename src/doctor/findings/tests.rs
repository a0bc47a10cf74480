//! Findings of machines that are made up.

use std::path::{Path, PathBuf};

use super::super::facts::Library;
use super::super::facts::{Builder, Ort};
use super::*;
use crate::engine;
use crate::nvidia::driver;
use crate::nvidia::gpus::Managed;
use crate::nvidia::gpus::{State, Status};
use crate::nvidia::libraries::{Missing, Needs};
use crate::nvidia::{CudaVersion, Driver, NoDevice};
use crate::runtime::Unusable;
use crate::runtime::cuda::Provider;

fn gpu(capability: (u32, u32)) -> driver::Gpu {
    driver::Gpu {
        uuid: None,
        name: "NVIDIA Test".into(),
        capability,
        memory: 80 << 30,
    }
}

fn library(path: &str) -> Library {
    Library {
        path: path.into(),
        version: Some("13.0".into()),
        broken: None,
    }
}

/// A machine on which everything fits.
fn machine() -> Facts {
    let provider = Provider {
        path: "/site/onnxruntime/capi/libonnxruntime_providers_cuda.so".into(),
        cuda: Some(13),
        needs: Needs::default(),
        on_demand: Needs::default(),
    };
    Facts {
        ort: Ok(Ort {
            path: "/site/onnxruntime/capi/libonnxruntime.so.1.31.1".into(),
            version: Some("1.31.1".into()),
            providers: vec![
                "CUDAExecutionProvider".into(),
                "CPUExecutionProvider".into(),
            ],
            provider: Ok(Some(provider)),
            wheels: vec!["onnxruntime-gpu 1.31.1".into()],
        }),
        builder: Ok(Builder {
            path: "/site/tensorrt_rtx_cu13_libs/libtensorrt_rtx.so.1".into(),
            version: "1.7.1".into(),
        }),
        driver: Ok(Driver {
            cuda: CudaVersion(13_000),
            release: Some("580.65.06".into()),
            gpus: vec![gpu((9, 0))],
        }),
        trial: None,
        managed: Err("no NVML in this test".into()),
        runtimes: vec![(13, library("/site/nvidia/cu13/lib/libcudart.so.13"))],
        cudnn: Some(library("/site/nvidia/cudnn/lib/libcudnn.so.9")),
        cudnn_cuda: Some(13),
        plugin: None,
        tensorrt: None,
        site: None,
    }
}

fn get<'f>(all: &'f [Finding], what: &str) -> &'f Finding {
    let named: Vec<&str> = all.iter().map(|f| f.what.as_str()).collect();
    let found = all.iter().find(|f| f.what == what);
    found.unwrap_or_else(|| panic!("no {what} among {named:?}"))
}

fn broken(facts: &Facts) -> Vec<String> {
    let all = of(facts).into_iter().filter(|f| !f.found && f.needed);
    all.map(|f| f.what).collect()
}

#[test]
fn a_machine_on_which_everything_fits_has_no_mismatch() {
    let facts = machine();
    assert_eq!(mismatches(&facts), []);
    assert_eq!(broken(&facts), [""; 0]);
    let all = of(&facts);
    let gpu = get(&all, "GPU 0");
    assert!(
        gpu.detail.contains("sm_90") && gpu.detail.contains("85.9 GB"),
        "{gpu:?}"
    );
    assert!(
        gpu.enables.contains("FP8") && gpu.enables.contains("does not serve"),
        "{gpu:?}"
    );
}

#[test]
fn without_a_gpu_nothing_is_broken() {
    let facts = Facts {
        driver: Err(NoDevice::NoGpu),
        ..machine()
    };
    assert_eq!(broken(&facts), [""; 0]);
    let all = of(&facts);
    let driver = get(&all, "NVIDIA driver");
    assert!(!driver.found && driver.mend.as_ref().unwrap().contains("`device` cpu"));
}

#[test]
fn an_old_driver_is_told_with_the_one_to_install() {
    let mut facts = machine();
    facts.driver = Ok(Driver {
        cuda: CudaVersion(12_040),
        release: Some("550.54.15".into()),
        gpus: vec![gpu((8, 9))],
    });
    let what = [
        "driver older than the CUDA provider",
        "driver older than TensorRT for RTX",
    ];
    assert_eq!(broken(&facts), what);
    let all = of(&facts);
    let old = get(&all, what[0]);
    assert!(
        old.detail.contains("550.54.15") && old.detail.contains("CUDA 13"),
        "{old:?}"
    );
    assert!(old.mend.as_ref().unwrap().contains("580"), "{old:?}");
}

#[test]
fn an_old_gpu_is_told() {
    let mut facts = machine();
    if let Ok(driver) = &mut facts.driver {
        driver.gpus = vec![gpu((7, 0))];
    }
    assert_eq!(broken(&facts), ["GPU older than the CUDA provider"]);
}

#[test]
fn libraries_of_another_cuda_are_told_apart_from_none() {
    let mut facts = machine();
    facts.runtimes = vec![(12, library("/usr/local/cuda/lib64/libcudart.so.12"))];
    assert_eq!(
        broken(&facts),
        ["libraries of CUDA 12 for a provider of CUDA 13"]
    );
    // Both are fine.
    facts.runtimes.push((13, library("/site/libcudart.so.13")));
    assert_eq!(broken(&facts), [""; 0]);
    facts.runtimes.clear();
    let all = of(&facts);
    let none = get(&all, "CUDA runtime");
    assert_eq!(
        none.mend.as_deref(),
        Some("pip install nvidia-cuda-runtime~=13.0")
    );
}

#[test]
fn missing_and_foreign_cudnn_are_told() {
    let mut facts = machine();
    facts.cudnn_cuda = Some(12);
    let all = of(&facts);
    let foreign = get(&all, "cuDNN for CUDA 12");
    let mend = foreign.mend.as_deref().unwrap();
    assert_eq!(
        mend,
        "pip uninstall -y nvidia-cudnn-cu12 && pip install nvidia-cudnn-cu13~=9.0"
    );
    (facts.cudnn, facts.cudnn_cuda) = (None, None);
    let all = of(&facts);
    assert_eq!(
        get(&all, "cuDNN").mend.as_deref(),
        Some("pip install nvidia-cudnn-cu13~=9.0")
    );
}

#[test]
fn a_provider_without_its_libraries_names_them() {
    let mut facts = machine();
    let missing = |name: &str| Missing {
        name: name.into(),
        needed_by: PathBuf::from("/site/libonnxruntime_providers_cuda.so"),
    };
    if let Ok(Some(provider)) = facts
        .ort
        .as_mut()
        .map(|o| o.provider.as_mut().unwrap().as_mut())
    {
        provider.needs.missing = vec![missing("libcublasLt.so.13"), missing("libcurand.so.10")];
    }
    let all = of(&facts);
    let found = get(&all, "CUDA provider of ONNX Runtime");
    assert!(
        found.needed && found.detail.contains("libcublasLt.so.13, libcurand.so.10"),
        "{found:?}"
    );
    assert_eq!(
        found.mend.as_deref(),
        Some("pip install nvidia-cublas~=13.0 nvidia-curand~=10.0")
    );
}

#[test]
fn a_provider_that_fails_a_trial_is_not_found() {
    let trial = Unusable {
        reason: "undefined symbol: cuTensorMapEncodeTiled".into(),
        mend: "update it".into(),
    };
    let facts = Facts {
        trial: Some(trial),
        ..machine()
    };
    assert_eq!(broken(&facts), ["CUDA provider of ONNX Runtime"]);
}

#[test]
fn two_wheels_in_one_folder_are_told() {
    let mut facts = machine();
    if let Ok(ort) = &mut facts.ort {
        ort.wheels.push("onnxruntime 1.31.1".into());
        ort.providers.remove(0);
    }
    let what = [
        "two wheels of ONNX Runtime",
        "ONNX Runtime without CUDA beside its CUDA provider",
    ];
    assert_eq!(broken(&facts), what);
}

#[test]
fn a_partitioned_gpu_without_instances_is_told() {
    let mut facts = machine();
    facts.managed = Ok(Managed {
        driver: None,
        gpus: vec![Status {
            name: "NVIDIA Test".into(),
            capability: Some((9, 0)),
            mig: Some(true),
            max_clock: Some(1980),
            power_limit: Some(700.0),
            now: State {
                used: Some(1 << 30),
                clock: Some(1000),
                temperature: Some(40),
                power: Some(70.4),
                ..State::default()
            },
            ..Status::default()
        }],
    });
    assert_eq!(broken(&facts), ["MIG without instances"]);
    let all = of(&facts);
    let detail = &get(&all, "GPU 0").detail;
    assert!(
        detail.contains("1000 of 1980 MHz") && detail.contains("70 of 700 W"),
        "{detail}"
    );
}

#[test]
fn nothing_at_all_is_two_things_to_install() {
    let facts = Facts {
        ort: Err("not found".into()),
        builder: Err(("not found".into(), engine::INSTALL.into())),
        driver: Err(NoDevice::NoGpu),
        trial: None,
        managed: Err("none".into()),
        runtimes: Vec::new(),
        cudnn: None,
        cudnn_cuda: None,
        plugin: None,
        tensorrt: None,
        site: Some(Path::new("/nowhere/lib/python3/site-packages").into()),
    };
    assert_eq!(broken(&facts), ["ONNX Runtime", "TensorRT for RTX"]);
    for finding in of(&facts).iter().filter(|f| !f.found && f.what != "GPU") {
        assert!(finding.mend.is_some(), "{finding:?}");
    }
}
