//! ONNX Runtime's CUDA provider: a library beside ONNX Runtime's own, and what that needs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::ep::{self, ExecutionProvider};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::SessionBuilder;
use serde::Serialize;

use super::device::{Gpu, Unusable};
use super::options::{Optimization, SessionOptions};
use super::setting::DEVICE;
use super::{Runtime, providers};
use crate::nvidia::elf::{self, ElfError};
use crate::nvidia::{Driver, Needs, Places, driver, libraries, packages};
use crate::pysite;

pub(super) use super::device::CUDA as NAME;

/// The library of the provider, which ONNX Runtime loads from its own folder.
pub const LIBRARY: &str = "libonnxruntime_providers_cuda.so";

/// The wheel that has the provider, and with its extras everything that it needs but the driver.
pub const WHEEL: &str = "onnxruntime-gpu[cuda,cudnn]==1.31.1";

/// The provider beside a library of ONNX Runtime, and what it needs.
#[derive(Clone, Debug, Serialize)]
pub struct Provider {
    pub path: PathBuf,
    /// The CUDA that it was built for, by what it is linked to.
    pub cuda: Option<u32>,
    /// What must be there for it to load.
    pub needs: Needs,
    /// What it loads for some operators.
    pub on_demand: Needs,
}

impl Provider {
    /// The provider beside this library; `None` if there is none.
    ///
    /// # Errors
    /// When the provider's file is no library.
    pub fn beside(library: &Path) -> Result<Option<Provider>, ElfError> {
        Provider::within(library, &Places::around(library))
    }

    /// As [`Provider::beside`], looking for what it needs in these places.
    ///
    /// # Errors
    /// When the provider's file is no library.
    pub fn within(library: &Path, places: &Places) -> Result<Option<Provider>, ElfError> {
        let path = library.with_file_name(LIBRARY);
        if !path.is_file() {
            return Ok(None);
        }
        let cuda = packages::cuda_major(&elf::dynamic(&path)?.needed);
        let needs = libraries::needs(&path, places)?;
        let wanted = packages::on_demand(cuda.unwrap_or(13));
        Ok(Some(Provider {
            on_demand: libraries::needs_of(&wanted, &path, places),
            cuda,
            needs,
            path,
        }))
    }

    /// What stops the provider from loading, if anything does.
    pub fn obstacle(&self) -> Option<Unusable> {
        self.refusal(&self.needs)
    }

    /// What is missing for some operators, if anything is.
    pub fn gap(&self) -> Option<Unusable> {
        self.refusal(&self.on_demand)
    }

    fn refusal(&self, needs: &Needs) -> Option<Unusable> {
        let missing: Vec<&str> = needs.missing.iter().map(|m| m.name.as_str()).collect();
        if !missing.is_empty() {
            let reason = format!(
                "{} needs {}, which no folder has",
                LIBRARY,
                missing.join(", ")
            );
            return Some(Unusable::new(
                reason,
                install(&missing, self.cuda.unwrap_or(13), &self.path),
            ));
        }
        if let Some(broken) = needs.broken.first() {
            let mend = format!("{} install --force-reinstall '{WHEEL}'", pip(&self.path));
            return Some(Unusable::new(
                format!("a library is broken: {broken}"),
                mend,
            ));
        }
        let other = needs.unloadable.first()?;
        let by = other
            .needed_by
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        Some(match packages::is_driver(&other.name) {
            true => Unusable::new(
                format!(
                    "{by} needs {}, which comes with NVIDIA's driver and is not found",
                    other.name
                ),
                driver::NoDevice::NoDriver.mend(),
            ),
            false => Unusable::new(
                format!("{by} needs {}, which this system lacks", other.name),
                format!("apt-get install {}", debian(&other.name)),
            ),
        })
    }
}

/// The package of Debian and Ubuntu that has a library of the system.
fn debian(library: &str) -> String {
    match library {
        "libz.so.1" => "zlib1g".into(),
        "libstdc++.so.6" => "libstdc++6".into(),
        "libgcc_s.so.1" => "libgcc-s1".into(),
        other => format!("apt-file && apt-file update && apt-file search {other}"),
    }
}

fn pip(library: &Path) -> String {
    packages::pip(pysite::around(library).as_deref())
}

/// The command that installs these libraries for the CUDA of a provider.
fn install(libraries: &[&str], cuda: u32, provider: &Path) -> String {
    let mut wheels: Vec<String> = Vec::new();
    for wheel in libraries
        .iter()
        .filter_map(|l| packages::requirement(l, cuda))
    {
        if !wheels.contains(&wheel) {
            wheels.push(wheel);
        }
    }
    format!("{} install {}", pip(provider), wheels.join(" "))
}

