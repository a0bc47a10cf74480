//! Products with an odd number of columns, in the form that TensorRT copies least.

use kiln_graph::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct PadColumns;

/// Columns that a product gets a multiple of: 16 bytes of half precision.
const MULTIPLE: usize = 8;

/// Products with fewer columns are cheap to copy.
const MIN_COLUMNS: usize = 256;

impl Rule for PadColumns {
    fn name(&self) -> &'static str {
        "pad-columns"
    }

    fn about(&self) -> &'static str {
        "give products of an odd number of columns zeros, and cut their results before they become FP32"
    }

    fn details(&self) -> String {
        format!(
            "`Cast(MatMul(x, w))` from half precision to FP32 with an odd number of columns, as GPT-2's vocabulary has, becomes \
             `Cast(Slice(MatMul(x, [w 0])))` with columns of zeros up to a multiple of {MULTIPLE}; a bias gets zeros, too. TensorRT \
             pads such products itself, makes the Cast part of them, and cuts the result in FP32: 12 bytes an element are written \
             and read. Cut before the Cast, which is then part of the cutting, it is 8 (measured by the builder's list of kernels, \
             TensorRT for RTX 1.7.1). Products of fewer than {MIN_COLUMNS} columns stay as they are."
        )
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Cast"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(wide), Some(output)) = (node.input(0), node.output(0)) else {
            return Err(Miss::none());
        };
        if ops::Cast::of(g, root).and_then(|c| c.to()) != Some(DType::F32) {
            return Err(Miss::none());
        }
        let sole = |v: ValueId| g.value(v).uses().len() == 1 && !g.value(v).is_output();
        let (product, bias) = biased(g, wide).unwrap_or((wide, None));
        let Some(matmul) = g.producer_if(product, "MatMul") else {
            return Err(Miss::none());
        };
        let operands = g.node(matmul).inputs();
        let &[Some(x), Some(weight)] = operands else {
            return Err(Miss::none());
        };
        let weight = g
            .constant(weight)
            .filter(|t| matches!(t.dtype(), DType::F16 | DType::BF16));
        let weight = weight
            .ok_or_else(|| Miss::at(product, 1, "its weight is no constant in half precision"))?;
        let &[rows, columns] = weight.dims() else {
            return Err(Miss::at(product, 1, "its weight is no matrix"));
        };
        if columns % 2 == 0 || columns < MIN_COLUMNS {
            return Err(Miss::at(product, 1, "its columns are even or few"));
        }
        if !sole(wide) || !sole(product) {
            return Err(Miss::at(product, 1, "something else reads it"));
        }
        if !cx.target.facts.pads_odd_products {
            return Err(Miss::because("the target takes odd products as they are"));
        }
        let more = columns.next_multiple_of(MULTIPLE) - columns;
        let no_zeros = || Miss::at(product, 1, "zeros of its type are not known");
        let mut patch = Patch::new();
        let padded = padded(weight, &[rows, more]).ok_or_else(no_zeros)?;
        let padded_weight = patch.constant(padded);
        let mut made = patch.node(
            Op::onnx("MatMul"),
            [Ref::from(x), padded_weight],
            Attrs::new(),
        );
        if let Some(bias) = bias {
            let bias = self::padded(bias, &[more]).ok_or_else(no_zeros)?;
            let bias = patch.constant(bias);
            made = patch.node(Op::onnx("Add"), [made, bias], Attrs::new());
        }
        let number = |n: i64, patch: &mut Patch| patch.constant(Tensor::vector(&[n]));
        let [start, end, axis] = [0, columns as i64, -1].map(|n| number(n, &mut patch));
        made = patch.node(Op::onnx("Slice"), [made, start, end, axis], Attrs::new());
        made = patch.node(node.op(), [made], node.attrs().clone());
        patch.replace(output, made);
        Ok(patch)
    }
}

/// A sum of a product and a vector, taken apart.
fn biased(g: &Graph, sum: ValueId) -> Option<(ValueId, Option<&Tensor>)> {
    let add = g.node(g.producer_if(sum, "Add")?);
    let (a, b) = (add.input(0)?, add.input(1)?);
    let vector = |v: ValueId| g.constant(v).filter(|t| t.rank() == 1 && t.len() > 1);
    match (vector(a), vector(b)) {
        (None, Some(bias)) => Some((a, Some(bias))),
        (Some(bias), None) => Some((b, Some(bias))),
        _ => None,
    }
}

/// A constant with zeros of these dimensions behind the columns of its last axis.
fn padded(t: &Tensor, dims: &[usize]) -> Option<Tensor> {
    let zeros = vec![0u8; dims.iter().product::<usize>() * 2];
    let zeros = Tensor::from_raw(t.dtype(), dims, zeros.into()).ok()?;
    Tensor::joined(&[t, &zeros])
}
