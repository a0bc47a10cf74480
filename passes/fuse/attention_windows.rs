//! Biases of attention within windows, where what is hidden depends on the window.

use kiln_graph::{Attrs, Op, Tensor, ValueId};

use super::attention_heads::Heads;
use crate::core::pass::Miss;
use crate::core::patch::Ref;

impl Heads<'_, '_> {
    /// What is added to scores [pictures, windows, heads, queries, keys], as a value that broadcasts to [pictures · windows,
    /// heads, queries, keys] (Liu et al., "Swin Transformer", 2021, section 3.2).
    pub(super) fn windowed(&mut self, v: ValueId) -> Result<Ref, Miss> {
        let miss = |why: &str| Miss::at(v, self.depth, why.to_string());
        let dims = self.cx.facts.dims(v).unwrap_or_default();
        let known: Vec<Option<i64>> = dims.iter().map(|d| d.as_i64()).collect();
        let (pictures, windows) = match known.as_slice() {
            _ if self.rank != 4 => return Err(miss("windows and heads are one dimension")),
            // A bias for all windows.
            [] | [_] | [_, _] | [_, _, _] => return Ok(v.into()),
            [windows, ..] if known.len() == 4 => (Some(1), *windows),
            [pictures, windows, ..] => (*pictures, *windows),
        };
        let (Some(1), Some(windows)) = (pictures, windows) else {
            return Err(miss("the bias depends on the picture"));
        };
        let part = |from: i64| Attrs::new().with("start", from);
        let last = self.patch.node(Op::onnx("Shape"), [v.into()], part(-3));
        let all = part(0).with("end", 1i64);
        let all = self
            .patch
            .node(Op::onnx("Shape"), [self.queries.into()], all);
        let first = match windows {
            1 => self.patch.constant(Tensor::vector(&[1i64])),
            _ => all,
        };
        let mut at = v.into();
        if windows != 1 {
            let axis = || Attrs::new().with("axis", 0i64);
            let each = self.patch.constant(Tensor::vector(&[windows]));
            let pictures = self.patch.node(Op::onnx("Div"), [all, each], Attrs::new());
            let rest = self.patch.constant(Tensor::vector(&[windows, 1, 1, 1]));
            let shape = self
                .patch
                .node(Op::onnx("Concat"), [pictures, rest], axis());
            at = self
                .patch
                .node(Op::onnx("Expand"), [at, shape], Attrs::new());
        }
        let axis = Attrs::new().with("axis", 0i64);
        let shape = self.patch.node(Op::onnx("Concat"), [first, last], axis);
        Ok(self
            .patch
            .node(Op::onnx("Reshape"), [at, shape], Attrs::new()))
    }
}
