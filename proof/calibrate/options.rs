//! How to calibrate.

use std::num::NonZeroUsize;
use std::path::Path;

use kiln_runtime::DeviceRequest;

/// How to calibrate.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Bytes that the values taken in one run may have together. One value alone may have more.
    pub memory: usize,
    pub ort_lib: Option<&'a Path>,
    /// Where the model runs.
    pub device: DeviceRequest,
    /// Threads of one operator, and threads that fold; `None` leaves it to the machine.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            memory: 256 << 20,
            ort_lib: None,
            device: DeviceRequest::default(),
            threads: None,
        }
    }
}
