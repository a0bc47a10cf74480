//! What a GPU draws, how fast it is clocked and how warm it is while something runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::nvidia::gpus::State;

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
    pub fn of(samples: &[State]) -> Telemetry {
        let spread = |field: fn(&State) -> Option<f64>| {
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
            clock: spread(|s| s.clock.map(f64::from)),
            memory_clock: spread(|s| s.memory_clock.map(f64::from)),
            temperature: spread(|s| s.temperature.map(f64::from)),
            used: spread(|s| s.used.map(|bytes| bytes as f64)),
            busy: spread(|s| s.busy),
            held,
        }
    }
}

/// Samples in a thread of its own, until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<State>>,
}

impl Sampler {
    /// Takes a sample with each call of `look`, so often, until it gives none.
    pub fn start(
        interval: Duration,
        mut look: impl FnMut() -> Option<State> + Send + 'static,
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
        let sample = |power, held: &[&'static str]| State {
            power,
            held: held.to_vec(),
            ..State::default()
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
            (left >= 0).then(State::default)
        });
        while !sampler.thread.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!(sampler.stop().samples, 3);
        let endless = Sampler::start(Duration::from_millis(1), || Some(State::default()));
        assert!(endless.stop().samples >= 1);
    }
}
