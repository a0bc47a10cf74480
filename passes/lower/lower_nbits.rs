//! com.microsoft:MatMulNBits becomes a product with a dequantized INT4 weight.

use kiln_graph::{Attrs, DType, Graph, Node, NodeId, Op, Tensor};

use crate::pass::{Context, Exactness, Miss, Remark};
use crate::patch::Patch;
use crate::precision::int4::{pack, unpack};
use crate::rule::Rule;

#[derive(Debug)]
pub struct LowerNbits;

impl Rule for LowerNbits {
    fn name(&self) -> &'static str {
        "lower-nbits"
    }

    fn about(&self) -> &'static str {
        "com.microsoft:MatMulNBits becomes MatMul with a dequantized INT4 weight for TensorRT"
    }

    fn details(&self) -> String {
        "The weight [N, blocks, block / 2] of MatMulNBits, unsigned 4-bit numbers around 8, becomes INT4 [K, N] behind \
         DequantizeLinear with blocks along K; a bias becomes an Add. Zero points other than 8, weights of other than 4 \
         bits, permuted rows (g_idx) and blocks that do not divide K stay. TensorRT has a MatMulNBits for FP16 \
         activations only."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        21
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        if node.op() != super::microsoft("MatMulNBits") {
            return Err(Miss::none());
        }
        if !cx.target.quantizes_symmetrically() {
            return Err(Miss::because("the target has MatMulNBits"));
        }
        let (Some(x), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        let (values, scales, block) = weight(g, node).map_err(Miss::because)?;
        let mut patch = Patch::new();
        let attrs = Attrs::new()
            .with("axis", 0i64)
            .with("block_size", block as i64);
        let inputs = [patch.constant(values), patch.constant(scales)];
        let w = patch.node(Op::onnx("DequantizeLinear"), inputs, attrs);
        let mut y = patch.node(Op::onnx("MatMul"), [x.into(), w], Attrs::new());
        if let Some(bias) = node.input(5) {
            y = patch.node(Op::onnx("Add"), [y, bias.into()], Attrs::new());
        }
        patch.replace(output, y);
        // ONNX Runtime may quantize the activation to INT8 at this level.
        let exact = node.attrs().int("accuracy_level").unwrap_or(0) < 4;
        patch.remark(Remark::Requantized {
            node: g.label(root),
            how: match exact {
                true => "MatMulNBits became a product with a dequantized INT4 weight: the same numbers",
                false => "MatMulNBits became a product with a dequantized INT4 weight, and its activation stays float: more exact than the original",
            },
            exact,
        });
        Ok(patch)
    }
}

/// The weight as INT4 [K, N], its scales [K / block, N], and the block (ONNX Runtime `docs/ContribOperators.md`,
/// MatMulNBits).
fn weight(g: &Graph, node: &Node) -> Result<(Tensor, Tensor, usize), &'static str> {
    let size = |name: &str| -> Option<usize> { node.attrs().int(name)?.try_into().ok() };
    let (Some(k), Some(n), Some(block)) = (size("K"), size("N"), size("block_size")) else {
        return Err("it does not state its sizes");
    };
    if node.attrs().int("bits").unwrap_or(4) != 4 {
        return Err("its weight is not of 4 bits");
    }
    if node.input(4).is_some() {
        return Err("its weight has permuted rows");
    }
    if block < 16 || !k.is_multiple_of(block) {
        return Err("its blocks do not divide its rows");
    }
    let blocks = k / block;
    let constant = |at: usize| node.input(at).and_then(|v| g.constant(v));
    let (Some(packed), Some(scales)) = (constant(1), constant(2)) else {
        return Err("its weight or the scales are no constants");
    };
    let count = n.checked_mul(k).ok_or("it is too large")?;
    if packed.dtype() != DType::U8 || packed.len().checked_mul(2) != Some(count) {
        return Err("its weight is not packed in bytes");
    }
    let zero = node.input(3);
    let around =
        constant(3).is_some_and(|t| t.dtype() == DType::U8 && are_eight(&t.bytes(), blocks));
    if zero.is_some() && !around {
        return Err("its weight has zero points other than 8");
    }
    let nibbles = Tensor::from_raw(DType::U4, &[count][..], packed.bytes());
    let nibbles = nibbles.ok().as_ref().and_then(unpack);
    let nibbles = nibbles.ok_or("its weight is not packed in bytes")?;
    let mut codes = vec![0u8; count];
    for (column, rows) in nibbles.chunks_exact(k).enumerate() {
        for (row, nibble) in rows.iter().enumerate() {
            // The number less 8, in two's complement, is the number with its highest bit turned.
            codes[row * n + column] = nibble ^ 8;
        }
    }
    let values = pack(&[k, n], &codes).ok_or("its weight is not packed in bytes")?;
    let scales = scales.reshaped(&[n, blocks][..]).ok();
    let scales = scales.and_then(|s| s.transposed());
    Ok((
        values,
        scales.ok_or("its scales do not fit its blocks")?,
        block,
    ))
}

/// Whether the zero points of all columns are 8: two in a byte, a column's first in the low half of a byte of its own.
fn are_eight(bytes: &[u8], blocks: usize) -> bool {
    let stride = blocks.div_ceil(2).max(1);
    let mut columns = bytes.chunks(stride).map(|column| {
        let nibbles = column.iter().flat_map(|&b| [b & 0xf, b >> 4]);
        nibbles.take(blocks).all(|nibble| nibble == 8)
    });
    columns.all(|column| column)
}