/// Why a driver does not serve this CUDA, if it does not.
pub fn too_old(driver: &Driver, cuda: u32) -> Option<Unusable> {
    if driver.cuda.major() >= cuda {
        return None;
    }
    let release = driver.release.as_deref().unwrap_or("of unknown release");
    let oldest =
        packages::oldest_driver(cuda).map_or("a newer one".into(), |d| format!("{d} or newer"));
    let mut mend = format!(
        "install driver {oldest} (`apt-get install nvidia-driver`, or `ubuntu-drivers install`)"
    );
    if cuda == 13 {
        mend +=
            ", or `pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0'`, which is built for CUDA 12";
    }
    Some(Unusable::new(
        format!(
            "the driver ({release}) serves CUDA {}, and the provider is built for CUDA {cuda}, which takes driver {oldest}",
            driver.cuda
        ),
        mend,
    ))
}

/// Why libraries of this CUDA have no kernels for a GPU, if they have none.
pub fn unserved(gpu: &driver::Gpu, cuda: u32) -> Option<Unusable> {
    let lowest = packages::lowest_capability(cuda)?;
    (gpu.capability < lowest).then(|| {
        Unusable::new(
            format!(
                "{} is {}, and CUDA {cuda} has kernels from sm_{}{} on",
                gpu.name,
                gpu.target(),
                lowest.0,
                lowest.1
            ),
            "pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0', which is built for CUDA 12",
        )
    })
}

/// Whether the provider runs on the GPU of this number; its name.
pub(super) fn device(runtime: &Runtime, id: u32) -> Result<String, Unusable> {
    let driver = driver::probe().map_err(|none| Unusable::new(none.to_string(), none.mend()))?;
    let gpu = driver.gpus.get(id as usize).ok_or_else(|| {
        Unusable::new(
            format!(
                "CUDA's devices are numbered from 0 to {}",
                driver.gpus.len().saturating_sub(1)
            ),
            format!("{DEVICE} cuda:N with one of them"),
        )
    })?;
    let cuda = prepare(runtime)?;
    if let Some(why) = cuda.and_then(|cuda| too_old(&driver, cuda).or(unserved(gpu, cuda))) {
        return Err(why);
    }
    // The provider counts devices when it reads its options, so a trial shows whether it and the driver get along.
    let options = SessionOptions::default();
    let on = Gpu {
        id,
        memory_limit: None,
    };
    let mut builder = ort::session::Session::builder(&runtime.environment).map_err(failed)?;
    append(&mut builder, on, &options).map_err(failed)?;
    Ok(gpu.name.clone())
}

/// ONNX Runtime's words on one line.
pub(super) fn failed(error: ort::Error) -> Unusable {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mend = "update NVIDIA's driver (`apt-get install nvidia-driver`, or `ubuntu-drivers install`); `kiln doctor` has all versions";
    Unusable::new(words.join(" "), mend)
}

/// Loads what the provider needs, once; the CUDA that it is built for.
pub(super) fn prepare(runtime: &Runtime) -> Result<Option<u32>, Unusable> {
    static PREPARED: OnceLock<Result<Option<u32>, Unusable>> = OnceLock::new();
    PREPARED
        .get_or_init(|| load(&runtime.library().path))
        .clone()
}

fn load(library: &Path) -> Result<Option<u32>, Unusable> {
    let wheel = || {
        let pip = pip(library);
        format!("{pip} uninstall -y onnxruntime && {pip} install '{WHEEL}'")
    };
    let provider = Provider::beside(library).map_err(|e| {
        Unusable::new(
            e.to_string(),
            format!("{} install --force-reinstall '{WHEEL}'", pip(library)),
        )
    })?;
    let provider = provider.ok_or_else(|| {
        Unusable::new(
            format!(
                "ONNX Runtime at {} has no CUDA provider: {LIBRARY} is not beside it",
                library.display()
            ),
            wheel(),
        )
    })?;
    if !providers().iter().any(|p| p == NAME) {
        // The wheels of both kinds share a folder; the one that was installed last has written the library.
        let reason = format!(
            "ONNX Runtime at {} was built without CUDA, though {LIBRARY} is beside it: onnxruntime was installed over onnxruntime-gpu",
            library.display()
        );
        let pip = pip(library);
        let mend =
            format!("{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install '{WHEEL}'");
        return Err(Unusable::new(reason, mend));
    }
    if let Some(obstacle) = provider.obstacle() {
        return Err(obstacle);
    }
    let all = [provider.needs.found.as_slice(), &provider.on_demand.found].concat();
    libraries::preload(&all).map_err(|e| Unusable::new(e, "kiln doctor"))?;
    Ok(provider.cuda)
}

