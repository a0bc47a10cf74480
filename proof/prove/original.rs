//! The reference in ONNX Runtime: open only while it runs, and run once on the same inputs.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;

use bytes::Bytes;
use kiln_graph::onnx::SourceFile;
use kiln_graph::ops::traits::has_side_effects;
use kiln_graph::{Model, Tensor};
use rustc_hash::{FxHashSet, FxHasher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sessions::session;
use crate::fixed::{Fixed, fed};
use crate::parity::Case;
use kiln_runtime::{self as runtime, Runtime, Session, SessionOptions, TensorInfo, memory};

type Named = Vec<(String, Tensor)>;

/// Bytes of outputs that are kept.
const HELD: usize = 256 << 20;

/// How often models ran in a stage of the proof. Timed runs are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ran {
    pub stage: String,
    /// Runs of the original, copies of it with other last bits included.
    pub original: usize,
    /// Runs of results, those of a search that were given up included.
    pub result: usize,
}

/// Runs by stage, in the order of the stages.
#[derive(Debug, Default)]
pub(super) struct Tally(RefCell<Vec<Ran>>);

impl Tally {
    /// What runs from here on belongs to this stage.
    pub fn begin(&self, stage: &str) {
        let mut all = self.0.borrow_mut();
        if all.last().is_none_or(|last| last.stage != stage) {
            all.push(Ran {
                stage: stage.to_string(),
                ..Ran::default()
            });
        }
    }

    pub fn original(&self) {
        if let Some(last) = self.0.borrow_mut().last_mut() {
            last.original += 1;
        }
    }

    pub fn result(&self) {
        if let Some(last) = self.0.borrow_mut().last_mut() {
            last.result += 1;
        }
    }

    /// Stages in which something ran.
    pub fn all(&self) -> Vec<Ran> {
        let all = self.0.borrow();
        let ran = all.iter().filter(|r| r.original + r.result > 0);
        ran.cloned().collect()
    }
}

/// What the reference gives on some inputs.
#[derive(Debug)]
struct Known {
    inputs: Named,
    outputs: Named,
}

/// The reference, as it is in its file.
#[derive(Debug)]
pub(crate) struct Original {
    pub(super) runtime: &'static Runtime,
    pub(super) path: PathBuf,
    /// The same in memory.
    pub(super) model: Model,
    /// Inputs that always have one value.
    pub(super) fixed: Fixed,
    pub(super) tally: Tally,
    options: SessionOptions,
    session: Option<Session>,
    infos: Vec<TensorInfo>,
    known: Vec<Known>,
    /// Bytes of what is known.
    held: usize,
    /// Fingerprints of inputs on which it ran, and whose outputs were not kept.
    large: FxHashSet<u64>,
    /// Sizes are looked for: what ran last is nearest to what will be asked for.
    settling: bool,
    /// It may draw random numbers, so what it gave once says nothing of the next run. Another session's first run may draw the same.
    draws: bool,
}

impl Original {
    /// # Errors
    /// When the model does not load.
    pub fn open(
        runtime: &'static Runtime,
        path: PathBuf,
        model: Model,
        fixed: Fixed,
        options: SessionOptions,
    ) -> Result<Original, runtime::Error> {
        release(&model);
        let opened = session(runtime, &path, &model, &options)?;
        let draws = draws(&model);
        let tally = Tally::default();
        tally.begin("sizes");
        Ok(Original {
            infos: opened.inputs().to_vec(),
            runtime,
            path,
            model,
            fixed,
            tally,
            options,
            session: Some(opened),
            known: Vec::new(),
            held: 0,
            large: FxHashSet::default(),
            settling: true,
            draws,
        })
    }

