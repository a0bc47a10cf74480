//! Shape arithmetic, computed symbolically: no runtime, and no fixed sizes where the model has symbols.

use kiln_graph::infer::{self, Expr, Facts};
use kiln_graph::{Attrs, DType, Graph, Model, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::view;
use crate::core::pass::{Context, Exactness, Pass, PassFailure, in_each_graph};
use crate::core::patch::Patch;

#[derive(Debug)]
pub struct FoldShapes;

impl Pass for FoldShapes {
    fn name(&self) -> &'static str {
        "fold-shapes"
    }

    fn about(&self) -> &'static str {
        "compute shapes, and what is computed from them, without running anything"
    }

    fn details(&self) -> String {
        "An integer value that inference knows element by element becomes a constant. A Reshape whose target is \
         computed, but is known up to one symbolic dimension, gets a constant target: `Reshape(x, Concat(Shape(x)[0], \
         Shape(x)[1], {4}, {16}))` becomes `Reshape(x, {0, 0, 4, 16})`, where 0 copies the dimension of x and -1 takes \
         the rest."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        in_each_graph(model, &mut |g| {
            let facts = infer::infer(g);
            fold(g, &facts, cx)
        })
    }
}

fn fold(g: &mut Graph, facts: &Facts, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    let mut folded = 0;
    // Downstream first, so that a maze is replaced at its end and dies as a whole.
    for id in g.topo_order()?.into_iter().rev() {
        let Some(node) = g.get(id) else { continue };
        let Some(output) = node.output(0).filter(|&v| !g.value(v).is_unused()) else {
            continue;
        };
        let patch = match node.op().is("Reshape") {
            true => target_of_reshape(g, facts, id),
            false => {
                known_integers(g, facts, id, output).or_else(|| from_inputs(g, facts, id, output))
            }
        };
        let Some(patch) = patch else { continue };
        if !cx.admit("fold-shapes", || g.label(id)) {
            return Ok(folded);
        }
        patch
            .apply(g, id, "fold-shapes")
            .map_err(|e| PassFailure::Node {
                node: e.value.clone(),
                why: e.to_string(),
            })?;
        folded += 1;
    }
    Ok(folded)
}

fn known_integers(g: &Graph, facts: &Facts, id: NodeId, output: ValueId) -> Option<Patch> {
    if g.node(id).outputs().len() != 1 {
        return None;
    }
    let known: Vec<i64> = (facts.values(output)?.iter())
        .map(|e| e.as_i64())
        .collect::<Option<_>>()?;
    let rank = facts.ty(output).rank().or(g.value(output).ty().rank())?;
    let tensor = match (facts.ty(output).dtype()?, rank, known.as_slice()) {
        (DType::I64, 0, [v]) => Tensor::scalar(*v),
        (DType::I64, 1, v) => Tensor::vector(v),
        (DType::I32, 0, [v]) => Tensor::scalar(i32::try_from(*v).ok()?),
        (DType::I32, 1, v) => {
            let narrow: Option<Vec<i32>> = v.iter().map(|&v| v.try_into().ok()).collect();
            Tensor::vector(&narrow?)
        }
        _ => return None,
    };
    let mut patch = Patch::new();
    let constant = patch.constant(tensor);
    patch.replace(output, constant);
    Some(patch)
}

fn target_of_reshape(g: &Graph, facts: &Facts, id: NodeId) -> Option<Patch> {
    let reshape = ops::Reshape::of(g, id)?;
    let (x, target, output) = (reshape.input(0)?, reshape.input(1)?, reshape.output(0)?);
    if g.constant(target).is_some() {
        return None;
    }
    let wanted = facts.values(target)?;
    // A constant 0 of the original is a size of 0 or a copy, by its attribute; both are rare here.
    if wanted.iter().any(|e| e.as_i64() == Some(0)) {
        return None;
    }
    let dims = view::reshape_target(facts.dims(x).unwrap_or_default(), wanted)?;
    let mut patch = Patch::new();
    let constant = patch.constant(Tensor::vector(&dims));
    let made = patch.node(Op::onnx("Reshape"), [x.into(), constant], Attrs::new());
    patch.replace(output, made);
    Some(patch)
}

/// Nodes that are looked at on the way from sizes to the shape that they come of.
const MAZE: usize = 64;

/// Sizes that come of the shape of scores, taken from inputs of the graph instead.
fn from_inputs(g: &Graph, facts: &Facts, id: NodeId, output: ValueId) -> Option<Patch> {
    let whole = facts.ty(output).dtype() == Some(DType::I64);
    if !whole || g.node(id).outputs().len() != 1 || g.opset() < 15 {
        return None;
    }
    let values = facts.values(output)?;
    let scalar = facts.ty(output).rank()? == 0;
    if values.is_empty() || !comes_of_scores(g, facts, id) {
        return None;
    }
    let mut patch = Patch::new();
    let mut parts = Vec::new();
    for value in values {
        parts.push(match value.as_i64() {
            Some(n) => patch.constant(Tensor::vector(&[n])),
            None => {
                let (input, axis) = axis_of_input(g, facts, value)?;
                let ends = Attrs::new().with("start", axis).with("end", axis + 1);
                patch.node(Op::onnx("Shape"), [input.into()], ends)
            }
        });
    }
    let made = match (parts.as_slice(), scalar) {
        (&[one], true) => patch.node(Op::onnx("Squeeze"), [one], Attrs::new()),
        (&[one], false) => one,
        _ => patch.node(Op::onnx("Concat"), parts, Attrs::new().with("axis", 0)),
    };
    patch.replace(output, made);
    Some(patch)
}

/// An input of the graph that has this size along an axis.
fn axis_of_input(g: &Graph, facts: &Facts, size: &Expr) -> Option<(ValueId, i64)> {
    size.lone_symbol()?;
    g.inputs().iter().find_map(|&v| {
        let at = facts.dims(v)?.iter().position(|d| d == size)?;
        Some((v, at as i64))
    })
}

/// Whether a node computes with sizes alone, and some of these are of a value whose last two dimensions are both open.
fn comes_of_scores(g: &Graph, facts: &Facts, id: NodeId) -> bool {
    let (mut todo, mut scores) = (vec![id], false);
    for _ in 0..MAZE {
        let Some(id) = todo.pop() else {
            return scores;
        };
        let node = g.node(id);
        if node.op().is("Shape") {
            let dims = node.input(0).and_then(|v| facts.dims(v));
            scores |= matches!(dims, Some([_, .., a, b]) if dims.is_some_and(|d| d.len() > 2)
                && a.as_i64().is_none() && b.as_i64().is_none());
            continue;
        }
        let small = node
            .outputs()
            .iter()
            .flatten()
            .all(|&v| facts.values(v).is_some());
        if !small || node.has_subgraphs() {
            return false;
        }
        todo.extend(
            node.inputs()
                .iter()
                .flatten()
                .filter_map(|&v| g.producer(v)),
        );
    }
    false
}
