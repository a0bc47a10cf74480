//! Scores of attention in one spelling: scaled before anything is added, and biases added.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct NormalizeScores;

/// Nodes between scores and their softmax.
const MAX_DEPTH: usize = 8;

impl Rule for NormalizeScores {
    fn name(&self) -> &'static str {
        "normalize-scores"
    }

    fn about(&self) -> &'static str {
        "scale attention's scores before biases are added, and add what is subtracted"
    }

    fn details(&self) -> String {
        "XLNet and Transformer-XL add scores by position to those by content before both are scaled, and subtract their mask: \
         `(q k^T + r) / 8 - 1e30 m` becomes `q k^T / 8 + r / 8 + -1e30 m`. Only in front of a Softmax, only for factors up \
         to 1, with which no mask overflows, and only for ONNX Runtime, whose operator has the scale first. A bound below the sum, \
         as OPT and XGLM have it, becomes one below the mask, which has one for all layers: `max(s + m, -3.4e38)` is \
         `s + max(m, -3.4e38)`. A factor for each head moves from scores to queries."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Mul", "Div", "Sub", "Max"]
    }

    fn needs_facts(&self) -> bool {
        false
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        if !cx.target.facts.scales_before_biases {
            return Err(Miss::none());
        }
        let node = g.node(root);
        let (Some(a), Some(b), Some(output)) = (node.input(0), node.input(1), node.output(0))
        else {
            return Err(Miss::none());
        };
        if !reaches_softmax(g, output) {
            return Err(Miss::none());
        }
        match node.op().name() {
            "Sub" => subtracted(g, a, b, output),
            "Max" => bounded(g, a, b, output),
            "Mul" if number(g, a).is_none() && number(g, b).is_none() => by_head(g, [a, b], output)
                .or_else(|| by_head(g, [b, a], output))
                .ok_or_else(Miss::none),
            _ => scaled(g, root, a, b, output),
        }
    }
}

/// Whether a value is read by nodes that add, hide and scale alone, each the only reader, up to a Softmax.
fn reaches_softmax(g: &Graph, mut v: ValueId) -> bool {
    for _ in 0..MAX_DEPTH {
        let &[reader] = g.value(v).uses() else {
            return false;
        };
        let node = g.node(reader.node);
        if node.op().is("Softmax") {
            return true;
        }
        let passes = [
            "Add", "Sub", "Where", "Max", "Mul", "Div", "Cast", "Reshape",
        ];
        match node.output(0) {
            Some(next) if node.op().is_any(&passes) => v = next,
            _ => return false,
        }
    }
    false
}

/// Whether a value is scores: a product of two computed values, with what is added to it and factors.
fn is_scores(g: &Graph, v: ValueId, depth: usize) -> bool {
    let Some(node) = g
        .producer(v)
        .filter(|_| depth < MAX_DEPTH)
        .map(|id| g.node(id))
    else {
        return false;
    };
    let below = |k: usize| node.input(k).is_some_and(|x| is_scores(g, x, depth + 1));
    match node.op().name() {
        "MatMul" => (0..2).all(|k| node.input(k).is_some_and(|x| g.constant(x).is_none())),
        "Add" => below(0) || below(1),
        "Sub" | "Mul" | "Div" | "Cast" | "Reshape" => below(0),
        _ => false,
    }
}

fn number(g: &Graph, v: ValueId) -> Option<(&Tensor, f64)> {
    let t = g.constant(v).filter(|t| t.len() == 1)?;
    Some((t, t.as_f64()?))
}

/// `s - c m` is `s + (-c) m`, to the bit.
fn subtracted(g: &Graph, s: ValueId, b: ValueId, output: ValueId) -> Result<Patch, Miss> {
    if !is_scores(g, s, 0) {
        return Err(Miss::none());
    }
    let factor = g.producer_if(b, "Mul").map(|id| g.node(id));
    let (x, by) = match factor.map(|n| (n.input(0), n.input(1))) {
        Some((Some(x), Some(by))) if number(g, by).is_some() => (x, by),
        Some((Some(by), Some(x))) if number(g, by).is_some() => (x, by),
        _ => {
            return Err(Miss::at(
                b,
                1,
                "what is subtracted is no mask times a number",
            ));
        }
    };
    let mut patch = Patch::new();
    let negative = match number(g, by).and_then(|(t, c)| negated(t, c)) {
        Some(constant) => patch.constant(constant),
        None => patch.node(Op::onnx("Neg"), [by.into()], Attrs::new()),
    };
    let bias = patch.node(Op::onnx("Mul"), [x.into(), negative], Attrs::new());
    let sum = patch.node(Op::onnx("Add"), [s.into(), bias], Attrs::new());
    patch.replace(output, sum);
    Ok(patch)
}