/// Puts the provider into a session's options.
pub(super) fn append(
    builder: &mut SessionBuilder,
    gpu: Gpu,
    options: &SessionOptions,
) -> ort::Result<()> {
    provider(gpu, options).register(builder)
}

/// The provider with its options.
fn provider(gpu: Gpu, options: &SessionOptions) -> ep::CUDA {
    let provider = ep::CUDA::default()
        .with_device_id(i32::try_from(gpu.id).unwrap_or(i32::MAX))
        .with_tf32(options.gpu.tf32)
        .with_cuda_graph(options.gpu.graph)
        // Sessions stand side by side, so none may take more than it needs.
        .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
        .with_conv_algorithm_search(match options.optimization {
            // Always the same algorithm, so that two runs compute the same.
            Optimization::Disabled => ep::cuda::ConvAlgorithmSearch::Default,
            Optimization::All => ep::cuda::ConvAlgorithmSearch::Exhaustive,
        });
    match gpu.memory_limit {
        Some(limit) => provider.with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX)),
        None => provider,
    }
}

/// The GPU's memory.
pub(super) fn memory(gpu: Gpu) -> ort::Result<MemoryInfo<'static>> {
    let id = i32::try_from(gpu.id).unwrap_or(i32::MAX);
    MemoryInfo::new(
        AllocationDevice::CUDA,
        id,
        AllocatorType::Device,
        MemoryType::Default,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvidia::CudaVersion;

    #[test]
    fn options_of_the_provider_are_what_was_asked_for() {
        let gpu = Gpu {
            id: 1,
            memory_limit: Some(1 << 20),
        };
        let told = |graph| {
            let mut options = SessionOptions::default();
            options.gpu.graph = graph;
            format!("{:?}", provider(gpu, &options))
        };
        let with = told(true);
        for part in [
            "\"enable_cuda_graph\": \"1\"",
            "\"device_id\": \"1\"",
            "\"1048576\"",
        ] {
            assert!(with.contains(part), "{with}");
        }
        assert!(!told(false).contains("\"enable_cuda_graph\": \"1\""));
    }

    #[test]
    fn onnx_runtime_knows_the_memory_of_a_gpu_by_its_name() {
        if super::super::testing::runtime().is_some() {
            let gpu = Gpu {
                id: 1,
                memory_limit: None,
            };
            let memory = memory(gpu).unwrap();
            assert_eq!((memory.device_id(), memory.is_cpu_accessible()), (1, false));
        }
    }

    fn driver(cuda: u32, release: &str) -> Driver {
        Driver {
            cuda: CudaVersion(cuda),
            release: Some(release.into()),
            gpus: vec![driver::Gpu {
                uuid: None,
                name: "NVIDIA Test".into(),
                capability: (7, 0),
                memory: 1 << 34,
            }],
        }
    }

    #[test]
    fn a_driver_older_than_the_provider_is_told_with_the_one_to_install() {
        let old = too_old(&driver(12_040, "550.54.15"), 13).unwrap();
        assert!(
            old.reason.contains("550.54.15") && old.reason.contains("12.4"),
            "{old:?}"
        );
        assert!(old.mend.contains("580"), "{old:?}");
        assert_eq!(too_old(&driver(13_000, "580.65.06"), 13), None);
        // Drivers run programs of every older CUDA.
        assert_eq!(too_old(&driver(13_000, "580.65.06"), 12), None);
    }

    #[test]
    fn a_gpu_that_cuda_13_dropped_is_told() {
        let gpu = &driver(13_000, "580").gpus[0];
        let why = unserved(gpu, 13).unwrap();
        assert!(
            why.reason.contains("sm_70") && why.reason.contains("sm_75"),
            "{why:?}"
        );
        assert_eq!(unserved(gpu, 12), None);
    }

    #[test]
    fn what_is_missing_is_installed_once_each() {
        let missing = ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];
        assert_eq!(
            install(&missing, 13, Path::new("/opt/ort/x.so")),
            "pip install nvidia-cublas~=13.0 nvidia-curand~=10.0"
        );
    }
}
