//! What a pass is, and what it is given.

use std::fmt;

use kiln_graph::infer::Facts;
use kiln_graph::{Graph, Model, NodeId, Tensor};

use super::fusion::Fusion;
use super::target::Target;

pub(crate) use super::options::OUT_OF_TOLERANCE;
pub use super::options::{INT4_BLOCK, Options};
pub use super::remark::{Activation, Clamped, Kept, Miss, MissReport, Remark, Rounded};

/// How much a pass may change results; it names the tolerance that a proof uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exactness {
    /// Bit for bit the same numbers.
    Exact,
    /// The same real-number function, rounded differently.
    Rounding,
    /// Another number format.
    Lossy,
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Exactness::Exact => "exact",
            Exactness::Rounding => "rounding",
            Exactness::Lossy => "lossy",
        })
    }
}

/// One step of a pipeline.
pub trait Pass: Sync {
    /// Kebab-case, equal to the name of its file.
    fn name(&self) -> &'static str;

    /// One line.
    fn about(&self) -> &'static str;

    /// What it does, with an example, for `kiln passes explain`.
    fn details(&self) -> String;

    fn exactness(&self) -> Exactness;

    /// The pass as data, if it is a [`Fusion`].
    fn fusion(&self) -> Option<&Fusion> {
        None
    }

    /// Changes the model and gives the number of applications.
    ///
    /// # Errors
    /// When the model cannot be brought into the form that the pass promises.
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure>;
}

/// A pass could not keep its promise.
#[derive(Debug, thiserror::Error)]
pub enum PassFailure {
    #[error("{node}: {why}")]
    Node { node: String, why: String },
    #[error(transparent)]
    Cycle(#[from] kiln_graph::graph::Cycle),
    #[error(transparent)]
    Opset(#[from] kiln_graph::opset::OpsetError),
    #[error("the rules still applied after {rounds} rounds, last at {node}")]
    Unsettled { rounds: usize, node: String },
    #[error("{0}")]
    Evaluator(#[from] EvaluatorError),
    #[error("{0}")]
    Nothing(String),
}

/// Numbers could not be computed.
#[derive(Debug, thiserror::Error)]
#[error("constants cannot be computed: {0}")]
pub struct EvaluatorError(pub String);

/// Computes nodes whose inputs are constants. The passes have no kernels of their own.
pub trait Evaluator {
    /// Runs a model without inputs and gives its outputs in order.
    ///
    /// # Errors
    /// When the runtime refuses the model.
    fn evaluate(&self, model: &Model) -> Result<Vec<Tensor>, EvaluatorError>;
}

/// One change that was admitted: which pass made it, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    pub pass: &'static str,
    /// The root node's label, or in words what a change of the whole graph is.
    pub root: String,
}

/// What a pass is given besides the model.
pub struct Context<'a> {
    pub target: &'a Target,
    pub options: &'a Options<'a>,
    pub evaluator: Option<&'a dyn Evaluator>,
    /// What inference knows of the graph being rewritten, as it was at the start of the sweep; empty unless the rule asks
    /// for it ([`crate::Rule::needs_facts`]).
    pub facts: Facts,
    /// Whether `facts` are of the outermost graph as it is now.
    pub(crate) current: bool,
    /// The graph at hand is the body of an If, Loop or Scan.
    pub(crate) in_body: bool,
    /// Whether misses are kept.
    pub explain: bool,
    pub misses: Vec<MissReport>,
    pub remarks: Vec<Remark>,
    /// Applications so far, over all passes.
    pub applied: usize,
    /// Passes stop changing the model at this number of applications; a bisection searches it.
    pub limit: Option<usize>,
    /// The application that reached the limit.
    pub last: Option<Application>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("target", &self.target)
            .field("applied", &self.applied)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// Rewrites the model's graph and those nested in it, one after another, up to the first that fails. Gives the number of
/// applications.
///
/// # Errors
/// Those of `rewrite`.
pub(crate) fn in_each_graph<E>(
    model: &mut Model,
    rewrite: &mut dyn FnMut(&mut Graph) -> Result<usize, E>,
) -> Result<usize, E> {
    let mut done = Ok(0);
    model.graph.for_each_graph_mut(&mut |g| {
        if let Ok(applied) = &mut done {
            match rewrite(g) {
                Ok(n) => *applied += n,
                Err(e) => done = Err(e),
            }
        }
    });
    done
}

impl<'a> Context<'a> {
    pub fn new(target: &'a Target, options: &'a Options<'a>) -> Context<'a> {
        Context {
            target,
            options,
            evaluator: None,
            facts: Facts::default(),
            current: false,
            in_body: false,
            explain: false,
            misses: Vec::new(),
            remarks: Vec::new(),
            applied: 0,
            limit: None,
            last: None,
        }
    }

    /// Whether one more application is allowed; counts it if so. Every change of a model is admitted first: a local one
    /// by itself, one that only makes sense as a whole once. `root` is asked for only where a limit is reached.
    pub fn admit(&mut self, pass: &'static str, root: impl FnOnce() -> String) -> bool {
        if self.is_exhausted() {
            return false;
        }
        self.applied += 1;
        if self.limit == Some(self.applied) {
            let root = root();
            self.last = Some(Application { pass, root });
        }
        true
    }

    /// Whether no further application is allowed. A pass may then find nothing to do only because of what earlier ones left undone.
    pub fn is_exhausted(&self) -> bool {
        self.limit.is_some_and(|limit| self.applied >= limit)
    }

    /// Remarks that a node keeps its precision.
    pub(crate) fn kept(&mut self, g: &Graph, id: NodeId, why: String) {
        let node = g.label(id);
        self.remarks.push(Remark::Kept(Kept { node, why }));
    }

    pub(crate) fn record(&mut self, pass: &'static str, g: &Graph, root: NodeId, miss: Miss) {
        if self.explain && miss.depth > 0 {
            self.misses.push(MissReport {
                pass,
                root: g.label(root),
                depth: miss.depth,
                at: match miss.at {
                    None => g.label(root),
                    Some(v) => match g.producer(v) {
                        Some(n) => g.label(n),
                        None => g.value(v).name().to_string(),
                    },
                },
                why: miss.why,
            });
        }
    }
}