/// Numbers up to this one absorb scores of ordinary size that they are added to, in FP32.
const ABSORBS: f64 = -1e30;

/// What a sum adds that one node alone reads.
fn addends(g: &Graph, sum: ValueId) -> Option<[ValueId; 2]> {
    let add = g.node(g.producer_if(sum, "Add")?);
    let alone = g.value(sum).uses().len() == 1;
    Some([add.input(0)?, add.input(1)?]).filter(|_| alone)
}

/// `max(s + m, c)` is `s + max(m, c)` where c is about the lowest number: a bound for masks that are added up.
fn bounded(g: &Graph, a: ValueId, b: ValueId, output: ValueId) -> Result<Patch, Miss> {
    let lowest = |v: ValueId| number(g, v).is_some_and(|(_, c)| c <= ABSORBS && c.is_finite());
    let (sum, bound) = match (lowest(a), lowest(b)) {
        (false, true) => (a, b),
        (true, false) => (b, a),
        _ => return Err(Miss::none()),
    };
    let [x, y] = addends(g, sum).ok_or_else(Miss::none)?;
    let (s, m) = match (is_scores(g, x, 0), is_scores(g, y, 0)) {
        (true, false) => (x, y),
        (false, true) => (y, x),
        _ => return Err(Miss::none()),
    };
    let mut patch = Patch::new();
    let mask = patch.node(Op::onnx("Max"), [m.into(), bound.into()], Attrs::new());
    let made = patch.node(Op::onnx("Add"), [s.into(), mask], Attrs::new());
    patch.replace(output, made);
    Ok(patch)
}

/// `(q k^T) t` is `(q t) k^T` where t has one number for each head: Swin Transformer V2 scales cosines so.
fn by_head(g: &Graph, [s, t]: [ValueId; 2], output: ValueId) -> Option<Patch> {
    let product = g.producer_if(s, "MatMul").map(|id| g.node(id))?;
    let (q, k) = (product.input(0)?, product.input(1)?);
    let sizes = |v: ValueId| -> Option<Vec<Option<usize>>> {
        Some(g.value(v).ty().shape()?.iter().map(|d| d.known()).collect())
    };
    let (by, scores) = (sizes(t)?, sizes(s)?);
    let computed = g.constant(k).is_none() && g.constant(q).is_none();
    let alone = g.value(s).uses().len() == 1 && g.value(q).ty().rank() == Some(scores.len());
    let each =
        by.len() >= 2 && by.len() <= scores.len() && by.iter().rev().take(2).all(|&d| d == Some(1));
    // No batch of the product's own grows by it.
    let fits = by
        .iter()
        .rev()
        .zip(scores.iter().rev())
        .all(|(&a, &b)| a == Some(1) || a.is_some() && a == b);
    (computed && alone && each && fits).then_some(())?;
    let mut patch = Patch::new();
    let scaled = patch.node(Op::onnx("Mul"), [q.into(), t.into()], Attrs::new());
    let made = patch.node(Op::onnx("MatMul"), [scaled, k.into()], Attrs::new());
    patch.replace(output, made);
    Some(patch)
}

fn negated(tensor: &Tensor, number: f64) -> Option<Tensor> {
    let single = tensor.dtype() == DType::F32;
    let made = Tensor::from_values(tensor.dims(), &[-number as f32]);
    made.ok().filter(|_| single)
}

/// `c (s + b)` is `c s + c b`.
fn scaled(g: &Graph, root: NodeId, a: ValueId, b: ValueId, output: ValueId) -> Result<Patch, Miss> {
    let node = g.node(root);
    let divides = node.op().is("Div");
    let (sum, by) = match (number(g, b), number(g, a)) {
        (Some(_), _) => (a, b),
        (None, Some(_)) if !divides => (b, a),
        _ => return Err(Miss::none()),
    };
    let Some((_, c)) = number(g, by) else {
        return Err(Miss::none());
    };
    let factor = if divides { 1.0 / c } else { c };
    let [x, y] = addends(g, sum).ok_or_else(Miss::none)?;
    if !is_scores(g, x, 0) && !is_scores(g, y, 0) {
        return Err(Miss::none());
    }
    if !(factor > 0.0 && factor <= 1.0) {
        return Err(Miss::because("the factor is above 1, or negative"));
    }
    let mut patch = Patch::new();
    let parts = [x, y].map(|part| patch.node(node.op(), [part.into(), by.into()], Attrs::new()));
    let made = patch.node(Op::onnx("Add"), parts, Attrs::new());
    patch.replace(output, made);
    Ok(patch)
}
