//! One reference against many candidates.

use std::path::{Path, PathBuf};

use kiln_graph::{Model, Tensor, infer, onnx};

use super::Error;
use super::ports;
use super::sessions::{plain, seated, session, stand_in, twin_session, version};
use super::{Reference, TYPICAL, outputs};
use crate::engine_parity::{EngineParity, Runner};
use crate::made;
use crate::parity::{self, Case, Placed, Side, Tolerance};
use kiln_runtime::{self as runtime, Chosen, Optimization, Session, SessionOptions};

impl Reference {
    /// Compares at these cases, which are real inputs, instead of those that were made.
    pub fn prefer(&mut self, mut cases: Vec<Case>) {
        for case in &mut cases {
            self.fixed.complete(&mut case.inputs);
        }
        if cases.is_empty() {
            return;
        }
        self.typical = self.typical().cloned();
        self.cases.retain(|c| !self.made.contains(&c.name));
        self.cases.extend(cases);
        self.expected.clear();
        self.noise.clear();
        self.evidence.forget();
        self.held = 0;
    }

    /// What ONNX Runtime does to the graphs of results before it runs them.
    pub fn optimization(&self) -> Optimization {
        match self.optimized {
            true => Optimization::All,
            false => Optimization::Disabled,
        }
    }

    /// The model as it was written: of one in memory, the weights may still have to be computed, and would all be held.
    pub(super) fn candidate(&mut self, path: &Path) -> Result<Session, Error> {
        let mut written = onnx::read(path)?;
        infer::annotate(&mut written.graph);
        let device = self.device.device;
        let options = match self.optimized {
            true => seated(device),
            false => plain(device),
        };
        let opened = session(self.runtime, path, &written, &options);
        let opened = match &self.result {
            None => opened?,
            Some(name) => {
                let about = |e: runtime::Error| e.about(&path.display().to_string(), name);
                let opened = opened.map_err(|e| self.refused(about(e)))?;
                opened.called(name)
            }
        };
        if self.half_io {
            self.asked = ports::declared(opened.inputs());
        }
        Ok(opened)
    }

    /// ONNX Runtime does not take a result that kiln made of a model that it takes.
    fn refused(&self, source: runtime::Error) -> Error {
        match source.is_missing_runtime() || self.result.is_none() {
            true => Error::Runtime(source),
            false => Error::Refused {
                model: self.path.clone(),
                source,
            },
        }
    }

    /// Compares one candidate, as it is in its file, at every case.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Runtime`] and [`Error::Refused`] when the candidate does not load or run,
    /// [`Error::Parity`] when the reference does not run.
    pub fn compare(&mut self, path: &Path, tolerance: &Tolerance) -> Result<parity::Report, Error> {
        let mut candidate = self.candidate(path)?;
        self.judge(&mut candidate, None, tolerance)
    }

