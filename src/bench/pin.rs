//! The calling thread on a core of its own, as ONNX Runtime's others are: else the scheduler may put it on one of theirs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Holds the calling thread on its first processor until it is dropped. Threads that are started meanwhile are held, too.
#[derive(Debug)]
pub(super) struct Pinned {
    before: Option<CpuSet>,
}

impl Pinned {
    /// Where the system does not let a thread be held, it is not.
    pub fn new() -> Pinned {
        let Ok(before) = sched_getaffinity(None) else {
            return Pinned { before: None };
        };
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu));
        let mut one = CpuSet::new();
        let held = first.is_some_and(|cpu| {
            one.set(cpu);
            sched_setaffinity(None, &one).is_ok()
        });
        Pinned {
            before: held.then_some(before),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It was allowed before.
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_held_and_let_go() {
        let count = || sched_getaffinity(None).map_or(0, |set| set.count());
        let before = count();
        let pinned = Pinned::new();
        assert_eq!(count(), 1);
        drop(pinned);
        assert_eq!(count(), before);
    }
}
