//! Fusions: several operators become one.

mod attention_heads;
mod attention_windows;
pub mod drop_key_bias;
pub mod fuse_attention;
pub mod fuse_conv_batch_norm;
pub mod fuse_gelu;
pub mod fuse_group_norm;
pub mod fuse_layer_norm;
pub mod fuse_qkv;
pub mod fuse_rms_norm;
pub mod fuse_rotary;
pub mod fuse_swish;
mod half_table;
pub mod move_value_bias;
pub mod sink_query_bias;
pub mod weigh_biases;

use kiln_graph::{Dim, Graph};

use crate::core::pass::Miss;
use crate::core::pattern::Match;

/// The scale and the bias, as far as the body has them, are vectors of the size of x's last axis.
fn vectors_of_the_last_axis(g: &Graph, m: &Match) -> Result<(), Miss> {
    let x = m.named("x")?;
    let depth = m.nodes().len();
    let last = g.value(x).ty().shape().and_then(|s| s.last());
    let size = last
        .and_then(Dim::known)
        .ok_or_else(|| Miss::at(x, depth, "the size of its last axis is unknown"))?;
    for v in ["scale", "bias"]
        .into_iter()
        .filter_map(|n| m.named(n).ok())
    {
        let shape = g.value(v).ty().shape().unwrap_or_default();
        if !matches!(shape, [d] if d.known() == Some(size)) {
            let why = format!("it is no vector of {size} elements");
            return Err(Miss::at(v, depth, why));
        }
    }
    Ok(())
}
