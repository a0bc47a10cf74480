//! A batch normalization of a convolution is another convolution.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct FuseConvBatchNorm;

impl Rule for FuseConvBatchNorm {
    fn name(&self) -> &'static str {
        "fuse-conv-batch-norm"
    }

    fn about(&self) -> &'static str {
        "a convolution and the BatchNormalization behind it become one with other weights"
    }

    fn details(&self) -> String {
        "In inference, BatchNormalization multiplies each channel by scale / √(variance + ε) and adds a number; both can \
         be done to the weights and the bias of the Conv or ConvTranspose. The new weights are written as arithmetic on constants, which \
         `fold-constants` computes, so a runtime is needed. Weights that something else reads too are left alone."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &["BatchNormalization"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let norm = ops::BatchNormalization::of(g, root).ok_or_else(Miss::none)?;
        let (Some(middle), Some(y)) = (norm.input(0), norm.output(0)) else {
            return Err(Miss::none());
        };
        let conv = g.producer(middle).ok_or_else(Miss::none)?;
        let view = ops::Conv::of(g, conv).ok_or_else(Miss::none)?;
        if norm.is_training() || norm.node().outputs().iter().skip(1).any(Option::is_some) {
            return Err(Miss::because("it computes the batch's own statistics"));
        }
        if g.single_use(middle).is_none() {
            return Err(Miss::at(middle, 2, "it is used outside the match"));
        }
        let node = g.node(conv);
        let (Some(x), Some(weight)) = (node.input(0), node.input(1)) else {
            return Err(Miss::none());
        };
        let rank = constant(g, weight)?.rank();
        // The axis of the weight that counts output channels.
        let axis = match (node.op().is("ConvTranspose"), view.group()) {
            (false, _) => 0,
            (true, 1) => 1,
            (true, _) => return Err(Miss::because("it is transposed and has groups")),
        };
        let mut numbers = [weight; 4];
        for (k, slot) in numbers.iter_mut().enumerate() {
            *slot = norm.input(k + 1).ok_or_else(Miss::none)?;
            constant(g, *slot)?;
        }
        if let Some(bias) = node.input(2) {
            constant(g, bias)?;
        }
        if g.single_use(weight).is_none() {
            return Err(Miss::at(
                weight,
                2,
                "the weights are used outside the match",
            ));
        }
        if cx.evaluator.is_none() {
            return Err(Miss::because("there is no runtime to compute the weights"));
        }
        let [scale, shift, mean, variance] = numbers.map(Ref::Old);
        let mut made = Arithmetic(Patch::new());
        let epsilon = made.0.constant(Tensor::scalar(norm.epsilon()));
        let spread = made.two("Add", variance, epsilon);
        let spread = made.0.node(Op::onnx("Sqrt"), [spread], Attrs::new());
        let factor = made.two("Div", scale, spread);
        let axes: Vec<i64> = (axis + 1..rank as i64).map(|k| k - axis).collect();
        let axes = made.0.constant(Tensor::vector(&axes));
        let columns = made.two("Unsqueeze", factor, axes);
        let weight = made.two("Mul", weight.into(), columns);
        let centered = match node.input(2) {
            Some(bias) => made.two("Sub", bias.into(), mean),
            None => made.0.node(Op::onnx("Neg"), [mean], Attrs::new()),
        };
        let scaled = made.two("Mul", centered, factor);
        let bias = made.two("Add", scaled, shift);
        let Arithmetic(mut patch) = made;
        let conv = patch.node(node.op(), [x.into(), weight, bias], node.attrs().clone());
        patch.replace(y, conv);
        Ok(patch)
    }
}

struct Arithmetic(Patch);

impl Arithmetic {
    fn two(&mut self, op: &str, a: Ref, b: Ref) -> Ref {
        self.0.node(Op::onnx(op), [a, b], Attrs::new())
    }
}

/// Of FP32: half-precision statistics would be folded in half precision.
fn constant(g: &Graph, v: ValueId) -> Result<&Tensor, Miss> {
    let tensor = g
        .constant(v)
        .ok_or_else(|| Miss::at(v, 2, "it is not constant"))?;
    match tensor.dtype() {
        kiln_graph::DType::F32 => Ok(tensor),
        other => Err(Miss::at(v, 2, format!("it is {other}, not float"))),
    }
}
