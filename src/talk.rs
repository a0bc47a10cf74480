//! Progress reporting.

use crate::engine;

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
    fn engine(&self) -> &dyn engine::Progress;
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Talk for Silent {
    fn stage(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn engine(&self) -> &dyn engine::Progress {
        &engine::NoProgress
    }
}
