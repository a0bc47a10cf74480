//! From the operand of attention's Softmax back to its product of queries and keys.

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Graph, Node, NodeId, ValueId, ops};

use crate::core::pass::Miss;

/// Numbers up to this one hide a key: BERT's first release added -10000.
pub const HIDES: f64 = -1e4;

/// `softcap(scale · q kᵀ) + Σ biases`.
#[derive(Clone, Debug)]
pub struct Scores {
    /// Left operand of the product, without its factor.
    pub q: ValueId,
    /// Right operand of the product, without its factor: keys with their last two axes swapped.
    pub kt: ValueId,
    pub scale: f64,
    /// `c · tanh(x / c)`; 0 for none (Gemma 2).
    pub softcap: f64,
    /// What is added, outermost last.
    pub biases: Vec<Addend>,
    /// Stretches of one rank from the product on: the first value of each and its last. Between two of them batch and heads
    /// are told apart, or joined.
    pub stretches: Vec<[ValueId; 2]>,
    /// Nodes passed, the product included.
    pub depth: usize,
}

/// Something added to scores of a rank: 4, 3 where batch and heads are one dimension, or 5 where windows are told from pictures,
/// or rows from columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Addend {
    pub bias: Bias,
    pub rank: usize,
}

/// Something added to the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bias {
    Added(ValueId),
    /// `Where(keep, scores, fill)`, or with the branches exchanged.
    Selected {
        condition: ValueId,
        keeps_where: bool,
        fill: f64,
    },
}

const MAX_DEPTH: usize = 16;

/// Finds the product above `v`.
///
/// # Errors
/// The deepest miss: the value at which the chain stops being a score.
pub fn scores(g: &Graph, facts: &Facts, v: ValueId, depth: usize) -> Result<Scores, Miss> {
    let Some(id) = g.producer(v).filter(|_| depth < MAX_DEPTH) else {
        return Err(Miss::at(v, depth, "no MatMul of queries and keys feeds it"));
    };
    let node = g.node(id);
    let operand = |k: usize| node.input(k).ok_or_else(Miss::none);
    if !node.op().domain().is_empty() {
        return Err(Miss::at(
            v,
            depth,
            format!("{} is no part of attention that is known", node.op()),
        ));
    }
    match node.op().name() {
        "MatMul" => product(g, node, v, depth),
        "Mul" | "Div" => scaled(g, facts, node, v, depth),
        "Add" => {
            let (a, b) = (operand(0)?, operand(1)?);
            let [left, right] = [a, b].map(|side| scores(g, facts, side, depth + 1));
            let (mut found, bias) = match (left, right) {
                (Ok(found), _) => (found, b),
                (_, Ok(found)) => (found, a),
                (Err(a), Err(b)) => return Err(if b.depth > a.depth { b } else { a }),
            };
            found.add(g, Bias::Added(bias), v)?;
            Ok(found)
        }
        "Where" => {
            let (condition, a, b) = (operand(0)?, operand(1)?, operand(2)?);
            let number = |v: ValueId| {
                g.constant(v)
                    .filter(|t| t.len() == 1)
                    .and_then(|t| t.as_f64())
            };
            let (inner, keeps_where, fill) = match (number(a), number(b)) {
                (_, Some(fill)) => (a, true, fill),
                (Some(fill), None) => (b, false, fill),
                _ => return Err(Miss::at(v, depth, "neither branch of Where is a constant")),
            };
            if fill > HIDES {
                return Err(Miss::at(
                    v,
                    depth,
                    format!("hidden scores become {fill}, which hides nothing"),
                ));
            }
            let mut found = scores(g, facts, inner, depth + 1)?;
            let bias = Bias::Selected {
                condition,
                keeps_where,
                fill,
            };
            found.add(g, bias, v)?;
            Ok(found)
        }
        // A softmax in FP32 over a half-precision product.
        "Cast" => {
            let float = |v: ValueId| g.value(v).ty().dtype().is_some_and(|t| t.is_float());
            let x = operand(0)?;
            match float(x) && float(v) {
                true => scores(g, facts, x, depth + 1)?.through(v),
                false => Err(Miss::at(v, depth, "it is cast from whole numbers")),
            }
        }
        // Batch and heads are told apart for a mask (fairseq, BART, BLOOM, DeBERTa).
        "Reshape" => {
            let x = operand(0)?;
            if !regroups_batches(facts, x, v) && !splits_positions(facts, x, v) {
                let why = "it rearranges more of the scores than batch and heads";
                return Err(Miss::at(v, depth, why));
            }
            let mut found = scores(g, facts, x, depth + 1)?;
            found.stretches.push([v, v]);
            Ok(found)
        }
        other => Err(Miss::at(
            v,
            depth,
            format!("{other} is no part of attention that is known"),
        )),
    }
}

