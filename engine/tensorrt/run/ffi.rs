//! The TensorRT objects that run an engine, owned. All `unsafe` of a run that is not a callback or CUDA's lives here.
//!
//! None of these is `Send`: a session stays on its thread, whose CUDA device TensorRT takes.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::rc::Rc;

use cxx::UniquePtr;
use trtx_sys::nvinfer1::{EngineStat, ICudaEngine, IExecutionContext, IRuntime, IRuntimeConfig};
use trtx_sys::{
    Dims64, ExecutionContextAllocationStrategy, LayerInformationFormat, OptProfileSelector,
    TensorIOMode, TensorLocation,
};

use super::super::api::Api;
use super::super::logger::Log;
use super::super::owned::{HostMemory, own, text};
use super::super::raw;
use super::profiler::Profiler;
use super::refit;
use crate::run::{EngineRunError, Validity};
use crate::{DataType, EngineError, Profile, ProfileInput};

#[cfg(not(feature = "tensorrt-enterprise"))]
use trtx_sys::{DynamicShapesKernelSpecializationStrategy, nvinfer1::IRuntimeCache};

/// A runtime: it reads plans.
pub(super) struct Runtime(UniquePtr<IRuntime>);

impl Runtime {
    pub(super) fn new(api: &Api, log: &'static Log) -> Result<Runtime, EngineError> {
        // SAFETY: the pointer is fresh from TensorRT and checked for null; the log is never destroyed.
        unsafe {
            let version = trtx_sys::get_tensorrt_version().cast_signed();
            own((api.create_runtime)(log.as_ptr(), version), "a runtime").map(Runtime)
        }
    }

    /// What the plan's header says about this machine; `None` if the library cannot tell.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub(super) fn validity(&self, plan: &[u8]) -> Option<Validity> {
        use trtx_sys::{EngineInvalidityDiagnostics, EngineValidity};
        let header = usize::try_from(self.0.getEngineHeaderSize()).unwrap_or(0);
        if plan.len() < header {
            let malformed = EngineInvalidityDiagnostics::MALFORMED_ENGINE;
            return Some(Validity::of(2, malformed.bits()));
        }
        let mut diagnostics = 0u64;
        let size = i64::try_from(plan.len()).ok()?;
        // SAFETY: the plan is longer than a header, and `diagnostics` lives through the call.
        let state = unsafe {
            let plan = plan.as_ptr().cast();
            self.0.getEngineValidity(plan, size, &raw mut diagnostics)
        };
        Some(Validity::of(
            match EngineValidity::from(state) {
                EngineValidity::kVALID => 0,
                EngineValidity::kSUBOPTIMAL => 1,
                EngineValidity::kINVALID => 2,
            },
            diagnostics,
        ))
    }

    /// TensorRT proper tells when it reads the plan.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn validity(&self, _: &[u8]) -> Option<Validity> {
        None
    }

    /// Reads a plan and copies its weights to the GPU of the calling thread; `None` if it is refused, for what the log says.
    pub(super) fn deserialize(mut self, plan: &[u8]) -> Option<Engine> {
        #[cfg(feature = "tensorrt-enterprise")]
        // A version-compatible plan brings its own runtime, as code. It is one that the user gave.
        self.0.pin_mut().setEngineHostCodeAllowed(true);
        // SAFETY: the plan lives through the call, which copies what it keeps; the engine is ours and drops before its runtime.
        let engine = unsafe {
            let plan_bytes = plan.as_ptr().cast();
            let raw = (self.0.pin_mut()).deserializeCudaEngine(plan_bytes, plan.len());
            if raw.is_null() {
                return None;
            }
            UniquePtr::from_raw(raw)
        };
        Some(Engine {
            #[cfg(not(feature = "tensorrt-enterprise"))]
            cache: RefCell::new(None),
            engine: RefCell::new(engine),
            _runtime: self.0,
        })
    }
}

/// An input or output of an engine.
pub(super) struct Io {
    pub(super) name: String,
    pub(super) raw_name: CString,
    pub(super) is_input: bool,
    pub(super) dtype: DataType,
    /// TensorRT reads or writes it in the host's memory: its values are shapes.
    pub(super) on_host: bool,
    /// Of an output that is written in an input's memory: that input's place among all.
    pub(super) of: Option<usize>,
}

/// An engine on a GPU. The fields drop from the user to the used.
pub(super) struct Engine {
    #[cfg(not(feature = "tensorrt-enterprise"))]
    cache: RefCell<Option<UniquePtr<IRuntimeCache>>>,
    engine: RefCell<UniquePtr<ICudaEngine>>,
    _runtime: UniquePtr<IRuntime>,
}

