//! Decoders of known shapes with random weights over a prompt, as exporters spell Llama: grouped heads, rotary embeddings, RMS norms.

use kiln_graph::graph::Opsets;
use kiln_graph::{Attrs, DType, Dim, Graph, Model, Type, ValueId};

use super::encoder::Builder;
use crate::parity::InputError;

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Heads of keys and values.
    pub groups: usize,
    /// Of the feed-forward block.
    pub inner: usize,
    pub words: usize,
}

/// Eight layers, 512 wide, with the proportions of Llama 3 (Grattafiori et al., "The Llama 3 Herd of Models", table 3).
pub const LLAMA: Shape = Shape {
    layers: 8,
    width: 512,
    heads: 8,
    groups: 2,
    inner: 1792,
    words: 1000,
};

/// Values that all layers read.
#[derive(Clone, Copy)]
struct Shared {
    cos: ValueId,
    sin: ValueId,
    mask: ValueId,
}

impl Shape {
    fn size(&self) -> usize {
        self.width / self.heads
    }
}

impl Builder {
    fn rms_norm(&mut self, x: ValueId, width: usize) -> Option<ValueId> {
        let (two, small) = (self.number(2.0), self.number(1e-5));
        let square = self.plain("Pow", &[x, two])?;
        let attrs = Attrs::new()
            .with("axes", vec![-1i64])
            .with("keepdims", 1i64);
        let mean = self.node("ReduceMean", &[square], attrs)?;
        let sum = self.plain("Add", &[mean, small])?;
        let root = self.plain("Sqrt", &[sum])?;
        let normal = self.plain("Div", &[x, root])?;
        let scale = self.ones(width);
        self.plain("Mul", &[normal, scale])
    }

    fn product(
        &mut self,
        x: ValueId,
        rows: usize,
        columns: usize,
    ) -> Result<Option<ValueId>, InputError> {
        let weight = self.weight(&[rows, columns])?;
        Ok(self.plain("MatMul", &[x, weight]))
    }

    /// [batch, seq, heads · size] as [batch, heads, seq, size].
    fn heads(&mut self, x: ValueId, heads: usize, size: usize) -> Option<ValueId> {
        let shape = self.ints(&[0, 0, heads as i64, size as i64]);
        let split = self.plain("Reshape", &[x, shape])?;
        let perm = Attrs::new().with("perm", vec![0i64, 2, 1, 3]);
        self.node("Transpose", &[split], perm)
    }

    /// x · cos + (-second half, first half) · sin (Su et al., "RoFormer", 2021).
    fn rotated(&mut self, x: ValueId, size: usize, shared: Shared) -> Option<ValueId> {
        let half = size as i64 / 2;
        let mut slice = |from: i64, to: i64| {
            let [from, to, axis] = [from, to, -1].map(|n| self.ints(&[n]));
            self.plain("Slice", &[x, from, to, axis])
        };
        let (first, second) = (slice(0, half)?, slice(half, 2 * half)?);
        let second = self.plain("Neg", &[second])?;
        let axis = Attrs::new().with("axis", -1i64);
        let turned = self.node("Concat", &[second, first], axis)?;
        let a = self.plain("Mul", &[x, shared.cos])?;
        let b = self.plain("Mul", &[turned, shared.sin])?;
        self.plain("Add", &[a, b])
    }

    /// [batch, groups, seq, size] as [batch, heads, seq, size], each group for as many heads.
    fn repeated(&mut self, x: ValueId, s: &Shape) -> Option<ValueId> {
        let axis = self.ints(&[2]);
        let apart = self.plain("Unsqueeze", &[x, axis])?;
        let each = (s.heads / s.groups) as i64;
        let times = self.ints(&[1, 1, each, 1, 1]);
        let whole = self.plain("Shape", &[apart])?;
        let whole = self.plain("Mul", &[whole, times])?;
        let wide = self.plain("Expand", &[apart, whole])?;
        let shape = self.ints(&[0, s.heads as i64, -1, s.size() as i64]);
        self.plain("Reshape", &[wide, shape])
    }

    fn seen(&mut self, [q, k, v]: [ValueId; 3], s: &Shape, shared: Shared) -> Option<ValueId> {
        let q = self.heads(q, s.heads, s.size())?;
        let k = self.heads(k, s.groups, s.size())?;
        let v = self.heads(v, s.groups, s.size())?;
        let (q, k) = (
            self.rotated(q, s.size(), shared)?,
            self.rotated(k, s.size(), shared)?,
        );
        let (k, v) = (self.repeated(k, s)?, self.repeated(v, s)?);
        let perm = Attrs::new().with("perm", vec![0i64, 1, 3, 2]);
        let k = self.node("Transpose", &[k], perm)?;
        let scores = self.plain("MatMul", &[q, k])?;
        let root = self.number(1.0 / (s.size() as f32).sqrt());
        let scores = self.plain("Mul", &[scores, root])?;
        self.weighed(scores, shared.mask, v, s.width)
    }

