//! How models are opened in ONNX Runtime, so that they compute what they say.

use std::path::Path;

use kiln_graph::onnx::{self, ReadError, ReadErrorKind, WriteOptions};
use kiln_graph::{DType, Model};
use kiln_passes::cuda_kernels;

use super::Error;
use crate::parity::{Placed, Side};
use crate::shapes;
use crate::twin;
use kiln_runtime::{
    self as runtime, Chosen, Device, DeviceRequest, Optimization, Runtime, Session, SessionOptions,
    mapped,
};

/// The BLAKE3 hash of a model's files: it is what was proved, whatever wrote it.
pub(super) fn hash(path: &Path, model: &Model) -> Result<blake3::Hash, ReadError> {
    let mut hash = blake3::Hasher::new();
    hash.update(model.bytes.as_deref().unwrap_or_default());
    for source in model.sources.iter().filter(|s| s.path != path) {
        let map = mapped::own(&source.path).map_err(|e| ReadError {
            path: Some(source.path.clone()),
            kind: ReadErrorKind::Io(e),
        })?;
        hash.update(&map);
    }
    Ok(hash.finalize())
}

/// The optimizer would hide what FP16 does: it takes roundings out. On a GPU products stay in FP32 where the model has them
/// so, and nobody falls back unseen.
pub(super) fn plain(device: Device) -> SessionOptions {
    SessionOptions {
        optimization: Optimization::Disabled,
        // Few runs do not pay for another copy of the weights.
        without_prepacking: true,
        ..seated(device)
    }
}

pub(super) fn seated(device: Device) -> SessionOptions {
    SessionOptions {
        device,
        watched: !device.is_cpu(),
        ..SessionOptions::default()
    }
}

/// What stands for a model where the device has no kernels for its roundings: a GPU has those of FP16, and the CUDA provider those of
/// BF16 that its table names.
pub(super) fn stand_in(model: &Model, device: Device) -> Option<Model> {
    let brain = || twin::formats(model).contains(&DType::BF16);
    let native = match device {
        Device::Cpu => false,
        Device::Cuda(_) => !brain() || cuda_kernels::fallen(model).iter().all(|f| f.sizes),
        Device::Rtx(_) => !brain(),
    };
    (!native).then(|| twin::rounding(model)).flatten()
}

/// A model in memory and in its file, as it computes; ONNX Runtime must not take out what it rounds.
pub(super) fn session(
    runtime: &'static Runtime,
    path: &Path,
    model: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    let mut session = match stand_in(model, options.device) {
        Some(twin) => {
            let plain = SessionOptions {
                optimization: Optimization::Disabled,
                ..*options
            };
            mapped_session(runtime, &path.display().to_string(), &twin, &plain)?
        }
        None if is_large(model, options) => {
            mapped_session(runtime, &path.display().to_string(), model, options)?
        }
        None => Session::from_path(runtime, path, options)?,
    };
    if options.watched {
        session.excuse(shapes::derived(model));
    }
    Ok(session)
}

/// Whether ONNX Runtime is given the weights where kiln has them mapped: from a file it would copy them, and its optimizer
/// would want to read the file.
fn is_large(model: &Model, options: &SessionOptions) -> bool {
    let plain = matches!(options.optimization, Optimization::Disabled);
    plain && model.constant_bytes() as u64 > WriteOptions::default().inline_limit
}

/// A model in ONNX Runtime as it optimizes it, with its weights apart if it is too large for one message.
fn whole_session(
    runtime: &'static Runtime,
    name: &str,
    twin: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    match onnx::to_bytes(twin) {
        Ok(bytes) => Session::from_bytes(runtime, name, &bytes, options),
        Err(_) => mapped_session(runtime, name, twin, options),
    }
}

/// A model in ONNX Runtime, with its weights where they are.
pub(super) fn mapped_session(
    runtime: &'static Runtime,
    name: &str,
    model: &Model,
    options: &SessionOptions,
) -> Result<Session, runtime::Error> {
    let parts = onnx::to_parts(model).map_err(|e| runtime::Error::Model {
        model: name.to_string(),
        reason: e.to_string(),
    })?;
    Session::from_parts(runtime, name, parts, options)
}

/// ONNX Runtime for models that are in no file, such as pieces of one.
#[derive(Debug)]
pub struct Alone {
    runtime: &'static Runtime,
    pub device: Chosen,
    /// Candidates are judged as ONNX Runtime optimizes them.
    optimized: bool,
}

impl Alone {
    /// # Errors
    /// When the runtime or the device is missing.
    pub fn new(
        device: DeviceRequest,
        ort_lib: Option<&Path>,
        optimized: bool,
    ) -> Result<Alone, Error> {
        let runtime = Runtime::load(ort_lib)?;
        Ok(Alone {
            runtime,
            device: runtime.device(device)?,
            optimized,
        })
    }

    /// A model as it computes, with what it rounds. Unless it is optimized, its weights stay where they are mapped.
    ///
    /// # Errors
    /// When the model does not load.
    pub fn open(&self, name: &str, model: &Model, side: Side) -> Result<Session, Error> {
        let device = self.device.device;
        let twin = stand_in(model, device);
        let optimized = self.optimized && side == Side::Candidate && twin.is_none();
        let options = SessionOptions {
            watched: false,
            ..match optimized {
                true => seated(device),
                false => plain(device),
            }
        };
        let model = twin.as_ref().unwrap_or(model);
        Ok(match optimized {
            true => whole_session(self.runtime, name, model, &options)?,
            false => mapped_session(self.runtime, name, model, &options)?,
        })
    }

    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        version(self.runtime)
    }
}

/// A candidate without a reference, whose roundings are kept.
#[derive(Debug)]
pub struct Candidate {
    runtime: &'static Runtime,
    pub session: Session,
    pub device: Chosen,
}

impl Candidate {
    /// Loads a model that is in memory and in its file.
    ///
    /// # Errors
    /// When the runtime is missing or the model does not load.
    pub fn open(
        path: &Path,
        model: &Model,
        device: DeviceRequest,
        ort_lib: Option<&Path>,
    ) -> Result<Candidate, Error> {
        let runtime = Runtime::load(ort_lib)?;
        let device = runtime.device(device)?;
        let session = session(runtime, path, model, &plain(device.device))?;
        Ok(Candidate {
            runtime,
            session,
            device,
        })
    }

    /// Where its nodes ran; empty on the CPU.
    ///
    /// # Errors
    /// When ONNX Runtime does not tell.
    pub fn placements(&mut self) -> Result<Vec<Placed>, Error> {
        let side = Side::Candidate;
        let placement = self.session.placement()?;
        Ok(placement
            .map(|placement| Placed { side, placement })
            .into_iter()
            .collect())
    }

    /// The runtime's name and version.
    pub fn version(&self) -> String {
        version(self.runtime)
    }
}

pub(super) fn version(runtime: &Runtime) -> String {
    format!(
        "ONNX Runtime {}",
        runtime.version().unwrap_or("of unknown version")
    )
}