impl Engine {
    /// Bytes of the weights that the plan was built without.
    pub(super) fn stripped_bytes(&self) -> u64 {
        let engine = self.engine.borrow();
        // A plan with weights that nobody can replace answers with an error in the log.
        match engine.isRefittable() {
            true => {
                u64::try_from(engine.getEngineStat(EngineStat::kSTRIPPED_WEIGHTS_SIZE)).unwrap_or(0)
            }
            false => 0,
        }
    }

    /// Puts in the weights of the model that the plan was built from.
    ///
    /// # Errors
    /// As [`refit`](refit::refit).
    pub(super) fn refit(
        &self,
        api: &Api,
        log: &'static Log,
        model: &Path,
    ) -> Result<(), EngineRunError> {
        let engine = self.engine.borrow_mut();
        // SAFETY: the engine lives, and has no context yet that could queue anything.
        unsafe { refit::refit(api, log, engine.as_mut_ptr(), model) }
    }

    pub(super) fn layers(&self) -> usize {
        usize::try_from(self.engine.borrow().getNbLayers()).unwrap_or(0)
    }

    /// What TensorRT's inspector tells of the layers, as JSON.
    ///
    /// # Errors
    /// When TensorRT makes no inspector, or that tells nothing.
    pub(super) fn inspected(&self) -> Result<String, EngineError> {
        let engine = self.engine.borrow();
        // SAFETY: the inspector is fresh from TensorRT, owned by us and checked for null; it and the engine live until the text,
        // which is the inspector's, is copied.
        unsafe {
            let inspector = own(engine.createEngineInspector(), "an inspector")?;
            text(inspector.getEngineInformation(LayerInformationFormat::kJSON.into()))
                .ok_or(EngineError::refused("what its inspector tells"))
        }
    }

    /// Bytes that the activations take at the largest sizes.
    pub(super) fn activation_bytes(&self) -> u64 {
        u64::try_from(self.engine.borrow().getDeviceMemorySizeV2()).unwrap_or(0)
    }

    pub(super) fn io(&self) -> Vec<Io> {
        let engine = self.engine.borrow();
        let read = |i: i32| {
            let raw = engine.getIOTensorName(i);
            // SAFETY: the name is a C string that lives as long as the engine, and names one of its tensors.
            unsafe {
                let name = text(raw)?;
                let dtype: trtx_sys::DataType = engine.getTensorDataType(raw).into();
                let mode: TensorIOMode = engine.getTensorIOMode(raw).into();
                let location: TensorLocation = engine.getTensorLocation(raw).into();
                let of = text(engine.getAliasedInputTensor(raw));
                let io = Io {
                    raw_name: CString::new(name.as_str()).ok()?,
                    name,
                    is_input: mode == TensorIOMode::kINPUT,
                    dtype: raw::data_type(dtype),
                    on_host: location == TensorLocation::kHOST,
                    of: None,
                };
                Some((io, of))
            }
        };
        let all = (0..engine.getNbIOTensors()).filter_map(read);
        let (mut io, inputs): (Vec<Io>, Vec<Option<String>>) = all.unzip();
        let place = |name: &String| io.iter().position(|i| i.is_input && i.name == *name);
        let places: Vec<_> = (inputs.iter().map(|of| of.as_ref().and_then(place))).collect();
        for (io, place) in io.iter_mut().zip(places) {
            io.of = place;
        }
        io
    }

    /// The profiles, with every input in each.
    pub(super) fn profiles(&self, io: &[Io]) -> Vec<Profile> {
        let engine = self.engine.borrow();
        let shape = |io: &Io, profile: i32, which: OptProfileSelector| {
            // SAFETY: the name is a C string that lives through the call.
            let dims =
                unsafe { engine.getProfileShape(io.raw_name.as_ptr(), profile, which.into()) };
            sizes(&dims)
        };
        let input = |io: &Io, profile| {
            Some(ProfileInput {
                name: io.name.clone(),
                min: shape(io, profile, OptProfileSelector::kMIN)?,
                opt: shape(io, profile, OptProfileSelector::kOPT)?,
                max: shape(io, profile, OptProfileSelector::kMAX)?,
            })
        };
        (0..engine.getNbOptimizationProfiles())
            .map(|profile| Profile {
                inputs: (io.iter().filter(|io| io.is_input))
                    .filter_map(|io| input(io, profile))
                    .collect(),
            })
            .collect()
    }

