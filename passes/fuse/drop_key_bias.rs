//! What is added to all keys alike is gone after the softmax.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Graph, NodeId};

use crate::analysis::attention::operand_bias::{OperandBias, projects_alone};
use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;

/// softmax(s + c) = softmax(s) for a number c of each row.
pub static DROP_KEY_BIAS: Local = Local {
    name: "drop-key-bias",
    about: "drop the bias of the keys' projection, which the softmax does not see",
    why: "q · (k + b) is q · k and one number for each query, q · b, which softmax subtracts again: `Add(MatMul(x, wk), bk)` \
         becomes `MatMul(x, wk)`, and in a packed product the part of the keys becomes zero. A cap on the scores sees the \
         number, and so does whatever else reads the keys; a rotary embedding or a norm between makes it differ between keys. \
         For targets that write queries, keys and values once more because of a bias \
         (`kiln passes explain sink-query-bias`).",
    exactness: Exactness::Rounding,
    since: 13,
    native: false,
    at: rewrite,
};

fn rewrite(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
    let keys = attention.input(1).ok_or_else(Miss::none)?;
    let bias = OperandBias::of(g, &cx.facts, keys)?;
    if attention.softcap() != 0.0 {
        return Err(Miss::at(keys, 3, "a cap on the scores sees its bias"));
    }
    if !cx.target.facts.biases_keep_projections_apart {
        return Err(Miss::because("a bias costs nothing on this target"));
    }
    projects_alone(g, cx, &attention)?;
    let mut patch = Patch::new();
    bias.remove(g, &mut patch)
        .ok_or_else(|| Miss::at(keys, 3, "its part of the bias is unknown"))?;
    patch.change(keys);
    Ok(patch)
}
