use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use kiln_graph::Tensor;
use kiln_graph::onnx;
use ort::memory::MemoryInfo;
use ort::session::{IoBinding, RunOptions, SessionInputValue, SessionInputs, SessionOutputs};
use ort::value::DynValue;
use rustc_hash::FxHashSet;

use super::builder::{builder, on_device};
use super::device::Device;
use super::info::{TensorInfo, infos};
use super::options::SessionOptions;
use super::placement::Placement;
use super::values::{from_ort, to_host, to_ort};
use super::{Error, Runtime, cuda, rtx};
use crate::scratch::Temporary;

/// A model loaded into ONNX Runtime.
#[derive(Debug)]
pub struct Session {
    session: ort::session::Session,
    model: String,
    options: SessionOptions,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// What the session reads its weights from; dropped after it.
    pub(super) weights: Vec<Bytes>,
    runtime: &'static Runtime,
    watch: Watch,
    /// Nodes that may run on the CPU.
    excused: FxHashSet<String>,
}

/// Where a session's nodes ran.
#[derive(Debug)]
enum Watch {
    Off,
    /// The session writes into this folder, which is removed after it.
    Running(Temporary),
    Written(Temporary, PathBuf),
}

impl Session {
    /// Loads an ONNX file that it profiles into a file with this prefix, until [`Session::end_profile`].
    ///
    /// # Errors
    /// As [`Session::from_path`].
    pub fn profiled(
        runtime: &'static Runtime,
        path: &Path,
        options: &SessionOptions,
        prefix: &Path,
    ) -> Result<Session, Error> {
        let model = path.display().to_string();
        Session::load(runtime, model, options, |b| {
            let mut b = b.clone().with_profiling(prefix)?;
            b.commit_from_file(path)
        })
    }

    /// Writes the profile and gives the file's name.
    ///
    /// # Errors
    /// When the session is not profiled, or the file cannot be written.
    pub fn end_profile(&mut self) -> Result<String, Error> {
        self.session.end_profiling().map_err(|e| Error::Run {
            model: self.model.clone(),
            reason: e.to_string(),
        })
    }

    /// Loads an ONNX file, with the external data beside it, or ONNX text, which ONNX Runtime does not read itself.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model, and when an input or output is not a tensor.
    pub fn from_path(
        runtime: &'static Runtime,
        path: &Path,
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        let model = path.display().to_string();
        if onnx::is_text(path) {
            let refused = |reason| Error::Model {
                model: model.clone(),
                reason,
            };
            let read = onnx::read(path).map_err(|e| refused(e.to_string()))?;
            let bytes = onnx::to_bytes(&read).map_err(|e| refused(e.to_string()))?;
            return Session::from_bytes(runtime, model, &bytes, options);
        }
        Session::load(runtime, model, options, |b| b.commit_from_file(path))
    }

    /// Loads an ONNX file from memory; its weights must be inside. `name` stands for the model in messages.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the model, and when an input or output is not a tensor.
    pub fn from_bytes(
        runtime: &'static Runtime,
        name: impl Into<String>,
        model: &[u8],
        options: &SessionOptions,
    ) -> Result<Session, Error> {
        Session::load(runtime, name.into(), options, |b| {
            b.commit_from_memory(model)
        })
    }

    pub(super) fn load(
        runtime: &'static Runtime,
        model: String,
        options: &SessionOptions,
        commit: impl FnOnce(
            &mut ort::session::builder::SessionBuilder,
        ) -> ort::Result<ort::session::Session>,
    ) -> Result<Session, Error> {
        let refused = |e: ort::Error| Error::Model {
            model: model.clone(),
            reason: e.to_string(),
        };
        let mut builder = builder(runtime, options).map_err(refused)?;
        builder = on_device(runtime, builder, options)?;
        let mut watch = Watch::Off;
        if options.watched {
            let folder = Temporary::new().map_err(|e| Error::Model {
                model: model.clone(),
                reason: format!("no temporary folder can be made: {e}"),
            })?;
            let prefix = folder.path().join("placement");
            let profiled = builder.with_profiling(prefix);
            builder = profiled.map_err(|e| refused(e.into()))?;
            watch = Watch::Running(folder);
        }
        let session = commit(&mut builder).map_err(refused)?;
        let inputs = infos(session.inputs(), "the input", &model)?;
        let outputs = infos(session.outputs(), "the output", &model)?;
        Ok(Session {
            session,
            model,
            options: *options,
            inputs,
            outputs,
            weights: Vec::new(),
            runtime,
            watch,
            excused: FxHashSet::default(),
        })
    }

    /// The same session, which messages call by this name.
    pub fn called(self, name: &str) -> Session {
        Session {
            model: name.to_string(),
            ..self
        }
    }

    /// The model's path, or the name it was given.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// The inputs in the model's order, without initializers that a caller might override.
    pub fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    /// The outputs in the model's order.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    /// Runs the model once. The order of `inputs` does not matter; the outputs come in the model's order and are
    /// not copied.
    ///
    /// # Errors
    /// Those of [`Session::bind`] and [`Bound::run`].
    pub fn run<S: AsRef<str>>(
        &mut self,
        inputs: &[(S, Tensor)],
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.bind(inputs)?.run()
    }

