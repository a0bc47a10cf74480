//! From facts to findings: what is there, what is missing, and what does not fit together.

use super::Finding;
use super::facts::{Facts, Library};
use crate::engine::ComputeCapability;
use crate::nvidia::gpus::Status;
use crate::nvidia::{driver, packages};
use crate::runtime::{Unusable, cuda, rtx};
use crate::summary::bytes;

const ORT: &str = "pip install onnxruntime==1.31.1";

/// Everything that there is to say.
pub(super) fn of(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![onnx_runtime(facts), builder(facts), driver(facts)];
    all.extend(gpus(facts));
    all.push(provider(facts));
    all.push(runtime(facts));
    all.push(cudnn(facts));
    all.push(plugin(facts));
    all.push(tensorrt(facts));
    all.extend(mismatches(facts));
    all
}

fn found(what: &str, enables: &str, detail: String) -> Finding {
    Finding {
        what: what.into(),
        enables: enables.into(),
        found: true,
        needed: false,
        detail,
        mend: None,
    }
}

/// Something that this machine may do without.
fn absent(what: &str, enables: &str, detail: String, mend: String) -> Finding {
    Finding {
        found: false,
        mend: Some(mend),
        ..found(what, enables, detail)
    }
}

/// Something that is there and cannot work. Without a device nobody minds.
fn mismatch(facts: &Facts, what: &str, why: Unusable) -> Finding {
    Finding {
        needed: facts.driver.is_ok(),
        ..absent(what, "what is installed already", why.reason, why.mend)
    }
}

fn onnx_runtime(facts: &Facts) -> Finding {
    let (what, enables) = ("ONNX Runtime", "constant folding, parity, latency");
    match &facts.ort {
        Ok(ort) => {
            let version = ort.version.as_deref().unwrap_or("unknown version");
            let providers: Vec<&str> = ort.providers.iter().map(|p| short(p)).collect();
            let detail = format!(
                "{version} at {} (providers: {})",
                ort.path.display(),
                providers.join(", ")
            );
            found(what, enables, detail)
        }
        Err(why) => Finding {
            needed: true,
            ..absent(what, enables, why.clone(), ORT.into())
        },
    }
}

fn short(provider: &str) -> &str {
    provider
        .strip_suffix("ExecutionProvider")
        .unwrap_or(provider)
}

fn builder(facts: &Facts) -> Finding {
    let (what, enables) = (
        "TensorRT for RTX",
        "engines for sm_75 to sm_121, built with or without a GPU",
    );
    match &facts.builder {
        Ok(b) => found(
            what,
            enables,
            format!("{} at {}", b.version, b.path.display()),
        ),
        Err((why, mend)) => Finding {
            needed: true,
            ..absent(what, enables, why.clone(), mend.clone())
        },
    }
}

fn driver(facts: &Facts) -> Finding {
    let (what, enables) = ("NVIDIA driver", "everything that runs on a GPU");
    match &facts.driver {
        Ok(d) => {
            let release = d.release.clone();
            let told = facts.managed.as_ref().ok().and_then(|m| m.driver.clone());
            let release = release
                .or(told)
                .unwrap_or_else(|| "of unknown release".into());
            let nvml = match &facts.managed {
                Ok(_) => String::new(),
                Err(why) => {
                    format!("; NVML, which tells clocks and power, is not to be had: {why}")
                }
            };
            found(
                what,
                enables,
                format!("{release}, serves CUDA up to {}{nvml}", d.cuda),
            )
        }
        Err(why) => absent(what, enables, why.to_string(), why.mend()),
    }
}

