//! Progress reporting.

use crate::engine;

/// Hears what a compilation does.
pub trait Talk: Sync {
    /// A stage begins: `reading`, `passes`, `engine`, `parity`, `latency`, …
    fn stage(&self, what: &str);
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
