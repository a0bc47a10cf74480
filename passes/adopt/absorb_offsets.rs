//! Offsets of quantized activations become biases of the products that read them.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;
use crate::precision::numbers::quantized::Quantized;

#[derive(Debug)]
pub struct AbsorbOffsets;

impl Rule for AbsorbOffsets {
    fn name(&self) -> &'static str {
        "absorb-offsets"
    }

    fn about(&self) -> &'static str {
        "move the offset of a quantized activation behind the product with a quantized weight"
    }

    fn details(&self) -> String {
        "`MatMul(Sub(a, c), w)` with a number c and a constant w [K, N], both a and w from DequantizeLinear, becomes \
         `Sub(MatMul(a, w), c · (sums of the columns of w))`, so that TensorRT finds DequantizeLinear in front of both \
         operands and multiplies in INT8. The same for Gemm, whose offset joins its bias."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["MatMul", "Gemm"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(x), Some(w), Some(output)) = (node.input(0), node.input(1), node.output(0))
        else {
            return Err(Miss::none());
        };
        let (a, offset) = offset(g, x).ok_or_else(Miss::none)?;
        if cx.target.facts.zero_points {
            return Err(Miss::because("the target takes zero points"));
        }
        let gemm = ops::Gemm::of(g, root);
        if gemm.is_some_and(|gemm| gemm.trans_a()) {
            return Err(Miss::because("it transposes the activation"));
        }
        let turned = gemm.is_some_and(|gemm| gemm.trans_b());
        let factor = f64::from(offset) * gemm.map_or(1.0, |gemm| f64::from(gemm.alpha()));
        let sums = column_sums(g, w, turned)
            .ok_or_else(|| Miss::at(w, 2, "it is no quantized constant matrix"))?;
        let sums: Vec<f32> = sums.iter().map(|s| (factor * s) as f32).collect();
        let mut patch = Patch::new();
        let sums = patch.constant(Tensor::vector(&sums));
        let others = node.inputs().iter().skip(1).map(|v| v.map(Into::into));
        let operands = std::iter::once(Some(a.into())).chain(others);
        let product = patch.node_with(node.op(), operands, 1, node.attrs().clone())[0];
        let y = patch.node(Op::onnx("Sub"), [product, sums], Attrs::new());
        patch.replace(output, y);
        Ok(patch)
    }
}

/// The dequantized activation and the number that is subtracted from it.
fn offset(g: &Graph, v: ValueId) -> Option<(ValueId, f32)> {
    let sub = g.node(g.producer_if(v, "Sub")?);
    let (a, c) = (sub.input(0)?, sub.input(1)?);
    g.producer_if(a, "DequantizeLinear")?;
    let c = g
        .constant(c)
        .filter(|t| t.dtype() == DType::F32 && t.rank() == 0)?;
    Some((a, c.as_f64()? as f32))
}

/// The sum of each column of a dequantized constant [K, N], or [N, K] if it is turned.
fn column_sums(g: &Graph, w: ValueId, turned: bool) -> Option<Vec<f64>> {
    let dequantize = ops::DequantizeLinear::of(g, g.producer(w)?)?;
    let dims = dequantize.constant(0)?.dims();
    let &[rows, columns] = dims else { return None };
    let values = Quantized::of(&dequantize).ok()?.real()?.to_f64s()?;
    let mut sums = vec![0f64; if turned { rows } else { columns }];
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        for (column, v) in values.iter().enumerate() {
            *sums.get_mut(if turned { row } else { column })? += v;
        }
    }
    Some(sums)
}
