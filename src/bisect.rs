//! Which application of a pass makes the result differ from the original: a binary search over the number of
//! applications that are allowed.
//!
//! A model cut after N applications is the original with the first N changes of the pipeline. If the whole pipeline
//! fails and the original passes, then somewhere a cut that passes is followed by one that fails, and the search ends at
//! such a place: N − 1 applications pass, N fail. Parity need not be monotone (a later application may hide an earlier
//! error, or two of them cancel out), so it is *an* application at which parity breaks, not always the first or the only
//! one.

use std::collections::HashMap;
use std::path::PathBuf;

use kiln_graph::onnx::proto::{ModelProto, NodeProto};
use kiln_graph::{Model, onnx};
use kiln_passes::Step;
use schemars::JsonSchema;
use serde::Serialize;

use crate::bundle;
use crate::fault::Fault;
use crate::options::Options;
use crate::parity::{self, Report, Tolerance, Unproved};
use crate::pipeline::clock::Clock;
use crate::pipeline::prepared::{How, Input, Prepared};
use crate::pipeline::{self, Passes, Rewritten};
use crate::prove::{self, Reference};
use crate::runtime::Chosen;
use crate::scratch::Temporary;
use crate::talk::{Silent, Talk};
use crate::targets::TargetError;

/// A bisection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Prove(#[from] prove::Error),
    #[error(transparent)]
    Write(#[from] onnx::WriteError),
    #[error("the original was not opened to be compared with")]
    Unopened,
    #[error("{}: no model can be written here to be run: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Error {
    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Pipeline(e) => e.fault(),
            Error::Prove(e) => e.fault(),
            Error::Unopened => Fault::Defect,
            Error::Write(_) | Error::Io { .. } => Fault::Request,
        }
    }
}

/// What a bisection found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Bisection {
    /// Applications of the whole pipeline.
    pub applications: usize,
    /// Where models ran.
    pub device: Chosen,
    /// The models that were compared with the original, in the order of the search.
    pub runs: Vec<Run>,
    #[serde(flatten)]
    pub finding: Finding,
}

/// One comparison with the original.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Run {
    /// Applications that were allowed.
    pub applications: usize,
    pub pass: bool,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    /// The whole pipeline keeps parity.
    Passes { parity: Report },
    /// The model without any application differs already: it draws random numbers, or the tolerance does not fit it.
    NotItself { failure: Failure },
    /// The models before and after this application differ in parity.
    Found(Culprit),
}

/// The application at which parity breaks.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Culprit {
    /// Which one it is, counted from 1.
    pub number: usize,
    pub pass: String,
    /// The root node's label.
    pub node: String,
    pub failure: Failure,
    /// What it changed, as a unified diff of ONNX text with large constants elided.
    pub diff: String,
}

/// How a model fails.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Failure {
    /// Its outputs are beyond the tolerance.
    Differs { parity: Report },
    /// ONNX Runtime does not load or run it.
    Refused { why: String },
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Differs { parity } => f.write_str(&parity::failures(parity)),
            Failure::Refused { why } => write!(f, "ONNX Runtime refuses the model: {why}"),
        }
    }
}

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub struct Suspects<'a> {
    /// The passes whose applications are counted.
    pub steps: &'a [Step],
    /// Runs after every cut to its end: the passes without which ONNX Runtime could not run a model that was cut.
    pub finish: &'a [Step],
}

/// Searches for an application at which parity breaks.
///
/// The model, the target, the precision, the calibration and the inputs are those of `options`; its pass list, engine and
/// output are not looked at.
///
/// # Errors
/// When the original cannot be read, calibrated or run, or a pass fails. A cut that ONNX Runtime refuses is a cut that fails.
pub fn bisect(
    options: &Options,
    suspects: Suspects<'_>,
    tolerance: &Tolerance,
    talk: &dyn Talk,
) -> Result<Bisection, Error> {
    let mut clock = Clock::new(talk);
    let targets = pipeline::targets(options, &Silent)?;
    if targets.parts().is_some() {
        return Err(pipeline::Error::from(TargetError::Several(targets.to_string())).into());
    }
    let input = Input::read(options, targets, &mut clock)?;
    let how = How {
        steps: pipeline::split(suspects.steps).0,
        opens: true,
        one_profile: false,
        result: "the model after some of its passes".into(),
        tells: false,
        admit: &|_| Ok(()),
    };
    let mut prepared = input.prepare::<Error>(options, &how, &mut clock)?;
    let reference = prepared.reference.take().ok_or(Error::Unopened)?;
    let pipeline = Pipeline {
        options,
        prepared: &prepared,
        suspects,
        talk,
    };
    let whole = pipeline.cut(None, suspects.finish)?;
    let applications = whole.applied;
    let device = reference.device().clone();
    let mut search = Search {
        reference,
        pipeline: &pipeline,
        tolerance,
        runs: Vec::new(),
    };
    let finding = search.run(whole)?;
    Ok(Bisection {
        applications,
        device,
        runs: search.runs,
        finding,
    })
}

struct Pipeline<'a> {
    options: &'a Options,
    /// Passes are deterministic, so every cut that gets as far as the first pass that reads what was measured on the fused model
    /// has the same values.
    prepared: &'a Prepared,
    suspects: Suspects<'a>,
    talk: &'a dyn Talk,
}