    /// A context, with the kernels compiled.
    ///
    /// # Errors
    /// When TensorRT makes none. `kept` is what a cache had; it is told whether that served.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub(super) fn context(
        self: &Rc<Self>,
        kept: Option<&[u8]>,
    ) -> Result<(Context, Option<bool>), EngineError> {
        let mut engine = self.engine.borrow_mut();
        let mut served = None;
        // SAFETY: each pointer is fresh from TensorRT, owned by us and checked for null. The config outlives the context,
        // and the cache every config: it is dropped with the engine, which contexts keep alive.
        unsafe {
            let mut config = own(engine.pin_mut().createRuntimeConfig(), "a runtime config")?;
            config.pin_mut().setExecutionContextAllocationStrategy(
                ExecutionContextAllocationStrategy::kSTATIC.into(),
            );
            config
                .pin_mut()
                .setDynamicShapesKernelSpecializationStrategy(
                    DynamicShapesKernelSpecializationStrategy::kEAGER.into(),
                );
            let mut cache = self.cache.borrow_mut();
            if let Some(bytes) = kept
                && cache.is_none()
            {
                let new = own(config.createRuntimeCache(), "a runtime cache")?;
                // What was kept for another GPU, driver or version is refused and made anew.
                served =
                    Some(!bytes.is_empty() && new.deserialize(bytes.as_ptr().cast(), bytes.len()));
                *cache = Some(new);
            }
            if let Some(cache) = cache.as_ref().and_then(|c| c.as_ref())
                && !config.pin_mut().setRuntimeCache(cache)
            {
                return Err(EngineError::refused("a runtime config with a cache"));
            }
            let raw = engine
                .pin_mut()
                .createExecutionContext1(config.as_mut_ptr());
            let context = own(raw, "an execution context")?;
            Ok((Context::new(context, Some(config), self), served))
        }
    }

    /// A context. TensorRT proper has no runtime cache: its kernels are in the plan.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn context(
        self: &Rc<Self>,
        _: Option<&[u8]>,
    ) -> Result<(Context, Option<bool>), EngineError> {
        let mut engine = self.engine.borrow_mut();
        let raw = engine
            .pin_mut()
            .createExecutionContext(ExecutionContextAllocationStrategy::kSTATIC.into());
        // SAFETY: the pointer is fresh from TensorRT and checked for null.
        let context = unsafe { own(raw, "an execution context") }?;
        Ok((Context::new(context, None, self), None))
    }

    /// The compiled kernels, to be kept; `None` without a cache.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub(super) fn cached(&self) -> Result<Option<HostMemory>, EngineError> {
        let cache = self.cache.borrow();
        let Some(cache) = cache.as_ref().and_then(|c| c.as_ref()) else {
            return Ok(None);
        };
        // SAFETY: TensorRT hands over the ownership of what it serialized, or null.
        unsafe { own(cache.serialize(), "a runtime cache's bytes") }
            .map(|memory| Some(HostMemory::from(memory)))
    }

    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn cached(&self) -> Result<Option<HostMemory>, EngineError> {
        Ok(None)
    }
}

/// An execution context. The fields drop from the user to the used.
pub(super) struct Context {
    context: UniquePtr<IExecutionContext>,
    profiler: Option<Profiler>,
    _config: Option<UniquePtr<IRuntimeConfig>>,
    _engine: Rc<Engine>,
}

impl Context {
    fn new(
        context: UniquePtr<IExecutionContext>,
        config: Option<UniquePtr<IRuntimeConfig>>,
        engine: &Rc<Engine>,
    ) -> Context {
        Context {
            context,
            profiler: None,
            _config: config,
            _engine: engine.clone(),
        }
    }

    pub(super) fn profile(&self) -> i32 {
        self.context.getOptimizationProfile()
    }

    /// Takes another profile; the stream must be waited for before the next run.
    ///
    /// # Safety
    /// `stream` must be a CUDA stream of the engine's device.
    pub(super) unsafe fn set_profile(&mut self, index: i32, stream: *mut c_void) -> bool {
        // SAFETY: as the caller says.
        unsafe {
            let context = self.context.pin_mut();
            context.setOptimizationProfileAsync(index, stream.cast())
        }
    }