    /// Names nodes that may run on the CPU whatever the device: [`Session::placement`] does not count them as fallen back.
    pub fn excuse(&mut self, nodes: FxHashSet<String>) {
        self.excused = nodes;
    }

    /// Where the nodes ran so far, against the provider of the session's device; `None` if it is not watched. Ends the
    /// watching.
    ///
    /// # Errors
    /// When the profile cannot be written or read, or nothing ran.
    pub fn placement(&mut self) -> Result<Option<Placement>, Error> {
        self.placement_for(self.options.device.provider())
    }

    /// As [`Session::placement`], against another provider.
    pub(super) fn placement_for(&mut self, provider: &str) -> Result<Option<Placement>, Error> {
        let failed = |model: &str, reason: String| Error::Run {
            model: model.to_string(),
            reason,
        };
        let file = match std::mem::replace(&mut self.watch, Watch::Off) {
            Watch::Off => return Ok(None),
            Watch::Running(folder) => {
                let file = PathBuf::from(self.end_profile()?);
                self.watch = Watch::Written(folder, file.clone());
                file
            }
            Watch::Written(folder, file) => {
                self.watch = Watch::Written(folder, file.clone());
                file
            }
        };
        let read = Placement::read(&file, provider, &self.excused);
        read.map(Some)
            .map_err(|e| failed(&self.model, e.to_string()))
    }

    /// Checks the inputs and hands them to ONNX Runtime, so that they can be run many times. On a GPU each run copies them
    /// there, and the outputs back.
    ///
    /// # Errors
    /// When an input is missing, unknown, given twice, of another dtype than the model's, or cannot be passed.
    pub fn bind<S: AsRef<str>>(&mut self, inputs: &[(S, Tensor)]) -> Result<Bound<'_>, Error> {
        let (values, bytes) = self.values(inputs)?;
        Ok(Bound {
            session: self,
            fed: Fed::Values(values.into_iter().map(|(_, v)| v.into()).collect()),
            bytes,
        })
    }

    /// As [`Session::bind`], with the inputs copied to the device once, and the outputs left there: what remains of a run is
    /// the model.
    ///
    /// # Errors
    /// As [`Session::bind`], and when the device refuses the memory.
    pub fn bind_resident<S: AsRef<str>>(
        &mut self,
        inputs: &[(S, Tensor)],
    ) -> Result<Bound<'_>, Error> {
        let (values, bytes) = self.values(inputs)?;
        let failed = |e: ort::Error| Error::Run {
            model: self.model.clone(),
            reason: format!("binding to {}: {e}", self.options.device),
        };
        let binding = self.resident(values).map_err(failed)?;
        let graph = match self.options.gpu.graph {
            true => Some(graph_of_its_own(self.options.device).map_err(failed)?),
            false => None,
        };
        Ok(Bound {
            session: self,
            fed: Fed::Resident(Box::new(Resident { binding, graph })),
            bytes,
        })
    }

    fn resident(&self, values: Vec<(String, DynValue)>) -> ort::Result<IoBinding> {
        let memory = device_memory(self.runtime, self.options.device)?;
        let mut binding = self.session.create_binding()?;
        for (name, value) in values {
            binding.bind_input(name, &value)?;
        }
        for output in &self.outputs {
            binding.bind_output_to_device(&output.name, &memory)?;
        }
        binding.synchronize_inputs()?;
        Ok(binding)
    }

    pub(super) fn inner(&self) -> &ort::session::Session {
        &self.session
    }

    pub(super) fn inner_mut(&mut self) -> &mut ort::session::Session {
        &mut self.session
    }

    pub(super) fn runtime(&self) -> &'static Runtime {
        self.runtime
    }

    fn values<S: AsRef<str>>(&self, inputs: &[(S, Tensor)]) -> Result<(Values, Vec<Bytes>), Error> {
        self.values_beside(inputs, &|_| false)
    }

    /// The inputs as ONNX Runtime takes them, in the model's order. Those that are there already need not be given.
    pub(super) fn values_beside<S: AsRef<str>>(
        &self,
        inputs: &[(S, Tensor)],
        is_there: &dyn Fn(&str) -> bool,
    ) -> Result<(Values, Vec<Bytes>), Error> {
        self.refuse_strangers(inputs)?;
        let mut values = Vec::with_capacity(self.inputs.len());
        let mut bytes = Vec::with_capacity(self.inputs.len());
        for info in &self.inputs {
            let given = inputs.iter().find(|(name, _)| name.as_ref() == info.name);
            if given.is_none() && is_there(&info.name) {
                continue;
            }
            let (_, tensor) = given.ok_or_else(|| Error::MissingInput {
                model: self.model.clone(),
                name: info.name.clone(),
                expected: info.to_string(),
                given: list(inputs.iter().map(|(name, _)| name.as_ref())),
            })?;
            if tensor.dtype() != info.dtype {
                return Err(Error::InputType {
                    model: self.model.clone(),
                    name: info.name.clone(),
                    expected: info.dtype,
                    found: tensor.dtype(),
                });
            }
            let input = to_ort(tensor).map_err(|reason| Error::Input {
                model: self.model.clone(),
                name: info.name.clone(),
                reason,
            })?;
            values.push((info.name.clone(), input.value));
            bytes.push(input.bytes);
        }
        Ok((values, bytes))
    }

    fn refuse_strangers<S: AsRef<str>>(&self, inputs: &[(S, Tensor)]) -> Result<(), Error> {
        for (i, (name, _)) in inputs.iter().enumerate() {
            let name = name.as_ref();
            if !self.inputs.iter().any(|info| info.name == name) {
                return Err(Error::UnknownInput {
                    model: self.model.clone(),
                    name: name.to_owned(),
                    inputs: list(self.inputs.iter().map(|info| info.name.as_str())),
                });
            }
            if inputs[..i].iter().any(|(other, _)| other.as_ref() == name) {
                return Err(Error::RepeatedInput {
                    model: self.model.clone(),
                    name: name.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// A session with inputs in place.
pub struct Bound<'s> {
    session: &'s mut Session,
    // Dropped before the bytes that it reads.
    fed: Fed,
    bytes: Vec<Bytes>,
}

enum Fed {
    /// In the model's order.
    Values(Vec<SessionInputValue<'static>>),
    Resident(Box<Resident>),
}

impl Bound<'_> {
    /// Runs the model once. The outputs come in the model's order, and are copied only where they are on a device.
    ///
    /// # Errors
    /// When ONNX Runtime fails (its message names the node), and when an output is not a tensor or cannot be copied.
    pub fn run(&mut self) -> Result<Vec<(String, Tensor)>, Error> {
        let outputs = raw_run(&mut self.session.session, &self.session.model, &self.fed)?;
        outputs
            .into_iter()
            .map(|(name, value)| {
                let tensor = to_host(value).and_then(|value| from_ort(value, &self.bytes));
                let tensor = tensor.map_err(|reason| Error::Output {
                    model: self.session.model.clone(),
                    name: name.to_owned(),
                    reason,
                })?;
                Ok((name.to_owned(), tensor))
            })
            .collect()
    }

    /// Runs the model once and drops the outputs unread: the least that a latency measurement can do.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn run_discarding(&mut self) -> Result<(), Error> {
        raw_run(&mut self.session.session, &self.session.model, &self.fed).map(drop)
    }

    /// The session that the inputs are bound to.
    pub fn session(&self) -> &Session {
        self.session
    }
}

impl fmt::Debug for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bound").field(&self.session).finish()
    }
}

/// The memory of a device.
pub(super) fn device_memory(
    runtime: &'static Runtime,
    device: Device,
) -> ort::Result<MemoryInfo<'static>> {
    match device {
        Device::Cpu => Ok(MemoryInfo::default()),
        Device::Cuda(gpu) => cuda::memory(gpu),
        Device::Rtx(gpu) => rtx::memory(runtime, gpu),
    }
}