impl Pipeline<'_> {
    fn cut(&self, limit: Option<usize>, finish: &[Step]) -> Result<Rewritten, Error> {
        let passes = Passes {
            stats: self.prepared.stats(),
            plans: self.prepared.plans(),
            grams: self.prepared.grams(),
            limit,
            finish,
            ..Passes::of(self.suspects.steps, &self.prepared.held)
        };
        Ok(pipeline::rewrite(
            self.options,
            &self.prepared.targets,
            &passes,
            self.prepared.start().clone(),
            self.talk,
        )?)
    }

    /// The culprit, once it is known that `number - 1` applications pass and `number` fail.
    fn culprit(&self, number: usize, failure: Failure) -> Result<Culprit, Error> {
        // Without the last passes, which would spread the change.
        let before = self.cut(Some(number - 1), &[])?;
        let after = self.cut(Some(number), &[])?;
        let (pass, node) = (after.last.map(|a| (a.pass.to_string(), a.root))).unwrap_or_default();
        Ok(Culprit {
            number,
            pass,
            node,
            failure,
            diff: diff(before.model, after.model)?,
        })
    }
}

struct Search<'a> {
    reference: Reference,
    pipeline: &'a Pipeline<'a>,
    tolerance: &'a Tolerance,
    runs: Vec<Run>,
}

impl Search<'_> {
    fn run(&mut self, whole: Rewritten) -> Result<Finding, Error> {
        let all = whole.applied;
        let mut failure = match self.compare(all, whole)? {
            Ok(parity) => return Ok(Finding::Passes { parity }),
            Err(failure) => failure,
        };
        if let Err(failure) = self.compare_cut(0)? {
            return Ok(Finding::NotItself { failure });
        }
        let (mut passes, mut fails) = (0, all);
        while fails - passes > 1 {
            let middle = passes + (fails - passes) / 2;
            match self.compare_cut(middle)? {
                Ok(_) => passes = middle,
                Err(why) => (fails, failure) = (middle, why),
            }
        }
        Ok(Finding::Found(self.pipeline.culprit(fails, failure)?))
    }

    fn compare_cut(&mut self, limit: usize) -> Result<Result<Report, Failure>, Error> {
        let cut = self
            .pipeline
            .cut(Some(limit), self.pipeline.suspects.finish)?;
        self.compare(limit, cut)
    }

    fn compare(
        &mut self,
        applications: usize,
        cut: Rewritten,
    ) -> Result<Result<Report, Failure>, Error> {
        let number = self.runs.len() + 1;
        let stage = format!("run {number}: parity after {applications} applications");
        self.pipeline.talk.stage(&stage);
        let folder = Temporary::new().map_err(|source| Error::Io {
            path: std::env::temp_dir(),
            source,
        })?;
        let path = folder.path().join(bundle::MODEL);
        onnx::write(&cut.model, &path, &onnx::WriteOptions::default())?;
        let compared = match self.reference.compare(&path, self.tolerance, &Silent) {
            Ok(parity) if differs(&parity) => Err(Failure::Differs { parity }),
            Ok(parity) => Ok(parity),
            // What is the candidate's is a finding; the original's failures are errors.
            Err(prove::Error::Refused { source, .. }) => Err(Failure::Refused {
                why: source.to_string(),
            }),
            Err(other) => return Err(other.into()),
        };
        self.runs.push(Run {
            applications,
            pass: compared.is_ok(),
        });
        Ok(compared)
    }
}

/// Whether a cut is no proof that the model still computes the same. A model of random numbers is none either.
fn differs(report: &Report) -> bool {
    let random = |(_, why): &(&str, Unproved)| matches!(why, Unproved::Random { .. });
    report.failed() || report.unproved().iter().any(random)
}

/// The unified diff of two models as ONNX text, without inferred types.
fn diff(before: Model, after: Model) -> Result<String, Error> {
    let (before, mut after) = (message(before)?, message(after)?);
    if let (Some(before), Some(after)) = (&before.graph, &mut after.graph) {
        order_like(&before.node, &mut after.node);
    }
    let (before, after) = (pipeline::print(&before), pipeline::print(&after));
    let diff = similar::TextDiff::from_lines(&before, &after);
    Ok(diff.unified_diff().context_radius(3).to_string())
}

/// Ids are the same in both models up to the change, so values without a name are called by theirs: the numbers that the
/// writer gives would shift behind the change.
fn message(mut model: Model) -> Result<ModelProto, Error> {
    let mut k = 0;
    model.graph.for_each_graph_mut(&mut |g| {
        k += 1;
        let unnamed: Vec<_> = (g.values())
            .filter(|(_, v)| v.name().is_empty())
            .map(|(id, _)| id)
            .collect();
        for v in unnamed {
            g.set_value_name(v, &format!("value_{k}_{}", v.index()));
        }
    });
    let mut message = onnx::to_proto(&model)?;
    if let Some(graph) = &mut message.graph {
        graph.value_info.clear();
    }
    Ok(message)
}

/// Brings nodes into the order of `before`, new ones to where they are read first. The writer's order is one of many and
/// may change far from the change.
fn order_like(before: &[NodeProto], after: &mut [NodeProto]) {
    let outputs = before.iter().enumerate();
    let known: HashMap<&str, usize> = outputs
        .flat_map(|(place, node)| node.output.iter().map(move |v| (v.as_str(), place)))
        .collect();
    // Where a value is read first; readers stand behind what they read.
    let mut read: HashMap<String, usize> = HashMap::new();
    let mut places: HashMap<String, (usize, bool)> = HashMap::new();
    for node in after.iter().rev() {
        let Some(first) = node.output.first() else {
            continue;
        };
        let old = known.get(first.as_str()).copied();
        let reader = node.output.iter().filter_map(|v| read.get(v)).min();
        let place = old.or(reader.copied()).unwrap_or(before.len());
        for v in &node.input {
            let entry = read.entry(v.clone()).or_insert(place);
            *entry = place.min(*entry);
        }
        places.insert(first.clone(), (place, old.is_some()));
    }
    after.sort_by_key(|node| node.output.first().and_then(|v| places.get(v)).copied());
}
