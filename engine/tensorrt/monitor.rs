//! How far a build has come.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use trtx_sys::nvinfer1::IProgressMonitor;
use trtx_sys::{trtx_create_progress_monitor, trtx_destroy_progress_monitor};

use kiln_runtime::talk::Progress;

use crate::{EngineError, PHASE_BUILD};

struct State<'p> {
    progress: &'p dyn Progress,
    cancelled: AtomicBool,
}

/// TensorRT's `IProgressMonitor` over a [`Progress`]. It must outlive the builder config that uses it.
pub(super) struct Monitor<'p> {
    raw: *mut IProgressMonitor,
    state: Box<State<'p>>,
}

impl<'p> Monitor<'p> {
    pub(super) fn new(progress: &'p dyn Progress) -> Result<Self, EngineError> {
        let state = Box::new(State {
            progress,
            cancelled: AtomicBool::new(false),
        });
        let user_data = (&raw const *state).cast_mut().cast::<c_void>();
        // SAFETY: the callbacks read `user_data` as a `State`, which is boxed and dropped after the monitor.
        let raw = unsafe { trtx_create_progress_monitor(user_data, on_start, on_step, on_finish) };
        if raw.is_null() {
            return Err(EngineError::refused("a progress monitor"));
        }
        Ok(Self { raw, state })
    }

    pub(super) fn as_ptr(&self) -> *mut IProgressMonitor {
        self.raw
    }

    pub(super) fn start(&self, phase: &str) {
        self.state.guard(|p| p.phase_start(phase, None, 1));
    }

    pub(super) fn finish(&self, phase: &str) {
        self.state.guard(|p| {
            p.step(phase, 0);
            p.phase_finish(phase);
        });
    }

    pub(super) fn cancelled(&self) -> bool {
        self.state.check_cancelled()
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `trtx_create_progress_monitor`, destroyed once, after the config that held it.
        unsafe { trtx_destroy_progress_monitor(self.raw) }
    }
}

impl State<'_> {
    /// Runs a callback; whatever panics in it cancels the build instead of unwinding into C++.
    fn guard(&self, call: impl FnOnce(&dyn Progress)) {
        if catch_unwind(AssertUnwindSafe(|| call(self.progress))).is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Once cancelled, always cancelled.
    fn check_cancelled(&self) -> bool {
        self.guard(|p| {
            if p.cancelled() {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        });
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// # Safety
/// `user_data` must be the `State` of a living [`Monitor`].
unsafe fn state<'a>(user_data: *mut c_void) -> &'a State<'a> {
    unsafe { &*user_data.cast::<State<'a>>() }
}

/// # Safety
/// `text` must be null or a C string that lives as long as `'a`.
unsafe fn name<'a>(text: *const c_char) -> Option<std::borrow::Cow<'a, str>> {
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

unsafe extern "system" fn on_start(
    user_data: *mut c_void,
    phase: *const c_char,
    parent: *const c_char,
    steps: i32,
) {
    // SAFETY: TensorRT hands back what `Monitor::new` gave it, and C strings.
    let (state, phase, parent) = unsafe { (state(user_data), name(phase), name(parent)) };
    state.guard(|p| {
        p.phase_start(
            phase.as_deref().unwrap_or_default(),
            parent.as_deref().or(Some(PHASE_BUILD)),
            u32::try_from(steps).unwrap_or(1),
        );
    });
}

unsafe extern "system" fn on_step(user_data: *mut c_void, phase: *const c_char, step: i32) -> bool {
    // SAFETY: as in `on_start`.
    let (state, phase) = unsafe { (state(user_data), name(phase)) };
    state.guard(|p| {
        p.step(
            phase.as_deref().unwrap_or_default(),
            u32::try_from(step).unwrap_or(0),
        );
    });
    !state.check_cancelled()
}

unsafe extern "system" fn on_finish(user_data: *mut c_void, phase: *const c_char) {
    // SAFETY: as in `on_start`.
    let (state, phase) = unsafe { (state(user_data), name(phase)) };
    state.guard(|p| p.phase_finish(phase.as_deref().unwrap_or_default()));
}
