//! com.microsoft:MatMulNBits becomes a product with a dequantized 4-bit weight.

use kiln_graph::{Attrs, DType, Graph, Node, NodeId, Op, Tensor};

use super::blocks::{self, Blocks};
use crate::core::pass::{Context, Exactness, Miss, Remark};
use crate::core::patch::Patch;
use crate::core::rule::Rule;
use crate::core::target::microsoft;
use crate::precision::numbers::weights::{pack, unpack};

#[derive(Debug)]
pub struct LowerNbits;

impl Rule for LowerNbits {
    fn name(&self) -> &'static str {
        "lower-nbits"
    }

    fn about(&self) -> &'static str {
        "com.microsoft:MatMulNBits and GatherBlockQuantized become MatMul and Gather with a dequantized weight for TensorRT"
    }

    fn details(&self) -> String {
        "The weight [N, blocks, block / 2] of MatMulNBits, 4-bit numbers with zero points (8 if there are none), becomes \
         UINT4 [K, N] behind DequantizeLinear with blocks along K; a bias becomes an Add. `symmetrize-qdq` makes it INT4 \
         where all zero points are 8, and floats elsewhere. Weights of other than 4 bits, and blocks that do not divide K, \
         become floats at once, as does the table of GatherBlockQuantized; permuted rows (g_idx) stay. TensorRT's own MatMulNBits needs a plugin that TensorRT for RTX does not bring."
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
        let table = node.op() == microsoft("GatherBlockQuantized");
        if !table && node.op() != microsoft("MatMulNBits") {
            return Err(Miss::none());
        }
        if cx.target.facts.integer_operators {
            let why = format!("the target has {}", node.op().name());
            return Err(Miss::because(why));
        }
        if table {
            return gather(g, root);
        }
        let (Some(x), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        let weight = match weight(g, node) {
            Ok(weight) => weight,
            Err(why) => return product_of_floats(g, root).ok_or_else(|| Miss::because(why)),
        };
        let mut patch = Patch::new();
        let attrs = Attrs::new()
            .with("axis", 0i64)
            .with("block_size", weight.block as i64);
        let inputs = [weight.values, weight.scales, weight.zeros].map(|t| patch.constant(t));
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
                true => "MatMulNBits became a product with a dequantized weight: the same numbers",
                false => "MatMulNBits became a product with a dequantized weight, and its activation stays float: more exact than the original",
            },
            exact,
        });
        Ok(patch)
    }
}

/// The product with a weight in floats: TensorRT multiplies with weights of 4 bits only, and of whole blocks.
fn product_of_floats(g: &Graph, root: NodeId) -> Option<Patch> {
    let node = g.node(root);
    if node.input(4).is_some() {
        return None;
    }
    let blocks = Blocks::of_product(g, node)?;
    let (values, dtype) = blocks.floats(node.input(1)?, node.input(2)?, node.input(3))?;
    let (k, n) = (blocks.columns, blocks.rows);
    let weight = blocks::tensor(&blocks::turned(&values, n, k), &[k, n], dtype)?;
    let mut patch = Patch::new();
    let weight = patch.constant(weight);
    let operands = [node.input(0)?.into(), weight];
    let mut y = patch.node(Op::onnx("MatMul"), operands, Attrs::new());
    if let Some(bias) = node.input(5) {
        y = patch.node(Op::onnx("Add"), [y, bias.into()], Attrs::new());
    }
    patch.replace(node.output(0)?, y);
    patch.remark(Remark::Requantized {
        node: g.label(root),
        how: "MatMulNBits became a product with a weight in floats: TensorRT takes weights of 4 bits in whole blocks only",
        exact: true,
    });
    Some(patch)
}

