//! Writes the axes of reductions and normalizations from the end, where they name the last ones.

use kiln_graph::{Attrs, Graph, NodeId, Tensor};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct NormalizeAxes;

impl Rule for NormalizeAxes {
    fn name(&self) -> &'static str {
        "normalize-axes"
    }

    fn about(&self) -> &'static str {
        "write the last axis as -1, so that fusions need to know one spelling"
    }

    fn details(&self) -> String {
        "`ReduceMean(x, {2})` of a rank-3 value becomes `ReduceMean(x, {-1})`; Softmax, LogSoftmax and \
         LayerNormalization over the last axis get `axis = -1`. Needs the rank to be known."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &[
            "ReduceMean",
            "ReduceSum",
            "ReduceL2",
            "ReduceMax",
            "ReduceSumSquare",
            "Softmax",
            "LogSoftmax",
            "LayerNormalization",
        ]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(x), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        let rank = g.value(x).ty().rank().filter(|&r| r > 0);
        let last = rank.ok_or_else(|| Miss::at(x, 1, "its rank is unknown"))? as i64 - 1;
        let mut inputs: Vec<Option<Ref>> = node.inputs().iter().map(|v| v.map(Ref::Old)).collect();
        let mut attrs: Attrs = node.attrs().clone();
        let mut patch = Patch::new();
        if node.op().name().starts_with("Reduce") {
            let axes = node
                .input(1)
                .and_then(|v| g.constant(v))
                .and_then(|t| t.to_i64s());
            if axes != Some(vec![last]) {
                return Err(Miss::because(
                    "it does not reduce the last axis by its number",
                ));
            }
            inputs[1] = Some(patch.constant(Tensor::vector(&[-1i64])));
        } else if attrs.int("axis") == Some(last) {
            attrs.set("axis", -1);
        } else {
            return Err(Miss::because("its axis is not the last by its number"));
        }
        let made = patch.node_with(node.op(), inputs, node.outputs().len(), attrs);
        patch.replace(output, made[0]);
        for (old, new) in node.outputs().iter().zip(&made).skip(1) {
            if let Some(old) = old {
                patch.replace(*old, *new);
            }
        }
        Ok(patch)
    }
}
