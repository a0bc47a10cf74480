//! What runs the models of a generation: ONNX Runtime, or engines on a GPU.

use std::path::{Path, PathBuf};

use kiln_graph::Tensor;

use super::error::GenerateError;
use super::ports::Ports;
use crate::bundle;
use crate::engine::run::{EngineRunError, RunOptions, Session as EngineSession, unavailable};
use crate::runtime::{Carried, DeviceRequest, Runtime, Session, SessionOptions};

/// Where models of a generation run.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// ONNX Runtime on the CPU. Caches come back after each step, so that several generations can be under way.
    #[default]
    Cpu,
    /// ONNX Runtime, on a GPU if that is asked for: caches stay there.
    Device(DeviceRequest),
    /// The engines of bundles.
    Engine(Gpu),
}

/// What engines take.
#[derive(Clone, Debug, Default)]
pub struct Gpu {
    /// As CUDA counts them.
    pub device: usize,
    /// The folder of TensorRT's libraries, or where they are found.
    pub libraries: Option<PathBuf>,
}

/// An opened model.
#[derive(Debug)]
pub struct Ran {
    name: String,
    by: By,
    /// The generation whose caches are where it runs, and how many places they hold.
    holds: Option<(u64, usize)>,
}

#[derive(Debug)]
enum By {
    Model(Box<Session>),
    Carried(Box<(Session, Carried)>),
    Engine(Box<EngineSession>),
}

/// How far a generation is.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub generation: u64,
    /// Places of the caches so far, and those of this step.
    pub past: usize,
    pub new: usize,
    /// Whether its caches are where it runs.
    pub is_away: bool,
}

impl Ran {
    /// Opens a model or a bundle, which messages call by its path.
    ///
    /// # Errors
    /// When it cannot be read, or what is to run it refuses it.
    pub fn open(
        path: &Path,
        place: &Place,
        ort_lib: Option<&Path>,
        options: &SessionOptions,
    ) -> Result<Ran, GenerateError> {
        let name = path.display().to_string();
        let by = match place {
            Place::Cpu => {
                let runtime = Runtime::load(ort_lib)?;
                let session = Session::from_path(runtime, &bundle::find_model(path)?, options)?;
                By::Model(Box::new(session.called(&name)))
            }
            Place::Device(request) => {
                let runtime = Runtime::load(ort_lib)?;
                let chosen = runtime.device(*request)?;
                let options = SessionOptions {
                    device: chosen.device,
                    ..*options
                };
                let file = bundle::find_model_for(path, *request)?;
                let session = Session::from_path(runtime, &file, &options)?.called(&name);
                match chosen.device.is_cpu() {
                    true => By::Model(Box::new(session)),
                    false => By::Carried(Box::new((session, Carried::default()))),
                }
            }
            Place::Engine(gpu) => By::Engine(Box::new(engine(path, gpu)?)),
        };
        Ok(Ran {
            name,
            by,
            holds: None,
        })
    }

    /// A session whose caches come back after each step.
    pub fn of(session: Session) -> Ran {
        Ran {
            name: session.model().to_string(),
            by: By::Model(Box::new(session)),
            holds: None,
        }
    }

    /// A session that keeps the caches of one generation.
    pub fn carrying(session: Session) -> Ran {
        Ran {
            name: session.model().to_string(),
            by: By::Carried(Box::new((session, Carried::default()))),
            holds: None,
        }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs once.
    ///
    /// # Errors
    /// When ONNX Runtime or TensorRT refuses the inputs, or fails.
    pub fn run(
        &mut self,
        inputs: &[(String, Tensor)],
    ) -> Result<Vec<(String, Tensor)>, GenerateError> {
        Ok(match &mut self.by {
            By::Model(session) => session.run(inputs)?,
            By::Carried(both) => both.0.run(inputs)?,
            By::Engine(session) => session.run(inputs)?,
        })
    }

    /// Whether caches stay where they are computed.
    pub(super) fn keeps(&self) -> bool {
        !matches!(self.by, By::Model(_))
    }

    /// Runs a step. `inputs` are all; of a generation whose caches are away these, and what is given once, are not looked at.
    pub(super) fn step(
        &mut self,
        at: At,
        ports: &Ports,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, GenerateError> {
        if at.is_away && self.holds != Some((at.generation, at.past)) {
            return Err(GenerateError::Usage {
                what: format!(
                    "{} holds the caches of one generation at a time, and another one has begun",
                    self.name
                ),
            });
        }
        self.holds = None;
        let outputs = match &mut self.by {
            By::Model(session) => session.run(&inputs)?,
            By::Carried(both) => carried(&mut both.0, &mut both.1, at, ports, inputs)?,
            By::Engine(session) => in_place(session, at, ports, inputs)?,
        };
        self.holds = Some((at.generation, at.past + at.new));
        Ok(outputs)
    }
}

fn carried(
    session: &mut Session,
    carried: &mut Carried,
    at: At,
    ports: &Ports,
    mut inputs: Vec<(String, Tensor)>,
) -> Result<Vec<(String, Tensor)>, GenerateError> {
    match at.is_away {
        true => {
            let is_there = |name: &str| {
                let mut all = ports.caches.iter().map(|c| &c.port).chain(ports.given());
                all.any(|port| port.name == name)
            };
            inputs.retain(|(name, _)| !is_there(name));
        }
        false => carried.clear(),
    }
    let own = ports.caches.iter().filter(|c| !c.is_given());
    let handed = own.filter_map(|c| Some((c.port.name.clone(), c.output.clone()?)));
    let handed: Vec<(String, String)> = handed.collect();
    Ok(session.run_carried(carried, &inputs, &handed)?)
}

fn in_place(
    session: &mut EngineSession,
    at: At,
    ports: &Ports,
    inputs: Vec<(String, Tensor)>,
) -> Result<Vec<(String, Tensor)>, GenerateError> {
    let written = session.written_into();
    let is_kept = |name: &str| {
        let own = ports.caches.iter().find(|c| c.port.name == name);
        own.is_some_and(|c| !c.is_given()) && written.contains(&name)
    };
    let (kept, mut given): (Vec<_>, Vec<_>) = inputs.into_iter().partition(|(n, _)| is_kept(n));
    let sizes = kept.iter().map(|(n, t)| (n.clone(), t.dims().to_vec()));
    let sizes: Vec<(String, Vec<usize>)> = sizes.collect();
    match (at.is_away, at.past) {
        (true, _) => {}
        (false, 0) => session.begin()?,
        // A first step made them.
        (false, _) => given.extend(kept),
    }
    Ok(session.step(&given, &sizes)?)
}

fn engine(path: &Path, gpu: &Gpu) -> Result<EngineSession, GenerateError> {
    let plan = bundle::find_engine(path)?;
    if let Some(why) = unavailable() {
        return Err(EngineRunError::Cuda(why).into());
    }
    let bytes = std::fs::read(&plan).map_err(|source| bundle::BundleError::Io {
        path: plan.clone(),
        why: "it cannot be read",
        source,
    })?;
    let model = bundle::find_model(path)?;
    let options = RunOptions {
        device: gpu.device,
        libraries: gpu.libraries.clone(),
        ..RunOptions::default()
    };
    Ok(EngineSession::open(&bytes, Some(&model), &options)?)
}
