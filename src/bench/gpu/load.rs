//! Several runs at once, each in a stream of its own.

use serde::Serialize;

use crate::bench::Stats;
use crate::engine::run::{EngineRunError, Session};

/// A stream that runs one thing again and again.
pub trait Lane {
    /// Queues a run and returns at once.
    ///
    /// # Errors
    /// When the GPU fails.
    fn start(&mut self) -> Result<(), EngineRunError>;

    /// Waits for the run; milliseconds that the GPU took.
    ///
    /// # Errors
    /// When the GPU fails.
    fn finish(&mut self) -> Result<f64, EngineRunError>;
}

impl Lane for Session {
    fn start(&mut self) -> Result<(), EngineRunError> {
        Session::start(self)
    }

    fn finish(&mut self) -> Result<f64, EngineRunError> {
        Session::finish(self)
    }
}

/// What so many streams did.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    pub streams: usize,
    /// Items a second, over all streams.
    pub throughput: f64,
    /// From the queueing of a run to its end, in nanoseconds.
    pub latency: Stats,
    /// Of the GPU's clock, in nanoseconds.
    pub gpu: Stats,
}

/// Keeps every lane busy for so many nanoseconds, and `min_runs` runs of each at least. The clock counts nanoseconds.
///
/// One run of each lane is queued at a time: a lane that ends is fed again before the next is waited for, so that the GPU has
/// the work of all other lanes meanwhile.
///
/// # Errors
/// When the GPU fails. `None` if there is no lane.
pub fn measure<L: Lane>(
    lanes: &mut [L],
    batch: usize,
    min_nanos: u64,
    min_runs: usize,
    clock: &dyn Fn() -> u64,
) -> Result<Option<Load>, EngineRunError> {
    let mut started = Vec::with_capacity(lanes.len());
    let start = clock();
    for lane in lanes.iter_mut() {
        started.push(clock());
        lane.start()?;
    }
    let (mut latencies, mut gpu) = (Vec::new(), Vec::new());
    let mut rounds = 0;
    loop {
        let last = clock() - start >= min_nanos && rounds + 1 >= min_runs;
        for (lane, since) in lanes.iter_mut().zip(&mut started) {
            let ms = lane.finish()?;
            let now = clock();
            latencies.push(now - *since);
            gpu.push((ms * 1e6) as u64);
            if !last {
                *since = clock();
                lane.start()?;
            }
        }
        rounds += 1;
        if last {
            break;
        }
    }
    let seconds = (clock() - start) as f64 / 1e9;
    let runs = latencies.len();
    Ok(
        (Stats::of(&latencies).zip(Stats::of(&gpu))).map(|(latency, gpu)| Load {
            streams: lanes.len(),
            throughput: (runs * batch) as f64 / seconds.max(f64::MIN_POSITIVE),
            latency,
            gpu,
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A GPU on which every lane's run takes `takes` nanoseconds after it was started, beside the others.
    struct Fake {
        now: Rc<Cell<u64>>,
        takes: u64,
        ends: u64,
    }

    impl Lane for Fake {
        fn start(&mut self) -> Result<(), EngineRunError> {
            self.ends = self.now.get() + self.takes;
            Ok(())
        }

        fn finish(&mut self) -> Result<f64, EngineRunError> {
            self.now.set(self.now.get().max(self.ends));
            Ok(self.takes as f64 / 1e6)
        }
    }

    fn run(lanes: usize, min_nanos: u64, min_runs: usize) -> Load {
        let now = Rc::new(Cell::new(0));
        let lane = || Fake {
            now: now.clone(),
            takes: 1_000_000,
            ends: 0,
        };
        let mut lanes: Vec<Fake> = (0..lanes).map(|_| lane()).collect();
        let clock = || now.get();
        let load = measure(&mut lanes, 8, min_nanos, min_runs, &clock);
        load.unwrap().unwrap()
    }

    #[test]
    fn lanes_overlap() {
        let one = run(1, 100_000_000, 1);
        assert_eq!(one.throughput.round(), 8_000.0);
        assert_eq!((one.latency.p99, one.gpu.p50), (1e6, 1e6));
        let four = run(4, 100_000_000, 1);
        assert_eq!(four.throughput.round(), 32_000.0);
        assert_eq!(four.latency.p99, 1e6);
    }

    #[test]
    fn there_are_so_many_runs_at_least() {
        assert_eq!(run(2, 0, 7).latency.runs, 14);
        assert_eq!(run(1, 5_000_000, 1).latency.runs, 6);
    }
}
