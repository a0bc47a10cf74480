//! What writes an attention in the words of a target: the patch, and what all forms of it write.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, DType, Graph, Op, Tensor, ValueId};

use crate::core::expand::number;
use crate::core::pass::Context;
use crate::core::patch::{Patch, Ref};

pub(super) struct Lower<'a, 'c> {
    pub(super) g: &'a Graph,
    pub(super) cx: &'a Context<'c>,
    pub(super) attention: InternalAttention<'a>,
    pub(super) patch: Patch,
    pub(super) dtype: DType,
}

impl Lower<'_, '_> {
    pub(super) fn number(&mut self, value: f64) -> Ref {
        let t = number(value, Some(self.dtype));
        self.patch
            .constant(t.unwrap_or_else(|| Tensor::scalar(value as f32)))
    }

    pub(super) fn size(&self, v: ValueId, axis: usize) -> Option<i64> {
        self.cx.facts.dims(v)?.get(axis)?.as_i64()
    }

    pub(super) fn node(&mut self, op: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        self.patch.node(Op::onnx(op), inputs.iter().copied(), attrs)
    }

    pub(super) fn reshape(&mut self, x: Ref, shape: &[i64]) -> Ref {
        let shape = self.patch.constant(Tensor::vector(shape));
        self.node("Reshape", &[x, shape], Attrs::new())
    }

    /// [batch, heads, seq, size] as [batch, seq, heads · size].
    pub(super) fn together(&mut self, x: ValueId, width: i64) -> Ref {
        let perm = Attrs::new().with("perm", vec![0i64, 2, 1, 3]);
        let turned = self.node("Transpose", &[x.into()], perm);
        self.reshape(turned, &[0, 0, width])
    }

    /// [batch, seq, heads · size] as [batch, heads, seq, size].
    pub(super) fn split(&mut self, x: Ref, heads: i64, size: i64) -> Ref {
        let split = self.reshape(x, &[0, 0, heads, size]);
        let perm = Attrs::new().with("perm", vec![0i64, 2, 1, 3]);
        self.node("Transpose", &[split], perm)
    }
}