    pub fn inputs(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// The open session.
    ///
    /// # Errors
    /// When the model does not load again.
    pub fn session(&mut self) -> Result<&mut Session, runtime::Error> {
        let opened = match self.session.take() {
            Some(opened) => opened,
            None => session(self.runtime, &self.path, &self.model, &self.options)?,
        };
        Ok(self.session.insert(opened))
    }

    /// Gives the memory back until it runs again. A session stays that tells where nodes ran, or whose numbers a candidate must not
    /// draw, too.
    pub fn close(&mut self) {
        if !self.options.watched && !self.draws && self.session.take().is_some() {
            memory::give_back();
        }
        release(&self.model);
    }

    /// The outputs on these inputs, of which a session that is without fixed ones takes the others. It runs if it has not on the same.
    ///
    /// # Errors
    /// When it does not run.
    pub fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Named, runtime::Error> {
        if let Some(known) = self.known.iter().find(|k| is_same(&k.inputs, inputs)) {
            return Ok(known.outputs.clone());
        }
        let outputs = self.again(inputs)?;
        Ok(match self.draws {
            true => outputs,
            false => self.keep(inputs, outputs),
        })
    }

    /// As [`Original::run`], whether or not it ran on the same before.
    ///
    /// # Errors
    /// When it does not run.
    pub fn again(&mut self, inputs: &[(String, Tensor)]) -> Result<Named, runtime::Error> {
        let inputs = fed(&self.infos, &self.fixed, inputs);
        self.tally.original();
        self.session()?.run(&inputs)
    }

    /// Whether it runs again where it is asked for the same: it draws numbers, or gave more than is kept.
    pub fn forgets(&self, inputs: &[(String, Tensor)]) -> bool {
        self.draws || self.large.contains(&fingerprint(inputs))
    }

    /// Sizes are settled: forgets all but what these cases are on.
    pub fn keep_only(&mut self, cases: &[Case]) {
        (self.known).retain(|k| cases.iter().any(|c| is_same(&c.inputs, &k.inputs)));
        self.held = self.known.iter().map(Known::bytes).sum();
        self.settling = false;
    }

    fn keep(&mut self, inputs: &[(String, Tensor)], outputs: Named) -> Named {
        let mut new = Known {
            inputs: inputs.to_vec(),
            outputs,
        };
        let bytes = new.bytes();
        while self.settling && bytes <= HELD && self.held + bytes > HELD && !self.known.is_empty() {
            let old = self.known.remove(0);
            self.held -= old.bytes();
            self.large.insert(fingerprint(&old.inputs));
        }
        if self.held + bytes > HELD {
            self.large.insert(fingerprint(inputs));
            return new.outputs;
        }
        self.held += bytes;
        new.outputs = owned(new.outputs);
        let outputs = new.outputs.clone();
        self.known.push(new);
        outputs
    }
}

/// Whether a model may draw random numbers: bodies of its own functions are not looked into.
fn draws(model: &Model) -> bool {
    let own: Vec<(&str, &str)> = model.functions().collect();
    let mut found = false;
    model.graph.for_each_graph(&mut |g| {
        found |= g.nodes().any(|(id, node)| {
            let op = node.op();
            let drawing = ["Random", "Dropout", "Sampling"];
            let foreign =
                !op.domain().is_empty() && drawing.iter().any(|part| op.name().contains(part));
            has_side_effects(g, id) || foreign || own.contains(&(op.domain(), op.name()))
        });
    });
    found
}

/// Weights that passes looked at: the system has them again from its cache of the file.
fn release(model: &Model) {
    model.sources.iter().for_each(SourceFile::release);
}

impl Known {
    fn bytes(&self) -> usize {
        let all = self.inputs.iter().chain(&self.outputs);
        all.map(|(_, t)| t.byte_len()).sum()
    }
}

/// Copies: what ONNX Runtime gives keeps all memory of its session.
pub fn owned(outputs: Named) -> Named {
    let copy = |t: Tensor| match t.strings() {
        Some(_) => t,
        None => {
            let bytes = Bytes::copy_from_slice(&t.bytes());
            Tensor::from_raw(t.dtype(), t.dims(), bytes).unwrap_or(t)
        }
    };
    let all = outputs.into_iter().map(|(name, t)| (name, copy(t)));
    all.collect()
}

fn fingerprint(inputs: &[(String, Tensor)]) -> u64 {
    let mut hash = FxHasher::default();
    inputs
        .iter()
        .for_each(|(_, t)| t.fingerprint().hash(&mut hash));
    hash.finish()
}

fn is_same(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> bool {
    let same = |((a, x), (b, y)): (&(String, Tensor), &(String, Tensor))| a == b && x.same_bits(y);
    a.len() == b.len() && a.iter().zip(b).all(same)
}