/// Whether a Reshape leaves queries and keys as they are, and tells batch and heads apart, or pictures and windows, or joins
/// them.
pub fn regroups_batches(facts: &Facts, from: ValueId, to: ValueId) -> bool {
    let (Some(from), Some(to)) = (facts.dims(from), facts.dims(to)) else {
        return false;
    };
    let ranks = [from, to].map(|d| (3..=5).contains(&d.len()));
    if ranks != [true, true] {
        return false;
    }
    // Windows are told apart from pictures, with the heads as they are.
    let same = match from.len().max(to.len()) {
        5 => 3,
        _ => 2,
    };
    let last = |d: &[Expr]| d.len().checked_sub(same).map(|k| d[k..].to_vec());
    last(from) == last(to)
}

/// Whether a Reshape tells rows and columns of queries and keys apart, or joins them: [batch · heads, queries, keys] as
/// [batch · heads, rows, columns, rows of keys, columns of keys].
fn splits_positions(facts: &Facts, from: ValueId, to: ValueId) -> bool {
    let (Some(from), Some(to)) = (facts.dims(from), facts.dims(to)) else {
        return false;
    };
    let (joined, apart) = match from.len() < to.len() {
        true => (from, to),
        false => (to, from),
    };
    let (&[batch, queries, keys], &[apart_batch, a, b, c, d]) = (
        &joined.iter().collect::<Vec<_>>()[..],
        &apart.iter().collect::<Vec<_>>()[..],
    ) else {
        return false;
    };
    let product = |x: &Expr, y: &Expr| x.as_i64()?.checked_mul(y.as_i64()?);
    batch == apart_batch
        && product(a, b).is_some_and(|n| queries.as_i64() == Some(n))
        && product(c, d).is_some_and(|n| keys.as_i64() == Some(n))
}

impl Scores {
    /// With something added, which gives `sum`.
    fn add(&mut self, g: &Graph, bias: Bias, sum: ValueId) -> Result<(), Miss> {
        let rank = g.value(sum).ty().rank().ok_or_else(Miss::none)?;
        self.biases.push(Addend { bias, rank });
        self.reach(sum);
        Ok(())
    }

    fn reach(&mut self, v: ValueId) {
        if let Some([_, end]) = self.stretches.last_mut() {
            *end = v;
        }
    }

    fn through(mut self, v: ValueId) -> Result<Scores, Miss> {
        self.reach(v);
        Ok(self)
    }
}

fn product(g: &Graph, node: &Node, v: ValueId, depth: usize) -> Result<Scores, Miss> {
    let (Some(q), Some(kt)) = (node.input(0), node.input(1)) else {
        return Err(Miss::none());
    };
    let rank = |v: ValueId| g.value(v).ty().rank();
    match (rank(q), rank(kt)) {
        (Some(4), Some(4)) | (Some(3), Some(3)) => {}
        _ => {
            return Err(Miss::at(
                v,
                depth,
                "its operands are no batches of heads (rank 3 or 4)",
            ));
        }
    }
    if g.constant(kt).is_some() || g.constant(q).is_some() {
        return Err(Miss::at(v, depth, "it multiplies with a constant"));
    }
    let (q, by_q) = unscaled(g, q);
    let (kt, by_k) = unscaled(g, kt);
    Ok(Scores {
        q,
        kt,
        scale: by_q * by_k,
        softcap: 0.0,
        biases: Vec::new(),
        stretches: vec![[v, v]],
        depth,
    })
}

