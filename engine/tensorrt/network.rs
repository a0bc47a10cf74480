//! The few TensorRT objects a build needs, owned. All `unsafe` of a build that is not a callback lives here.
//!
//! The crate `trtx` wraps these too, but its parser hands out neither the model's path, nor more than one error, nor the
//! node an error belongs to; so this goes one layer deeper, to the bindings under it.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::pin::Pin;

use cxx::UniquePtr;
use trtx_sys::nvinfer1::{IBuilder, IBuilderConfig, ILayer, INetworkDefinition, ITensor};
use trtx_sys::nvonnxparser::IParser;
use trtx_sys::{
    BuilderFlag, Dims64, HardwareCompatibilityLevel, MemoryPoolType, OptProfileSelector,
    ProfilingVerbosity,
};

use super::api::Api;
use super::logger::Log;
use super::monitor::Monitor;
use super::owned::{HostMemory, own, text};
use super::parser_error::ParserError;
use super::raw;
use super::stream::Stream;
use super::timing_cache::TimingCache;
use crate::explain::RawFailure;
use crate::network::Layer;
use crate::{ComputeCapability, DataType, EngineError, Form, Hardware};

/// A network being built. The fields drop from the user to the used.
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
        log: &'static Log,
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
        // SAFETY: as in `parse`.
        let loaded = unsafe {
            self.parser
                .pin_mut()
                .loadModelProto(onnx.as_ptr().cast(), onnx.len(), path)
        };
        if !loaded {
            return Err(self.failures());
        }
        for (name, bytes) in weights {
            // SAFETY: the bytes outlive `'s` and with it the parser.
            let taken = unsafe {
                self.parser.pin_mut().loadInitializer(
                    name.as_ptr(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                )
            };
            if !taken {
                return Err(vec![RawFailure::of_model(&format!(
                    "the model has no initializer `{}` of {} bytes",
                    name.to_string_lossy(),
                    bytes.len()
                ))]);
            }
        }
        if self.parser.pin_mut().parseModelProto() {
            Ok(())
        } else {
            Err(self.failures())
        }
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

    pub(super) fn layers(&self) -> Vec<Layer> {
        (0..self.network.getNbLayers())
            .filter_map(|i| read_layer(self.network.getLayer(i)))
            .collect()
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

    #[cfg(not(feature = "tensorrt-enterprise"))]
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
                .setComputeCapability(raw::capability(*capability).into(), index);
        }
        if done { Ok(()) } else { Err(refused()) }
    }

    /// TensorRT proper builds for the GPU of the calling thread.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn set_capabilities(&mut self, _: &[ComputeCapability]) -> Result<(), EngineError> {
        Ok(())
    }

    /// What the engine can do beside running where it was built, and in which precision FP32 products are computed.
    pub(super) fn set_form(&mut self, form: &Form, tf32: bool) {
        let mut flag = |flag: BuilderFlag, on: bool| match on {
            true => self.config.pin_mut().setFlag(flag.into()),
            false => self.config.pin_mut().clearFlag(flag.into()),
        };
        flag(BuilderFlag::kTF32, tf32);
        flag(BuilderFlag::kSTRIP_PLAN, form.weight_stripped);
        // A plan without weights is filled with those of the same model.
        flag(BuilderFlag::kREFIT, form.refittable);
        flag(
            BuilderFlag::kREFIT_IDENTICAL,
            form.weight_stripped && !form.refittable,
        );
        flag(BuilderFlag::kVERSION_COMPATIBLE, form.version_compatible);
        if let Some(hardware) = form.hardware {
            let level = match hardware {
                Hardware::AmperePlus => HardwareCompatibilityLevel::kAMPERE_PLUS,
                Hardware::SameCapability => HardwareCompatibilityLevel::kSAME_COMPUTE_CAPABILITY,
            };
            self.config
                .pin_mut()
                .setHardwareCompatibilityLevel(level.into());
        }
    }

    /// Takes what was kept of the timing of kernels; false if it was made by another version or for another GPU, and is
    /// replaced.
    pub(super) fn set_timing_cache(&mut self, kept: &[u8]) -> Result<bool, EngineError> {
        let mut set = |bytes: &[u8]| {
            // SAFETY: the bytes live through the call, which copies them; the config is told of a cache that is never freed,
            // because the bindings know no destructor of it. It is some kilobytes, once for each build.
            unsafe {
                let config = self.config.pin_mut();
                let cache = config.createTimingCache(bytes.as_ptr().cast(), bytes.len());
                match cache.as_ref() {
                    Some(cache) => self.config.pin_mut().setTimingCache(cache, false),
                    None => false,
                }
            }
        };
        if !kept.is_empty() && set(kept) {
            return Ok(true);
        }
        match set(&[]) {
            true => Ok(false),
            false => Err(EngineError::refused("a timing cache")),
        }
    }

    /// The timing of kernels, to be kept.
    pub(super) fn timing_cache(&self) -> Option<HostMemory> {
        let cache = self.config.getTimingCache();
        // SAFETY: the cache belongs to the config, which lives.
        unsafe { TimingCache(cache.cast()).serialize() }
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
        (!raw.is_null()).then(|| HostMemory::from(unsafe { UniquePtr::from_raw(raw) }))
    }

    /// As [`build`](Self::build), into a file; whether there is an engine.
    pub(super) fn build_into(&mut self, stream: &mut Stream) -> bool {
        self.builder.pin_mut().buildSerializedNetworkToStream(
            self.network.pin_mut(),
            self.config.pin_mut(),
            stream.as_pin(),
        )
    }
}

fn read_layer(raw: *mut ILayer) -> Option<Layer> {
    // SAFETY: a layer lives as long as its network, which the caller borrows; so do its tensors.
    let layer = unsafe { raw.as_ref() }?;
    let dtype = |raw: *mut ITensor| -> Option<DataType> {
        let raw: trtx_sys::DataType = unsafe { raw.as_ref() }?.getType().into();
        Some(raw::data_type(raw))
    };
    let kind: trtx_sys::LayerType = layer.getType().into();
    // SAFETY: as above.
    let name = |raw: *mut ITensor| unsafe { text(raw.as_ref()?.getName()) };
    Some(Layer {
        kind: format!("{kind:?}"),
        reads: (0..layer.getNbInputs())
            .filter_map(|i| name(layer.getInput(i)))
            .collect(),
        operands: (0..layer.getNbInputs())
            .filter_map(|i| dtype(layer.getInput(i)))
            .collect(),
        results: (0..layer.getNbOutputs())
            .filter_map(|i| dtype(layer.getOutput(i)))
            .collect(),
    })
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
