//! TensorRT for RTX as a builder.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::api::Api;
use super::logger::Log;
use super::monitor::Monitor;
use super::network::{RawTensor, Session, Shapes};
use super::raw;
use super::stream::Stream;
use kiln_runtime::mapped;

use crate::explain::{self, RawFailure};
use crate::network::Network;
use crate::profile::{self, Input, Profile, ProfileError};
use crate::{
    BuildRequest, Built, ComputeCapability, EngineBuilder, EngineError, Kernels, Libraries,
    PHASE_BUILD, PHASE_PARSE, Plan, Progress, TensorInfo, Version, cuda, kept,
};

/// TensorRT's kernel compiler keeps the GPUs to build for in a global variable: two builds at a time for different ones
/// fail, each with the other's GPU in its error. They would share one log, too.
static BUILDING: Mutex<()> = Mutex::new(());

/// Keeps builds of this process waiting, so that a test's lines in the log are in no build's.
#[cfg(test)]
pub(super) fn no_builds() -> std::sync::MutexGuard<'static, ()> {
    BUILDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Builds engines with TensorRT for RTX, on machines without a GPU too.
///
/// It is cheap to clone and may be shared between threads, but a process builds one engine at a time: a second build
/// waits for the first.
#[derive(Clone)]
pub struct RtxBuilder {
    api: Api,
}

impl RtxBuilder {
    /// Loads the libraries. They stay loaded until the process ends.
    ///
    /// # Errors
    /// [`EngineError::Load`] or [`EngineError::Version`] if they are not the right ones.
    pub fn new(libraries: &Libraries) -> Result<Self, EngineError> {
        Api::load(libraries).map(|api| Self { api })
    }

    /// The version of the library that builds.
    pub fn version(&self) -> Version {
        self.api.version
    }
}

impl fmt::Debug for RtxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RtxBuilder({})", self.api.version)
    }
}

impl EngineBuilder for RtxBuilder {
    fn build(
        &self,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
    ) -> Result<Built, EngineError> {
        check_request(request)?;
        let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let log = Log::get()?;
        log.clear();
        let monitor = Monitor::new(progress)?;
        let mut session = Session::new(&self.api, log, &monitor).map_err(|e| with_log(e, log))?;

        monitor.start(PHASE_PARSE);
        let started = Instant::now();
        let parsed = parse(&mut session, request, log);
        let parse_time = started.elapsed();
        monitor.finish(PHASE_PARSE);
        parsed?;
        if monitor.cancelled() {
            return Err(EngineError::Cancelled);
        }

        let (inputs, outputs) = (session.inputs(), session.outputs());
        configure(&mut session, request, &inputs).map_err(|e| with_log(e, log))?;

        monitor.start(PHASE_BUILD);
        let started = Instant::now();
        let plan = plan(&mut session, request);
        let build_time = started.elapsed();
        monitor.finish(PHASE_BUILD);
        // A build that was asked to stop may still have come to its end.
        if monitor.cancelled() {
            return Err(EngineError::Cancelled);
        }
        let plan = plan?;
        let lines = log.lines();
        let broken = explain::broken_profiles(&lines);
        let plan = match plan {
            Some(plan) if broken.is_empty() => plan,
            failed => {
                let failures = if failed.is_some() {
                    broken
                } else {
                    explain::build_failures(&lines)
                };
                return Err(EngineError::Build {
                    failures,
                    log: lines,
                });
            }
        };
        if let (Some(path), Some(timings)) = (&request.form.timing_cache, session.timing_cache()) {
            kept::write(path, timings.as_ref()).map_err(|source| EngineError::Write {
                path: path.clone(),
                reason: source.to_string(),
            })?;
        }
        Ok(Built {
            plan,
            parse_time,
            build_time,
            warnings: explain::warnings(&lines),
            network: Network::of(session.layers(), inputs.iter().map(|t| t.name.as_str())),
            kernels: Kernels::read(&log.kernels()),
            inputs: inputs.into_iter().map(TensorInfo::from).collect(),
            outputs: outputs.into_iter().map(TensorInfo::from).collect(),
            version: self.api.version,
        })
    }
}

fn check_request(request: &BuildRequest<'_>) -> Result<(), EngineError> {
    let capabilities = &request.capabilities;
    let refuse = |reason: &'static str| Err(EngineError::Request(reason.into()));
    if capabilities.is_empty() {
        return refuse("an engine needs at least one compute capability to be built for");
    }
    if capabilities.len() > 1 && capabilities.contains(&ComputeCapability::Current) {
        return refuse("the compute capability `current` cannot be combined with others");
    }
    let form = &request.form;
    let proper = form.version_compatible || form.hardware.is_some() || form.timing_cache.is_some();
    if proper && !cfg!(feature = "tensorrt-enterprise") {
        return refuse(
            "version and hardware compatibility and the timing cache are options of TensorRT proper: an engine of TensorRT \
             for RTX holds kernels for all the GPUs that it was asked for, and is built without timing kernels",
        );
    }
    // Otherwise the kernel compiler stops with a CUDA error that says nothing of this.
    if (form.refittable || form.weight_stripped) && cuda::device_count().is_err() {
        return refuse(
            "an engine without weights, or with weights that can be replaced, is built on a machine with a GPU only",
        );
    }
    if cfg!(feature = "tensorrt-enterprise") && capabilities != &[ComputeCapability::Current] {
        return refuse("TensorRT builds for the GPU of the machine that it runs on alone");
    }
    if request.optimization_level.is_some_and(|level| level > 5) {
        return refuse("the builder's optimization level is a number from 0 to 5");
    }
    if request.onnx.len() > i32::MAX as usize {
        return refuse(
            "the serialized model is larger than 2 GB: keep its weights as external data",
        );
    }
    Ok(())
}

