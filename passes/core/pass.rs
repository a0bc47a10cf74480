//! What a pass is, and what it is given.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Graph, INTERNAL_DOMAIN, Model, NodeId, Op, Tensor, ValueId, limits};
use rustc_hash::FxBuildHasher;

use super::fusion::Fusion;
use super::target::Target;
use crate::precision::calibrated::plan::Plans;
use crate::precision::calibrated::stats::Stats;

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

/// Choices of the user that passes ask for.
pub struct Options<'a> {
    /// Whether a node, by its name, keeps its precision.
    pub keep: &'a dyn Fn(&str) -> bool,
    /// Operators whose nodes keep their precision.
    pub keep_ops: &'a [Op],
    /// Layers, by their labels, that quantization leaves to whatever precision comes after it.
    pub spared: &'a [String],
    /// Nodes, by their labels, that conversion to half precision leaves in FP32.
    pub wide: &'a [String],
    /// Graph inputs and outputs change their precision too.
    pub convert_io: bool,
    /// Bytes that folding a node may add to the model.
    pub fold_budget: usize,
    /// Bytes that folding all nodes may add.
    pub fold_total: usize,
    /// Elements of a weight in INT4 that share a scale: a power of two of at least 16.
    pub int4_block: usize,
    /// Activations of INT8 layers are quantized by the range of each run.
    pub dynamic: bool,
    /// What values of the outermost graph were on calibration data; empty without calibration.
    pub stats: &'a Stats,
    /// How weights become INT4, of what was calibrated for it.
    pub plans: &'a Plans,
    /// Symbols of the graph's inputs that have one size in all runs.
    pub sizes: &'a BTreeMap<String, usize>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("convert_io", &self.convert_io)
            .field("fold_budget", &self.fold_budget)
            .field("int4_block", &self.int4_block)
            .finish_non_exhaustive()
    }
}

impl Options<'_> {
    /// A size that is the same in all runs.
    pub fn held(&self, dim: &Expr) -> Option<i64> {
        let size = |name: &str| i64::try_from(*self.sizes.get(name)?).ok();
        dim.eval(&size)
    }

    /// Why the user wants the node to keep its precision, if so. A fused operator is kept by the name of the standard
    /// operator that it computes, and attention by that of its softmax too.
    pub fn keeps(&self, g: &Graph, id: NodeId) -> Option<String> {
        let node = g.node(id);
        if (self.keep)(node.name()) {
            return Some("it matches --keep".into());
        }
        let op = node.op();
        let internal = op.domain() == INTERNAL_DOMAIN;
        let softmax = internal && op.name() == "Attention";
        let named = |kept: &&Op| {
            **kept == op || internal && kept.is(op.name()) || softmax && kept.is("Softmax")
        };
        self.keep_ops.iter().find(named).map(|op| kept_by(*op))
    }
}

/// Why a node keeps its precision whose operator the user named.
pub fn kept_by(op: Op) -> String {
    match op.domain() {
        "" => format!("--keep-op {}", op.name()),
        domain => format!("--keep-op {domain}:{}", op.name()),
    }
}

/// Why a node keeps its precision that a search chose.
pub(crate) const OUT_OF_TOLERANCE: &str = "the result is out of tolerance without it";

/// 4.5 bits for a weight with FP16 scales, where blocks of 128 take 4.1; the error of a product with normal weights is
/// 0.085 against 0.099 (`tests/all/int4.rs`).
pub const INT4_BLOCK: usize = 32;

static NO_STATS: Stats = Stats::with_hasher(FxBuildHasher);
static NO_SIZES: BTreeMap<String, usize> = BTreeMap::new();
static NO_PLANS: Plans = Plans::with_hasher(FxBuildHasher);

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            keep: &|_| false,
            keep_ops: &[],
            spared: &[],
            wide: &[],
            convert_io: false,
            fold_budget: limits::FOLDED_NODE,
            fold_total: limits::FOLDED_TOTAL,
            int4_block: INT4_BLOCK,
            dynamic: false,
            stats: &NO_STATS,
            plans: &NO_PLANS,
            sizes: &NO_SIZES,
        }
    }
}

