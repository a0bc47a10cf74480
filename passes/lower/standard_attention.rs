//! ONNX's own Attention (operator set 23), which takes heads that share keys, and keys and values of earlier steps.

use kiln_graph::ops::{self, InternalAttention, Keyless};
use kiln_graph::{Attrs, DType, Graph, NodeId, Op, ValueId};

use super::attention_words::Lower;
use crate::analysis::attention::keyless;
use crate::analysis::depends::depends;
use crate::analysis::mask;
use crate::core::patch::Ref;

/// The operator set from which it exists.
pub(super) const SINCE: i64 = 23;

/// New keys or values behind those of earlier steps.
#[derive(Clone, Copy)]
struct Joined {
    node: NodeId,
    past: ValueId,
    new: ValueId,
    whole: ValueId,
}

impl Joined {
    /// `Concat(past, new)` along the tokens of [batch, heads, tokens, size].
    fn of(g: &Graph, whole: ValueId) -> Option<Joined> {
        let node = g.producer_if(whole, "Concat")?;
        let concat = g.node(node);
        let &[Some(past), Some(new)] = concat.inputs() else {
            return None;
        };
        let axis = ops::resolve_axis(concat.attrs().int("axis")?, 4)?;
        let apart = [past, new]
            .iter()
            .all(|&v| g.value(v).ty().rank() == Some(4));
        (axis == 2 && apart && g.constant(past).is_none()).then_some(Joined {
            node,
            past,
            new,
            whole,
        })
    }
}

/// Whether an attention is one that this operator alone takes as it is: of grouped heads, or over a cache that it joins.
pub(super) fn wanted(g: &Graph, attention: &InternalAttention<'_>) -> bool {
    let heads = |k: usize| {
        let shape = attention.input(k).and_then(|v| g.value(v).ty().shape());
        shape.and_then(|s| s.get(1)).and_then(|d| d.known())
    };
    let grouped = heads(0).is_some() && heads(1).is_some() && heads(0) != heads(1);
    let joined = |k: usize| attention.input(k).and_then(|v| Joined::of(g, v)).is_some();
    attention.probabilities().is_none() && (grouped || joined(1) && joined(2))
}

impl Lower<'_, '_> {
    /// Attention-23 over operands [batch, heads, tokens, size] and a mask that is added, as large as the scores in its last two
    /// dimensions. Where keys and values are joined with those of earlier steps, it joins them itself.
    pub(super) fn standard(&mut self, q: ValueId, k: ValueId, v: ValueId) -> Option<Ref> {
        let length = |v: ValueId| Some(self.cx.facts.dims(v)?.get(2)?.clone());
        // What a cap and a mask do to each other, and where the diagonal lies over fewer queries than keys, versions differ in.
        let (causal, cap) = (self.attention.is_causal(), self.attention.softcap());
        (cap == 0.0 && (!causal || length(q)? == length(k)?)).then_some(())?;
        let (heads, groups) = (self.size(q, 1)?, self.size(k, 1)?);
        (groups > 0 && heads % groups == 0 && self.size(v, 1)? == groups).then_some(())?;
        let cache = self.cache(q, k, v).filter(|_| !causal);
        let bias = match self.attention.bias() {
            Some(bias) => {
                let hiding = self.hiding(bias);
                Some(self.full_bias(hiding, q, k)?)
            }
            None => None,
        };
        let query = self.attending(q);
        let mut attrs = Attrs::new().with("scale", self.attention.scale());
        if causal {
            attrs.set("is_causal", 1i64);
        }
        let op = Op::onnx("Attention");
        let made = match cache {
            None => {
                let inputs = [Some(query), Some(k.into()), Some(v.into()), bias];
                let count = if bias.is_some() { 4 } else { 3 };
                self.patch
                    .node_with(op, inputs.into_iter().take(count), 1, attrs)[0]
            }
            Some([keys, values]) => {
                let old = |v: ValueId| Some(Ref::Old(v));
                let inputs = [
                    Some(query),
                    old(keys.new),
                    old(values.new),
                    bias,
                    old(keys.past),
                    old(values.past),
                ];
                let made = self.patch.node_with(op, inputs, 3, attrs);
                self.patch.replace(keys.whole, made[1]);
                self.patch.replace(values.whole, made[2]);
                made[0]
            }
        };
        let made = self.undefined(made);
        Some(self.guard(made))
    }

    /// The bias, told apart from what the operator takes for a row without keys: it gives zeros where all are the lowest number
    /// of the type (ONNX Runtime 1.31), and every key is to count the same there.
    pub(super) fn hiding(&mut self, bias: ValueId) -> Ref {
        let at = self.shifted(bias);
        if self.attention.keyless() != Some(Keyless::Uniform) {
            return at;
        }
        let lowest = match self.dtype {
            DType::F16 => -60_000.0,
            _ => -1e38,
        };
        let lowest = self.number(lowest);
        let level = self.node("Max", &[at, lowest], Attrs::new());
        self.counted(bias, level)
    }

    /// NaN for rows whose keys are all hidden by an infinite number that nothing guards: zeros are given there.
    fn undefined(&mut self, made: Ref) -> Ref {
        let bias = self.attention.bias().filter(|&bias| {
            let mask = mask::analyse_bias(self.g, &self.cx.facts, bias);
            !self.attention.is_guarded()
                && keyless::is_infinite(self.g, bias)
                && !mask.is_some_and(|(mask, _)| mask::never_hides_a_whole_row(&mask))
        });
        let Some(bias) = bias else { return made };
        let (visible, nan) = (self.above(bias, f64::NEG_INFINITY), self.number(f64::NAN));
        self.node("Where", &[visible, made, nan], Attrs::new())
    }

    /// Keys and values that are joined with as many of earlier steps, if nothing that the attention reads depends on what
    /// comes of joining them.
    fn cache(&self, q: ValueId, k: ValueId, v: ValueId) -> Option<[Joined; 2]> {
        let (keys, values) = (Joined::of(self.g, k)?, Joined::of(self.g, v)?);
        let dims = |v: ValueId| self.cx.facts.dims(v);
        let length = |v: ValueId| dims(v)?.get(2).cloned();
        (length(keys.past)? == length(values.past)?).then_some(())?;
        (length(keys.new)? == length(values.new)?).then_some(())?;
        if let Some(bias) = self.attention.bias() {
            // It is not made as large as the keys by asking these how many they are.
            let (bias, whole) = (dims(bias)?.last()?.clone(), length(k)?);
            (bias == whole).then_some(())?;
        }
        let read = [q, keys.past, keys.new, values.past, values.new];
        let read = read.into_iter().chain(self.attention.bias());
        let joins = [keys.node, values.node];
        (!depends(self.g, read, &joins)).then_some([keys, values])
    }
}
