//! Products of joined heads with an INT4 weight, in the form that TensorRT dequantizes for in passing.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use super::separate_weights::four_bits;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct DetachHeads;

impl Rule for DetachHeads {
    fn name(&self) -> &'static str {
        "detach-heads"
    }

    fn about(&self) -> &'static str {
        "give products of joined heads with an INT4 weight a row of their own for each token"
    }

    fn details(&self) -> String {
        "`MatMul(Reshape(Transpose(heads)), w)` becomes `Squeeze(MatMul(Unsqueeze(Reshape(Transpose(heads))), w))` where w is \
         dequantized from 4 bits. TensorRT lets such a product read the heads where they lie, and then writes the whole weight in \
         floats in a kernel of its own, in each run. Over another shape the product dequantizes what it reads: one kernel a \
         layer less, and four bytes less for each number of the weight (measured by the builder's list of kernels, TensorRT \
         for RTX 1.7.1)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        21
    }

    fn roots(&self) -> &[&'static str] {
        &["MatMul"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let &[Some(x), Some(weight)] = node.inputs() else {
            return Err(Miss::none());
        };
        let Some(output) = node.output(0) else {
            return Err(Miss::none());
        };
        if four_bits(g, weight).is_none() || g.value(weight).ty().rank() != Some(2) {
            return Err(Miss::none());
        }
        if !joins_heads(g, x) {
            return Err(Miss::at(x, 1, "it is no heads that are joined"));
        }
        if !cx.target.facts.dequantizes_apart {
            return Err(Miss::because("the target reads weights as they are"));
        }
        let mut patch = Patch::new();
        let axis = patch.constant(Tensor::vector(&[-2i64]));
        let rows = [Ref::from(x), axis];
        let rows = patch.node(Op::onnx("Unsqueeze"), rows, Attrs::new());
        let made = [rows, weight.into()];
        let made = patch.node(Op::onnx("MatMul"), made, Attrs::new());
        let made = patch.node(Op::onnx("Squeeze"), [made, axis], Attrs::new());
        patch.replace(output, made);
        Ok(patch)
    }
}

/// Whether a value is a Reshape of a Transpose with fewer axes.
fn joins_heads(g: &Graph, v: ValueId) -> bool {
    let joined = || {
        let reshape = ops::Reshape::of(g, g.producer(v)?)?;
        let turned = reshape.input(0)?;
        g.producer_if(turned, "Transpose")?;
        let ranks = [v, turned].map(|v| g.value(v).ty().rank());
        (ranks[0]? < ranks[1]?).then_some(())
    };
    joined().is_some()
}
