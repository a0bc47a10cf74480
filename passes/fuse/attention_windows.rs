//! Biases of attention that tell more dimensions apart than batch, heads, queries and keys.

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

    /// What is added to scores [batch · heads, rows, columns, rows of keys, columns of keys], as [batch, heads, queries, keys]
    /// (Li et al., "Exploring Plain Vision Transformer Backbones", 2022; SAM).
    pub(super) fn by_position(&mut self, v: ValueId) -> Result<Ref, Miss> {
        let miss = |why: &str| Miss::at(v, self.depth, why.to_string());
        let dims = self.cx.facts.dims(v).unwrap_or_default();
        let [batch, places @ ..] = dims else {
            return Err(miss("its shape is unknown"));
        };
        let whole = self
            .places
            .ok_or_else(|| miss("rows and columns are unknown"))?;
        if places.len() != whole.len() {
            return Err(miss("it is not known to be of the scores' rank"));
        }
        let shared = batch.as_i64() == Some(1);
        let all = self.cx.facts.dims(self.queries).and_then(|d| d.first());
        if !shared && all != Some(batch) {
            return Err(miss("the bias has other batches and heads"));
        }
        let sizes = places.iter().map(|d| d.as_i64());
        let mut at = v.into();
        if !sizes.eq(whole.map(Some)) {
            let shape = [&[1i64], whole.as_slice()].concat();
            let shape = self.patch.constant(Tensor::vector(&shape));
            at = self
                .patch
                .node(Op::onnx("Expand"), [at, shape], Attrs::new());
        }
        let [a, b, c, d] = whole;
        let (Some(queries), Some(keys)) = (a.checked_mul(b), c.checked_mul(d)) else {
            return Err(miss("its shape is unknown"));
        };
        let shape = self.patch.constant(Tensor::vector(&[0, queries, keys]));
        let flat = self
            .patch
            .node(Op::onnx("Reshape"), [at, shape], Attrs::new());
        Ok(self.apart(flat, shared))
    }
}
