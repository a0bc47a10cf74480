//! Asking libraries for their versions.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// The version of CUDA's runtime: `13.0`.
pub(super) fn cudart(path: &Path) -> Option<String> {
    type Get = unsafe extern "C" fn(*mut c_int) -> c_int;
    let library = open(path)?;
    // SAFETY: cuda_runtime_api.h declares it so; it needs no device.
    let version = unsafe {
        let get = library.get::<Get>(b"cudaRuntimeGetVersion").ok()?;
        let mut version = 0;
        (get(&mut version) == 0).then_some(version)
    };
    std::mem::forget(library);
    Some(crate::nvidia::CudaVersion(version?.unsigned_abs()).to_string())
}

/// The version of cuDNN: `9.28.1`.
pub(super) fn cudnn(path: &Path) -> Option<String> {
    type Get = unsafe extern "C" fn() -> usize;
    let library = open(path)?;
    // SAFETY: cudnn_version.h declares it so; it needs no device. From cuDNN 9 on: 10000 · major + 100 · minor + patch.
    let n = unsafe { library.get::<Get>(b"cudnnGetVersion").ok()?() };
    std::mem::forget(library);
    Some(format!("{}.{}.{}", n / 10_000, n / 100 % 100, n % 100))
}

/// The version of TensorRT: `11.4.0`.
pub(super) fn tensorrt(path: &Path) -> Option<String> {
    type Get = unsafe extern "C" fn() -> i32;
    let library = open(path)?;
    // SAFETY: NvInferRuntime.h declares it so. From TensorRT 10 on: 10000 · major + 100 · minor + patch.
    let n = unsafe { library.get::<Get>(b"getInferLibVersion").ok()?() };
    std::mem::forget(library);
    Some(format!("{}.{}.{}", n / 10_000, n / 100 % 100, n % 100))
}

/// Loads a library for good: some of NVIDIA's do not take being unloaded.
fn open(path: &Path) -> Option<Library> {
    // SAFETY: the file is a library that the user installed to be loaded.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
    library.ok()
}

/// Whether the loader takes a library; its words if it does not.
pub(super) fn loads(path: &Path) -> Result<(), String> {
    // SAFETY: as above.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(e) => Err(crate::nvidia::told(&e)),
    }
}