/// Why a rule did not apply: how far it matched, where it stopped, and what stopped it.
#[derive(Clone, Debug)]
pub struct Miss {
    pub at: Option<ValueId>,
    /// Nodes matched before it stopped; 0 if the pass was not interested.
    pub depth: usize,
    pub why: String,
}

impl Miss {
    /// The root is not of the rule's kind.
    pub fn none() -> Miss {
        Miss {
            at: None,
            depth: 0,
            why: String::new(),
        }
    }

    pub fn at(at: ValueId, depth: usize, why: impl Into<String>) -> Miss {
        Miss {
            at: Some(at),
            depth,
            why: why.into(),
        }
    }

    /// A miss right at the root.
    pub fn because(why: impl Into<String>) -> Miss {
        Miss {
            at: None,
            depth: 1,
            why: why.into(),
        }
    }
}

/// A miss in words, for `--explain`.
#[derive(Clone, Debug)]
pub struct MissReport {
    pub pass: &'static str,
    pub root: String,
    pub depth: usize,
    pub at: String,
    pub why: String,
}

/// One change that was admitted: which pass made it, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    pub pass: &'static str,
    /// The root node's label, or in words what a change of the whole graph is.
    pub root: String,
}

/// Something a user should know of what a pass did or left.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    Clamped(Clamped),
    /// A linear layer, or its weight, was quantized.
    Quantized {
        layer: String,
    },
    /// A quantization that the model came with was written as the target takes it; `how` says what became of it.
    /// `exact`: the same numbers, but for rounding of floats.
    Requantized {
        node: String,
        how: &'static str,
        exact: bool,
    },
    /// An activation got a range; there is one remark for each layer that reads it.
    Ranged(Activation),
    /// There is also [`Remark::Quantized`].
    Rounded(Rounded),
    /// The node computes in half precision.
    Narrowed {
        node: String,
    },
    Kept(Kept),
    /// A node was left unfolded because its result is too large.
    OverBudget {
        node: String,
        bytes: usize,
    },
    /// A pass that needs a runtime could not do its work.
    Skipped {
        why: String,
    },
}

/// A table, such as a mask, with values beyond the range of FP16 or BF16 that stand for infinity, and were replaced.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Clamped {
    pub tensor: String,
    pub values: usize,
    pub abs_max: f32,
}

/// A weight that was rounded to INT4 on calibration data.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Rounded {
    pub layer: String,
    /// `nearest`, or `compensated` where errors make up for each other.
    pub method: Cow<'static, str>,
    /// Its input is divided by factors that the weight takes.
    pub factors: bool,
    /// Of the products on the calibration data, in relative L2.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "or_infinite"))]
    #[cfg_attr(feature = "serde", schemars(with = "Option<f64>"))]
    pub error: f64,
}

/// A node that keeps its precision.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Kept {
    pub node: String,
    pub why: String,
}

/// How an activation is quantized.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)
)]
pub struct Activation {
    pub value: String,
    pub lo: f32,
    pub hi: f32,
    /// What chose the range: `min-max`, `percentile`, `entropy` or `mse`; `each run` where calibration found it, and each run
    /// has its own.
    pub method: Cow<'static, str>,
    /// Channels that are multiplied apart, in floats.
    pub outliers: usize,
    /// What divides it by the factors of SmoothQuant: `norm` or `mul`.
    pub smoothing: Option<Cow<'static, str>>,
    /// The expected power of the error in the products, over the power of what channels other than outliers add to them.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "or_infinite"))]
    #[cfg_attr(feature = "serde", schemars(with = "Option<f64>"))]
    pub noise: f64,
}

/// JSON has no infinity, and `null` stands for it.
#[cfg(feature = "serde")]
fn or_infinite<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    use serde::Deserialize;
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
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