/// One finding for each GPU, or one that there is none.
fn gpus(facts: &Facts) -> Vec<Finding> {
    let Ok(driver) = &facts.driver else {
        let detail = "engines are built for --target and are not run here".to_string();
        return vec![Finding {
            found: false,
            ..found(
                "GPU",
                "the default target, --device cuda, engine parity",
                detail,
            )
        }];
    };
    let status = facts.managed.as_ref().map_or(&[][..], |m| &m.gpus);
    let one = |(k, gpu): (usize, &driver::Gpu)| {
        // NVML's order is that of PCI addresses, CUDA's need not be; names tell where they differ.
        let same =
            |s: &&Status| s.name == gpu.name && s.capability.is_none_or(|c| c == gpu.capability);
        let at = status
            .get(k)
            .filter(same)
            .or_else(|| status.iter().find(same));
        let mut detail = format!(
            "{}, {}, {}",
            gpu.name,
            gpu.target(),
            bytes(gpu.memory as usize)
        );
        detail += &at.map_or(String::new(), state);
        found(&format!("GPU {k}"), &enables(gpu), detail)
    };
    driver.gpus.iter().enumerate().map(one).collect()
}

fn state(s: &Status) -> String {
    let mut parts = Vec::new();
    if let Some(used) = s.used {
        parts.push(format!("{} of its memory taken", bytes(used as usize)));
    }
    match (s.mig, s.instances) {
        (Some(true), n) => parts.push(format!("MIG with {n} instances")),
        (Some(false), _) => parts.push("no MIG".into()),
        (None, _) => {}
    }
    if let (Some(now), Some(most)) = (s.clock, s.max_clock) {
        parts.push(format!("{now} of {most} MHz"));
    }
    if let (Some(now), Some(most)) = (s.memory_clock, s.max_memory_clock) {
        parts.push(format!("memory {now} of {most} MHz"));
    }
    if let (Some(now), Some(most)) = (s.power, s.power_limit) {
        parts.push(format!("{now:.0} of {most:.0} W"));
    }
    if let Some(degrees) = s.temperature {
        parts.push(format!("{degrees} °C"));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("; {}", parts.join(", ")),
    }
}

/// What a GPU has units for (NVIDIA, "CUDA C++ Programming Guide", compute capabilities), and which TensorRT serves it.
fn enables(gpu: &driver::Gpu) -> String {
    let mut all = vec!["FP32"];
    for (since, what) in [
        ((7, 0), "FP16"),
        ((7, 5), "INT8"),
        ((8, 0), "BF16"),
        ((8, 9), "FP8"),
    ] {
        if gpu.capability >= since {
            all.push(what);
        }
    }
    let rtx = match gpu.target().parse::<ComputeCapability>() {
        Ok(_) => "engines by TensorRT for RTX",
        Err(_) => "no engines by TensorRT for RTX, which does not serve it; TensorRT proper does",
    };
    format!("products in {}; {rtx}", all.join(", "))
}

fn provider(facts: &Facts) -> Finding {
    let (what, enables) = ("CUDA provider of ONNX Runtime", "--device cuda");
    let pip = facts.pip();
    let install = format!(
        "{pip} uninstall -y onnxruntime && {pip} install '{}'",
        cuda::WHEEL
    );
    let Ok(ort) = &facts.ort else {
        return absent(what, enables, "there is no ONNX Runtime".into(), install);
    };
    let provider = match &ort.provider {
        Ok(Some(provider)) => provider,
        Ok(None) => {
            let detail = format!("{} is not beside ONNX Runtime", cuda::LIBRARY);
            return absent(what, enables, detail, install);
        }
        Err(why) => {
            let mend = format!("{pip} install --force-reinstall '{}'", cuda::WHEEL);
            return absent(what, enables, why.clone(), mend);
        }
    };
    let built = provider
        .cuda
        .map_or(String::new(), |c| format!("for CUDA {c} "));
    let detail = format!("{built}at {}", provider.path.display());
    match provider.obstacle() {
        None => match provider.gap() {
            None => found(what, enables, format!("{detail}, with all that it needs")),
            Some(Unusable { reason, mend }) => Finding {
                mend: Some(mend),
                ..found(
                    what,
                    enables,
                    format!("{detail}; some operators will fail: {reason}"),
                )
            },
        },
        Some(Unusable { reason, mend }) => Finding {
            // Without a device nobody wants it.
            needed: facts.driver.is_ok(),
            ..absent(what, enables, format!("{detail}: {reason}"), mend)
        },
    }
}

/// The CUDA that libraries should be of: the provider's.
fn cuda_major(facts: &Facts) -> u32 {
    facts.provider().and_then(|p| p.cuda).unwrap_or(13)
}

