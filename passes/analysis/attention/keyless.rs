//! Rows of scores whose keys are all hidden: a padded query in a sliding window, or a sample that is padding as a whole.
//!
//! What the original makes of them follows from how its mask is spelled, and from how its format rounds.

use kiln_graph::graph::Def;
use kiln_graph::ops::{self, Keyless};
use kiln_graph::{DType, Graph, Node, ValueId};
use rustc_hash::FxHashSet;

use super::scores::{Addend, Bias, HIDES};

/// Values that are looked at to find what a mask is made of.
const MAX_SEEN: usize = 256;

/// What the row's softmax makes of it, if its biases can hide all of its keys. Scores are of this type.
pub fn keyless(g: &Graph, biases: &[Addend], dtype: DType, guarded: bool) -> Option<Keyless> {
    let mut found = Numbers::default();
    for bias in biases {
        match bias.bias {
            Bias::Added(v) => found.search(g, v),
            Bias::Selected { fill, .. } => found.lowest = found.lowest.min(replaced(fill, dtype)),
        }
    }
    // What comes from outside is told by its numbers, when they are there.
    let outside = found.outside.then_some(Keyless::Uniform);
    if guarded {
        return outside;
    }
    match found.lowest {
        // NaN in every format.
        f64::NEG_INFINITY => None,
        x if x <= absorbing(dtype) => Some(Keyless::Uniform),
        _ if outside.is_some() => outside,
        x if x <= HIDES => Some(Keyless::Shifted),
        _ => None,
    }
}

/// Whether nothing that is added can hide a key.
pub fn hides_nothing(g: &Graph, bias: Bias) -> bool {
    let Bias::Added(v) = bias else { return false };
    let mut found = Numbers::default();
    found.search(g, v);
    found.lowest > HIDES && !found.outside
}

/// Whether what is added may be an infinite number of the graph's own.
pub fn is_infinite(g: &Graph, bias: ValueId) -> bool {
    let mut found = Numbers::default();
    found.search(g, bias);
    found.lowest == f64::NEG_INFINITY
}

/// Whether a sum makes the bias, two of whose parts may hide a key each by a number of the graph's own up to `limit`. Of a row whose keys are all hidden
/// only those count then that one of the parts hides.
pub fn hides_twice(g: &Graph, bias: ValueId, limit: f64) -> bool {
    let mut at = bias;
    for _ in 0..MAX_SEEN {
        let Def::Node(id, _) = g.value(at).def() else {
            return false;
        };
        let node = g.node(*id);
        let hides = |v: &ValueId| {
            let mut found = Numbers::default();
            found.search(g, *v);
            found.lowest <= limit
        };
        let parts = made_of(node);
        let mut hiding = parts.into_iter().filter(hides);
        let sum = node.op().is_any(&["Add", "Sum"]);
        match (hiding.next(), hiding.next()) {
            (Some(_), Some(_)) => return sum,
            (Some(part), None) => at = part,
            (None, _) => return false,
        }
    }
    false
}

/// What may stand for a number that scores are replaced by: added to a score of ordinary size, it is that number again.
pub fn replaced(fill: f64, dtype: DType) -> f64 {
    match (fill, dtype) {
        (f64::NEG_INFINITY, _) => fill,
        // The middle of the last binade, where scores neither change it nor make it infinite.
        (_, DType::F16) => -49152.0,
        (_, DType::BF16) => f64::from(half::bf16::MIN),
        _ => fill.min(f64::from(f32::MIN)),
    }
}

/// Numbers up to this one absorb the scores that they are added to: half of their last digit is 4 or more.
fn absorbing(dtype: DType) -> f64 {
    let digits = match dtype {
        DType::F16 => 10,
        DType::BF16 => 7,
        DType::F64 => 52,
        _ => 23,
    };
    -(8.0 * 2f64.powi(digits))
}

/// The large numbers that a value may be made of.
#[derive(Default)]
struct Numbers {
    /// The one that hides most, or 0.
    lowest: f64,
    /// Floats of the graph's inputs are in it.
    outside: bool,
    seen: FxHashSet<ValueId>,
}

impl Numbers {
    fn search(&mut self, g: &Graph, value: ValueId) {
        let mut open = vec![value];
        while let Some(v) = open.pop() {
            if self.seen.len() >= MAX_SEEN || !self.seen.insert(v) {
                continue;
            }
            if let Some(t) = g.constant(v) {
                self.constant(t);
                continue;
            }
            match g.value(v).def() {
                Def::Node(id, _) => {
                    let node = g.node(*id);
                    if let Some(splat) = ops::ConstantOfShape::of(g, *id) {
                        self.constant(&splat.value());
                    }
                    open.extend(made_of(node));
                }
                _ => {
                    let dtype = g.value(v).ty().dtype();
                    self.outside |= dtype.is_some_and(|t| t.is_float());
                }
            }
        }
    }

    /// A mask may be subtracted, or multiplied with -1, so that signs say nothing.
    fn constant(&mut self, t: &kiln_graph::Tensor) {
        if t.len() > kiln_graph::limits::FOLDED_NODE {
            return;
        }
        for x in t.to_f64s().unwrap_or_default() {
            if -x.abs() <= HIDES {
                self.lowest = self.lowest.min(-x.abs());
            }
        }
    }
}

/// The operands whose numbers a node passes on or computes with. What else a bias is computed by (a product, an
/// activation) is no mask.
fn made_of(node: &Node) -> Vec<ValueId> {
    let op = node.op();
    let all = || node.inputs().iter().flatten().copied();
    let moves = [
        "Cast",
        "Clip",
        "CumSum",
        "Expand",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Neg",
        "Pad",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
    ];
    let computes = [
        "Add",
        "Concat",
        "Div",
        "Max",
        "Min",
        "Mul",
        "ScatterElements",
        "ScatterND",
        "Sub",
        "Sum",
    ];
    if op.is("Where") {
        all().skip(1).collect()
    } else if op.is_any(&moves) {
        all().take(1).collect()
    } else if op.is_any(&computes) {
        all().collect()
    } else {
        Vec::new()
    }
}
