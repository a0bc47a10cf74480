//! TensorRT for RTX as a plugin of ONNX Runtime: registered with the environment, which then offers its devices.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::AsPointer;
use ort::device::Device as EpDevice;
use ort::memory::MemoryInfo;
use ort::session::builder::SessionBuilder;

use super::Runtime;
use super::device::{Gpu, Unusable};
use super::options::SessionOptions;
use super::setting::DEVICE;
use crate::nvidia::{Places, driver, elf, libraries};
use crate::pysite;

pub(super) use super::device::RTX as NAME;

/// The folder that the wheels `onnxruntime-ep-nv-tensorrt-rtx-cu*` install into, and the plugin in it.
const PACKAGE: &str = "onnxruntime_ep_nv_tensorrt_rtx";
const LIBRARY: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// What installs the plugin.
pub const WHEEL: &str = "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0";

/// The plugin in the Python environments at hand, those around this library first.
pub fn locate(library: &Path) -> Option<PathBuf> {
    let sites = pysite::around(library)
        .into_iter()
        .chain(pysite::site_packages());
    let mut plugins = sites.map(|site| site.join(PACKAGE).join(LIBRARY));
    let near = plugins.find(|p| p.is_file());
    near.or_else(|| {
        let sites = pysite::interpreter_site_packages().into_iter();
        sites
            .map(|site| site.join(PACKAGE).join(LIBRARY))
            .find(|p| p.is_file())
    })
}

/// Whether the plugin runs on its device of this number; the GPU's name.
pub(super) fn device(runtime: &Runtime, id: u32) -> Result<String, Unusable> {
    let driver = driver::probe().map_err(|none| Unusable::new(none.to_string(), none.mend()))?;
    register(runtime)?;
    let count = runtime.environment.devices().filter(is_ours).count();
    match count {
        0 => {
            let reason = "TensorRT for RTX's plugin is registered and offers no device: it takes GPUs of the RTX kind";
            return Err(Unusable::new(reason, format!("{DEVICE} cuda:0")));
        }
        n if id as usize >= n => {
            return Err(Unusable::new(
                format!("TensorRT for RTX's plugin offers devices 0 to {}", n - 1),
                format!("{DEVICE} rtx:N with one of them"),
            ));
        }
        _ => {}
    }
    let name = driver.gpus.get(id as usize).map(|gpu| gpu.name.clone());
    Ok(name.unwrap_or_else(|| "a GPU".into()))
}

fn is_ours(device: &EpDevice<'_>) -> bool {
    device.ep().is_ok_and(|name| name == NAME)
}

/// Registers the plugin once.
pub(super) fn register(runtime: &Runtime) -> Result<(), Unusable> {
    static REGISTERED: OnceLock<Result<(), Unusable>> = OnceLock::new();
    REGISTERED.get_or_init(|| load(runtime)).clone()
}

fn load(runtime: &Runtime) -> Result<(), Unusable> {
    let library = &runtime.library().path;
    let pip = crate::nvidia::packages::pip(pysite::around(library).as_deref());
    let install = format!("{pip} install '{WHEEL}'");
    let plugin = locate(library).ok_or_else(|| {
        Unusable::new(
            "TensorRT for RTX's plugin for ONNX Runtime is not installed",
            install.clone(),
        )
    })?;
    let own = plugin.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut places = Places::around(&plugin);
    places.folders.insert(0, own);
    let needs = libraries::needs(&plugin, &places)
        .map_err(|e| Unusable::new(e.to_string(), install.clone()))?;
    if let Some(missing) = needs.missing.iter().chain(&needs.unloadable).next() {
        let driver = driver::NoDevice::NoDriver;
        let mend = match crate::nvidia::packages::is_driver(&missing.name) {
            true => driver.mend(),
            false => install.clone(),
        };
        return Err(Unusable::new(
            format!(
                "TensorRT for RTX's plugin needs {}, which is not found",
                missing.name
            ),
            mend,
        ));
    }
    libraries::preload(&needs.found).map_err(|e| Unusable::new(e, install.clone()))?;
    let registered = runtime.environment.register_ep_library("kiln-rtx", &plugin);
    registered.map_err(|e| {
        let soname = elf::dynamic(&plugin).ok().and_then(|d| d.soname);
        let name = soname.unwrap_or_else(|| LIBRARY.into());
        Unusable::new(format!("ONNX Runtime does not take {name}: {e}"), install)
    })
}

/// Puts the plugin's device of this number into a session's options.
pub(super) fn append(
    runtime: &Runtime,
    builder: SessionBuilder,
    gpu: Gpu,
    options: &SessionOptions,
) -> ort::Result<SessionBuilder> {
    let mut devices = runtime.environment.devices().filter(is_ours);
    let device = devices.nth(gpu.id as usize);
    let device = device
        .ok_or_else(|| ort::Error::new(format!("TensorRT for RTX has no device {}", gpu.id)))?;
    let mut settings = Vec::new();
    let mut set = |key: &str, value: String| settings.push((format!("{NAME}.{key}"), value));
    if options.gpu.graph {
        set("enable_cuda_graph", "1".into());
    }
    if let Some(limit) = gpu.memory_limit {
        set("nv_max_workspace_size", limit.to_string());
    }
    Ok(builder.with_devices([device], Some(&settings))?)
}

/// The device's memory, or the host's where the plugin names none.
pub(super) fn memory(runtime: &Runtime, gpu: Gpu) -> ort::Result<MemoryInfo<'static>> {
    let device = runtime
        .environment
        .devices()
        .filter(is_ours)
        .nth(gpu.id as usize);
    let Some(device) = device else {
        return Ok(MemoryInfo::default());
    };
    let kind = ort::sys::OrtDeviceMemoryType::OrtDeviceMemoryType_DEFAULT;
    // SAFETY: the device lives as long as the environment. `Device::memory_info` takes null for impossible; ONNX Runtime
    // gives it for devices that are addressed as the host is.
    let named = unsafe { (ort::api().EpDevice_MemoryInfo)(device.ptr(), kind) };
    match named.is_null() {
        true => Ok(MemoryInfo::default()),
        false => Ok(device.memory_info(false).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::runtime;
    use super::*;

    #[test]
    fn without_the_plugin_or_the_driver_the_refusal_names_the_remedy() {
        let Some(runtime) = runtime() else {
            return;
        };
        if driver::probe().is_ok() {
            println!("skipped: this machine has a CUDA device");
            return;
        }
        let refused = register(runtime).unwrap_err();
        assert!(!refused.mend.is_empty());
        let installed = locate(&runtime.library().path).is_some();
        let expected = if installed {
            "needs lib"
        } else {
            "not installed"
        };
        assert!(refused.reason.contains(expected), "{refused:?}");
    }
}
