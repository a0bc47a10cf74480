//! The shared libraries, loaded, and the doors into them.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;

use libloading::{Library, Symbol};
use trtx_sys::nvinfer1::{IBuilder, ICudaEngine, INetworkDefinition, IRefitter, IRuntime};
use trtx_sys::nvonnxparser::IParser;

use super::raw;
use crate::{EngineError, Libraries, Version};

type CreateBuilder = unsafe extern "C" fn(*mut c_void, i32) -> *mut IBuilder;
type CreateRuntime = unsafe extern "C" fn(*mut c_void, i32) -> *mut IRuntime;
type CreateParser =
    unsafe extern "C" fn(*mut INetworkDefinition, *mut c_void, c_int) -> *mut IParser;
type CreateRefitter = unsafe extern "C" fn(*mut ICudaEngine, *mut c_void, i32) -> *mut IRefitter;
type CreateParserRefitter = unsafe extern "C" fn(*mut IRefitter, *mut c_void, i32) -> *mut c_void;
type GetVersion = unsafe extern "C" fn() -> i32;

/// The two shared libraries, loaded. They stay loaded until the process ends: TensorRT leaves threads and
/// thread-local destructors behind that would run into unmapped code.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) create_builder: CreateBuilder,
    pub(super) create_runtime: CreateRuntime,
    pub(super) create_parser: CreateParser,
    pub(super) create_refitter: CreateRefitter,
    pub(super) create_parser_refitter: CreateParserRefitter,
    pub(super) version: Version,
    _libraries: Arc<[ManuallyDrop<Library>; 2]>,
}

impl Api {
    pub(super) fn load(libraries: &Libraries) -> Result<Self, EngineError> {
        // The parser links against nothing of the core, so the order does not matter.
        let core = open(&libraries.core)?;
        let parser = open(&libraries.parser)?;
        // SAFETY: the signatures are those of NvInferRuntime.h, NvInfer.h and NvOnnxParser.h.
        let number = |name| -> Result<u32, EngineError> {
            let get: GetVersion = unsafe { symbol(&core, &libraries.core, name)? };
            Ok(unsafe { get() }.cast_unsigned())
        };
        // SAFETY: as above.
        let api = unsafe {
            Self {
                version: Version {
                    major: number("getInferLibMajorVersion")?,
                    minor: number("getInferLibMinorVersion")?,
                    patch: number("getInferLibPatchVersion")?,
                    build: number("getInferLibBuildVersion")?,
                },
                create_builder: symbol(&core, &libraries.core, "createInferBuilder_INTERNAL")?,
                create_runtime: symbol(&core, &libraries.core, "createInferRuntime_INTERNAL")?,
                create_parser: symbol(&parser, &libraries.parser, "createNvOnnxParser_INTERNAL")?,
                create_refitter: symbol(&core, &libraries.core, "createInferRefitter_INTERNAL")?,
                create_parser_refitter: symbol(
                    &parser,
                    &libraries.parser,
                    "createNvOnnxParserRefitter_INTERNAL",
                )?,
                _libraries: Arc::new([ManuallyDrop::new(core), ManuallyDrop::new(parser)]),
            }
        };
        let needed = raw::headers();
        // TensorRT only adds to its interfaces within a major version; an older library lacks what the headers promise.
        if api.version.major != needed.major || api.version.minor < needed.minor {
            return Err(EngineError::Version {
                path: libraries.core.clone(),
                found: api.version,
                needed,
            });
        }
        Ok(api)
    }
}

fn open(path: &Path) -> Result<Library, EngineError> {
    // SAFETY: loading runs the library's initialisers; the caller chose the file as TensorRT's.
    unsafe { Library::new(path) }.map_err(|e| EngineError::Load {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// # Safety
/// `T` must be the function type that the library exports under `name`.
unsafe fn symbol<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T, EngineError> {
    let found: Result<Symbol<'_, T>, _> = unsafe { library.get(name) };
    found.map(|s| *s).map_err(|e| EngineError::Load {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}
