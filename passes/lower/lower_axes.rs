//! Axes of reductions from the front again.

use kiln_graph::{Graph, NodeId, Tensor, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct LowerAxes;

impl Rule for LowerAxes {
    fn name(&self) -> &'static str {
        "lower-axes"
    }

    fn about(&self) -> &'static str {
        "write the axes of reductions from the front"
    }

    fn details(&self) -> String {
        "`normalize-axes` counts from the end for the sake of fusions. ONNX Runtime 1.31 takes no such axis away when the \
         operand is empty: a sum of float[2, 0, 4] over axis -1 has the shape [2, 0, 4]. Needs the rank to be known."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        ops::REDUCTIONS
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(x), Some(axes), Some(output)) = (node.input(0), node.input(1), node.output(0))
        else {
            return Err(Miss::none());
        };
        let known = g.constant(axes).and_then(Tensor::to_i64s);
        let known = known.ok_or_else(|| Miss::at(axes, 1, "its axes are not constant"))?;
        let rank = g.value(x).ty().rank();
        let rank = rank.ok_or_else(|| Miss::at(x, 1, "its rank is unknown"))? as i64;
        if known.iter().all(|&a| a >= 0) || known.iter().any(|a| !(-rank..rank).contains(a)) {
            return Err(Miss::because("its axes count from the front"));
        }
        let positive: Vec<i64> = known.iter().map(|a| a.rem_euclid(rank)).collect();
        let mut patch = Patch::new();
        let mut inputs: Vec<Option<Ref>> = node.inputs().iter().map(|v| v.map(Ref::Old)).collect();
        inputs[1] = Some(patch.constant(Tensor::vector(&positive)));
        let made = patch.node_with(node.op(), inputs, 1, node.attrs().clone());
        patch.replace(output, made[0]);
        Ok(patch)
    }
}
