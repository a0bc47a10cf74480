//! Projections of one input for one attention become one product.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor};

use crate::analysis::attention::projections::{Projection, separate};
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct FuseQkv;

impl Rule for FuseQkv {
    fn name(&self) -> &'static str {
        "fuse-qkv"
    }

    fn about(&self) -> &'static str {
        "the query, key and value projections of one input become one MatMul with packed weights, and a Split"
    }

    fn details(&self) -> String {
        "`MatMul(x, wq)`, `MatMul(x, wk)` and `MatMul(x, wv)` of one attention become `Split(MatMul(x, [wq wk wv]))`, with \
         one Add for all biases; of cross-attention, keys and values. Sizes may differ, as they do with grouped queries. \
         Projections are found behind rearrangements, factors, norms and rotary embeddings. One large product keeps a GPU \
         busier than three small ones; on ONNX Runtime's CPU provider the Split costs what it saves (measured: 0.99 to \
         1.02 of the latency), so that target leaves them apart."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
        let parts = separate(g, &attention)?;
        if !cx.target.facts.packs_projections {
            return Err(Miss::because("packing does not pay on this target"));
        }
        let weights: Vec<&Tensor> = parts.iter().map(|p| p.weight).collect();
        let packed = Tensor::joined(&weights)
            .ok_or_else(|| Miss::because("the weights differ in rows or type"))?;
        let [first, ..] = parts.as_slice() else {
            return Err(Miss::none());
        };
        let mut patch = Patch::new();
        let weight = patch.constant(packed);
        let mut y = patch.node(Op::onnx("MatMul"), [first.x.into(), weight], Attrs::new());
        if parts.iter().any(|p| p.bias.is_some()) {
            let biases: Vec<Tensor> = parts
                .iter()
                .map(Projection::offset)
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    Miss::because(
                        "a projection without a bias is of no type that zeros are known of",
                    )
                })?;
            let bias = Tensor::joined(&biases.iter().collect::<Vec<_>>())
                .ok_or_else(|| Miss::because("the biases differ in type"))?;
            let bias = patch.constant(bias);
            y = patch.node(Op::onnx("Add"), [y, bias], Attrs::new());
        }
        let widths: Vec<i64> = parts.iter().map(|p| p.width() as i64).collect();
        let widths = patch.constant(Tensor::vector(&widths));
        let split = patch.node_with(
            Op::onnx("Split"),
            [Some(y), Some(widths)],
            parts.len(),
            Attrs::new().with("axis", -1i64),
        );
        for (part, made) in parts.iter().zip(split) {
            patch.replace(part.output, made);
        }
        Ok(patch)
    }
}