/// The value without constant factors on it, and their product.
fn unscaled(g: &Graph, mut v: ValueId) -> (ValueId, f64) {
    let mut scale = 1.0;
    for _ in 0..MAX_DEPTH {
        let Some((x, by)) = g.producer(v).and_then(|id| factor(g, id)) else {
            break;
        };
        scale *= by;
        v = x;
    }
    (v, scale)
}

/// `x` and `c` where the node is `c · x` with a constant scalar.
fn factor(g: &Graph, id: NodeId) -> Option<(ValueId, f64)> {
    let node = g.node(id);
    let (a, b) = (node.input(0)?, node.input(1)?);
    let output = node.output(0)?;
    let number = |v: ValueId| {
        let t = g.constant(v).filter(|t| t.len() == 1)?;
        (t.rank() <= g.value(output).ty().rank()?).then(|| t.as_f64())?
    };
    let (x, by) = match (node.op().is("Mul"), node.op().is("Div")) {
        (true, _) => match (number(b), number(a)) {
            (Some(by), _) => (a, by),
            (_, Some(by)) => (b, by),
            _ => return None,
        },
        (_, true) => (a, 1.0 / number(b)?),
        _ => return None,
    };
    (by.is_finite() && by != 0.0 && g.value(x).ty().rank() == g.value(output).ty().rank())
        .then_some((x, by))
}

fn scaled(g: &Graph, facts: &Facts, node: &Node, v: ValueId, depth: usize) -> Result<Scores, Miss> {
    let id = g.producer(v).ok_or_else(Miss::none)?;
    let (x, by) = factor(g, id)
        .ok_or_else(|| Miss::at(v, depth, format!("{} is by no constant number", node.op())))?;
    if let Some(tanh) = g.producer_if(x, "Tanh") {
        let inner = g.node(tanh).input(0).ok_or_else(Miss::none)?;
        let (inner, inside) = (g.producer(inner).and_then(|n| factor(g, n))).ok_or_else(|| {
            Miss::at(
                inner,
                depth + 1,
                "a cap needs the same number on both sides of Tanh",
            )
        })?;
        if (inside * by - 1.0).abs() > 1e-5 || by <= 0.0 {
            return Err(Miss::at(
                v,
                depth,
                "a cap needs the same number on both sides of Tanh",
            ));
        }
        let mut found = scores(g, facts, inner, depth + 3)?;
        if found.softcap != 0.0 || !found.biases.is_empty() {
            return Err(Miss::at(
                v,
                depth,
                "something is added to the scores before they are capped",
            ));
        }
        found.softcap = by;
        return found.through(v);
    }
    let mut found = scores(g, facts, x, depth + 1)?;
    if found.softcap != 0.0 || !found.biases.is_empty() {
        return Err(Miss::at(
            v,
            depth,
            "the scores are scaled after something was added",
        ));
    }
    found.scale *= by;
    found.through(v)
}

/// Whether no element can be infinite or NaN by itself, and adding it to scores of ordinary size cannot make them so.
pub fn is_finite(g: &Graph, v: ValueId, depth: usize) -> bool {
    if let Some(t) = g.constant(v) {
        let known = t.len() <= 1 << 22;
        return known
            && t.to_f64s()
                .is_some_and(|all| all.iter().all(|x| x.is_finite()));
    }
    let Some(node) = g
        .producer(v)
        .filter(|_| depth < MAX_DEPTH)
        .map(|id| g.node(id))
    else {
        return false;
    };
    let operand = |k: usize| node.input(k).is_some_and(|x| is_finite(g, x, depth + 1));
    let moves = &[
        "Expand",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Transpose",
        "Slice",
        "Identity",
        "Gather",
    ];
    if node.op().is("Where") {
        operand(1) && operand(2)
    } else if node.op().is("Cast") {
        let from = node.input(0).and_then(|x| g.value(x).ty().dtype());
        from.is_some_and(|t| !t.is_float()) || operand(0)
    } else if node.op().is("ConstantOfShape") {
        let fill = g
            .producer(v)
            .and_then(|id| Some(ops::ConstantOfShape::of(g, id)?.value()));
        fill.and_then(|t| t.as_f64()).is_some_and(f64::is_finite)
    } else {
        node.op().is_any(moves) && operand(0)
    }
}
