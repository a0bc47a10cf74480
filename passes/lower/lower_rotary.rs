//! Internal rotary embeddings become what the target has for them.

use kiln_graph::{Attrs, Dim, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;
use crate::core::target::{RotaryTables, Target};

#[derive(Debug)]
pub struct LowerRotary;

impl Rule for LowerRotary {
    fn name(&self) -> &'static str {
        "lower-rotary"
    }

    fn about(&self) -> &'static str {
        "internal.RotaryEmbedding becomes the target's operator, or the rotation spelled out"
    }

    fn details(&self) -> String {
        "ONNX Runtime's com.microsoft.RotaryEmbedding reads rows of its tables by position; positions `{0}` are an \
         offset, so that the rows are taken in order. It has no tables by batch. TensorRT takes RotaryEmbedding in a \
         model of operator set 23 or later, with tables whose batch is that of x. Elsewhere, and where the tables do \
         not fit, the rotation is spelled out over the two halves."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn imports(&self, target: &Target) -> &'static [(&'static str, i64)] {
        target.facts.imports
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let call = Call::of(g, root).ok_or_else(Miss::none)?;
        let native = cx.target.facts.rotary.as_ref();
        let native = native.and_then(|(native, tables)| Some((native.over(g, call.x)?, *tables)));
        let native = native.and_then(|(op, tables)| match tables {
            RotaryTables::ByPosition => call.by_position(op),
            RotaryTables::OfEachSequence => Some(call.of_each_sequence(op)),
        });
        match native {
            Some(patch) => Ok(patch),
            None => call.spelled_out(),
        }
    }
}

struct Call<'a> {
    g: &'a Graph,
    view: ops::internal::RotaryEmbedding<'a>,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    output: ValueId,
}

impl<'a> Call<'a> {
    fn of(g: &'a Graph, root: NodeId) -> Option<Call<'a>> {
        let view = ops::internal::RotaryEmbedding::of(g, root)?;
        Some(Call {
            g,
            x: view.input(0)?,
            cos: view.input(1)?,
            sin: view.input(2)?,
            output: view.output(0)?,
            view,
        })
    }

    fn dim(&self, v: ValueId, k: usize) -> Dim {
        let shape = self.g.value(v).ty().shape();
        let dim = shape.and_then(|s| s.get(k)).cloned();
        dim.unwrap_or(Dim::Unknown)
    }

    fn tables(&self) -> [ValueId; 2] {
        [self.cos, self.sin]
    }

    /// The view's attributes, for operators that have the same.
    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().with("interleaved", i64::from(self.view.is_interleaved()));
        match self.view.rotary_embedding_dim() {
            0 => attrs,
            n => attrs.with("rotary_embedding_dim", n),
        }
    }

    /// com.microsoft.RotaryEmbedding (ONNX Runtime's `docs/ContribOperators.md`): tables `[length, rotated / 2]`.
    fn by_position(&self, op: Op) -> Option<Patch> {
        let shared = self
            .tables()
            .iter()
            .all(|&t| self.dim(t, 0) == Dim::Known(1));
        if !shared {
            return None;
        }
        let mut attrs = self.attrs();
        if self.view.rotary_embedding_dim() != 0 {
            attrs.set("num_heads", self.dim(self.x, 1).known()? as i64);
        }
        let mut patch = Patch::new();
        let mut inputs = vec![self.x.into(), patch.constant(Tensor::vector(&[0i64]))];
        for table in self.tables() {
            let axes = patch.constant(Tensor::vector(&[0i64]));
            let rows = [table.into(), axes];
            inputs.push(patch.node(Op::onnx("Squeeze"), rows, Attrs::new()));
        }
        let made = patch.node(op, inputs, attrs);
        patch.replace(self.output, made);
        Some(patch)
    }

    /// RotaryEmbedding-23, its tables repeated for each sequence of the batch.
    fn of_each_sequence(&self, op: Op) -> Patch {
        let mut patch = Patch::new();
        let batch = self.dim(self.x, 0);
        let mut inputs = vec![Ref::Old(self.x)];
        let mut shape = None;
        for table in self.tables() {
            if self.dim(table, 0).certainly_equals(&batch) {
                inputs.push(table.into());
                continue;
            }
            let shape = *shape.get_or_insert_with(|| self.batch_shape(&mut patch, &batch));
            let repeated = [table.into(), shape];
            inputs.push(patch.node(Op::onnx("Expand"), repeated, Attrs::new()));
        }
        let made = patch.node(op, inputs, self.attrs());
        patch.replace(self.output, made);
        patch
    }

