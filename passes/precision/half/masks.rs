//! Masks that come into a graph as floats: their numbers are not there to be replaced when the graph is converted.

use kiln_graph::graph::Slot;
use kiln_graph::{Attrs, DType, Def, Graph, Op, Tensor, Type, ValueId};

use super::format::HalfFormat;

/// Nodes between the input and the softmax.
const MAX_STEPS: usize = 8;

/// Whether a float input of the graph is added to the scores of a softmax.
pub(in crate::precision) fn is_mask(g: &Graph, v: ValueId) -> bool {
    if !matches!(g.value(v).def(), Def::Input(_)) {
        return false;
    }
    let (mut at, mut added) = (vec![v], false);
    for _ in 0..MAX_STEPS {
        let mut next = Vec::new();
        for (v, u) in at
            .iter()
            .flat_map(|&v| g.value(v).uses().iter().map(move |u| (v, u)))
        {
            let node = g.node(u.node);
            let op = node.op();
            if op.name() == "Attention" && u.slot == Slot::Input(3) || op.is("Softmax") && added {
                return true;
            }
            let others = || node.inputs().iter().flatten().filter(|&&o| o != v);
            let adds = op.is("Add") && others().any(|&o| is_product(g, o));
            added |= adds;
            if adds || op.is_any(MOVES) {
                next.extend(node.output(0));
            }
        }
        at = next;
    }
    false
}

const MOVES: &[&str] = &["Cast", "Expand", "Reshape", "Slice", "Squeeze", "Unsqueeze"];

/// Whether a value is a product of matrices, scaled or moved.
fn is_product(g: &Graph, mut v: ValueId) -> bool {
    for _ in 0..MAX_STEPS {
        let Some(node) = g.producer(v).map(|id| g.node(id)) else {
            return false;
        };
        if node.op().is("MatMul") {
            return true;
        }
        let passes = node.op().is_any(MOVES) || node.op().is_any(&["Add", "Div", "Mul"]);
        match node.input(0).filter(|_| passes) {
            Some(x) => v = x,
            None => return false,
        }
    }
    false
}

/// The mask with the format's number for -3.4e38 in the place of all below it, so that a Cast does not make it infinite:
/// a row whose keys are all hidden is NaN then. Infinities stay. `None` where the format holds such numbers.
pub(in crate::precision) fn bounded(
    g: &mut Graph,
    v: ValueId,
    format: HalfFormat,
    pass: &'static str,
) -> Option<ValueId> {
    if format.max() >= f64::from(f32::MAX) / 2.0 {
        return None;
    }
    let shape = g.value(v).ty().shape().map(kiln_graph::Shape::from);
    let name = g.value(v).name().to_string();
    let number = |g: &mut Graph, suffix: &str, x: f32| {
        g.add_constant(&format!("{name}_{suffix}"), Tensor::scalar(x))
    };
    let fill = number(g, "fill", -format.fill() as f32);
    let lowest = number(g, "lowest", f32::MIN);
    let mut node = |op: &str, inputs: &[ValueId], dtype: DType| {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let id = g.add_node(Op::onnx(op), "", inputs, 1, Attrs::new());
        g.notes_mut(id).set("kiln.pass", pass.into());
        let made = g.node(id).output(0)?;
        g.set_type(made, Type::tensor(dtype, shape.clone()));
        Some(made)
    };
    let infinite = node("Less", &[v, lowest], DType::Bool)?;
    let raised = node("Max", &[v, fill], DType::F32)?;
    node("Where", &[infinite, v, raised], DType::F32)
}
