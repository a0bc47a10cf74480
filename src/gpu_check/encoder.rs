//! Encoders of known shapes with random weights, as exporters spell them: what a measurement takes where no model was brought.

use kiln_graph::graph::Opsets;
use kiln_graph::{Attrs, DType, Dim, Graph, Model, Op, Tensor, Type, ValueId};

use crate::parity::{self, InputError, InputKind, InputSpec};

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Of the feed-forward block.
    pub inner: usize,
    pub words: usize,
    pub positions: usize,
}

/// BERT-base (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", table of model sizes).
pub const BERT_BASE: Sizes = Sizes {
    layers: 12,
    width: 768,
    heads: 12,
    inner: 3072,
    words: 30_522,
    positions: 512,
};

/// An encoder of six layers, 512 wide, as torch's `nn.TransformerEncoder` is shown in its documentation.
pub const SMALL: Sizes = Sizes {
    layers: 6,
    width: 512,
    heads: 8,
    inner: 2048,
    words: 1000,
    positions: 512,
};

/// A graph that grows.
pub(super) struct Builder {
    pub(super) g: Graph,
    seed: u64,
}

impl Builder {
    pub(super) fn new(g: Graph) -> Builder {
        Builder { g, seed: 0 }
    }

    pub(super) fn node(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> Option<ValueId> {
        let inputs = inputs.iter().map(|&v| Some(v));
        let id = self.g.add_node(Op::onnx(op), "", inputs, 1, attrs);
        self.g.node(id).output(0)
    }

    pub(super) fn plain(&mut self, op: &str, inputs: &[ValueId]) -> Option<ValueId> {
        self.node(op, inputs, Attrs::new())
    }

    pub(super) fn number(&mut self, v: f32) -> ValueId {
        self.g.add_constant("", Tensor::scalar(v))
    }

    pub(super) fn ints(&mut self, v: &[i64]) -> ValueId {
        self.g.add_constant("", Tensor::vector(v))
    }

    pub(super) fn int(&mut self, v: i64) -> ValueId {
        self.g.add_constant("", Tensor::scalar(v))
    }

    pub(super) fn floats(&mut self, shape: &[usize], v: &[f32]) -> ValueId {
        let tensor = Tensor::from_values(shape.to_vec(), v);
        let tensor = tensor.unwrap_or_else(|_| Tensor::vector::<f32>(&[]));
        self.g.add_constant("", tensor)
    }

    pub(super) fn ones(&mut self, width: usize) -> ValueId {
        self.floats(&[width], &vec![1.0; width])
    }

    /// Normal numbers of the standard deviation that BERT is initialized with.
    pub(super) fn weight(&mut self, shape: &[usize]) -> Result<ValueId, InputError> {
        self.seed += 1;
        let spec = InputSpec {
            name: String::new(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            kind: InputKind::Normal { std: 0.02 },
        };
        let made = parity::make(&[spec], self.seed)?;
        let tensor = made.into_iter().next().map(|(_, t)| t);
        let tensor = tensor.unwrap_or_else(|| Tensor::vector::<f32>(&[]));
        Ok(self.g.add_constant("", tensor))
    }

    fn linear(
        &mut self,
        x: ValueId,
        rows: usize,
        columns: usize,
    ) -> Result<Option<ValueId>, InputError> {
        let (w, b) = (self.weight(&[rows, columns])?, self.weight(&[columns])?);
        Ok(self
            .plain("MatMul", &[x, w])
            .and_then(|y| self.plain("Add", &[y, b])))
    }

    fn norm(&mut self, x: ValueId, width: usize) -> Option<ValueId> {
        let scale = self.ones(width);
        let bias = self.g.add_constant("", Tensor::vector(&vec![0f32; width]));
        self.plain("LayerNormalization", &[x, scale, bias])
    }

    fn gelu(&mut self, x: ValueId) -> Option<ValueId> {
        let (root, one, half) = (
            self.number(std::f32::consts::SQRT_2),
            self.number(1.0),
            self.number(0.5),
        );
        let d = self.plain("Div", &[x, root])?;
        let e = self.plain("Erf", &[d])?;
        let a = self.plain("Add", &[e, one])?;
        let m = self.plain("Mul", &[x, a])?;
        self.plain("Mul", &[m, half])
    }

    /// [batch, seq, width] as [batch, heads, seq, size], or as [batch, heads, size, seq].
    fn split(&mut self, x: ValueId, s: &Sizes, perm: [i64; 4]) -> Option<ValueId> {
        let shape = self.ints(&[0, 0, s.heads as i64, (s.width / s.heads) as i64]);
        let split = self.plain("Reshape", &[x, shape])?;
        let attrs = Attrs::new().with("perm", perm.to_vec());
        self.node("Transpose", &[split], attrs)
    }

    fn attention(&mut self, [q, k, v]: [ValueId; 3], bias: ValueId, s: &Sizes) -> Option<ValueId> {
        let q = self.split(q, s, [0, 2, 1, 3])?;
        let k = self.split(k, s, [0, 2, 3, 1])?;
        let v = self.split(v, s, [0, 2, 1, 3])?;
        let scores = self.plain("MatMul", &[q, k])?;
        let root = self.number(((s.width / s.heads) as f32).sqrt());
        let scores = self.plain("Div", &[scores, root])?;
        self.weighed(scores, bias, v, s.width)
    }

    /// The values by scores with a bias, as [batch, seq, width].
    pub(super) fn weighed(
        &mut self,
        scores: ValueId,
        bias: ValueId,
        v: ValueId,
        width: usize,
    ) -> Option<ValueId> {
        let masked = self.plain("Add", &[scores, bias])?;
        let p = self.node("Softmax", &[masked], Attrs::new().with("axis", -1i64))?;
        let o = self.plain("MatMul", &[p, v])?;
        let perm = Attrs::new().with("perm", vec![0i64, 2, 1, 3]);
        let o = self.node("Transpose", &[o], perm)?;
        let flat = self.ints(&[0, 0, width as i64]);
        self.plain("Reshape", &[o, flat])
    }

    fn layer(
        &mut self,
        x: ValueId,
        bias: ValueId,
        s: &Sizes,
    ) -> Result<Option<ValueId>, InputError> {
        let projected = [
            self.linear(x, s.width, s.width)?,
            self.linear(x, s.width, s.width)?,
            self.linear(x, s.width, s.width)?,
        ];
        let [Some(q), Some(k), Some(v)] = projected else {
            return Ok(None);
        };
        let Some(o) = self.attention([q, k, v], bias, s) else {
            return Ok(None);
        };
        let Some(o) = self.linear(o, s.width, s.width)? else {
            return Ok(None);
        };
        let sum = self.plain("Add", &[o, x]);
        let Some(x) = sum.and_then(|v| self.norm(v, s.width)) else {
            return Ok(None);
        };
        let inner = self.linear(x, s.width, s.inner)?;
        let Some(h) = inner.and_then(|h| self.gelu(h)) else {
            return Ok(None);
        };
        let Some(h) = self.linear(h, s.inner, s.width)? else {
            return Ok(None);
        };
        let sum = self.plain("Add", &[h, x]);
        Ok(sum.and_then(|v| self.norm(v, s.width)))
    }

    /// Words and their positions.
    fn embedding(&mut self, ids: ValueId, s: &Sizes) -> Result<Option<ValueId>, InputError> {
        let words = self.weight(&[s.words, s.width])?;
        let positions = self.weight(&[s.positions, s.width])?;
        let (zero, axis, one) = (self.ints(&[0]), self.ints(&[0]), self.ints(&[1]));
        let embed = |b: &mut Builder| {
            let words = b.plain("Gather", &[words, ids])?;
            let shape = b.plain("Shape", &[ids])?;
            let seq = b.plain("Gather", &[shape, one])?;
            let positions = b.plain("Slice", &[positions, zero, seq, axis])?;
            let sum = b.plain("Add", &[words, positions])?;
            b.norm(sum, s.width)
        };
        Ok(embed(self))
    }

    /// 0 where the mask is 1, and a large negative number where it is 0, for all heads and queries.
    fn bias(&mut self, mask: ValueId) -> Option<ValueId> {
        let axes = self.ints(&[1, 2]);
        let mask = self.plain("Unsqueeze", &[mask, axes])?;
        let to = Attrs::new().with("to", i64::from(DType::F32.to_onnx()));
        let mask = self.node("Cast", &[mask], to)?;
        let (one, lowest) = (self.number(1.0), self.number(-1e4));
        let absent = self.plain("Sub", &[one, mask])?;
        self.plain("Mul", &[absent, lowest])
    }
}

/// `last_hidden_state` [batch, seq, width] of `input_ids` and `attention_mask`, both INT64 [batch, seq].
///
/// # Errors
/// When the sizes are beyond what a tensor can have.
pub fn encoder(s: &Sizes) -> Result<Model, InputError> {
    let mut opsets = Opsets::default();
    opsets.set("", 17);
    let mut b = Builder::new(Graph::new(opsets));
    let dim = |name: &str| Dim::Symbol(name.into());
    let tokens = || {
        let shape = [dim("batch"), dim("seq")];
        Type::tensor(DType::I64, Some(shape.into_iter().collect()))
    };
    let ids = b.g.add_input("input_ids", tokens());
    let mask = b.g.add_input("attention_mask", tokens());
    let mut x = b.embedding(ids, s)?;
    let bias = b.bias(mask);
    for _ in 0..s.layers {
        x = match (x, bias) {
            (Some(x), Some(bias)) => b.layer(x, bias, s)?,
            _ => None,
        };
    }
    if let Some(x) = x {
        let shape = [dim("batch"), dim("seq"), Dim::Known(s.width)];
        let ty = Type::tensor(DType::F32, Some(shape.into_iter().collect()));
        b.g.set_type(x, ty);
        b.g.add_output("last_hidden_state", x);
    }
    Ok(Model::new(b.g))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{SessionOptions, testing};
    use kiln_graph::onnx;

    #[test]
    fn an_encoder_runs_and_ignores_what_is_masked() {
        let tiny = Sizes {
            layers: 2,
            width: 16,
            heads: 2,
            inner: 32,
            words: 50,
            positions: 8,
        };
        let model = encoder(&tiny).unwrap();
        assert_eq!(model.graph.outputs().len(), 1);
        let Some(runtime) = testing::runtime() else {
            return;
        };
        let bytes = onnx::to_bytes(&model).unwrap();
        let options = SessionOptions::default();
        let session = crate::runtime::Session::from_bytes(runtime, "encoder", &bytes, &options);
        let mut session = session.unwrap();
        let mut run = |last: i64| {
            let ids = Tensor::from_values(vec![1, 4], &[1i64, 2, 3, last]).unwrap();
            let mask = Tensor::from_values(vec![1, 4], &[1i64, 1, 1, 0]).unwrap();
            let outputs = session.run(&[("input_ids", ids), ("attention_mask", mask)]);
            outputs.unwrap().remove(0).1.to_f64s().unwrap()
        };
        let (one, other) = (run(4), run(7));
        assert_eq!(one.len(), 4 * 16);
        assert_eq!(one[..3 * 16], other[..3 * 16]);
        assert!(one.iter().all(|v| v.is_finite()) && one[3 * 16..] != other[3 * 16..]);
    }
}
