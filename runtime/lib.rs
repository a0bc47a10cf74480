//! ONNX Runtime: finding its library, loading it once, running models on kiln's tensors.
//!
//! The library is loaded at run time, so kiln itself builds and starts without it. [`Runtime::load`] finds and loads
//! it, [`Session`] holds one model.

pub mod cuda;
mod device;
mod error;
mod evaluator;
pub mod fault;
mod info;
mod locate;
mod machine;
mod messages;
mod options;
mod parts;
mod placement;
pub mod rtx;
mod seat;
mod session;
pub mod talk;
#[doc(hidden)]
pub mod testing;
mod threads;
pub mod units;
mod values;
pub mod work;

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use kiln_graph::Tensor;

pub use device::{
    Chosen, Device, DeviceChoice, DeviceRequest, Gpu, GpuOptions, UnknownDevice, Unusable,
};
pub use error::Error;
pub use evaluator::OrtEvaluator;
pub use info::{Dim, TensorInfo};
pub use locate::{Found, NotFound, Origin, locate};
pub use machine::{environment, loader, mapped, nvidia, pysite, scratch};
pub use options::{Optimization, SessionOptions};
pub use placement::{Fallback, Placement, PlacementError};
pub use session::{Bound, Session};
pub use threads::{limit_threads, threads};

/// ONNX Runtime, loaded. There is one per process: its environment and thread pools are process-wide.
#[derive(Debug)]
pub struct Runtime {
    found: Found,
    environment: ort::environment::Environment,
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

/// Runs a model once, with graph optimization disabled: what constant folding needs.
///
/// `model` is a whole ONNX file with its weights inside. The outputs come in the model's order.
///
/// # Errors
/// Those of [`Session::from_bytes`] and [`Session::run`].
pub fn run_model_bytes<S: AsRef<str>>(
    runtime: &'static Runtime,
    model: &[u8],
    inputs: &[(S, Tensor)],
) -> Result<Vec<(String, Tensor)>, Error> {
    let options = SessionOptions {
        optimization: Optimization::Disabled,
        ..SessionOptions::default()
    };
    Session::from_bytes(runtime, "model in memory", model, &options)?.run(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_loaded_once() {
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let again = Runtime::load(Some(&runtime.library().path)).unwrap();
        assert!(std::ptr::eq(runtime, again));

        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("libonnxruntime.so.9.9.9");
        std::fs::write(&other, "not a library").unwrap();
        let refused = Runtime::load(Some(&other)).unwrap_err();
        assert!(
            matches!(&refused, Error::OtherLibrary { asked, .. } if asked.ends_with("libonnxruntime.so.9.9.9")),
            "{refused}"
        );
    }

    #[test]
    fn a_model_is_run_in_one_call() {
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let model = testing::matmul_add();
        let x = Tensor::from_values([1usize, 2].as_slice(), &[3f32, 4.]).unwrap();
        let outputs = run_model_bytes(runtime, &model, &[("x", x)]).unwrap();
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].0, "y");
        assert_eq!(outputs[0].1.values::<f32>().unwrap(), [16., 23.]);
    }
}
