//! Internal normalizations become what the target has for them.

use kiln_graph::{Attrs, DType, Dim, Graph, Node, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::view::declared;
use crate::core::expand::expand;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;
use crate::fuse::fuse_rms_norm;

#[derive(Debug)]
pub struct LowerNorms;

impl Rule for LowerNorms {
    fn name(&self) -> &'static str {
        "lower-norms"
    }

    fn about(&self) -> &'static str {
        "internal.RMSNormalization becomes the target's operator, or its body"
    }

    fn details(&self) -> String {
        "ONNX Runtime has it as SimplifiedLayerNormalization, in the default domain and at any operator set. TensorRT \
         takes RMSNormalization in a model of operator set 23 or later. Where neither holds, or a missing scale cannot \
         be filled in because the axis' size is unknown, it becomes the body that fuse-rms-norm reads. For TensorRT, \
         which computes statistics in the operand's type whatever `stash_type` says, 16-bit operands of layer and \
         RMS normalization are widened by Casts."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let facts = cx.target.facts;
        if ops::LayerNormalization::of(g, root).is_some() && facts.narrow_statistics {
            return widened(g, root);
        }
        let norm = ops::internal::RmsNormalization::of(g, root).ok_or_else(Miss::none)?;
        let (Some(x), Some(y)) = (norm.input(0), norm.output(0)) else {
            return Err(Miss::none());
        };
        let native = facts.rms_norm.as_ref().and_then(|n| n.over(g, x));
        let mut patch = Patch::new();
        let scale = match norm.scale() {
            Some(scale) => Some(Ref::Old(scale)),
            None => ones(g, x).map(|ones| patch.constant(ones)),
        };
        let (Some(native), Some(scale)) = (native, scale) else {
            return expand(g, root, &fuse_rms_norm::body);
        };
        let attrs = Attrs::new()
            .with("axis", norm.axis())
            .with("epsilon", norm.epsilon());
        let inputs = [x.into(), scale];
        let narrow = sixteen_bits(g, x).filter(|_| facts.narrow_statistics);
        let made = match narrow {
            Some(dtype) => in_fp32(&mut patch, native, inputs, attrs, dtype),
            None => patch.node(native, inputs, attrs),
        };
        patch.replace(y, made);
        Ok(patch)
    }
}

/// A LayerNormalization of 16-bit values, computed in FP32.
fn widened(g: &Graph, root: NodeId) -> Result<Patch, Miss> {
    let node: &Node = g.node(root);
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else {
        return Err(Miss::none());
    };
    let dtype = sixteen_bits(g, x).ok_or_else(Miss::none)?;
    if node.outputs().iter().skip(1).any(Option::is_some) {
        return Err(Miss::because("its mean or variance is used"));
    }
    let mut patch = Patch::new();
    let inputs = node.inputs().iter().flatten().map(|&v| Ref::Old(v));
    let made = in_fp32(&mut patch, node.op(), inputs, node.attrs().clone(), dtype);
    patch.replace(y, made);
    Ok(patch)
}

/// The operator over operands that are widened, its result narrowed again.
fn in_fp32(
    patch: &mut Patch,
    op: Op,
    inputs: impl IntoIterator<Item = Ref>,
    attrs: Attrs,
    dtype: DType,
) -> Ref {
    let to = |dtype: DType| Attrs::new().with("to", i64::from(dtype.to_onnx()));
    let cast = |patch: &mut Patch, v: Ref, dtype| patch.node(Op::onnx("Cast"), [v], to(dtype));
    let wide: Vec<Ref> = (inputs.into_iter())
        .map(|v| cast(patch, v, DType::F32))
        .collect();
    let made = patch.node(op, wide, attrs);
    cast(patch, made, dtype)
}

fn sixteen_bits(g: &Graph, v: ValueId) -> Option<DType> {
    let dtype = g.value(v).ty().dtype();
    dtype.filter(|d| matches!(d, DType::F16 | DType::BF16))
}

/// A scale of ones, if the size of the last axis is known.
fn ones(g: &Graph, x: ValueId) -> Option<Tensor> {
    let ty = g.value(x).ty();
    let size = ty.shape()?.last().and_then(Dim::known)?;
    let size = declared(i64::try_from(size).ok()?)?;
    let ones = Tensor::vector(&vec![1f32; size]);
    match ty.dtype()? {
        DType::F32 => Some(ones),
        narrow => ones.narrowed(narrow),
    }
}
