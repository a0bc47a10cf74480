//! What TensorRT hands over.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

use cxx::UniquePtr;
use trtx_sys::nvinfer1::IHostMemory;

use crate::EngineError;

/// # Safety
/// `raw` must be null or a TensorRT object that nobody else owns.
pub(super) unsafe fn own<T: cxx::memory::UniquePtrTarget>(
    raw: *mut T,
    what: &'static str,
) -> Result<UniquePtr<T>, EngineError> {
    if raw.is_null() {
        return Err(EngineError::refused(what));
    }
    Ok(unsafe { UniquePtr::from_raw(raw) })
}

/// # Safety
/// `raw` must be null or a C string.
pub(super) unsafe fn text(raw: *const c_char) -> Option<String> {
    (!raw.is_null()).then(|| {
        unsafe { CStr::from_ptr(raw) }
            .to_string_lossy()
            .into_owned()
    })
}

/// Memory that TensorRT allocated and we own.
pub(super) struct HostMemory(UniquePtr<IHostMemory>);

// SAFETY: a buffer that nobody writes to any more, and whose accessors are const; it is tied to no thread.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl From<UniquePtr<IHostMemory>> for HostMemory {
    fn from(memory: UniquePtr<IHostMemory>) -> Self {
        Self(memory)
    }
}

impl AsRef<[u8]> for HostMemory {
    fn as_ref(&self) -> &[u8] {
        let (data, size) = (self.0.data().cast::<u8>(), self.0.size());
        if data.is_null() || size == 0 {
            return &[];
        }
        // SAFETY: TensorRT says that many bytes are there, for as long as the object lives.
        unsafe { std::slice::from_raw_parts(data, size) }
    }
}
