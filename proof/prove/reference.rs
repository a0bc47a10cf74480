//! One reference against many candidates.

use std::path::{Path, PathBuf};

use kiln_graph::{Model, Tensor, infer, onnx};

use super::Error;
use super::original::Ran;
use super::ports;
use super::sessions::{self, mapped_session, plain, seated, session, stand_in, version};
use super::{Judged, Reference, TYPICAL};
use crate::engine_parity::{EngineParity, Runner};
use crate::made;
use crate::parity::{self, Case, ParityError, Placed, Side, Tolerance};
use kiln_runtime::talk::{Silent, Talk};
use kiln_runtime::{self as runtime, Chosen, Optimization, Session, SessionOptions, memory};

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
        self.original.keep_only(&self.cases);
        self.judged.clear();
        self.learned.clear();
        self.noise.clear();
        self.evidence.forget();
    }

    /// Counts what runs from here on under this stage.
    pub fn begin(&self, stage: &str) {
        self.original.tally.begin(stage);
    }

    /// How often which model ran.
    pub fn ran(&self) -> Vec<Ran> {
        self.original.tally.all()
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
        self.open(path, onnx::read(path)?)
    }

    fn open(&mut self, path: &Path, mut written: Model) -> Result<Session, Error> {
        infer::annotate(&mut written.graph);
        let device = self.device.device;
        let options = match self.optimized {
            true => seated(device),
            false => plain(device),
        };
        let opened = session(self.original.runtime, path, &written, &options);
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
                model: self.original.path.clone(),
                source,
            },
        }
    }

    /// Compares one candidate, as it is in its file, at every case.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Runtime`] and [`Error::Refused`] when the candidate does not load or run,
    /// [`Error::Parity`] when the reference does not run.
    pub fn compare(
        &mut self,
        path: &Path,
        tolerance: &Tolerance,
        talk: &dyn Talk,
    ) -> Result<parity::Report, Error> {
        // What wrote the candidate has read the original's weights.
        self.original.close();
        let written = onnx::read(path)?;
        let hash = sessions::hash(path, &written)?;
        let same = |j: &&Judged| j.hash == hash && j.report.tolerance == *tolerance;
        if let Some(known) = self.judged.iter().find(same) {
            self.placements = known.placements.clone();
            return Ok(known.report.clone());
        }
        self.ready(None, talk)?;
        let mut candidate = self.open(path, written)?;
        let report = self.judge(&mut candidate, None, tolerance, talk)?;
        drop(candidate);
        memory::give_back();
        self.judged.push(Judged {
            hash,
            report: report.clone(),
            placements: self.placements.clone(),
        });
        Ok(report)
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
        self.ready(Some(case), &Silent)?;
        let mut candidate = self.candidate(path)?;
        self.judge(&mut candidate, Some(case), tolerance, &Silent)
    }

    fn judge(
        &mut self,
        candidate: &mut Session,
        only: Option<&str>,
        tolerance: &Tolerance,
        talk: &dyn Talk,
    ) -> Result<parity::Report, Error> {
        let made = self.result.as_ref().map(|_| self.original.path.clone());
        let fixed = self.fixed.clone();
        let mut run = |case: &Case| {
            let inputs = made::fed(candidate.inputs(), &fixed, &case.inputs);
            candidate.run(&inputs).map_err(|source| match &made {
                Some(model) => Error::Refused {
                    model: model.clone(),
                    source,
                },
                None => Error::Parity(ParityError::Run {
                    case: case.name.clone(),
                    side: Side::Candidate,
                    source,
                }),
            })
        };
        let report = self.judge_by(&mut run, only, tolerance, talk)?;
        self.placements.clear();
        if self.device.device.is_cpu() {
            return Ok(report);
        }
        for (side, session) in [
            (Side::Reference, self.original.session()?),
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
        talk: &dyn Talk,
    ) -> Result<EngineParity, Error> {
        let fixed = self.fixed.clone();
        let mut run = |case: &Case| {
            let taken = case.inputs.iter().filter(|(n, _)| !fixed.is_dropped(n));
            let outputs = engine.run(&taken.cloned().collect::<Vec<_>>());
            outputs.map_err(|source| Error::EngineRun {
                runner: engine.describe(),
                case: case.name.clone(),
                source,
            })
        };
        self.ready(None, talk)?;
        let report = self.judge_by(&mut run, None, tolerance, talk)?;
        Ok(EngineParity::Run {
            runner: engine.describe(),
            report: Box::new(report),
        })
    }

    /// The proof of one candidate.
    pub fn against(self, path: &Path, model: &Model) -> Proof {
        let mut nodes = model.graph.nodes();
        Proof {
            path: path.to_path_buf(),
            convolves: nodes.any(|(_, n)| n.op().name().contains("Conv")),
            reference: self,
        }
    }

    /// The original in memory.
    pub fn original(&self) -> &Model {
        &self.original.model
    }

    /// The case of this name, else the typical one.
    pub fn case(&self, name: Option<&str>) -> Option<&Case> {
        let named = name.and_then(|name| self.cases.iter().find(|c| c.name == name));
        named.or(self.typical())
    }

    /// The outputs of a model that is made of the original or of a result, with what it rounds.
    ///
    /// # Errors
    /// When the model does not load or run.
    pub fn run(
        &self,
        model: &Model,
        inputs: &[(String, Tensor)],
        side: Side,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let device = self.device.device;
        let twin = stand_in(model, device);
        let model = twin.as_ref().unwrap_or(model);
        let unwatched = SessionOptions {
            watched: false,
            ..plain(device)
        };
        let name = self.original.path.display().to_string();
        let mut session = mapped_session(self.original.runtime, &name, model, &unwatched)?;
        let inputs = made::fed(session.inputs(), &self.fixed, inputs);
        match side {
            Side::Reference => self.original.tally.original(),
            Side::Candidate => self.original.tally.result(),
        }
        Ok(session.run(&inputs)?)
    }

    /// Saves the typical inputs and the outputs.
    ///
    /// # Errors
    /// When the reference does not run or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), Error> {
        if let Some(case) = self.typical().cloned() {
            let outputs = self.original.run(&case.inputs)?;
            parity::save(path, &case.inputs, &outputs)?;
        }
        Ok(())
    }

    /// The runtime's name and version.
    pub fn runtime_version(&self) -> String {
        version(self.original.runtime)
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
    pub(super) path: PathBuf,
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
    pub fn compare(
        &mut self,
        tolerance: &Tolerance,
        talk: &dyn Talk,
    ) -> Result<parity::Report, Error> {
        self.reference.compare(&self.path, tolerance, talk)
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
        let original = &self.reference.original;
        let (runtime, reference) = (original.runtime, &original.path);
        let original = Session::from_path(runtime, reference, &optimized)?;
        let result = Session::from_path(runtime, &self.path, &optimized)?;
        let inputs = self.reference.typical().map(|c| c.inputs.clone());
        let inputs = inputs.unwrap_or_default();
        let theirs = ports::given(&inputs, &self.reference.asked).candidate;
        let theirs = made::fed(result.inputs(), &self.reference.fixed, &theirs);
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
