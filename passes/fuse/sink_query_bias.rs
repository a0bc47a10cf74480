//! A bias that stays with queries or values, behind the telling apart of their heads.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Graph, NodeId};

use crate::attention::operand_bias::{OperandBias, UNBIASED};
use crate::pass::{Context, Exactness, Miss};
use crate::patch::Patch;
use crate::rule::Rule;

#[derive(Debug)]
pub struct SinkQueryBias;

/// Operands whose biases are sunk: those of the keys are dropped, or cost as much behind the heads as before.
const SUNK: [usize; 2] = [0, 2];

impl Rule for SinkQueryBias {
    fn name(&self) -> &'static str {
        "sink-query-bias"
    }

    fn about(&self) -> &'static str {
        "add the bias of the queries' projection behind the telling apart of heads"
    }

    fn details(&self) -> String {
        "`Transpose(Reshape(Add(MatMul(x, wq), bq)))` becomes `Add(Transpose(Reshape(MatMul(x, wq))), bq')` with bq' of \
         [1, heads, 1, size], where the keys have no bias any more; the same for values whose bias could not be moved. \
         TensorRT for RTX reads heads out of a product's result as it is, so that one operand with a bias costs one kernel \
         instead of one for each of the three (an encoder layer in FP16: 8 kernels instead of 10)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
        let keys = attention.input(1).ok_or_else(Miss::none)?;
        match OperandBias::of(g, &cx.facts, keys) {
            Err(miss) if miss.why == UNBIASED => {}
            Err(miss) => return Err(miss),
            Ok(_) => return Err(Miss::at(keys, 3, "the keys have a bias, too")),
        }
        let mut stopped = Miss::none();
        for slot in SUNK {
            match sunk(g, root, slot, cx) {
                Ok(patch) => return Ok(patch),
                Err(miss) if miss.depth > stopped.depth => stopped = miss,
                Err(_) => {}
            }
        }
        Err(stopped)
    }
}

fn sunk(g: &Graph, root: NodeId, slot: usize, cx: &Context<'_>) -> Result<Patch, Miss> {
    let operand = g.node(root).input(slot).ok_or_else(Miss::none)?;
    let bias = OperandBias::of(g, &cx.facts, operand)?;
    let miss = |why: &str| Miss::at(operand, 3, why);
    if bias.is_sunk() {
        return Err(miss("its bias stands behind its heads"));
    }
    if !cx.target.biases_keep_projections_apart() {
        return Err(miss("a bias costs nothing on this target"));
    }
    let mut patch = Patch::new();
    bias.sink(g, &mut patch)
        .ok_or_else(|| miss("its part of the bias is unknown"))?;
    Ok(patch)
}
