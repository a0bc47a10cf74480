//! The bias of the queries, behind the telling apart of their heads.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Graph, NodeId};

use crate::analysis::attention::operand_bias::{OperandBias, UNBIASED, projects_alone};
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;

pub static SINK_QUERY_BIAS: Local = Local {
    name: "sink-query-bias",
    about: "add the bias of the queries' projection behind the telling apart of heads",
    why: "`Transpose(Reshape(Add(MatMul(x, wq), bq)))` becomes `Add(Transpose(Reshape(MatMul(x, wq))), bq')` with bq' of \
         [1, heads, 1, size], where keys and values have no bias any more. TensorRT for RTX then reads the heads of keys and \
         values out of the product's result as they are, and writes those of the queries only (an encoder layer in half \
         precision: as many kernels as with all three biases, and an eighth fewer bytes). Not where something beside the \
         projections reads what they read, unless there is one batch: a norm before them would become two kernels.",
    exactness: Exactness::Exact,
    since: 13,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
    let operands = (attention.input(0), attention.input(1), attention.input(2));
    let (Some(queries), Some(keys), Some(values)) = operands else {
        return Err(Miss::none());
    };
    for (operand, why) in [
        (keys, "the keys have a bias, too"),
        (values, "the values have a bias, too"),
    ] {
        match OperandBias::of(g, &cx.facts, operand) {
            Err(miss) if miss.why == UNBIASED => {}
            Err(miss) => return Err(miss),
            Ok(_) => return Err(Miss::at(operand, 3, why)),
        }
    }
    let bias = OperandBias::of(g, &cx.facts, queries)?;
    let miss = |why: &str| Miss::at(queries, 3, why);
    if bias.is_sunk() {
        return Err(miss("its bias stands behind its heads"));
    }
    projects_alone(g, cx, &attention)?;
    if !cx.target.facts.biases_keep_projections_apart {
        return Err(miss("a bias costs nothing on this target"));
    }
    let mut patch = Patch::new();
    bias.sink(g, &mut patch)
        .ok_or_else(|| miss("its part of the bias is unknown"))?;
    Ok(patch)
}
