//! What a GPU draws, how fast it is clocked and how warm it is while something runs, by NVIDIA's management library.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

use crate::nvidia::gpus::LIBNVML;

/// One look at a GPU. What it does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Watts.
    pub power: Option<f64>,
    /// Megahertz of the multiprocessors.
    pub clock: Option<f64>,
    /// Megahertz of the memory.
    pub memory_clock: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Bytes of the GPU's memory that are taken, by whichever process.
    pub used: Option<f64>,
    /// Part of the time in which a kernel ran, from 0 to 1.
    pub busy: Option<f64>,
    /// What holds its clocks down.
    pub held: Vec<&'static str>,
}

/// The least, the mean and the most of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub mean: f64,
    pub max: f64,
}

/// A measurement's samples, summed up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Telemetry {
    pub samples: usize,
    pub power: Option<Spread>,
    pub clock: Option<Spread>,
    pub memory_clock: Option<Spread>,
    pub temperature: Option<Spread>,
    pub used: Option<Spread>,
    pub busy: Option<Spread>,
    /// What held its clocks down at any time.
    pub held: Vec<&'static str>,
}

impl Telemetry {
    pub fn of(samples: &[Sample]) -> Telemetry {
        let spread = |field: fn(&Sample) -> Option<f64>| {
            let values: Vec<f64> = samples.iter().filter_map(field).collect();
            let first = *values.first()?;
            Some(Spread {
                min: values.iter().copied().fold(first, f64::min),
                mean: values.iter().sum::<f64>() / values.len() as f64,
                max: values.iter().copied().fold(first, f64::max),
            })
        };
        let mut held: Vec<&str> = samples.iter().flat_map(|s| s.held.clone()).collect();
        held.sort_unstable();
        held.dedup();
        Telemetry {
            samples: samples.len(),
            power: spread(|s| s.power),
            clock: spread(|s| s.clock),
            memory_clock: spread(|s| s.memory_clock),
            temperature: spread(|s| s.temperature),
            used: spread(|s| s.used),
            busy: spread(|s| s.busy),
            held,
        }
    }
}

/// Looks at one GPU.
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
        let nvml = Nvml::builder().lib_path(LIBNVML.as_ref()).init();
        let probe = Probe {
            nvml: nvml.map_err(|e| e.to_string())?,
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
    pub fn sample(&self) -> Result<Sample, String> {
        let gpu = self.device()?;
        let mhz = |clock| gpu.clock_info(clock).ok().map(f64::from);
        let held = gpu.current_throttle_reasons();
        Ok(Sample {
            power: gpu.power_usage().ok().map(|mw| f64::from(mw) / 1e3),
            clock: mhz(Clock::SM),
            memory_clock: mhz(Clock::Memory),
            temperature: (gpu.temperature(TemperatureSensor::Gpu).ok()).map(f64::from),
            used: gpu.memory_info().ok().map(|m| m.used as f64),
            busy: (gpu.utilization_rates().ok()).map(|u| f64::from(u.gpu) / 1e2),
            held: held.map_or(Vec::new(), reasons),
        })
    }
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

/// Samples in a thread of its own, until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// Takes a sample with each call of `look`, so often, until it gives none.
    pub fn start(
        interval: Duration,
        mut look: impl FnMut() -> Option<Sample> + Send + 'static,
    ) -> Sampler {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while let Some(sample) = look() {
                samples.push(sample);
                if told.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(interval);
            }
            samples
        });
        Sampler { stop, thread }
    }

    /// What was seen.
    pub fn stop(self) -> Telemetry {
        self.stop.store(true, Ordering::Relaxed);
        Telemetry::of(&self.thread.join().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up() {
        let sample = |power, held: &[&'static str]| Sample {
            power,
            held: held.to_vec(),
            ..Sample::default()
        };
        let sum = Telemetry::of(&[
            sample(Some(100.0), &["heat"]),
            sample(None, &[]),
            sample(Some(300.0), &["heat", "power limit"]),
        ]);
        let power = sum.power.unwrap();
        assert_eq!((power.min, power.mean, power.max), (100.0, 200.0, 300.0));
        assert_eq!((sum.samples, sum.clock), (3, None));
        assert_eq!(sum.held, ["heat", "power limit"]);
        assert_eq!(Telemetry::of(&[]), Telemetry::default());
    }

    #[test]
    fn a_sampler_ends_when_it_is_told_or_sees_nothing_more() {
        let mut left = 3;
        let sampler = Sampler::start(Duration::from_millis(1), move || {
            left -= 1;
            (left >= 0).then(Sample::default)
        });
        while !sampler.thread.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!(sampler.stop().samples, 3);
        let endless = Sampler::start(Duration::from_millis(1), || Some(Sample::default()));
        assert!(endless.stop().samples >= 1);
    }

    #[test]
    fn idling_is_no_reason_for_doubt() {
        assert!(reasons(ThrottleReasons::GPU_IDLE).is_empty());
        let hot = ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::SW_POWER_CAP;
        assert_eq!(reasons(hot), ["power limit", "heat"]);
    }

    #[test]
    fn without_a_driver_it_says_so() {
        match Probe::new(None) {
            Ok(probe) => assert!(probe.sample().is_ok()),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}
