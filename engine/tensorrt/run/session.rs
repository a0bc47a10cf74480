//! An engine with its buffers on a GPU.

#![allow(unsafe_code)]

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use kiln_graph::Tensor;

use super::super::api::Api;
use super::super::logger::Log;
use super::bound::{Bound, BoundTensor, fill, packed};
use super::ffi::{Context, Engine, Io, Runtime};
use super::given::{dtype, matched, shape_of};
use crate::cuda::{Device, Event, Graph, Stream};
use crate::run::{EngineRunError, Facts, LayerTime, RunOptions, Timing, choose};
use crate::{EngineError, Kernels, LIBRARY, Profile, inspected, kept, locate};

/// One execution context of an engine, on one CUDA stream. It stays on the thread that made it.
pub struct Session {
    // The order is that in which they drop: a graph holds what the context queued, the context the buffers' addresses.
    graph: Option<Graph>,
    context: Context,
    bound: Option<Bound>,
    events: [Event; 4],
    stream: Stream,
    shared: Rc<Shared>,
}

/// What the contexts of one engine share.
struct Shared {
    engine: Rc<Engine>,
    io: Vec<Io>,
    profiles: Vec<Profile>,
    facts: Facts,
    options: RunOptions,
    log: &'static Log,
    device: Device,
}

impl Session {
    /// Opens a plan. The first context is made, so that it can run. `model` is the ONNX model that the plan was built from: a
    /// plan without weights takes them from there.
    ///
    /// # Errors
    /// [`EngineRunError::Cuda`] without a GPU, [`EngineRunError::Library`] without TensorRT,
    /// [`EngineRunError::Invalid`] where the plan does not fit this machine, [`EngineRunError::Deserialize`] where it cannot
    /// be read, [`EngineRunError::WithoutWeights`] and [`EngineRunError::Refit`] where it wants weights and is given none or others.
    pub fn open(
        plan: &[u8],
        model: Option<&Path>,
        options: &RunOptions,
    ) -> Result<Session, EngineRunError> {
        let device = Device::open(options.device)?;
        let libraries = locate(options.libraries.as_deref())?;
        let api = Api::load(&libraries)?;
        let log = Log::get()?;
        log.clear();
        device.bind()?;
        let runtime = Runtime::new(&api, log)?;
        let validity = runtime.validity(plan);
        if let Some(invalid) = validity.as_ref().filter(|v| !v.runs) {
            return Err(EngineRunError::Invalid {
                validity: invalid.clone(),
                log: log.lines(),
            });
        }
        let start = Instant::now();
        let engine = runtime.deserialize(plan);
        let engine =
            Rc::new(engine.ok_or_else(|| EngineRunError::Deserialize { log: log.lines() })?);
        let load_ms = milliseconds(start);
        let refit_ms = match (engine.stripped_bytes(), model) {
            (0, _) => None,
            (bytes, None) => return Err(EngineRunError::WithoutWeights { bytes }),
            (_, Some(model)) => {
                let start = Instant::now();
                log.clear();
                engine.refit(&api, log, model)?;
                Some(milliseconds(start))
            }
        };
        let io = engine.io();
        let profiles = engine.profiles(&io);
        let kept = options.cache.as_deref().map(kept::read);
        let start = Instant::now();
        let (context, cached) = (engine.context(kept.as_deref()))
            .map_err(|_| refused(log, "make an execution context"))?;
        let facts = Facts {
            runtime: format!("{LIBRARY} {}", api.version),
            device: device.name().into(),
            uuid: device.uuid(),
            capability: device.capability(),
            layers: engine.layers(),
            profiles: profiles.len(),
            activation_bytes: engine.activation_bytes(),
            load_ms,
            refit_ms,
            prepare_ms: milliseconds(start),
            cached,
            validity,
        };
        let shared = Rc::new(Shared {
            engine,
            io,
            profiles,
            facts,
            options: options.clone(),
            log,
            device,
        });
        Session::with(context, shared)
    }

    fn with(context: Context, shared: Rc<Shared>) -> Result<Session, EngineRunError> {
        let device = &shared.device;
        let event = || device.event();
        Ok(Session {
            graph: None,
            context,
            bound: None,
            events: [event()?, event()?, event()?, event()?],
            stream: device.stream()?,
            shared,
        })
    }

