//! Factors move behind the rearrangement of what they scale.

use kiln_graph::{Graph, NodeId, ValueId};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct SinkScales;

impl Rule for SinkScales {
    fn name(&self) -> &'static str {
        "sink-scales"
    }

    fn about(&self) -> &'static str {
        "move a product with a scalar behind Reshape, Transpose, Squeeze and Unsqueeze"
    }

    fn details(&self) -> String {
        "`Transpose(Mul(x, {0.125}))` becomes `Mul(Transpose(x), {0.125})`. Exporters scale the query of attention before \
         or after they split its heads; afterwards the factor stands beside the product, where attention looks for it, \
         and the rearrangements stand together."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &["Reshape", "Transpose", "Squeeze", "Unsqueeze"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(x), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        let scale = g
            .producer(x)
            .filter(|&n| g.node(n).op().is_any(&["Mul", "Div"]));
        let scale = g.node(scale.ok_or_else(Miss::none)?);
        let operands = (scale.input(0), scale.input(1));
        let (Some(a), Some(b)) = operands else {
            return Err(Miss::none());
        };
        let ranks = [x, output].map(|v| g.value(v).ty().rank().unwrap_or(0));
        let rank = ranks[0].min(ranks[1]);
        let (scaled, factor) = match (is_scalar(g, a, rank), is_scalar(g, b, rank)) {
            (_, true) => (a, b),
            (true, _) if scale.op().is("Mul") => (b, a),
            _ => return Err(Miss::at(x, 2, "it is no product with a scalar constant")),
        };
        if g.value(x).uses().len() != 1 || g.value(x).is_output() {
            return Err(Miss::at(x, 2, "the product is used elsewhere too"));
        }
        let mut patch = Patch::new();
        let mut inputs: Vec<Option<Ref>> = node.inputs().iter().map(|v| v.map(Ref::Old)).collect();
        if let Some(first) = inputs.first_mut() {
            *first = Some(scaled.into());
        }
        let moved = patch.node_with(node.op(), inputs, 1, node.attrs().clone())[0];
        let made = patch.node(scale.op(), [moved, factor.into()], scale.attrs().clone());
        patch.replace(output, made);
        Ok(patch)
    }
}

/// One element whose rank does not exceed this one, so that broadcasting it adds no dimension.
fn is_scalar(g: &Graph, v: ValueId, rank: usize) -> bool {
    let tensor = g.constant(v);
    tensor.is_some_and(|t| t.len() == 1 && t.rank() <= rank && t.dtype().is_float())
}
