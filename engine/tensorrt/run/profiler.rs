//! TensorRT's `IProfiler`: the time of each layer.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use trtx_sys::nvinfer1::IProfiler;
use trtx_sys::{trtx_create_profiler, trtx_destroy_profiler};

use crate::EngineError;
use crate::run::LayerTime;

#[derive(Default)]
struct Times(Mutex<BTreeMap<String, (f64, usize)>>);

/// An `IProfiler`. It must outlive the context that it is set on.
pub(super) struct Profiler {
    raw: *mut IProfiler,
    times: Box<Times>,
}

impl Profiler {
    pub(super) fn new() -> Result<Profiler, EngineError> {
        let times = Box::<Times>::default();
        let user_data = (&raw const *times).cast_mut().cast::<c_void>();
        // SAFETY: the callback reads `user_data` as `Times`, which is boxed and dropped after the profiler.
        let raw = unsafe { trtx_create_profiler(user_data, on_layer) };
        match raw.is_null() {
            true => Err(EngineError::refused("a profiler")),
            false => Ok(Profiler { raw, times }),
        }
    }

    pub(super) fn as_ptr(&self) -> *mut IProfiler {
        self.raw
    }

    /// The layers by time, the slowest first.
    pub(super) fn layers(&self) -> Vec<LayerTime> {
        ranked(&self.times.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        // SAFETY: made by `trtx_create_profiler`, destroyed once, after the context that held it.
        unsafe { trtx_destroy_profiler(self.raw) }
    }
}

fn ranked(times: &BTreeMap<String, (f64, usize)>) -> Vec<LayerTime> {
    let total: f64 = times.values().map(|(ms, _)| ms).sum();
    let mut layers: Vec<LayerTime> = (times.iter())
        .map(|(layer, &(ms, runs))| LayerTime {
            layer: layer.clone(),
            ms: ms / runs.max(1) as f64,
            share: if total > 0.0 { ms / total } else { 0.0 },
        })
        .collect();
    layers.sort_by(|a, b| b.share.total_cmp(&a.share));
    layers
}

unsafe extern "system" fn on_layer(user_data: *mut c_void, name: *const c_char, ms: f32) {
    if user_data.is_null() || name.is_null() {
        return;
    }
    // A panic must not unwind into C++; a lost time is the smaller harm.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `user_data` is the `Times` given in `Profiler::new`; TensorRT passes a C string.
        let (times, name) = unsafe { (&*user_data.cast::<Times>(), CStr::from_ptr(name)) };
        let mut times = times.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = times
            .entry(name.to_string_lossy().into_owned())
            .or_default();
        entry.0 += f64::from(ms);
        entry.1 += 1;
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_ranked_by_their_mean() {
        let profiler = Profiler::new().unwrap();
        let user_data = (&raw const *profiler.times).cast_mut().cast::<c_void>();
        for (name, ms) in [
            (c"gemm", 3.0),
            (c"norm", 1.0),
            (c"gemm", 5.0),
            (c"norm", 1.0),
        ] {
            // SAFETY: as TensorRT calls it.
            unsafe { on_layer(user_data, name.as_ptr(), ms) };
        }
        let layers = profiler.layers();
        assert_eq!(
            (&*layers[0].layer, layers[0].ms, layers[0].share),
            ("gemm", 4.0, 0.8)
        );
        assert_eq!(
            (&*layers[1].layer, layers[1].ms, layers[1].share),
            ("norm", 1.0, 0.2)
        );
    }
}
