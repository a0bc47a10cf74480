//! An engine with its buffers on a GPU.

#![allow(unsafe_code)]

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use kiln_graph::Tensor;

use super::super::api::Api;
use super::super::logger::Log;
use super::bound::{Bound, Memory};
use super::ffi::{Context, Engine, Io, Runtime};
use super::given::places;
use crate::cuda::{Device, Event, Graph, Stream};
use crate::run::{EngineRunError, Facts, LayerTime, RunOptions, Timing};
use crate::{EngineError, Kernels, LIBRARY, Profile, inspected, kept, locate};

/// One execution context of an engine, on one CUDA stream. It stays on the thread that made it.
pub struct Session {
    // The order is that in which they drop: a graph holds what the context queued, the context the buffers' addresses.
    pub(super) graph: Option<Graph>,
    pub(super) context: Context,
    pub(super) bound: Option<Bound>,
    events: [Event; 4],
    pub(super) stream: Stream,
    pub(super) shared: Rc<Shared>,
}

/// What the contexts of one engine share.
pub(super) struct Shared {
    engine: Rc<Engine>,
    pub(super) io: Vec<Io>,
    pub(super) profiles: Vec<Profile>,
    facts: Facts,
    pub(super) options: RunOptions,
    pub(super) log: &'static Log,
    pub(super) device: Device,
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

    /// Runs one step of a generation. `kept` are inputs, with their shapes, in whose memory the engine writes outputs: they stay on
    /// the GPU from step to step, and neither they nor these outputs are copied. They are zeros at first and after
    /// [`begin`](Self::begin), or what is given of them among `inputs`.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when the engine writes no output in the memory of one of `kept`.
    pub fn step(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &[(String, Vec<usize>)],
    ) -> Result<Vec<(String, Tensor)>, EngineRunError> {
        let kept = places(&self.shared.io, kept)?;
        self.bind_beside(inputs, &kept)?;
        self.run_bound()?;
        self.outputs()
    }

    /// The inputs in whose memory the engine writes outputs.
    pub fn written_into(&self) -> Vec<&str> {
        let io = &self.shared.io;
        let inputs = io.iter().filter_map(|o| io.get(o.of?));
        inputs.map(|input| input.name.as_str()).collect()
    }

    /// Clears what steps left on the GPU.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn begin(&mut self) -> Result<(), EngineRunError> {
        self.shared.device.bind()?;
        for tensor in self.bound.iter_mut().flat_map(|b| &mut b.tensors) {
            if let Memory::Kept(room) = &mut tensor.memory {
                self.stream.clear(room)?;
            }
        }
        Ok(self.stream.wait()?)
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

    pub(super) fn upload(&mut self) -> Result<(), EngineRunError> {
        self.copy(true)
    }

    /// Queues the copies of the inputs, or of the outputs.
    fn copy(&mut self, inputs: bool) -> Result<(), EngineRunError> {
        let Some(bound) = &mut self.bound else {
            return Err(EngineRunError::Inputs("no inputs were given yet".into()));
        };
        for (index, io) in self.shared.io.iter().enumerate() {
            if io.on_host || io.is_input != inputs || bound.tensors[index].is_there {
                continue;
            }
            match (inputs, bound.buffer_mut(index)) {
                (_, None) => {}
                (true, Some(buffer)) => self.stream.upload(buffer)?,
                (false, Some(buffer)) => self.stream.download(buffer)?,
            }
        }
        Ok(())
    }

    pub(super) fn enqueue(&mut self) -> Result<(), EngineRunError> {
        // SAFETY: `bind` gave every tensor its address; the stream belongs to the engine's device.
        match unsafe { self.context.enqueue(self.stream.as_ptr()) } {
            true => Ok(()),
            false => Err(self.refused("run")),
        }
    }

    pub(super) fn launch(&mut self) -> Result<(), EngineRunError> {
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
        let all = self.shared.io.iter().enumerate();
        let outputs = all.filter(|(_, io)| !io.is_input);
        let outputs = outputs.filter_map(|(k, io)| Some((io, &bound.tensors[k], bound.buffer(k)?)));
        let outputs = outputs.map(|(io, t, buffer)| {
            let bytes = Bytes::copy_from_slice(&buffer.host()?[..t.bytes]);
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

    pub(super) fn refused(&self, what: &str) -> EngineRunError {
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
