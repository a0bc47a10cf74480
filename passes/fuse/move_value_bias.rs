//! The bias of the values' projection goes through attention as it is.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, Graph, NodeId, Op};

use crate::analysis::attention::operand_bias::{OperandBias, projects_alone};
use crate::analysis::attention::output_projection::OutputProjection;
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};

/// P (v + 1 b) = P v + 1 b for probabilities P whose rows sum to 1.
pub static MOVE_VALUE_BIAS: Local = Local {
    name: "move-value-bias",
    about: "the bias of the values' projection becomes part of the bias of attention's output projection",
    why: "Each row of the probabilities sums to 1, so what is added to all values alike comes out of attention as it went in, \
         once for each head of the queries. `Add(MatMul(attention, wo), bo)` takes it: bo becomes bo + bv · wo, computed in \
         FP64, and is added where there was none. Not behind a guard that makes rows zero, and not where something else \
         reads the values or the result. For targets that write queries, keys and values once more because of a bias \
         (`kiln passes explain sink-query-bias`).",
    exactness: Exactness::Rounding,
    since: 13,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
    let (Some(values), Some(result)) = (attention.input(2), attention.output(0)) else {
        return Err(Miss::none());
    };
    let bias = OperandBias::of(g, &cx.facts, values)?;
    if attention.is_guarded() {
        let why = "a guard makes rows zero whose keys are all hidden";
        return Err(Miss::at(values, 3, why));
    }
    let output = OutputProjection::of(g, &cx.facts, result)?;
    let unknown = || Miss::at(values, 4, "its bias or the weight behind it is unknown");
    let heads = cx.facts.dims(result).and_then(|d| d.get(1)?.as_i64());
    let heads = heads.and_then(|h| usize::try_from(h).ok());
    let channels = repeated(&bias, heads.ok_or_else(unknown)?).ok_or_else(unknown)?;
    let moved = output.through(&channels).ok_or_else(unknown)?;
    let offset = output.offset(&moved).ok_or_else(unknown)?;
    if !cx.target.facts.biases_keep_projections_apart {
        return Err(Miss::because("a bias costs nothing on this target"));
    }
    projects_alone(g, cx, &attention)?;
    let mut patch = Patch::new();
    bias.remove(g, &mut patch).ok_or_else(unknown)?;
    for value in output.values(g).chain([values, result]) {
        patch.change(value);
    }
    let offset = patch.constant(offset);
    match output.sum {
        // In its place.
        Some(sum) => {
            let y = patch.node(Op::onnx("Add"), [output.y.into(), offset], Attrs::new());
            patch.replace(sum, y);
        }
        None => {
            let product = g.node(output.product);
            let inputs = product.inputs().iter().map(|v| v.map(Ref::Old));
            let attrs = product.attrs().clone();
            let y = patch.node_with(product.op(), inputs, 1, attrs)[0];
            let y = patch.node(Op::onnx("Add"), [y, offset], Attrs::new());
            patch.replace(output.y, y);
        }
    }
    Ok(patch)
}

/// The bias of each channel of each of so many heads: groups of queries share a head of the values.
fn repeated(bias: &OperandBias<'_>, heads: usize) -> Option<Vec<f64>> {
    let bias = bias.per_head()?;
    let &[_, own, _, size] = bias.dims() else {
        return None;
    };
    let numbers = bias.to_f64s()?;
    let group = heads.checked_div(own).filter(|g| g * own == heads)?;
    let rows = (0..heads).filter_map(|h| numbers.get(h / group * size..(h / group + 1) * size));
    Some(rows.flatten().copied().collect())
}
