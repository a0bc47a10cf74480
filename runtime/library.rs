//! ONNX Runtime's library, loaded into this process.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::locate::{Found, locate};
use super::{Error, messages};

/// ONNX Runtime, loaded. There is one per process: its environment and thread pools are process-wide.
#[derive(Debug)]
pub struct Runtime {
    found: Found,
    pub(super) environment: ort::environment::Environment,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The library that is mapped into this process; it cannot be exchanged, even where starting it failed.
static MAPPED: Mutex<Option<PathBuf>> = Mutex::new(None);

impl Runtime {
    /// Finds ONNX Runtime (see [`locate`]) and starts it, or returns the one that runs already.
    ///
    /// # Errors
    /// When no library is found, when it cannot be loaded or is older than 1.23, and when `library` names another
    /// library than the one this process has loaded.
    pub fn load(library: Option<&Path>) -> Result<&'static Runtime, Error> {
        if let (Some(runtime), None) = (RUNTIME.get(), library) {
            return Ok(runtime);
        }
        Runtime::start(locate(library)?)
    }

    fn start(found: Found) -> Result<&'static Runtime, Error> {
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = mapped.as_ref().filter(|loaded| **loaded != found.path) {
            return Err(Error::OtherLibrary {
                loaded: loaded.clone(),
                asked: found.path,
            });
        }
        if let Some(runtime) = RUNTIME.get() {
            return Ok(runtime);
        }
        let builder = ort::init_from(&found.path).map_err(|e| Error::Load {
            library: found.path.clone(),
            reason: e.to_string(),
        })?;
        *mapped = Some(found.path.clone());
        let environment = messages::logged(builder)
            .with_name("kiln")
            .with_telemetry(false)
            .build()
            .map_err(|e| Error::Load {
                library: found.path.clone(),
                reason: e.to_string(),
            })?;
        Ok(RUNTIME.get_or_init(|| Runtime { found, environment }))
    }

    /// The library that was loaded and why it was that one.
    pub fn library(&self) -> &Found {
        &self.found
    }

    /// The version by the library's file name (`1.31.1`), or `None` where the name does not say.
    pub fn version(&self) -> Option<&str> {
        self.found.version()
    }

    /// ONNX Runtime's own words about its build: branch, commit, compiler flags.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }
}

/// The providers that the loaded library was built with, by their names, in the order of their priority.
#[allow(unsafe_code)]
pub fn providers() -> Vec<String> {
    let (mut names, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: ONNX Runtime writes an array of so many strings of its own, which is read before it is given back.
    unsafe {
        let status = (ort::api().GetAvailableProviders)(&mut names, &mut count);
        if ort::Error::result_from_status(status).is_err() || names.is_null() {
            return Vec::new();
        }
        let all = std::slice::from_raw_parts(names, usize::try_from(count).unwrap_or(0)).iter();
        let text = |name: &*mut c_char| CStr::from_ptr(*name).to_string_lossy().into_owned();
        let found = all.map(text).collect();
        let released = (ort::api().ReleaseAvailableProviders)(names, count);
        // There is nothing to do about memory that is not taken back.
        let _ = ort::Error::result_from_status(released);
        found
    }
}