fn parse<'s>(
    session: &mut Session<'s>,
    request: &BuildRequest<'s>,
    log: &Log,
) -> Result<(), EngineError> {
    let path = request.data_dir.map(model_path).transpose()?;
    let path = path.as_deref();
    let raw = if request.weights.is_empty() {
        session.parse(request.onnx, path)
    } else {
        let named: Result<Vec<_>, _> = request
            .weights
            .iter()
            .map(|(name, bytes)| CString::new(*name).map(|name| (name, *bytes)))
            .collect();
        let named = named.map_err(|_| {
            EngineError::Request("the name of an initializer contains a NUL character".into())
        })?;
        session.parse_with_weights(request.onnx, path, &named)
    };
    let failures = match raw {
        Ok(()) if !session.outputs().is_empty() => return Ok(()),
        // Bytes that are no protobuf at all make an empty network, without an error.
        Ok(()) => vec![RawFailure::of_model(
            "it has no graph with outputs: is it an ONNX model?",
        )],
        Err(failures) if failures.is_empty() => {
            vec![RawFailure::of_model("the parser does not say why")]
        }
        Err(failures) => failures,
    };
    let log = log.lines();
    let failures = failures
        .into_iter()
        .map(|f| explain::parse_failure(f, &log))
        .collect();
    Err(EngineError::Parse { failures, log })
}

/// The parser takes the path of a model file and looks for external data beside it.
fn model_path(folder: &Path) -> Result<CString, EngineError> {
    let path = folder.join("model.onnx").into_os_string();
    CString::new(path.into_encoded_bytes()).map_err(|_| {
        EngineError::Request(
            "the folder of the external data has a NUL character in its path".into(),
        )
    })
}

/// The plan where it was asked for; `None` if TensorRT builds none.
fn plan(
    session: &mut Session<'_>,
    request: &BuildRequest<'_>,
) -> Result<Option<Plan>, EngineError> {
    let Some(path) = request.plan else {
        return Ok(session.build().map(Plan::in_memory));
    };
    let failed = |e: io::Error| EngineError::Write {
        path: path.to_path_buf(),
        reason: e.to_string(),
    };
    let mut stream = Stream::new(File::create(path).map_err(failed)?);
    let built = session.build_into(&mut stream);
    stream.end().map_err(failed)?;
    if !built {
        return Ok(None);
    }
    let map = mapped::own(path).map_err(failed)?;
    Ok(Some(Plan::in_file(path.to_path_buf(), map)))
}

fn configure(
    session: &mut Session<'_>,
    request: &BuildRequest<'_>,
    inputs: &[RawTensor],
) -> Result<(), EngineError> {
    let known: Vec<_> = inputs
        .iter()
        .map(|t| Input {
            name: &t.name,
            shape: &t.shape,
            is_shape: t.is_shape,
        })
        .collect();
    profile::check(&request.profiles, &known)?;

    session.set_capabilities(&request.capabilities)?;
    if let Some(bytes) = request.workspace {
        session.set_workspace(bytes);
    }
    if let Some(level) = request.optimization_level {
        session.set_optimization_level(level);
    }
    if request.detailed {
        session.set_detailed();
    }
    session.set_form(&request.form, request.tf32);
    if let Some(path) = &request.form.timing_cache {
        session.set_timing_cache(&kept::read(path))?;
    }
    for (index, profile) in request.profiles.iter().enumerate() {
        let refused = || ProfileError::Refused { profile: index };
        let shapes = shapes(profile).ok_or_else(refused)?;
        if !session.add_profile(&shapes)? {
            return Err(refused().into());
        }
    }
    Ok(())
}

/// None if a name contains NUL; a checked profile has no such name.
fn shapes(profile: &Profile) -> Option<Vec<Shapes<'_>>> {
    profile
        .inputs
        .iter()
        .map(|i| {
            Some(Shapes {
                input: CString::new(i.name.as_str()).ok()?,
                dims: [&i.min, &i.opt, &i.max],
            })
        })
        .collect()
}

fn with_log(error: EngineError, log: &Log) -> EngineError {
    match error {
        EngineError::Refused { what, .. } => EngineError::Refused {
            what,
            log: log.lines(),
        },
        other => other,
    }
}

impl From<RawTensor> for TensorInfo {
    fn from(raw: RawTensor) -> Self {
        Self {
            name: raw.name,
            dtype: raw::data_type(raw.dtype),
            shape: raw.shape,
        }
    }
}
