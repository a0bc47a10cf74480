//! Weights for an engine that was built without them, out of the ONNX model that it was built from.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};

use cxx::UniquePtr;
use trtx_sys::nvinfer1::{ICudaEngine, IRefitter};

use super::super::api::Api;
use super::super::logger::Log;
use super::super::owned::own;
use super::super::parser_error::ParserError;
use crate::explain::{self, RawFailure};
use crate::run::EngineRunError;

/// Puts the model's weights into the engine. The model must be the one that the engine was built from; its external data is
/// looked for beside it.
///
/// # Errors
/// [`EngineRunError::Refit`] where the model cannot be read, lacks a weight, or has one of another type or size.
///
/// # Safety
/// The engine must live, on the GPU of the calling thread, and nothing of it may be queued.
pub(super) unsafe fn refit(
    api: &Api,
    log: &'static Log,
    engine: *mut ICudaEngine,
    model: &Path,
) -> Result<(), EngineRunError> {
    let failed = |failures: Vec<RawFailure>| {
        let log = log.lines();
        EngineRunError::Refit {
            model: model.to_owned(),
            failures: (failures.into_iter())
                .map(|f| explain::parse_failure(f, &log))
                .collect(),
            log,
        }
    };
    let path = absolute(model).ok_or_else(|| {
        failed(vec![RawFailure::of_model(
            "its path has a NUL character, or no folder",
        )])
    })?;
    // SAFETY: as the caller says. The refitter is fresh from TensorRT, owned by us and checked for null; the parser's
    // refitter drops before it, and the log is never destroyed.
    unsafe {
        let version = trtx_sys::get_tensorrt_version().cast_signed();
        let raw = (api.create_refitter)(engine, log.as_ptr(), version);
        let mut refitter: UniquePtr<IRefitter> = own(raw, "a refitter")?;
        let parser = ParserRefitter::new(api, log, refitter.as_mut_ptr())?;
        parser.read(&path).map_err(failed)?;
        // What was read is set; this moves it to the GPU, and fails if a weight is missing.
        match refitter.pin_mut().refitCudaEngine() {
            true => Ok(()),
            false => Err(failed(Vec::new())),
        }
    }
}

/// The parser looks for external data beside the path that it is given.
fn absolute(model: &Path) -> Option<CString> {
    let path: PathBuf = std::path::absolute(model).ok()?;
    CString::new(path.into_os_string().into_encoded_bytes()).ok()
}

/// An `IParserRefitter`. The bindings do not have it, so it is reached through its table of virtual functions, in the order
/// in which NvOnnxParser.h declares them.
struct ParserRefitter(*mut c_void);

#[repr(C)]
struct Table {
    _refit_from_bytes: *const c_void,
    refit_from_file: unsafe extern "C" fn(*mut c_void, *const c_char) -> bool,
    error_count: unsafe extern "C" fn(*const c_void) -> i32,
    error: unsafe extern "C" fn(*const c_void, i32) -> *mut c_void,
    _clear_errors: *const c_void,
    _destroy: *const c_void,
    delete: unsafe extern "C" fn(*mut c_void),
}

impl ParserRefitter {
    /// # Safety
    /// The refitter must outlive what is returned.
    unsafe fn new(
        api: &Api,
        log: &'static Log,
        refitter: *mut IRefitter,
    ) -> Result<ParserRefitter, EngineRunError> {
        // SAFETY: as the caller says; the log is never destroyed.
        let raw = unsafe {
            let version = trtx_sys::get_nvonnxparser_version().cast_signed();
            (api.create_parser_refitter)(refitter, log.as_ptr(), version)
        };
        match raw.is_null() {
            true => Err(crate::EngineError::refused("an ONNX refitter").into()),
            false => Ok(ParserRefitter(raw)),
        }
    }

    fn table(&self) -> &Table {
        // SAFETY: an object with virtual functions begins with the address of its table, which lives as long as the library.
        unsafe { &**self.0.cast::<*const Table>() }
    }

    /// Reads the model and sets the refitter's weights, or says what it has against it.
    fn read(&self, model: &CString) -> Result<(), Vec<RawFailure>> {
        // SAFETY: the object lives, and so does the path through the call; errors live until the next reading.
        unsafe {
            if (self.table().refit_from_file)(self.0, model.as_ptr()) {
                return Ok(());
            }
            Err((0..(self.table().error_count)(self.0))
                .map(|i| (self.table().error)(self.0, i))
                .filter(|e| !e.is_null())
                .map(|e| ParserError(e).read())
                .collect())
        }
    }
}

impl Drop for ParserRefitter {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and this is its end.
        unsafe { (self.table().delete)(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refitter of no engine refuses what it cannot read before it asks for the engine: enough to see that the table of the
    /// library at hand is as declared here.
    #[test]
    fn what_is_no_model_is_refused_with_a_reason() {
        let Ok(libraries) = crate::locate(None) else {
            println!("skipped: TensorRT not found");
            return;
        };
        let _alone = crate::tensorrt::builder::no_builds();
        let api = Api::load(&libraries).unwrap();
        let log = Log::get().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.onnx");
        for content in [None, Some("no model")] {
            if let Some(text) = content {
                std::fs::write(&file, text).unwrap();
            }
            // SAFETY: nothing is read of a null refitter before the model is.
            let parser = unsafe { ParserRefitter::new(&api, log, std::ptr::null_mut()) }.unwrap();
            let failures = parser.read(&absolute(&file).unwrap()).unwrap_err();
            assert_eq!(failures.len(), 1);
            assert!(!failures[0].text.is_empty() && failures[0].node.is_none());
        }
    }
}
