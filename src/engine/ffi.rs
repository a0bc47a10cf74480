//! The few TensorRT objects a build needs, owned. All `unsafe` of a build that is not a callback lives here.
//!
//! The crate `trtx` wraps these too, but its parser hands out neither the model's path, nor more than one error, nor the
//! node an error belongs to; so this goes one layer deeper, to the bindings under it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use cxx::UniquePtr;
use libloading::{Library, Symbol};
use trtx_sys::nvinfer1::{IBuilder, IBuilderConfig, IHostMemory, INetworkDefinition, ITensor};
use trtx_sys::nvonnxparser::IParser;
use trtx_sys::{Dims64, MemoryPoolType, OptProfileSelector, ProfilingVerbosity};

use super::explain::RawFailure;
use super::log::Log;
use super::progress::Monitor;
use super::{ComputeCapability, EngineError, Libraries, Version};

type CreateBuilder = unsafe extern "C" fn(*mut c_void, i32) -> *mut IBuilder;
type CreateParser =
    unsafe extern "C" fn(*mut INetworkDefinition, *mut c_void, c_int) -> *mut IParser;
type GetVersion = unsafe extern "C" fn() -> i32;

/// The two shared libraries, loaded. They stay loaded until the process ends: TensorRT leaves threads and
/// thread-local destructors behind that would run into unmapped code.
#[derive(Clone)]
pub(super) struct Api {
    create_builder: CreateBuilder,
    create_parser: CreateParser,
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
                create_parser: symbol(&parser, &libraries.parser, "createNvOnnxParser_INTERNAL")?,
                _libraries: Arc::new([ManuallyDrop::new(core), ManuallyDrop::new(parser)]),
            }
        };
        let needed = Version::of_headers();
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

/// A network being built. The fields drop from the user to the used; the log is borrowed and outlives them all.
pub(super) struct Session<'s> {
    // The parser holds weights that the network points to.
    parser: UniquePtr<IParser>,
    network: UniquePtr<INetworkDefinition>,
    config: UniquePtr<IBuilderConfig>,
    builder: UniquePtr<IBuilder>,
    _monitor: &'s Monitor<'s>,
}

/// An input or output of a network, as TensorRT sees it. A dimension of -1 is dynamic.
pub(super) struct RawTensor {
    pub(super) name: String,
    pub(super) dtype: trtx_sys::DataType,
    pub(super) shape: Vec<i64>,
    pub(super) is_shape: bool,
}

/// The smallest, the usual and the largest shape of an input.
pub(super) struct Shapes<'a> {
    pub(super) input: CString,
    pub(super) dims: [&'a [i64]; 3],
}

impl<'s> Session<'s> {
    pub(super) fn new(
        api: &Api,
        log: &'s Log,
        monitor: &'s Monitor<'s>,
    ) -> Result<Self, EngineError> {
        // SAFETY: each pointer is fresh from TensorRT, owned by us and checked for null; log and monitor outlive `'s`.
        unsafe {
            let version = trtx_sys::get_tensorrt_version().cast_signed();
            let mut builder = own((api.create_builder)(log.as_ptr(), version), "a builder")?;
            let network = own(builder.pin_mut().createNetworkV2(0), "a network")?;
            let mut config = own(builder.pin_mut().createBuilderConfig(), "a builder config")?;
            let version = trtx_sys::get_nvonnxparser_version().cast_signed();
            let parser = (api.create_parser)(network.as_mut_ptr(), log.as_ptr(), version);
            let parser = own(parser, "an ONNX parser")?;
            config.pin_mut().setProgressMonitor(monitor.as_ptr());
            Ok(Self {
                parser,
                network,
                config,
                builder,
                _monitor: monitor,
            })
        }
    }

