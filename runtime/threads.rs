//! How many threads this process has.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

static LIMIT: OnceLock<NonZeroUsize> = OnceLock::new();

/// From now on sessions that are given no number of threads have this one, and so do kiln's own computations. Like ONNX
/// Runtime's thread pools, it belongs to the process: the first call counts.
pub fn limit_threads(threads: NonZeroUsize) {
    let limit = *LIMIT.get_or_init(|| threads);
    // Whoever has made the pool before decides.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(limit.get());
    let _ = pool.build_global();
}

/// Threads of a session that is given no number of them, if there is a limit.
pub(super) fn limit() -> Option<NonZeroUsize> {
    LIMIT.get().copied()
}

/// Threads to compute with: those of the limit, else one for each core that this process may use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