pub(super) fn failed_run(model: &str, e: ort::Error) -> Error {
    Error::Run {
        model: model.to_owned(),
        reason: e.to_string(),
    }
}

/// Inputs by their names.
type Values = Vec<(String, DynValue)>;

/// Inputs in the device's memory, and room for the outputs.
struct Resident {
    binding: IoBinding,
    /// Of runs that replay a graph.
    graph: Option<RunOptions>,
}

/// Options for runs of one binding. A recorded graph reads and writes the memory of its first run, in the sizes of that, so
/// each binding records its own.
fn graph_of_its_own(device: Device) -> ort::Result<RunOptions> {
    // 0 is what runs without a number are recorded under.
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let mut options = RunOptions::new()?;
    match device {
        Device::Rtx(_) => options.set("cuda_graph_annotation_id", number)?,
        Device::Cpu | Device::Cuda(_) => options.set("gpu_graph_id", number)?,
    }
    Ok(options)
}

/// Comes back when the outputs are there, wherever that is.
fn raw_run<'s>(
    session: &'s mut ort::session::Session,
    model: &str,
    fed: &'s Fed,
) -> Result<SessionOutputs<'s>, Error> {
    let outputs = match fed {
        Fed::Values(values) => {
            let inputs: SessionInputs<'_, '_> = values.as_slice().into();
            session.run(inputs)
        }
        Fed::Resident(resident) => {
            let Resident { binding, graph } = &**resident;
            let run = match graph {
                Some(options) => session.run_binding_with_options(binding, options),
                None => session.run_binding(binding),
            };
            run.and_then(|outputs| {
                binding.synchronize_outputs()?;
                Ok(outputs)
            })
        }
    };
    outputs.map_err(|e| failed_run(model, e))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests;