    /// Another context of the same engine on a stream of its own. The weights are shared.
    ///
    /// # Errors
    /// When the GPU's memory has no room for its activations.
    pub fn fork(&self) -> Result<Session, EngineRunError> {
        self.shared.device.bind()?;
        self.shared.log.clear();
        let (context, _) = (self.shared.engine.context(None))
            .map_err(|_| refused(self.shared.log, "make another execution context"))?;
        Session::with(context, self.shared.clone())
    }

    /// What runs, and where: `TensorRT for RTX 1.7.1.116 on NVIDIA GeForce RTX 4090 (cuda:0)`.
    pub fn describe(&self) -> String {
        let Facts {
            runtime, device, ..
        } = &self.shared.facts;
        format!(
            "{runtime} on {device} (cuda:{})",
            self.shared.device.ordinal()
        )
    }

    /// Runs once. Every input must be given, and no other.
    ///
    /// # Errors
    /// When an input is missing, unknown, of another type, or of a size that the engine does not take, and when the GPU fails.
    pub fn run(
        &mut self,
        inputs: &[(String, Tensor)],
    ) -> Result<Vec<(String, Tensor)>, EngineRunError> {
        self.bind(inputs)?;
        self.run_bound()?;
        self.outputs()
    }

    pub fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    /// Bytes of the GPU's memory that are free, and all.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn memory(&self) -> Result<(usize, usize), EngineRunError> {
        Ok(self.shared.device.memory()?)
    }

    /// Whether runs are launched as a CUDA graph. TensorRT cannot capture every engine.
    pub fn uses_graph(&self) -> bool {
        self.graph.is_some()
    }

    /// Takes inputs: chooses the profile, makes buffers, copies, runs once unmeasured, and captures the graph.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn bind(&mut self, inputs: &[(String, Tensor)]) -> Result<(), EngineRunError> {
        let given = matched(&self.shared.io, inputs)?;
        if self.refill(&given)? {
            return Ok(());
        }
        self.shared.device.bind()?;
        self.shared.log.clear();
        self.stream.wait()?;
        self.graph = None;
        // Where this fails, nothing is bound, so that no run uses an address of a buffer that is gone. The old buffers live
        // until every tensor has a new address.
        let _old = self.bound.take();
        self.choose_profile(&given)?;
        self.bound = Some(self.buffers(&given)?);
        self.refill(&given)?;
        self.upload()?;
        self.enqueue()?;
        self.stream.wait()?;
        // SAFETY: the stream belongs to the engine's device.
        let capturable = unsafe { self.context.is_capturable(self.stream.as_ptr()) };
        if self.shared.options.graph && capturable && self.context.profiler().is_none() {
            let stream = self.stream.clone();
            // What cannot be captured after all runs without: a refused capture leaves the stream as it was.
            self.graph = (stream.capture(|| self.enqueue()).ok()).and_then(Result::ok);
            self.launch()?;
            self.stream.wait()?;
        }
        Ok(())
    }

    fn choose_profile(&mut self, given: &[(usize, Tensor)]) -> Result<(), EngineRunError> {
        let shapes: Vec<(String, Vec<i64>)> = given
            .iter()
            .map(|(i, t)| (self.shared.io[*i].name.clone(), shape_of(t)))
            .collect();
        let chosen = choose(&self.shared.profiles, &shapes)?;
        let chosen = i32::try_from(chosen).unwrap_or(0);
        if self.context.profile() != chosen {
            // SAFETY: the stream belongs to the engine's device, and is waited for.
            let done = unsafe { self.context.set_profile(chosen, self.stream.as_ptr()) };
            if !done {
                return Err(self.refused(&format!("take profile {chosen}")));
            }
            self.stream.wait()?;
        }
        for ((index, _), (input, shape)) in given.iter().zip(&shapes) {
            if !self.context.set_shape(&self.shared.io[*index], shape) {
                return Err(self.refused(&format!("take `{input}` of shape {shape:?}")));
            }
        }
        Ok(())
    }

    /// Buffers for the inputs, and for the outputs that follow from them.
    fn buffers(&mut self, given: &[(usize, Tensor)]) -> Result<Bound, EngineRunError> {
        let shared = self.shared.clone();
        let mut tensors = Vec::with_capacity(shared.io.len());
        // Inputs first: outputs may depend on values in the host's memory.
        let mut order: Vec<usize> = (0..shared.io.len()).collect();
        order.sort_by_key(|&i| !shared.io[i].is_input);
        for index in order {
            let io = &shared.io[index];
            let dtype = dtype(io)?;
            let (dims, at_least) = match given.iter().find(|(i, _)| *i == index) {
                Some((_, tensor)) => (tensor.dims().to_vec(), 0),
                None => {
                    let dims = self.context.shape(io);
                    let dims =
                        dims.ok_or_else(|| EngineRunError::DataDependent(io.name.clone()))?;
                    let dims = dims.iter().map(|&d| usize::try_from(d).unwrap_or(0));
                    (dims.collect(), self.context.max_output_bytes(io))
                }
            };
            let bytes = packed(dtype, &dims).ok_or_else(|| {
                EngineRunError::Inputs(format!("`{}` of shape {dims:?} is too large", io.name))
            })?;
            let mut buffer = self.stream.buffer(bytes.max(at_least))?;
            if let (true, Some((_, tensor))) = (io.on_host, given.iter().find(|(i, _)| *i == index))
            {
                fill(&mut buffer, tensor)?;
            }
            let address = match io.on_host {
                true => buffer.host_ptr()?,
                false => buffer.device_ptr(),
            };
            // SAFETY: the buffer holds the tensor at this shape, and more if TensorRT says so. `bind` keeps it in `bound`, which
            // drops after the context, or leaves nothing bound, and then nothing runs.
            if !unsafe { self.context.set_address(io, address) } {
                return Err(self.refused(&format!("take an address for `{}`", io.name)));
            }
            tensors.push((
                index,
                BoundTensor {
                    dtype,
                    dims,
                    bytes,
                    buffer,
                },
            ));
        }
        tensors.sort_by_key(|(index, _)| *index);
        Ok(Bound {
            tensors: tensors.into_iter().map(|(_, t)| t).collect(),
        })
    }

    /// Copies the inputs into the buffers, if these are for their types and shapes; false if not.
    fn refill(&mut self, given: &[(usize, Tensor)]) -> Result<bool, EngineRunError> {
        let Some(bound) = &mut self.bound else {
            return Ok(false);
        };
        let io = &self.shared.io;
        let fits = given.iter().all(|(i, tensor)| {
            let b = &bound.tensors[*i];
            // Values in the host's memory decide shapes.
            b.dtype == tensor.dtype()
                && b.dims == tensor.dims()
                && (!io[*i].on_host || b.holds(tensor))
        });
        if !fits {
            return Ok(false);
        }
        for (index, tensor) in given {
            fill(&mut bound.tensors[*index].buffer, tensor)?;
        }
        Ok(true)
    }

    fn upload(&mut self) -> Result<(), EngineRunError> {
        self.copy(true)
    }

    /// Queues the copies of the inputs, or of the outputs.
    fn copy(&mut self, inputs: bool) -> Result<(), EngineRunError> {
        let Some(bound) = &mut self.bound else {
            return Err(EngineRunError::Inputs("no inputs were given yet".into()));
        };
        for (io, tensor) in self.shared.io.iter().zip(&mut bound.tensors) {
            if io.on_host || io.is_input != inputs {
                continue;
            }
            match inputs {
                true => self.stream.upload(&mut tensor.buffer)?,
                false => self.stream.download(&mut tensor.buffer)?,
            }
        }
        Ok(())
    }

    fn enqueue(&mut self) -> Result<(), EngineRunError> {
        // SAFETY: `bind` gave every tensor its address; the stream belongs to the engine's device.
        match unsafe { self.context.enqueue(self.stream.as_ptr()) } {
            true => Ok(()),
            false => Err(self.refused("run")),
        }
    }

    fn launch(&mut self) -> Result<(), EngineRunError> {
        match &self.graph {
            Some(graph) => Ok(graph.launch()?),
            None => self.enqueue(),
        }
    }

    /// Runs once with the inputs that were bound, copies and all, and waits for the end.
    ///
    /// # Errors
    /// When nothing is bound or the GPU fails.
    pub fn run_bound(&mut self) -> Result<Timing, EngineRunError> {
        self.events[0].record(&self.stream)?;
        self.upload()?;
        self.events[1].record(&self.stream)?;
        self.launch()?;
        self.events[2].record(&self.stream)?;
        self.copy(false)?;
        self.events[3].record(&self.stream)?;
        self.stream.wait()?;
        let [start, uploaded, computed, downloaded] = &self.events;
        Ok(Timing {
            upload_ms: start.until(uploaded)?,
            compute_ms: uploaded.until(computed)?,
            download_ms: computed.until(downloaded)?,
        })
    }

    /// Queues a run without copies and returns at once.
    ///
    /// # Errors
    /// When nothing is bound or the GPU fails.
    pub fn start(&mut self) -> Result<(), EngineRunError> {
        if self.bound.is_none() {
            return Err(EngineRunError::Inputs("no inputs were given yet".into()));
        }
        self.events[1].record(&self.stream)?;
        self.launch()?;
        Ok(self.events[2].record(&self.stream)?)
    }

    /// Whether what [`start`](Self::start) queued is done.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn is_done(&self) -> Result<bool, EngineRunError> {
        Ok(self.events[2].is_done()?)
    }

    /// Waits for what [`start`](Self::start) queued; milliseconds of the GPU.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn finish(&mut self) -> Result<f64, EngineRunError> {
        self.events[2].wait()?;
        Ok(self.events[1].until(&self.events[2])?)
    }

    /// The outputs of the last run with copies.
    ///
    /// # Errors
    /// When nothing is bound, or an output does not fit its type.
    pub fn outputs(&self) -> Result<Vec<(String, Tensor)>, EngineRunError> {
        let Some(bound) = &self.bound else {
            return Err(EngineRunError::Inputs("no inputs were given yet".into()));
        };
        let tensors = self.shared.io.iter().zip(&bound.tensors);
        let outputs = tensors.filter(|(io, _)| !io.is_input).map(|(io, t)| {
            let bytes = Bytes::copy_from_slice(&t.buffer.host()?[..t.bytes]);
            let tensor = Tensor::from_raw(t.dtype, t.dims.clone(), bytes);
            let tensor = tensor.map_err(|e| EngineRunError::Inputs(e.to_string()))?;
            Ok((io.name.clone(), tensor))
        });
        outputs.collect()
    }

    /// The kernels as TensorRT tells them of the opened engine.
    ///
    /// # Errors
    /// When its inspector tells nothing, or what is not understood.
    pub fn inspected(&self) -> Result<Kernels, EngineRunError> {
        let json = self.shared.engine.inspected()?;
        inspected::read(&json).map_err(EngineRunError::Inspected)
    }

    /// The time of each layer over so many runs of a context of its own, the slowest first. TensorRT waits after every
    /// layer, so their sum is more than a run takes.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn layers(
        &self,
        inputs: &[(String, Tensor)],
        runs: usize,
    ) -> Result<Vec<LayerTime>, EngineRunError> {
        let mut timed = self.fork()?;
        // Kernels are compiled and memory is made before the first run that counts.
        timed.bind(inputs)?;
        timed.graph = None;
        timed.context.attach_profiler()?;
        for _ in 0..runs {
            timed.enqueue()?;
            timed.stream.wait()?;
        }
        let layers = timed.context.profiler().map(|p| p.layers());
        Ok(layers.unwrap_or_default())
    }

    /// Writes the kernels that were compiled to the file that the options name; does nothing without one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_cache(&self) -> Result<(), EngineRunError> {
        let Some(path) = &self.shared.options.cache else {
            return Ok(());
        };
        match self.shared.engine.cached()? {
            None => Ok(()),
            Some(memory) => kept::write(path, memory.as_ref()).map_err(|source| {
                EngineRunError::Library(EngineError::Write {
                    path: path.clone(),
                    reason: source.to_string(),
                })
            }),
        }
    }

    fn refused(&self, what: &str) -> EngineRunError {
        refused(self.shared.log, what)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing may be freed that a queued run still uses. If the GPU failed, there is no such run any more.
        let _ = self.shared.device.bind();
        let _ = self.stream.wait();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.describe())
    }
}

fn refused(log: &Log, what: &str) -> EngineRunError {
    EngineRunError::Refused {
        what: what.into(),
        log: log.lines(),
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
