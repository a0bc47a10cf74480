//! GPUs as NVIDIA's management library (NVML) tells of them: what is built in, and the state it is in.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use serde::Serialize;

/// The library of the driver; the crate's default name exists only where the driver's development files do.
pub const LIBNVML: &str = "libnvidia-ml.so.1";

/// What NVML tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Managed {
    /// The driver's release.
    pub driver: Option<String>,
    /// Every GPU of the machine, in the order of their PCI addresses, which CUDA's may differ from.
    pub gpus: Vec<Status>,
}

/// A GPU and its state; what the GPU or the driver does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    pub name: String,
    pub uuid: Option<String>,
    pub capability: Option<(u32, u32)>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes that are taken, by whichever process.
    pub used: Option<u64>,
    /// Whether the GPU is partitioned (multi-instance GPU).
    pub mig: Option<bool>,
    /// Instances that it is partitioned into.
    pub instances: usize,
    /// Megahertz of the multiprocessors: now, and at most.
    pub clock: Option<u32>,
    pub max_clock: Option<u32>,
    /// Megahertz of the memory: now, and at most.
    pub memory_clock: Option<u32>,
    pub max_memory_clock: Option<u32>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Watts: drawn now, and the limit.
    pub power: Option<f64>,
    pub power_limit: Option<f64>,
}

/// Asks NVML of all GPUs.
///
/// # Errors
/// Its words, where the library is missing or fails.
pub fn examine() -> Result<Managed, String> {
    let nvml = Nvml::builder().lib_path(LIBNVML.as_ref()).init();
    let nvml = nvml.map_err(|e| e.to_string())?;
    let count = nvml.device_count().map_err(|e| e.to_string())?;
    let gpus = (0..count).filter_map(|k| status(&nvml, k)).collect();
    Ok(Managed {
        driver: nvml.sys_driver_version().ok(),
        gpus,
    })
}

fn status(nvml: &Nvml, index: u32) -> Option<Status> {
    let gpu = nvml.device_by_index(index).ok()?;
    let memory = gpu.memory_info().ok();
    // nvmlDeviceGetMigMode: 1 is enabled.
    let mig = gpu.mig_mode().ok().map(|m| m.current == 1);
    let most = gpu.mig_device_count().unwrap_or(0);
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1e3;
    Some(Status {
        name: gpu.name().unwrap_or_else(|_| "unknown GPU".into()),
        uuid: gpu.uuid().ok(),
        capability: (gpu.cuda_compute_capability().ok())
            .map(|c| (c.major.unsigned_abs(), c.minor.unsigned_abs())),
        memory: memory.as_ref().map(|m| m.total),
        used: memory.as_ref().map(|m| m.used),
        mig,
        instances: match mig {
            Some(true) => (0..most)
                .filter(|&k| gpu.mig_device_by_index(k).is_ok())
                .count(),
            _ => 0,
        },
        clock: gpu.clock_info(Clock::SM).ok(),
        max_clock: gpu.max_clock_info(Clock::SM).ok(),
        memory_clock: gpu.clock_info(Clock::Memory).ok(),
        max_memory_clock: gpu.max_clock_info(Clock::Memory).ok(),
        temperature: gpu.temperature(TemperatureSensor::Gpu).ok(),
        power: gpu.power_usage().ok().map(watts),
        power_limit: gpu.enforced_power_limit().ok().map(watts),
    })
}