    /// `[batch, 1, 1]`, read from a graph input where one has that size, so that all layers read the same.
    fn batch_shape(&self, patch: &mut Patch, batch: &Dim) -> Ref {
        if let Some(batch) = batch.known() {
            return patch.constant(Tensor::vector(&[batch as i64, 1, 1]));
        }
        let mut inputs = self.g.inputs().iter().filter_map(|&v| {
            let shape = self.g.value(v).ty().shape()?;
            let k = shape.iter().position(|d| d.certainly_equals(batch))?;
            Some((v, k as i64))
        });
        let (from, k) = inputs.next().unwrap_or((self.x, 0));
        let attrs = Attrs::new().with("start", k).with("end", k + 1);
        let size = patch.node(Op::onnx("Shape"), [from.into()], attrs);
        let ones = patch.constant(Tensor::vector(&[1i64, 1]));
        let axis = Attrs::new().with("axis", 0);
        patch.node(Op::onnx("Concat"), [size, ones], axis)
    }

    /// `(a·cos - b·sin, b·cos + a·sin)` of the pairs.
    fn spelled_out(&self) -> Result<Patch, Miss> {
        let half = self.dim(self.cos, 2).known();
        let half = half.ok_or_else(|| Miss::at(self.cos, 1, "the table's width is unknown"))?;
        let (half, whole) = (half as i64, 2 * half as i64);
        let mut p = Spelling(Patch::new());
        let [cos, sin] = self
            .tables()
            .map(|t| p.with_axes("Unsqueeze", t.into(), &[1]));
        let x = Ref::Old(self.x);
        let interleaved = self.view.is_interleaved();
        let [a, b] = match interleaved {
            true => [p.slice(x, 0, whole, 2), p.slice(x, 1, whole, 2)],
            false => [p.slice(x, 0, half, 1), p.slice(x, half, whole, 1)],
        };
        let (ac, bs) = (p.two("Mul", a, cos), p.two("Mul", b, sin));
        let (bc, as_) = (p.two("Mul", b, cos), p.two("Mul", a, sin));
        let turned = [p.two("Sub", ac, bs), p.two("Add", bc, as_)];
        let mut parts = match interleaved {
            true => {
                let stacked = turned.map(|v| p.with_axes("Unsqueeze", v, &[-1]));
                let stacked = p.concat(stacked);
                vec![p.with_axes("Reshape", stacked, &[0, 0, 0, whole])]
            }
            false => turned.to_vec(),
        };
        if self.view.rotary_embedding_dim() != 0 {
            parts.push(p.slice(x, whole, i64::MAX, 1));
        }
        let made = match parts.as_slice() {
            [one] => *one,
            _ => p.concat(parts),
        };
        let Spelling(mut patch) = p;
        patch.replace(self.output, made);
        Ok(patch)
    }
}

struct Spelling(Patch);

impl Spelling {
    fn two(&mut self, op: &str, a: Ref, b: Ref) -> Ref {
        self.0.node(Op::onnx(op), [a, b], Attrs::new())
    }

    fn with_axes(&mut self, op: &str, v: Ref, axes: &[i64]) -> Ref {
        let axes = self.0.constant(Tensor::vector(axes));
        self.two(op, v, axes)
    }

    fn concat(&mut self, parts: impl IntoIterator<Item = Ref>) -> Ref {
        let axis = Attrs::new().with("axis", -1);
        self.0.node(Op::onnx("Concat"), parts, axis)
    }

    /// A range of the last axis.
    fn slice(&mut self, v: Ref, start: i64, end: i64, step: i64) -> Ref {
        let numbers = [start, end, -1, step].map(|n| self.0.constant(Tensor::vector(&[n])));
        let inputs = std::iter::once(v).chain(numbers);
        self.0.node(Op::onnx("Slice"), inputs, Attrs::new())
    }
}
