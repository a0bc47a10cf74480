//! What TensorRT says while it works, kept instead of printed.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use trtx_sys::{create_rust_logger_bridge, get_logger_interface};

use crate::{EngineError, LogLine, Severity, kernels};

/// A model with a bad node repeated in every layer must not fill the memory with its complaints.
const MAX_LINES: usize = 1000;

#[derive(Default)]
struct Buffer {
    lines: Mutex<Vec<LogLine>>,
    /// The lists of an engine's kernels.
    lists: Mutex<Vec<String>>,
    listener: OnceLock<fn(&LogLine)>,
}

impl Buffer {
    fn lines(&self) -> MutexGuard<'_, Vec<LogLine>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lists(&self) -> MutexGuard<'_, Vec<String>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, severity: Severity, text: &str) {
        let mut lines = self.lines();
        let known = lines
            .iter_mut()
            .find(|l| l.text == text && l.severity == severity);
        if let Some(line) = known {
            line.count += 1;
        } else if lines.len() < MAX_LINES {
            let line = LogLine {
                severity,
                text: text.to_owned(),
                count: 1,
            };
            if let Some(hear) = self.listener.get() {
                hear(&line);
            }
            lines.push(line);
        }
    }
}

/// The `ILogger` of this process.
///
/// TensorRT keeps the first logger it is given and ignores all others while any of its objects live, so there is one, and
/// it is never destroyed. Whoever makes TensorRT objects must pass this one.
pub(super) struct Log {
    logger: *mut c_void,
    buffer: &'static Buffer,
}

// SAFETY: an `ILogger` must stand calls from any thread, and this one writes into a mutex.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Log {
    pub(super) fn get() -> Result<&'static Self, EngineError> {
        static LOG: OnceLock<Option<Log>> = OnceLock::new();
        LOG.get_or_init(Self::new)
            .as_ref()
            .ok_or_else(|| EngineError::refused("a logger"))
    }

    fn new() -> Option<Self> {
        static BUFFER: Buffer = Buffer {
            lines: Mutex::new(Vec::new()),
            lists: Mutex::new(Vec::new()),
            listener: OnceLock::new(),
        };
        let user_data = (&raw const BUFFER).cast_mut().cast::<c_void>();
        // SAFETY: the callback reads `user_data` as the `Buffer` it is; the bridge lives as long as the process.
        let logger = unsafe {
            let bridge = create_rust_logger_bridge(on_log, user_data);
            if bridge.is_null() {
                return None;
            }
            get_logger_interface(bridge)
        };
        Some(Self {
            logger,
            buffer: &BUFFER,
        })
    }

    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.logger
    }

    /// The lines since the last `clear`, oldest first, equal lines counted once.
    pub(super) fn lines(&self) -> Vec<LogLine> {
        self.buffer.lines().clone()
    }

    /// From now on `hear` is given every new line; the first who asks is heard.
    pub(super) fn listen(&self, hear: fn(&LogLine)) {
        let _ = self.buffer.listener.set(hear);
    }

    /// What was written of the finished engine's kernels since the last `clear`: texts of many lines.
    pub(super) fn kernels(&self) -> Vec<String> {
        self.buffer.lists().clone()
    }

    pub(super) fn clear(&self) {
        self.buffer.lines().clear();
        self.buffer.lists().clear();
    }
}

unsafe extern "C" fn on_log(user_data: *mut c_void, severity: i32, message: *const c_char) {
    let severity = match severity {
        0 => Some(Severity::InternalError),
        1 => Some(Severity::Error),
        2 => Some(Severity::Warning),
        _ => None,
    };
    if user_data.is_null() || message.is_null() {
        return;
    }
    // A panic must not unwind into C++; a lost log line is the smaller harm.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `user_data` is the `Buffer` given in `Log::new`; TensorRT passes a C string.
        let (buffer, text) = unsafe { (&*user_data.cast::<Buffer>(), CStr::from_ptr(message)) };
        match severity {
            Some(severity) => buffer.push(severity, text.to_string_lossy().trim_end()),
            // Of all that it tells in detail, this alone is asked for.
            None if kernels::is_list(text.to_bytes()) => {
                buffer.lists().push(text.to_string_lossy().into_owned());
            }
            None => {}
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lines_are_counted_once() {
        let buffer = Buffer::default();
        buffer.push(Severity::Warning, "a");
        buffer.push(Severity::Error, "a");
        buffer.push(Severity::Warning, "a");
        let lines = buffer.lines.into_inner().unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].count, lines[1].count), (2, 1));
    }

    #[test]
    fn the_buffer_is_bounded() {
        let buffer = Buffer::default();
        for i in 0..MAX_LINES + 50 {
            buffer.push(Severity::Warning, &i.to_string());
        }
        assert_eq!(buffer.lines.into_inner().unwrap().len(), MAX_LINES);
    }
}
