//! Progress reporting.

/// Hears what a compilation or another command does.
pub trait Talk: Sync {
    /// A stage begins: `reading`, `passes`, `engine`, `parity`, `latency`, …; `passes: fuse-gelu` is a part of one.
    fn stage(&self, what: &str);
    /// So much of the stage is done: cases, batches, models.
    fn done(&self, _done: usize, _of: usize) {}
    /// Something the user should know.
    fn warn(&self, what: &str);
    /// Something chosen that the user may want to know.
    fn note(&self, _what: &str) {}
    /// Where an engine build has come.
    fn engine(&self) -> &dyn Progress;
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Talk for Silent {
    fn stage(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn engine(&self) -> &dyn Progress {
        &NoProgress
    }
}

/// Hears how far a build has come, and may stop it.
///
/// A build reports the phases `parse` and `build`; under `build` come the phases that TensorRT names itself. TensorRT
/// may call from threads of its own, so an implementation must be `Sync`, and should return fast: the build waits for it.
/// A panic in an implementation stops the build.
///
/// Most of a build is one step, the compilation of the kernels ("Determining refit engines"), in which nothing is reported
/// and a wish to stop goes unheard. Draw something that moves by itself.
pub trait Progress: Sync {
    /// A phase of `steps` steps begins (at least 1), inside `parent` if there is one.
    fn phase_start(&self, name: &str, parent: Option<&str>, steps: u32) {
        let _ = (name, parent, steps);
    }
    /// Step `step` (from 0) of a phase is done.
    fn step(&self, name: &str, step: u32) {
        let _ = (name, step);
    }
    /// A phase is over, maybe before its last step.
    fn phase_finish(&self, name: &str) {
        let _ = name;
    }
    /// Asked after each step: true stops the build, which then ends with an error that says so.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Hears nothing and never stops a build.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
