//! Choices of the user that passes ask for.

use std::collections::BTreeMap;
use std::fmt;

use kiln_graph::infer::Expr;
use kiln_graph::{Graph, INTERNAL_DOMAIN, NodeId, Op, limits};
use rustc_hash::FxBuildHasher;

use crate::precision::calibrated::gram::Grams;
use crate::precision::calibrated::plan::Plans;
use crate::precision::calibrated::stats::Stats;

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
    /// How the channels of INT8 layers' inputs move together, so that roundings of weights make up for each other; empty without data.
    pub grams: &'a Grams,
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
            return Some("kept by its name".into());
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
fn kept_by(op: Op) -> String {
    match op.domain() {
        "" => format!("kept by its operator {}", op.name()),
        domain => format!("kept by its operator {domain}:{}", op.name()),
    }
}

/// Why a node keeps its precision that a search chose.
pub(crate) const OUT_OF_TOLERANCE: &str = "the result is out of tolerance without it";

/// 4.5 bits for a weight with FP16 scales, where blocks of 128 take 4.1; the error of a product with normal weights is
/// 0.085 against 0.099 (`tests/all/int4.rs`).
pub const INT4_BLOCK: usize = 32;

static NO_STATS: Stats = Stats::with_hasher(FxBuildHasher);
static NO_SIZES: BTreeMap<String, usize> = BTreeMap::new();
static NO_GRAMS: Grams = Grams::new();
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
            grams: &NO_GRAMS,
            sizes: &NO_SIZES,
        }
    }
}