    /// Reads a serialized model. External data is looked for beside `model_path`, which need not exist.
    pub(super) fn parse(
        &mut self,
        onnx: &[u8],
        model_path: Option<&CStr>,
    ) -> Result<(), Vec<RawFailure>> {
        let path = model_path.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the bytes and the path live through the call, and the parser copies what it keeps.
        let done = unsafe {
            self.parser
                .pin_mut()
                .parse(onnx.as_ptr().cast(), onnx.len(), path)
        };
        if done { Ok(()) } else { Err(self.failures()) }
    }

    /// Like [`parse`](Self::parse), with the contents of external initializers given by name.
    pub(super) fn parse_with_weights(
        &mut self,
        onnx: &[u8],
        model_path: Option<&CStr>,
        weights: &[(CString, &'s [u8])],
    ) -> Result<(), Vec<RawFailure>> {
        let path = model_path.map_or(std::ptr::null(), CStr::as_ptr);
        let mut parser = self.parser.pin_mut();
        // SAFETY: as in `parse`; the weights outlive `'s` and with it the parser.
        let done = unsafe {
            parser
                .as_mut()
                .loadModelProto(onnx.as_ptr().cast(), onnx.len(), path)
                && weights.iter().all(|(name, bytes)| {
                    parser.as_mut().loadInitializer(
                        name.as_ptr(),
                        bytes.as_ptr().cast(),
                        bytes.len(),
                    )
                })
                && parser.parseModelProto()
        };
        if done { Ok(()) } else { Err(self.failures()) }
    }

    fn failures(&mut self) -> Vec<RawFailure> {
        let parser: *mut c_void = self.parser.as_mut_ptr().cast();
        // SAFETY: the parser is alive, and its errors live until it parses again.
        unsafe {
            (0..trtx_sys::parser_get_nb_errors(parser))
                .map(|i| trtx_sys::parser_get_error(parser, i))
                .filter(|e| !e.is_null())
                .map(|e| ParserError(e).read())
                .collect()
        }
    }

    pub(super) fn layer_count(&self) -> usize {
        usize::try_from(self.network.getNbLayers()).unwrap_or(0)
    }

    pub(super) fn inputs(&self) -> Vec<RawTensor> {
        (0..self.network.getNbInputs())
            .filter_map(|i| read_tensor(self.network.getInput(i)))
            .collect()
    }

    pub(super) fn outputs(&self) -> Vec<RawTensor> {
        (0..self.network.getNbOutputs())
            .filter_map(|i| read_tensor(self.network.getOutput(i)))
            .collect()
    }

    pub(super) fn set_capabilities(
        &mut self,
        capabilities: &[ComputeCapability],
    ) -> Result<(), EngineError> {
        let refused = || EngineError::refused("a config for these compute capabilities");
        let count = i32::try_from(capabilities.len()).map_err(|_| refused())?;
        let mut done = self.config.pin_mut().setNbComputeCapabilities(count);
        for (index, capability) in (0..).zip(capabilities) {
            done &= self
                .config
                .pin_mut()
                .setComputeCapability(capability.to_raw().into(), index);
        }
        if done { Ok(()) } else { Err(refused()) }
    }

    pub(super) fn set_workspace(&mut self, bytes: usize) {
        self.config
            .pin_mut()
            .setMemoryPoolLimit(MemoryPoolType::kWORKSPACE.into(), bytes);
    }

    pub(super) fn set_optimization_level(&mut self, level: u8) {
        self.config
            .pin_mut()
            .setBuilderOptimizationLevel(level.into());
    }

    pub(super) fn set_detailed(&mut self) {
        self.config
            .pin_mut()
            .setProfilingVerbosity(ProfilingVerbosity::kDETAILED.into());
    }

    /// Adds a profile; false if TensorRT refuses it.
    pub(super) fn add_profile(&mut self, shapes: &[Shapes<'_>]) -> Result<bool, EngineError> {
        let raw = self.builder.pin_mut().createOptimizationProfile();
        // SAFETY: the builder owns the profile and outlives this borrow of it.
        let mut profile = unsafe {
            let profile = raw
                .as_mut()
                .ok_or_else(|| EngineError::refused("an optimization profile"))?;
            Pin::new_unchecked(profile)
        };
        let selectors = [
            OptProfileSelector::kMIN,
            OptProfileSelector::kOPT,
            OptProfileSelector::kMAX,
        ];
        for Shapes { input, dims } in shapes {
            for (selector, dims) in selectors.into_iter().zip(dims) {
                // SAFETY: the name lives through the call, which copies it.
                let done = unsafe {
                    profile.as_mut().setDimensions(
                        input.as_ptr(),
                        selector.into(),
                        &Dims64::from_slice(dims),
                    )
                };
                if !done {
                    return Ok(false);
                }
            }
        }
        // SAFETY: the profile belongs to the builder that made the config.
        let index = unsafe { self.config.pin_mut().addOptimizationProfile(raw) };
        Ok(profile.isValid() && index >= 0)
    }

    pub(super) fn build(&mut self) -> Option<HostMemory> {
        let raw = self
            .builder
            .pin_mut()
            .buildSerializedNetwork(self.network.pin_mut(), self.config.pin_mut());
        // SAFETY: TensorRT hands over the ownership of what it built, or null.
        (!raw.is_null()).then(|| HostMemory(unsafe { UniquePtr::from_raw(raw) }))
    }
}

/// # Safety
/// `raw` must be null or a TensorRT object that nobody else owns.
unsafe fn own<T: cxx::memory::UniquePtrTarget>(
    raw: *mut T,
    what: &'static str,
) -> Result<UniquePtr<T>, EngineError> {
    if raw.is_null() {
        return Err(EngineError::refused(what));
    }
    Ok(unsafe { UniquePtr::from_raw(raw) })
}

fn read_tensor(raw: *mut ITensor) -> Option<RawTensor> {
    // SAFETY: a tensor lives as long as its network, which the caller borrows.
    let tensor = unsafe { raw.as_ref() }?;
    let dims = tensor.getDimensions();
    // A rank that TensorRT could not infer is -1.
    let rank = usize::try_from(dims.nbDims).unwrap_or(0).min(dims.d.len());
    Some(RawTensor {
        name: unsafe { text(tensor.getName()) }?,
        dtype: tensor.getType().into(),
        shape: dims.d[..rank].to_vec(),
        is_shape: tensor.isShapeTensor(),
    })
}

/// # Safety
/// `raw` must be null or a C string.
unsafe fn text(raw: *const c_char) -> Option<String> {
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

impl HostMemory {
    pub(super) fn bytes(&self) -> &[u8] {
        let (data, size) = (self.0.data().cast::<u8>(), self.0.size());
        if data.is_null() || size == 0 {
            return &[];
        }
        // SAFETY: TensorRT says that many bytes are there, for as long as the object lives.
        unsafe { std::slice::from_raw_parts(data, size) }
    }
}

/// An `IParserError`. The bindings know only its description, so the rest goes through its table of virtual functions,
/// in the order in which NvOnnxParser.h declares them.
#[derive(Clone, Copy)]
struct ParserError(*mut c_void);

type GetText = unsafe extern "C" fn(*mut c_void) -> *const c_char;
type GetNumber = unsafe extern "C" fn(*mut c_void) -> c_int;

#[repr(C)]
struct ParserErrorTable {
    code: GetNumber,
    desc: GetText,
    file: GetText,
    line: GetNumber,
    func: GetText,
    node: GetNumber,
    node_name: GetText,
    node_operator: GetText,
}

impl ParserError {
    /// # Safety
    /// The pointer must be a living `IParserError`.
    unsafe fn read(self) -> RawFailure {
        unsafe {
            let table = &**self.0.cast::<*const ParserErrorTable>();
            let reason = text(trtx_sys::parser_error_desc(self.0)).unwrap_or_default();
            let filled = |s: Option<String>| s.filter(|s| !s.is_empty());
            RawFailure {
                index: usize::try_from((table.node)(self.0)).ok(),
                node: filled(text((table.node_name)(self.0))),
                op: filled(text((table.node_operator)(self.0))),
                text: reason,
            }
        }
    }
}