    fn block(
        &mut self,
        x: ValueId,
        s: &Shape,
        shared: Shared,
    ) -> Result<Option<ValueId>, InputError> {
        let keys = s.groups * s.size();
        let Some(h) = self.rms_norm(x, s.width) else {
            return Ok(None);
        };
        let projected = [
            self.product(h, s.width, s.width)?,
            self.product(h, s.width, keys)?,
            self.product(h, s.width, keys)?,
        ];
        let [Some(q), Some(k), Some(v)] = projected else {
            return Ok(None);
        };
        let Some(o) = self.seen([q, k, v], s, shared) else {
            return Ok(None);
        };
        let o = self.product(o, s.width, s.width)?;
        let Some(x) = o.and_then(|o| self.plain("Add", &[x, o])) else {
            return Ok(None);
        };
        let Some(h) = self.rms_norm(x, s.width) else {
            return Ok(None);
        };
        let gates = [
            self.product(h, s.width, s.inner)?,
            self.product(h, s.width, s.inner)?,
        ];
        let [Some(gate), Some(up)] = gates else {
            return Ok(None);
        };
        let open = self.plain("Sigmoid", &[gate]);
        let gate = open.and_then(|open| self.plain("Mul", &[gate, open]));
        let Some(inner) = gate.and_then(|gate| self.plain("Mul", &[gate, up])) else {
            return Ok(None);
        };
        let down = self.product(inner, s.inner, s.width)?;
        Ok(down.and_then(|down| self.plain("Add", &[x, down])))
    }

    /// Tables of the rotation, and a mask of what comes later, both by the number of tokens.
    fn shared(&mut self, ids: ValueId, s: &Shape) -> Option<Shared> {
        let (shape, one) = (self.plain("Shape", &[ids])?, self.int(1));
        let tokens = self.plain("Gather", &[shape, one])?;
        let (zero, step) = (self.int(0), self.int(1));
        let places = self.plain("Range", &[zero, tokens, step])?;
        let (first, second) = (self.ints(&[0]), self.ints(&[1]));
        let (row, column) = (
            self.plain("Unsqueeze", &[places, first])?,
            self.plain("Unsqueeze", &[places, second])?,
        );
        let to = Attrs::new().with("to", i64::from(DType::F32.to_onnx()));
        let number = self.node("Cast", &[column], to)?;
        let half = s.size() / 2;
        let rate = |k: usize| 1e4f32.powf(-(k as f32) / half as f32);
        let rates = self.floats(&[1, half], &(0..half).map(rate).collect::<Vec<_>>());
        let angles = self.plain("MatMul", &[number, rates])?;
        let angles = self.node(
            "Concat",
            &[angles, angles],
            Attrs::new().with("axis", -1i64),
        )?;
        let axes = self.ints(&[0, 1]);
        let [cos, sin] = ["Cos", "Sin"].map(|op| {
            let table = self.plain(op, &[angles])?;
            self.plain("Unsqueeze", &[table, axes])
        });
        let later = self.plain("Greater", &[row, column])?;
        let (lowest, none) = (self.number(f32::MIN), self.number(0.0));
        let mask = self.plain("Where", &[later, lowest, none])?;
        Some(Shared {
            cos: cos?,
            sin: sin?,
            mask: self.plain("Unsqueeze", &[mask, axes])?,
        })
    }
}

/// `logits` [batch, seq, words] of `input_ids`, INT64 [batch, seq]: no row is padded.
///
/// # Errors
/// When the sizes are beyond what a tensor can have.
pub fn decoder(s: &Shape) -> Result<Model, InputError> {
    let mut opsets = Opsets::default();
    opsets.set("", 17);
    let mut b = Builder::new(Graph::new(opsets));
    let dim = |name: &str| Dim::Symbol(name.into());
    let shape = [dim("batch"), dim("seq")].into_iter().collect();
    let ids =
        b.g.add_input("input_ids", Type::tensor(DType::I64, Some(shape)));
    let words = b.weight(&[s.words, s.width])?;
    let mut x = b.plain("Gather", &[words, ids]);
    let shared = b.shared(ids, s);
    for _ in 0..s.layers {
        x = match (x, shared) {
            (Some(x), Some(shared)) => b.block(x, s, shared)?,
            _ => None,
        };
    }
    let x = x.and_then(|x| b.rms_norm(x, s.width));
    let head = match x {
        Some(x) => b.product(x, s.width, s.words)?,
        None => None,
    };
    if let Some(head) = head {
        let shape = [dim("batch"), dim("seq"), Dim::Known(s.words)];
        let ty = Type::tensor(DType::F32, Some(shape.into_iter().collect()));
        b.g.set_type(head, ty);
        b.g.add_output("logits", head);
    }
    Ok(Model::new(b.g))
}