/// Rows of a table in floats.
fn gather(g: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let node = g.node(root);
    let (Some(table), Some(at), Some(scales), Some(output)) =
        (node.input(0), node.input(1), node.input(2), node.output(0))
    else {
        return Err(Miss::none());
    };
    let held = g.constant(table);
    let held = held.ok_or_else(|| Miss::at(table, 1, "its table is no constant"))?;
    let blocks = Blocks::of_table(g, node, held);
    let floats = blocks.and_then(|b| {
        let dims = held.dims().split_last()?.1.iter().copied();
        let dims: Vec<usize> = dims.chain([b.columns]).collect();
        let (values, dtype) = b.floats(table, scales, node.input(3))?;
        blocks::tensor(&values, &dims, dtype)
    });
    let why = "its blocks do not lie along its last axis, or its scales are no constants";
    let floats = floats.ok_or_else(|| Miss::because(why))?;
    let mut patch = Patch::new();
    let floats = patch.constant(floats);
    let axis = Attrs::new().with("axis", node.attrs().int("gather_axis").unwrap_or(0));
    let made = patch.node(Op::onnx("Gather"), [floats, at.into()], axis);
    patch.replace(output, made);
    patch.remark(Remark::Requantized {
        node: g.label(root),
        how: "GatherBlockQuantized became Gather from a table in floats: the same numbers",
        exact: true,
    });
    Ok(patch)
}

/// A weight of UINT4.
struct Weight {
    /// [K, N]
    values: Tensor,
    /// [K / block, N], of the activation's type.
    scales: Tensor,
    /// UINT4 [K / block, N]
    zeros: Tensor,
    block: usize,
}

/// The weight of a MatMulNBits (ONNX Runtime `docs/ContribOperators.md`).
fn weight(g: &Graph, node: &Node) -> Result<Weight, &'static str> {
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
    if block < 16 || !k.is_multiple_of(block) || !n.is_multiple_of(2) {
        return Err("its blocks do not divide its rows, or its columns are no pairs");
    }
    let blocks = k / block;
    let constant = |at: usize| node.input(at).and_then(|v| g.constant(v));
    let (Some(values), Some(scales)) = (constant(1), constant(2)) else {
        return Err("its weight or the scales are no constants");
    };
    // Zero points of a column begin with a byte of their own; without any they are 8.
    let stride = blocks.div_ceil(2) * 2;
    let zeros = match node.input(3) {
        None => Some(vec![8; n.saturating_mul(stride)]),
        Some(_) => constant(3).and_then(|t| nibbles(t, n.checked_mul(stride)?)),
    };
    let zeros = zeros.ok_or("its zero points are not packed in bytes")?;
    let values = nibbles(values, n.checked_mul(k).ok_or("it is too large")?);
    let values = values.ok_or("its weight is not packed in bytes")?;
    let scales = scales.reshaped(&[n, blocks][..]).ok();
    let scales = scales.and_then(|s| s.transposed());
    Ok(Weight {
        values: turned(&values, n, k, k).ok_or("it is too large")?,
        scales: scales.ok_or("its scales do not fit its blocks")?,
        zeros: turned(&zeros, n, stride, blocks).ok_or("it is too large")?,
        block,
    })
}

/// So many 4-bit numbers, two in a byte, the first in its low half.
fn nibbles(packed: &Tensor, count: usize) -> Option<Vec<u8>> {
    let fits = packed.dtype() == DType::U8 && packed.len().checked_mul(2) == Some(count);
    fits.then(|| Tensor::from_raw(DType::U4, &[count][..], packed.bytes()).ok())?
        .as_ref()
        .and_then(unpack)
}

/// UINT4 [rows, columns] of the first `rows` numbers of each column of `stride`.
fn turned(numbers: &[u8], columns: usize, stride: usize, rows: usize) -> Option<Tensor> {
    let mut codes = vec![0u8; rows.checked_mul(columns)?];
    for (column, numbers) in numbers.chunks_exact(stride.max(1)).enumerate() {
        for (row, number) in numbers.iter().take(rows).enumerate() {
            *codes.get_mut(row * columns + column)? = *number;
        }
    }
    pack(DType::U4, &[rows, columns], codes)
}