fn requirement(facts: &Facts, library: &str) -> String {
    let wheel = packages::requirement(library, cuda_major(facts)).unwrap_or_default();
    format!("{} install {wheel}", facts.pip())
}

fn told(library: &Library) -> String {
    let version = library.version.as_deref().unwrap_or("of unknown version");
    format!("{version} at {}", library.path.display())
}

fn runtime(facts: &Facts) -> Finding {
    let (what, enables) = ("CUDA runtime", "the CUDA provider of ONNX Runtime");
    let name = format!("libcudart.so.{}", cuda_major(facts));
    let broken = facts
        .runtimes
        .iter()
        .find_map(|(_, l)| Some((l, l.broken.as_ref()?)));
    if let Some((library, why)) = broken {
        let detail = format!("{}: {why}", library.path.display());
        return absent(what, enables, detail, requirement(facts, &name));
    }
    match facts.runtimes.is_empty() {
        true => absent(
            what,
            enables,
            format!("{name} is not found"),
            requirement(facts, &name),
        ),
        false => {
            let all: Vec<String> = facts.runtimes.iter().map(|(_, l)| told(l)).collect();
            found(what, enables, all.join("; "))
        }
    }
}

fn cudnn(facts: &Facts) -> Finding {
    let (what, enables) = ("cuDNN", "convolutions and some attention on --device cuda");
    let name = "libcudnn.so.9";
    let mend = requirement(facts, name);
    match &facts.cudnn {
        None => absent(what, enables, format!("{name} is not found"), mend),
        Some(library) => match &library.broken {
            Some(why) => absent(
                what,
                enables,
                format!("{}: {why}", library.path.display()),
                mend,
            ),
            None => found(what, enables, told(library)),
        },
    }
}

fn plugin(facts: &Facts) -> Finding {
    let (what, enables) = ("TensorRT for RTX in ONNX Runtime", "--device rtx");
    match &facts.plugin {
        Some((path, version)) => {
            let version = version.as_deref().unwrap_or("unknown version");
            found(what, enables, format!("{version} at {}", path.display()))
        }
        None => absent(
            what,
            enables,
            "the plugin is not installed".into(),
            format!("{} install '{}'", facts.pip(), rtx::WHEEL),
        ),
    }
}

fn tensorrt(facts: &Facts) -> Finding {
    let (what, enables) = (
        "TensorRT",
        "engines for data-centre GPUs (sm_90, sm_100), by a kiln built with tensorrt-enterprise",
    );
    match &facts.tensorrt {
        Some(library) => match &library.broken {
            None => found(what, enables, told(library)),
            Some(why) => Finding {
                found: false,
                ..found(what, enables, format!("{}: {why}", library.path.display()))
            },
        },
        None => absent(
            what,
            enables,
            "libnvinfer is not found".into(),
            "install it from https://developer.nvidia.com/tensorrt and name its folder in LD_LIBRARY_PATH".into(),
        ),
    }
}

