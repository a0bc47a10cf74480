//! How long TensorRT proper found its kernels to take, to be kept from build to build.

#![allow(unsafe_code)]

use std::ffi::c_void;

use cxx::UniquePtr;
use trtx_sys::nvinfer1::IHostMemory;

use super::owned::HostMemory;

/// An `ITimingCache`. The bindings know only that there is such a type, so its bytes are reached through its table of virtual
/// functions, as NvInfer.h and NvInferImpl.h lay it out: the object holds the address of an implementation behind that of its
/// own table, and in the implementation's table `serialize` follows the two entries of the destructor.
#[derive(Clone, Copy)]
pub(super) struct TimingCache(pub(super) *const c_void);

#[repr(C)]
struct Object {
    _table: *const c_void,
    implementation: *const Implementation,
}

#[repr(C)]
struct Implementation {
    table: *const Table,
}

#[repr(C)]
struct Table {
    _destroy: *const c_void,
    _delete: *const c_void,
    serialize: unsafe extern "C" fn(*const Implementation) -> *mut IHostMemory,
}

impl TimingCache {
    /// The cache's bytes; `None` if there is no cache, or TensorRT gives none.
    ///
    /// # Safety
    /// The pointer must be null or a living `ITimingCache`.
    pub(super) unsafe fn serialize(self) -> Option<HostMemory> {
        // SAFETY: as the caller says; TensorRT hands over the ownership of what it serialized, or null.
        unsafe {
            let object = self.0.cast::<Object>().as_ref()?;
            let implementation = object.implementation.as_ref()?;
            let raw = ((*implementation.table).serialize)(implementation);
            (!raw.is_null()).then(|| HostMemory::from(UniquePtr::from_raw(raw)))
        }
    }
}