    pub(super) fn set_shape(&mut self, io: &Io, shape: &[i64]) -> bool {
        // TensorRT's dimensions end at 8, and the bindings cut what is longer.
        if shape.len() > 8 {
            return false;
        }
        let dims = Dims64::from_slice(shape);
        // SAFETY: the name is a C string that lives through the call.
        unsafe {
            let context = self.context.pin_mut();
            context.setInputShape(io.raw_name.as_ptr(), &dims)
        }
    }

    /// The shape with the inputs that were set; `None` if it is not known before a run.
    pub(super) fn shape(&self, io: &Io) -> Option<Vec<i64>> {
        // SAFETY: the name is a C string that lives through the call.
        let dims = unsafe { self.context.getTensorShape(io.raw_name.as_ptr()) };
        sizes(&dims).filter(|d| d.iter().all(|&d| d >= 0))
    }

    /// Bytes that an output takes at most.
    pub(super) fn max_output_bytes(&self, io: &Io) -> usize {
        // SAFETY: as above.
        let bytes = unsafe { self.context.getMaxOutputSize(io.raw_name.as_ptr()) };
        usize::try_from(bytes).unwrap_or(0)
    }

    /// Says where a tensor is.
    ///
    /// # Safety
    /// At `address` there must be room for the tensor at its shape, in the memory that TensorRT expects it in, until the
    /// address is replaced or the context is dropped, and while a run is queued.
    pub(super) unsafe fn set_address(&mut self, io: &Io, address: *mut c_void) -> bool {
        // SAFETY: as the caller says; the name is a C string that lives through the call.
        unsafe {
            let context = self.context.pin_mut();
            context.setTensorAddress(io.raw_name.as_ptr(), address.cast())
        }
    }

    /// Queues a run.
    ///
    /// # Safety
    /// Every tensor must have its address, and `stream` must be a CUDA stream of the engine's device.
    pub(super) unsafe fn enqueue(&mut self, stream: *mut c_void) -> bool {
        // SAFETY: as the caller says.
        unsafe { self.context.pin_mut().enqueueV3(stream.cast()) }
    }

    /// Whether a run can be captured as a CUDA graph. TensorRT proper cannot tell.
    ///
    /// # Safety
    /// `stream` must be a CUDA stream of the engine's device.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) unsafe fn is_capturable(&self, _: *mut c_void) -> bool {
        true
    }

    /// Whether a run can be captured as a CUDA graph.
    ///
    /// # Safety
    /// `stream` must be a CUDA stream of the engine's device.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub(super) unsafe fn is_capturable(&self, stream: *mut c_void) -> bool {
        // SAFETY: as the caller says.
        unsafe { self.context.isStreamCapturable(stream.cast()) }
    }

    /// Runs that follow wait for their end, and tell the time of each layer.
    pub(super) fn attach_profiler(&mut self) -> Result<(), EngineError> {
        let profiler = self.profiler.insert(Profiler::new()?);
        // SAFETY: the profiler is a field behind the context, so it drops after it.
        unsafe { self.context.pin_mut().setProfiler(profiler.as_ptr()) };
        Ok(())
    }

    pub(super) fn profiler(&self) -> Option<&Profiler> {
        self.profiler.as_ref()
    }
}

/// `None` for the rank -1 by which TensorRT says that it does not know.
fn sizes(dims: &Dims64) -> Option<Vec<i64>> {
    let rank = usize::try_from(dims.nbDims).ok()?;
    dims.d.get(..rank).map(<[i64]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's own judgement, which takes no GPU.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    #[test]
    fn what_is_no_plan_is_malformed() {
        use crate::run::Reason;
        let Ok(libraries) = crate::locate(None) else {
            println!("skipped: TensorRT for RTX not found");
            return;
        };
        let _alone = crate::tensorrt::builder::no_builds();
        let api = Api::load(&libraries).unwrap();
        let runtime = Runtime::new(&api, Log::get().unwrap()).unwrap();
        for garbage in [&b""[..], b"nonsense", &[0; 4096]] {
            let validity = runtime.validity(garbage).unwrap();
            assert!(!validity.runs, "{validity}");
            assert_eq!(validity.reasons, [Reason::Malformed]);
        }
        assert!(runtime.deserialize(b"nonsense").is_none());
    }

    #[test]
    fn an_unknown_rank_is_no_scalar() {
        let unknown = Dims64 {
            nbDims: -1,
            d: [0; 8],
        };
        assert_eq!(sizes(&unknown), None);
        assert_eq!(sizes(&Dims64::from_slice(&[])), Some(vec![]));
        assert_eq!(sizes(&Dims64::from_slice(&[2, -1])), Some(vec![2, -1]));
    }
}
