//! One number added behind a convolution along one axis, in the form that TensorRT takes.

use kiln_graph::{Attrs, Def, Graph, NodeId, Op, Tensor, ValueId};

use crate::analysis::view::declared;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct SpreadOffsets;

/// Operators that TensorRT makes part of a convolution's bias.
const SUMS: &[&str] = &["Add", "Sub", "Sum", "Mean"];

/// Sums between a convolution and a number that are followed.
const DEPTH: usize = 8;

impl Rule for SpreadOffsets {
    fn name(&self) -> &'static str {
        "spread-offsets"
    }

    fn about(&self) -> &'static str {
        "write a number that is added to a 1-D convolution's result once for each channel"
    }

    fn details(&self) -> String {
        "`Add(Conv(x, w), c)` with a Conv or ConvTranspose over one axis and a constant c of one element becomes \
         `Add(Conv(x, w), c')` with c' of [1, channels, 1]; the same for Sub, Sum and Mean, and for several of them in a \
         row. TensorRT makes such a sum the convolution's bias, and its builder then stops at a bias of one element \
         (\"nbdims_bias == 4 || nbdims_bias == 5\", 1.7.1); convolutions over two and three axes and other operators \
         do not stop it. The kernel is the same one."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        SUMS
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let output = node.output(0).ok_or_else(Miss::none)?;
        let inputs: Vec<ValueId> = node.inputs().iter().flatten().copied().collect();
        let (numbers, others): (Vec<ValueId>, Vec<ValueId>) =
            inputs.iter().partition(|&&v| is_number(g, v));
        let channels = others.iter().find_map(|&v| channels(g, v, DEPTH));
        let (Some(channels), false) = (channels, numbers.is_empty()) else {
            return Err(Miss::none());
        };
        if !cx.target.facts.spreads_offsets {
            return Err(Miss::because("the target takes one number"));
        }
        let mut patch = Patch::new();
        let mut operands = Vec::with_capacity(inputs.len());
        for v in inputs {
            let operand = match numbers.contains(&v) {
                true => spread(g, v, channels, &mut patch).ok_or_else(Miss::none)?,
                false => v.into(),
            };
            operands.push(Some(operand));
        }
        let made = patch.node_with(node.op(), operands, 1, node.attrs().clone())[0];
        patch.replace(output, made);
        Ok(patch)
    }
}

/// A constant of one element, perhaps of a graph around; not yet spread.
fn is_number(g: &Graph, v: ValueId) -> bool {
    let value = g.value(v);
    let captured = matches!(value.def(), Def::Capture(_));
    let dims = value.ty().shape().unwrap_or(&[]);
    let one = dims.iter().all(|d| d.known() == Some(1)) && value.ty().shape().is_some();
    match g.constant(v) {
        Some(t) => t.len() == 1,
        None => captured && one,
    }
}

/// The channels of a convolution over one axis to which nothing but numbers and biases were added: `v` is its result.
fn channels(g: &Graph, v: ValueId, depth: usize) -> Option<usize> {
    let node = g.node(g.producer(v)?);
    if node.op().is_any(&["Conv", "ConvTranspose"]) {
        let [_, channels, _] = g.value(v).ty().shape()? else {
            return None;
        };
        return declared(i64::try_from(channels.known()?).ok()?);
    }
    let follows = node.op().is_any(SUMS) || node.op().is_any(&["Identity", "Reshape"]);
    let depth = depth.checked_sub(1).filter(|_| follows)?;
    let mut inputs = node.inputs().iter().flatten();
    inputs.find_map(|&v| channels(g, v, depth))
}

/// The number as [1, channels, 1].
fn spread(g: &Graph, v: ValueId, channels: usize, patch: &mut Patch) -> Option<Ref> {
    let dims = [1, channels, 1];
    let Some(number) = g.constant(v) else {
        let shape = dims.map(|d| d as i64);
        let shape = patch.constant(Tensor::vector(&shape));
        return Some(patch.node(Op::onnx("Expand"), [v.into(), shape], Attrs::new()));
    };
    let bytes = number.bytes().repeat(channels);
    let spread = Tensor::from_raw(number.dtype(), dims.as_slice(), bytes.into()).ok()?;
    Some(patch.constant(spread))
}
