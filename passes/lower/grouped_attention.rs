//! com.microsoft:GroupQueryAttention (ONNX Runtime `docs/contrib_ops/gqa.md`), over prompts.

use kiln_graph::infer::Expr;
use kiln_graph::{Attr, Attrs, DType, Graph, Tensor, ValueId};

use super::attention_words::Lower;
use crate::analysis::mask::{self, Term};
use crate::core::patch::Ref;
use crate::core::target::microsoft;

/// What hides a key in every format: no score reaches above it.
const HIDES: f64 = -1e4;

/// Queries or keys that a RotaryEmbedding turns by the rows of shared tables.
struct Turned {
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    interleaved: bool,
}

impl Turned {
    fn of(g: &Graph, v: ValueId) -> Option<Turned> {
        let node = g.node(g.producer(v)?);
        let first = g.constant(node.input(1)?)?;
        let starts_at_zero = first.to_i64s()? == [0];
        let alone = g.value(v).uses().len() == 1 && !g.value(v).is_output();
        (node.op() == microsoft("RotaryEmbedding") && starts_at_zero && alone).then_some(())?;
        Some(Turned {
            x: node.input(0)?,
            cos: node.input(2)?,
            sin: node.input(3)?,
            interleaved: node.attrs().int("interleaved").unwrap_or(0) != 0,
        })
    }
}

impl Lower<'_, '_> {
    /// Attention of each query to the keys up to its own, where nothing else hides keys: lengths are those of the run, so that no row
    /// is padded. The operator takes rotations in, whose tables start at position 0 then. Its second and third results must be there.
    pub(super) fn grouped(&mut self, operands: [ValueId; 3]) -> Option<Ref> {
        let [q, k, v] = operands;
        let length = |v: ValueId| Some(self.cx.facts.dims(v)?.get(2)?.clone());
        let tokens = length(q)?;
        (length(k)? == tokens && length(v)? == tokens).then_some(())?;
        (self.attention.softcap() == 0.0 && self.is_causal_alone(&tokens)).then_some(())?;
        let (heads, groups, size) = (self.size(q, 1)?, self.size(k, 1)?, self.size(q, 3)?);
        (groups > 0 && heads % groups == 0 && self.size(v, 1)? == groups).then_some(())?;
        (self.size(k, 3)? == size && self.size(v, 3)? == size && size % 8 == 0).then_some(())?;

        let turned = self.turned(q, k, size, &tokens);
        let (query, key) = turned.as_ref().map_or((q, k), |[q, k]| (q.x, k.x));
        let mut inputs: Vec<Option<Ref>> = Vec::new();
        for (x, heads) in [(query, heads), (key, groups), (v, groups)] {
            let width = heads.checked_mul(size)?;
            inputs.push(Some(self.together(x, width)));
        }
        let [last, total] = self.lengths(q, &tokens)?;
        inputs.extend([None, None, Some(last), Some(total)]);
        let mut attrs = Attrs::new()
            .with("num_heads", heads)
            .with("kv_num_heads", groups)
            .with("scale", self.attention.scale());
        if let Some([turned, _]) = &turned {
            inputs.extend([Some(turned.cos.into()), Some(turned.sin.into())]);
            attrs.set("do_rotary", 1i64);
            attrs.set("rotary_interleaved", i64::from(turned.interleaved));
        }
        let op = microsoft("GroupQueryAttention");
        let made = self.patch.node_with(op, inputs, 3, attrs)[0];
        Some(self.split(made, heads, size))
    }

    /// Whether a query sees the keys up to its own, and nothing else is hidden.
    fn is_causal_alone(&self, tokens: &Expr) -> bool {
        let Some(bias) = self.attention.bias() else {
            return self.attention.is_causal();
        };
        let found = mask::analyse_bias(self.g, &self.cx.facts, bias);
        found.is_some_and(|(mask, hidden)| {
            let square = mask.queries == *tokens && mask.keys == *tokens;
            square && hidden <= HIDES && mask.terms == [Term::Causal { offset: 0 }]
        })
    }

    /// Queries and keys in front of their rotation, where the operator can do that itself: tables as long as the run, in halves of
    /// eights, heads in sixteens (`group_query_attention_helper.h`).
    fn turned(&self, q: ValueId, k: ValueId, size: i64, tokens: &Expr) -> Option<[Turned; 2]> {
        let (q, k) = (Turned::of(self.g, q)?, Turned::of(self.g, k)?);
        // Each rotation has written its own rows of one table.
        let rows = |v: ValueId| {
            let whole = self.g.producer_if(v, "Squeeze");
            whole.and_then(|n| self.g.node(n).input(0)).unwrap_or(v)
        };
        let tables = |t: &Turned| (rows(t.cos), rows(t.sin), t.interleaved);
        let dims = self.cx.facts.dims(q.cos)?;
        let half = dims.get(1)?.as_i64()?;
        let fits = dims.first()? == tokens && half % 8 == 0 && 2 * half <= size && size % 16 == 0;
        (tables(&q) == tables(&k) && fits).then_some([q, k])
    }

    /// Of each row the place of its last token, INT32 [batch], and the number of tokens, INT32 [1]. The places are computed on the device
    /// that reads them, so that no copy stands in the way of a CUDA graph.
    fn lengths(&mut self, q: ValueId, tokens: &Expr) -> Option<[Ref; 2]> {
        let batch = self.cx.facts.dims(q)?.first()?.clone();
        let batch = self.size_of(&batch, q, 0);
        let tokens = self.size_of(tokens, q, 2);
        let one = Tensor::from_values(vec![1], &[1i32]).ok()?;
        let shape = self.node("Concat", &[batch, tokens], Attrs::new().with("axis", 0i64));
        let ones = Attrs::new().with("value", Attr::Tensor(one.clone()));
        let ones = self.node("ConstantOfShape", &[shape], ones);
        let axes = self.patch.constant(Tensor::vector(&[1i64]));
        let counted = self.node(
            "ReduceSum",
            &[ones, axes],
            Attrs::new().with("keepdims", 0i64),
        );
        let one = self.patch.constant(one);
        let last = self.node("Sub", &[counted, one], Attrs::new());
        let to = Attrs::new().with("to", i64::from(DType::I32.to_onnx()));
        let total = self.node("Cast", &[tokens], to);
        Some([last, total])
    }

    /// A size as a vector of one, read off an input of the model where one has it, so that all layers read the same.
    fn size_of(&mut self, size: &Expr, value: ValueId, axis: i64) -> Ref {
        let inputs = self.g.inputs().iter();
        let mut found = inputs.filter_map(|&v| {
            let at = self.cx.facts.dims(v)?.iter().position(|d| d == size)?;
            Some((v, at as i64))
        });
        let (from, axis) = found.next().unwrap_or((value, axis));
        let attrs = Attrs::new().with("start", axis).with("end", axis + 1);
        self.node("Shape", &[from.into()], attrs)
    }
}