/// Pairs of things that are there and do not fit.
fn mismatches(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let pip = facts.pip();
    if let Ok(ort) = &facts.ort {
        if ort.wheels.len() > 1 {
            all.push(mismatch(
                facts,
                "two wheels of ONNX Runtime",
                Unusable {
                    reason: format!(
                        "{} write into the same folder, so that one has overwritten parts of the other",
                        ort.wheels.join(" and ")
                    ),
                    mend: format!(
                        "{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install '{}'",
                        match facts.driver {
                            Ok(_) => cuda::WHEEL,
                            Err(_) => "onnxruntime==1.31.1",
                        }
                    ),
                },
            ));
        }
        let built = ort.providers.iter().any(|p| p == "CUDAExecutionProvider");
        if matches!(ort.provider, Ok(Some(_))) && !built {
            all.push(mismatch(
                facts,
                "ONNX Runtime without CUDA beside its CUDA provider",
                Unusable {
                    reason: format!(
                        "{} was built without CUDA, and cannot load {}",
                        ort.path.display(),
                        cuda::LIBRARY
                    ),
                    mend: format!(
                        "{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install '{}'",
                        cuda::WHEEL
                    ),
                },
            ));
        }
    }
    let wants = facts.provider().and_then(|p| p.cuda);
    if let Some(wants) = wants {
        all.extend(other_cuda(facts, wants));
        if let Some(other) = facts.cudnn_cuda.filter(|&c| c != wants) {
            all.push(mismatch(
                facts,
                &format!("cuDNN for CUDA {other}"),
                Unusable {
                    reason: format!(
                        "the CUDA provider is built for CUDA {wants}, and the wheel nvidia-cudnn-cu{other} is for CUDA {other}"
                    ),
                    mend: format!(
                        "{pip} uninstall -y nvidia-cudnn-cu{other} && {}",
                        requirement(facts, "libcudnn.so.9")
                    ),
                },
            ));
        }
    }
    if let Ok(managed) = &facts.managed {
        let empty = managed
            .gpus
            .iter()
            .filter(|g| g.mig == Some(true) && g.instances == 0);
        all.extend(empty.map(|gpu| Finding {
            needed: true,
            ..mismatch(
                facts,
                "MIG without instances",
                Unusable {
                    reason: format!("{} is partitioned (MIG) and has no instance, so CUDA does not see it", gpu.name),
                    mend: "nvidia-smi mig -cgi 0 -C makes one of the whole GPU; nvidia-smi -mig 0 switches MIG off".into(),
                },
            )
        }));
    }
    let Ok(driver) = &facts.driver else {
        return all;
    };
    if let Some(wants) = wants {
        let old = cuda::too_old(driver, wants);
        all.extend(old.map(|why| mismatch(facts, "driver older than the CUDA provider", why)));
        let unserved = driver
            .gpus
            .iter()
            .filter_map(|gpu| cuda::unserved(gpu, wants));
        all.extend(unserved.map(|why| mismatch(facts, "GPU older than the CUDA provider", why)));
    }
    // Wheels of TensorRT for RTX for CUDA 13 are what kiln installs; its kernels are compiled by the driver's CUDA.
    if let (Ok(b), true) = (&facts.builder, driver.cuda.major() < 13) {
        let cu13 = b
            .path
            .components()
            .any(|c| c.as_os_str().to_string_lossy().contains("cu13"));
        let why = cuda::too_old(driver, 13).filter(|_| cu13);
        all.extend(why.map(|why| mismatch(facts, "driver older than TensorRT for RTX", why)));
    }
    all
}

/// Libraries of another CUDA where those of the provider's are missing: they have other names and do not serve.
fn other_cuda(facts: &Facts, wants: u32) -> Option<Finding> {
    let has = |major| facts.runtimes.iter().any(|(found, _)| *found == major);
    let (other, library) = facts.runtimes.iter().find(|(major, _)| *major != wants)?;
    if has(wants) {
        return None;
    }
    Some(mismatch(
        facts,
        &format!("libraries of CUDA {other} for a provider of CUDA {wants}"),
        Unusable {
            reason: format!(
                "{} is of CUDA {other}; what is built for CUDA {wants} looks for libcudart.so.{wants}, and the two can stand side by side",
                library.path.display()
            ),
            mend: match wants {
                13 => format!("{} install '{}'", facts.pip(), cuda::WHEEL),
                _ => requirement(facts, &format!("libcudart.so.{wants}")),
            },
        },
    ))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::facts::{Builder, Ort};
    use super::*;
    use crate::engine;
    use crate::nvidia::gpus::Managed;
    use crate::nvidia::libraries::{Missing, Needs};
    use crate::nvidia::{CudaVersion, Driver, NoDevice};
    use crate::runtime::cuda::Provider;

    fn gpu(capability: (u32, u32)) -> driver::Gpu {
        driver::Gpu {
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
        assert!(!driver.found && driver.mend.as_ref().unwrap().contains("--device cpu"));
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
                uuid: None,
                capability: Some((9, 0)),
                memory: None,
                used: Some(1 << 30),
                mig: Some(true),
                instances: 0,
                clock: Some(1000),
                max_clock: Some(1980),
                memory_clock: None,
                max_memory_clock: None,
                temperature: Some(40),
                power: Some(70.4),
                power_limit: Some(700.0),
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
}