    /// Compares one candidate at one case.
    ///
    /// # Errors
    /// As [`Reference::compare`].
    pub fn compare_case(
        &mut self,
        path: &Path,
        case: &str,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, Error> {
        let mut candidate = self.candidate(path)?;
        self.judge(&mut candidate, Some(case), tolerance)
    }

    fn judge(
        &mut self,
        candidate: &mut Session,
        only: Option<&str>,
        tolerance: &Tolerance,
    ) -> Result<parity::Report, Error> {
        let made = self.result.as_ref().map(|_| self.path.clone());
        let fixed = self.fixed.clone();
        let mut run = |case: &Case| {
            let outputs = outputs(candidate, &fixed, case, Side::Candidate);
            outputs.map_err(|e| match (&made, e) {
                (Some(model), parity::ParityError::Run { source, .. }) => Error::Refused {
                    model: model.clone(),
                    source,
                },
                (_, other) => other.into(),
            })
        };
        let report = self.judge_by(&mut run, only, tolerance)?;
        self.placements.clear();
        for (side, session) in [
            (Side::Reference, &mut self.session),
            (Side::Candidate, candidate),
        ] {
            let placement = session.placement()?;
            let placed = placement.map(|placement| Placed { side, placement });
            self.placements.extend(placed);
        }
        Ok(report)
    }

    /// Holds an engine, run on a GPU, against the reference at every case.
    ///
    /// # Errors
    /// When the reference or the engine does not run.
    pub fn compare_engine(
        &mut self,
        engine: &mut dyn Runner,
        tolerance: &Tolerance,
    ) -> Result<EngineParity, Error> {
        let fixed = self.fixed.clone();
        let mut run = |case: &Case| {
            let taken = case.inputs.iter().filter(|(n, _)| !fixed.is_dropped(n));
            let outputs = engine.run(&taken.cloned().collect::<Vec<_>>());
            outputs.map_err(|source| Error::EngineRun {
                case: case.name.clone(),
                source,
            })
        };
        let report = self.judge_by(&mut run, None, tolerance)?;
        Ok(EngineParity::Run {
            runner: engine.describe(),
            report: Box::new(report),
        })
    }

    /// The proof of one candidate.
    ///
    /// # Errors
    /// When the candidate does not load.
    pub fn against(mut self, path: &Path, model: &Model) -> Result<Proof, Error> {
        let mut nodes = model.graph.nodes();
        Ok(Proof {
            candidate: self.candidate(path)?,
            path: path.to_path_buf(),
            convolves: nodes.any(|(_, n)| n.op().name().contains("Conv")),
            reference: self,
        })
    }

    /// The case of this name, else the typical one.
    pub fn case(&self, name: Option<&str>) -> Option<&Case> {
        let named = name.and_then(|name| self.cases.iter().find(|c| c.name == name));
        named.or(self.typical())
    }

    /// The outputs of another model at a case, with what it rounds.
    ///
    /// # Errors
    /// When the model does not load or run.
    pub fn run(&self, model: &Model, case: &Case) -> Result<Vec<(String, Tensor)>, Error> {
        let device = self.device.device;
        let twin = stand_in(model, device);
        let model = twin.as_ref().unwrap_or(model);
        let unwatched = SessionOptions {
            watched: false,
            ..plain(device)
        };
        let name = self.path.display().to_string();
        let mut session = twin_session(self.runtime, &name, model, &unwatched)?;
        let inputs = made::fed(&session, &self.fixed, &case.inputs);
        Ok(session.run(&inputs)?)
    }

    /// Saves the typical inputs and the outputs.
    ///
    /// # Errors
    /// When the reference does not run or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), Error> {
        if let Some(case) = self.typical().cloned() {
            let inputs = made::fed(&self.session, &self.fixed, &case.inputs);
            let outputs = self.session.run(&inputs)?;
            parity::save(path, &case.inputs, &outputs)?;
        }
        Ok(())
    }

    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        version(self.runtime)
    }

    /// Where both sides run.
    pub fn device(&self) -> &Chosen {
        &self.device
    }

    /// Where the nodes ran in the last comparison; empty on the CPU.
    pub fn placements(&self) -> &[Placed] {
        &self.placements
    }

    pub(super) fn typical(&self) -> Option<&Case> {
        if self.typical.is_some() {
            return self.typical.as_ref();
        }
        let typical = self.cases.iter().find(|c| c.name == TYPICAL);
        typical.or(self.cases.first())
    }
}

/// A reference and a candidate.
#[derive(Debug)]
pub struct Proof {
    pub reference: Reference,
    pub(super) candidate: Session,
    path: PathBuf,
    /// Whether the models hold convolutions.
    convolves: bool,
}

impl Proof {
    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        self.reference.runtime_version()
    }

    /// Compares the outputs at every case.
    ///
    /// # Errors
    /// When a model does not run.
    pub fn compare(&mut self, tolerance: &Tolerance) -> Result<parity::Report, Error> {
        self.reference.judge(&mut self.candidate, None, tolerance)
    }

    /// Saves the typical inputs and the reference's outputs.
    ///
    /// # Errors
    /// When the reference does not run or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), Error> {
        self.reference.save(path)
    }

    /// Both with all of ONNX Runtime's own optimizations, to be timed at the typical sizes.
    ///
    /// # Errors
    /// When a model does not load.
    pub fn timed(&self) -> Result<Timed, Error> {
        let optimized = SessionOptions {
            without_nchwc: !self.convolves,
            device: self.reference.device.device,
            ..SessionOptions::default()
        };
        let (runtime, reference) = (self.reference.runtime, &self.reference.path);
        let original = Session::from_path(runtime, reference, &optimized)?;
        let result = Session::from_path(runtime, &self.path, &optimized)?;
        let inputs = self.reference.typical().map(|c| c.inputs.clone());
        let inputs = inputs.unwrap_or_default();
        let theirs = ports::given(&inputs, &self.reference.asked).candidate;
        let theirs = made::fed(&result, &self.reference.fixed, &theirs);
        Ok(Timed {
            original: (original, inputs),
            result: (result, theirs),
            batch: self.reference.batch,
        })
    }
}

/// Two sessions, each with its inputs.
#[derive(Debug)]
pub struct Timed {
    pub original: (Session, Vec<(String, Tensor)>),
    pub result: (Session, Vec<(String, Tensor)>),
    /// Items served at once.
    pub batch: usize,
}
