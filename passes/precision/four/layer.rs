//! Which products have a weight that is stored in 4 bits, and in which blocks.

use kiln_graph::{DType, Graph, NodeId, Tensor};

use crate::Target;
use crate::core::pass::{Context, OUT_OF_TOLERANCE};
use crate::precision::linear::Linear;

/// Fewer columns save nothing that would show: classifiers, gates.
const MIN_COLUMNS: usize = 16;

/// The smallest block that com.microsoft:MatMulNBits takes.
pub const MIN_BLOCK: usize = 16;

/// The node as a product with a float constant and the block for it, or why its weight stays; `None` if it has none.
pub(in crate::precision) fn layer(
    g: &Graph,
    id: NodeId,
    cx: &Context<'_>,
) -> Option<Result<(Linear, usize), String>> {
    Some(Linear::of(g, id)?.and_then(|layer| {
        let block = fit(g, &layer, cx.target, cx.options.int4_block)?;
        if let Some(why) = cx.options.keeps(g, id) {
            return Err(why);
        }
        if cx.options.spared.contains(&g.label(id)) {
            return Err(OUT_OF_TOLERANCE.into());
        }
        Ok((layer, block))
    }))
}

/// The block for a weight, or why it has none.
pub(in crate::precision) fn fit(
    g: &Graph,
    layer: &Linear,
    target: &Target,
    block: usize,
) -> Result<usize, String> {
    let (k, n) = (layer.rows, layer.columns);
    match g.constant(layer.weight).map(Tensor::dtype) {
        Some(DType::F32 | DType::F16 | DType::BF16) => {}
        Some(other) => return Err(format!("its weight is of {other}")),
        None => return Err("its weight is no constant".into()),
    }
    if k < block || n < MIN_COLUMNS {
        return Err(format!(
            "its weight [{k}, {n}] is smaller than a block [{block}, {MIN_COLUMNS}]"
        ));
    }
    if !target.facts.wants_whole_blocks {
        return Ok(block);
    }
    if !n.is_multiple_of(2) {
        return Err(format!(
            "the target packs pairs of columns, and there are {n}"
        ));
    }
    let halves = std::iter::successors(Some(block), |b| Some(b / 2));
    let mut blocks = halves.take_while(|&b| b >= MIN_BLOCK);
    blocks.find(|b| k.is_multiple_of(*b)).ok_or_else(|| {
        format!("the target takes whole blocks, and none of {MIN_BLOCK} or more divides {k} rows")
    })
}
