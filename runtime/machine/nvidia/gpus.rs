//! GPUs as NVIDIA's management library (NVML) tells of them: what is built in, and the state they are in.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

/// The library of the driver; the crate's default name exists only where the driver's development files do.
const LIBNVML: &str = "libnvidia-ml.so.1";

/// What NVML tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Managed {
    /// The driver's release.
    pub driver: Option<String>,
    /// Every GPU of the machine, in the order of their PCI addresses, which CUDA's may differ from.
    pub gpus: Vec<Status>,
}

/// A GPU and its state; what the GPU or the driver does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    pub name: String,
    pub uuid: Option<String>,
    pub capability: Option<(u32, u32)>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Whether the GPU is partitioned (multi-instance GPU).
    pub mig: Option<bool>,
    /// Instances that it is partitioned into.
    pub instances: usize,
    /// Megahertz of the multiprocessors at most.
    pub max_clock: Option<u32>,
    /// Megahertz of the memory at most.
    pub max_memory_clock: Option<u32>,
    /// Watts at most.
    pub power_limit: Option<f64>,
    #[serde(flatten)]
    pub now: State,
}

/// How a GPU is at one moment; what it does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    /// Watts.
    pub power: Option<f64>,
    /// Megahertz of the multiprocessors.
    pub clock: Option<u32>,
    /// Megahertz of the memory.
    pub memory_clock: Option<u32>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Bytes of the GPU's memory that are taken, by whichever process.
    pub used: Option<u64>,
    /// Part of the time in which a kernel ran, from 0 to 1.
    pub busy: Option<f64>,
    /// What holds its clocks down.
    pub held: Vec<&'static str>,
}

/// Asks NVML of all GPUs.
///
/// # Errors
/// Its words, where the library is missing or fails.
pub fn examine() -> Result<Managed, String> {
    let nvml = open()?;
    let count = nvml.device_count().map_err(|e| e.to_string())?;
    let gpus = (0..count).filter_map(|k| nvml.device_by_index(k).ok());
    Ok(Managed {
        driver: nvml.sys_driver_version().ok(),
        gpus: gpus.map(|gpu| status(&gpu)).collect(),
    })
}

/// Looks at one GPU, again and again.
#[derive(Debug)]
pub struct Probe {
    nvml: Nvml,
    uuid: Option<String>,
}

impl Probe {
    /// For the GPU of this UUID (`GPU-…`), or the first one.
    ///
    /// # Errors
    /// NVML's words, where it is missing or does not know the GPU.
    pub fn new(uuid: Option<&str>) -> Result<Probe, String> {
        let probe = Probe {
            nvml: open()?,
            uuid: uuid.map(str::to_owned),
        };
        probe.device()?;
        Ok(probe)
    }

    fn device(&self) -> Result<Device<'_>, String> {
        let found = match &self.uuid {
            Some(uuid) => self.nvml.device_by_uuid(uuid.as_str()),
            None => self.nvml.device_by_index(0),
        };
        found.map_err(|e| e.to_string())
    }

    /// # Errors
    /// NVML's words, if the GPU is gone.
    pub fn state(&self) -> Result<State, String> {
        self.device().map(|gpu| state(&gpu))
    }
}

fn open() -> Result<Nvml, String> {
    let nvml = Nvml::builder().lib_path(LIBNVML.as_ref()).init();
    nvml.map_err(|e| e.to_string())
}

fn status(gpu: &Device<'_>) -> Status {
    // nvmlDeviceGetMigMode: 1 is enabled.
    let mig = gpu.mig_mode().ok().map(|m| m.current == 1);
    let most = gpu.mig_device_count().unwrap_or(0);
    Status {
        name: gpu.name().unwrap_or_else(|_| "unknown GPU".into()),
        uuid: gpu.uuid().ok(),
        capability: (gpu.cuda_compute_capability().ok())
            .map(|c| (c.major.unsigned_abs(), c.minor.unsigned_abs())),
        memory: gpu.memory_info().ok().map(|m| m.total),
        mig,
        instances: match mig {
            Some(true) => (0..most)
                .filter(|&k| gpu.mig_device_by_index(k).is_ok())
                .count(),
            _ => 0,
        },
        max_clock: gpu.max_clock_info(Clock::SM).ok(),
        max_memory_clock: gpu.max_clock_info(Clock::Memory).ok(),
        power_limit: gpu.enforced_power_limit().ok().map(watts),
        now: state(gpu),
    }
}

fn state(gpu: &Device<'_>) -> State {
    State {
        power: gpu.power_usage().ok().map(watts),
        clock: gpu.clock_info(Clock::SM).ok(),
        memory_clock: gpu.clock_info(Clock::Memory).ok(),
        temperature: gpu.temperature(TemperatureSensor::Gpu).ok(),
        used: gpu.memory_info().ok().map(|m| m.used),
        busy: (gpu.utilization_rates().ok()).map(|u| f64::from(u.gpu) / 1e2),
        held: gpu.current_throttle_reasons().map_or(Vec::new(), reasons),
    }
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// Those of NVML's reasons that make a measurement doubtful; idling and clocks that the user set are none.
fn reasons(bits: ThrottleReasons) -> Vec<&'static str> {
    let names = [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat (hardware)"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
    ];
    let held = names.iter().filter(|(bit, _)| bits.contains(*bit));
    held.map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_is_no_reason_for_doubt() {
        assert!(reasons(ThrottleReasons::GPU_IDLE).is_empty());
        let hot = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::SW_POWER_CAP;
        assert_eq!(reasons(hot), ["power limit", "heat"]);
    }

    #[test]
    fn without_a_driver_it_says_so() {
        match (Probe::new(None), examine()) {
            (Ok(probe), Ok(managed)) => assert!(probe.state().is_ok() && !managed.gpus.is_empty()),
            (Err(why), _) => assert!(!why.is_empty()),
            (Ok(_), Err(why)) => panic!("a GPU can be watched and not examined: {why}"),
        }
    }

    /// `kiln doctor --json` has what is built in and the state side by side.
    #[test]
    fn the_state_is_written_beside_what_is_built_in() {
        let status = Status {
            max_clock: Some(1980),
            now: State {
                clock: Some(1000),
                ..State::default()
            },
            ..Status::default()
        };
        let json = serde_json::to_value(status).unwrap();
        assert_eq!(
            (&json["clock"], &json["max_clock"]),
            (&1000.into(), &1980.into())
        );
    }
}
