//! Attention and RotaryEmbedding of the default domain.

use super::view;
use crate::ValueId;

view! {
    Attention: "Attention" {
        "is_causal": Int, "kv_num_heads": Int, "q_num_heads": Int, "qk_matmul_output_mode": Int, "scale": Float,
        "softcap": Float, "softmax_precision": Int,
    }
}

impl Attention<'_> {
    pub fn is_causal(&self) -> bool {
        self.flag("is_causal")
    }

    /// The factor on the scores; `None` for `1 / sqrt(head size)` (Attention-23).
    pub fn scale(&self) -> Option<f32> {
        self.node().attrs().float("scale")
    }

    /// Scores are capped at this by a hyperbolic tangent; 0 for no cap.
    pub fn softcap(&self) -> f32 {
        self.float("softcap")
    }

    /// Required for 3-D queries.
    pub fn q_num_heads(&self) -> Option<i64> {
        self.node().attrs().int("q_num_heads").filter(|&n| n > 0)
    }

    /// Required for 3-D keys and values.
    pub fn kv_num_heads(&self) -> Option<i64> {
        self.node().attrs().int("kv_num_heads").filter(|&n| n > 0)
    }

    /// The dtype number in which the softmax is computed; `None` for the implementation's choice.
    pub fn softmax_precision(&self) -> Option<i64> {
        self.node().attrs().int("softmax_precision")
    }

    pub fn mask(&self) -> Option<ValueId> {
        self.input(3)
    }

    pub fn past_key(&self) -> Option<ValueId> {
        self.input(4)
    }

    pub fn past_value(&self) -> Option<ValueId> {
        self.input(5)
    }

    /// The number of valid keys of each sequence, from Attention-24 on.
    pub fn nonpad_kv_seqlen(&self) -> Option<ValueId> {
        self.input(6)
    }
}

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

view! { in MICROSOFT,
    /// com.microsoft:Attention over one input and packed weights, and com.microsoft:MultiHeadAttention over queries, keys
    /// and values (ONNX Runtime `docs/ContribOperators.md`).
    MicrosoftAttention: "Attention" | "MultiHeadAttention" {
        "num_heads": Int, "scale": Float, "unidirectional": Int, "mask_filter_value": Float, "qkv_hidden_sizes": Ints,
        "do_rotary": Int,
    }
}

impl<'g> MicrosoftAttention<'g> {
    /// Whether it projects its one input itself.
    pub fn is_packed(&self) -> bool {
        self.node().op().name() == "Attention"
    }

    pub fn num_heads(&self) -> Option<i64> {
        self.node().attrs().int("num_heads").filter(|&n| n > 0)
    }

    /// The factor on the scores; `None` for `1 / sqrt(head size)`. The kernels read 0 as left out.
    pub fn scale(&self) -> Option<f32> {
        let scale = self.node().attrs().float("scale");
        scale.filter(|&s| s != 0.0)
    }

    /// Query i sees the keys 0 to i only.
    pub fn is_causal(&self) -> bool {
        self.flag("unidirectional")
    }

    /// What a mask adds to the scores of keys that it hides.
    pub fn mask_filter_value(&self) -> f32 {
        self.node()
            .attrs()
            .float("mask_filter_value")
            .unwrap_or(-10000.0)
    }

    /// The widths of queries, keys and values; `None` for thirds.
    pub fn qkv_hidden_sizes(&self) -> Option<&'g [i64]> {
        self.int_list("qkv_hidden_sizes")
    }

    pub fn rotates(&self) -> bool {
        self.flag("do_rotary")
    }

    /// The vector that is added to the projections, joined.
    pub fn projection_bias(&self) -> Option<ValueId> {
        self.input(if self.is_packed() { 2 } else { 3 })
    }

    /// What tells keys from padding, in one of several forms.
    pub fn mask(&self) -> Option<ValueId> {
        self.input(if self.is_packed() { 3 } else { 4 })
    }

    /// What is added to the scores.
    pub fn attention_bias(&self) -> Option<ValueId> {
        self.input(5)
    }

    /// Keys and values of earlier steps, [batch, heads, past, size]; where it is packed both are the first, [2, batch, heads,
    /// past, size].
    pub fn past(&self) -> [Option<ValueId>; 2] {
        match self.is_packed() {
            true => [self.input(4), None],
            false => [self.input(6), self.input(7)],
        }
    }

    /// Whether it is told where in a buffer the earlier steps end.
    pub fn shares_past(&self) -> bool {
        let told = if self.is_packed() { &[6][..] } else { &[8, 9] };
        told.iter().any(|&k| self.input(k).is_some())
    }
}

view! {
    RotaryEmbedding: "RotaryEmbedding" { "interleaved": Int, "num_heads": Int, "rotary_embedding_dim": Int }
}

impl RotaryEmbedding<'_> {
    /// Whether pairs lie side by side rather than half a head apart (RotaryEmbedding-23).
    pub fn is_interleaved(&self) -> bool {
        self.flag("interleaved")
    }

    /// Required for 3-D inputs.
    pub fn num_heads(&self) -> Option<i64> {
        self.node().attrs().int("num_heads").filter(|&n| n > 0)
    }

    /// How many elements of a head are rotated; 0 for all.
    pub fn rotary_embedding_dim(&self) -> i64 {
        self.int("rotary_embedding_dim")
    }

    pub fn position_ids(&self) -> Option<ValueId> {
        self.input(3)
    }
}

view! { in MICROSOFT,
    /// com.microsoft:RotaryEmbedding over (x, positions, cos, sin): positions are [batch, length], or the first one alone.
    MicrosoftRotaryEmbedding: "RotaryEmbedding" {
        "interleaved": Int, "num_heads": Int, "rotary_embedding_dim": Int, "scale": Float, "is_packed_batching": Int,
    }
}

impl MicrosoftRotaryEmbedding<'_> {
    /// Whether pairs lie side by side rather than half a head apart.
    pub fn is_interleaved(&self) -> bool {
        self.flag("interleaved")
    }

    /// Told where only a part of each head is rotated.
    pub fn num_heads(&self) -> Option<i64> {
        self.node().attrs().int("num_heads").filter(|&n| n > 0)
    }

    /// How many elements of a head are rotated; 0 for all.
    pub fn rotary_embedding_dim(&self) -> i64 {
        self.int("rotary_embedding_dim")
    }

    /// Without a default in ONNX Runtime's schema; its kernels take 1.
    pub fn scale(&self) -> f32 {
        self.node().attrs().float("scale").unwrap_or(1.0)
    }

    pub fn is_packed_batching(&self) -> bool {
        self.flag("is_packed_batching")
    }
}

/// kiln's own attention, which exists between fusion and lowering: softmax(cap(scale · q kᵀ) + bias) v over q [batch,
/// heads, queries, size], k [batch, kv heads, keys, size], v [batch, kv heads, keys, value size] and a bias that
/// broadcasts to [batch, heads, queries, keys]; the result is [batch, heads, queries, value size]. Heads are a multiple of
/// kv heads. Floats are of one dtype. A second result is the softmax, [batch, heads, queries, keys].
#[derive(Clone, Copy, Debug)]
pub struct InternalAttention<'g>(super::View<'g>);

impl<'g> InternalAttention<'g> {
    /// The node as this operator; `None` if it is another one.
    pub fn of(graph: &'g crate::Graph, id: crate::NodeId) -> Option<InternalAttention<'g>> {
        let node = graph.get(id)?;
        let op = node.op();
        let view = super::View { graph, node, id };
        (op.domain() == crate::INTERNAL_DOMAIN && op.name() == "Attention")
            .then_some(InternalAttention(view))
    }

    /// The factor on the scores.
    pub fn scale(&self) -> f32 {
        self.0.float("scale")
    }

    /// Scores are capped at this by a hyperbolic tangent, before the bias is added; 0 for no cap.
    pub fn softcap(&self) -> f32 {
        self.0.float("softcap")
    }

    /// Query i sees the keys 0 to i only.
    pub fn is_causal(&self) -> bool {
        self.0.flag("is_causal")
    }

    /// Rows whose keys are all hidden by an infinite bias give zeros; else they are NaN.
    pub fn is_guarded(&self) -> bool {
        self.0.flag("guarded")
    }

    /// What becomes of a row whose keys are all hidden; `None` where none can be, where it is guarded, and where it is NaN
    /// because what hides is infinite.
    pub fn keyless(&self) -> Option<Keyless> {
        Keyless::ALL
            .into_iter()
            .find(|k| self.0.str("keyless") == k.name())
    }

    pub fn bias(&self) -> Option<ValueId> {
        self.0.input(3)
    }

    /// The probabilities, [batch, heads, queries, keys], where something wants them.
    pub fn probabilities(&self) -> Option<ValueId> {
        self.0.output(1)
    }
}

/// What the softmax of a row makes of it whose keys are all hidden. A narrower format, or an operator that adds in a wider
/// one, gives something else unless it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyless {
    /// What hides is so low that nothing of the scores is left beside it: each key counts the same.
    Uniform,
    /// What hides is added and leaves the scores their differences: the row is what it would be without a mask.
    Shifted,
}

impl Keyless {
    const ALL: [Keyless; 2] = [Keyless::Uniform, Keyless::Shifted];

    /// The attribute's value.
    pub fn name(self) -> &'static str {
        match self {
            Keyless::Uniform => "uniform",
            Keyless::Shifted => "shifted",
        }
    }
}

impl<'g> std::ops::Deref for InternalAttention<'g> {
    type Target = super::View<'g>;

    fn deref(&self) -> &super::View<'g> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Op};

    #[test]
    fn attention_defaults_and_foreign_attention() {
        let (mut g, n) = node(23, "Attention", Attrs::new().with("q_num_heads", 0), &[]);
        let attention = Attention::of(&g, n).unwrap();
        assert!(
            !attention.is_causal() && attention.scale().is_none() && attention.softcap() == 0.0
        );
        assert!(attention.q_num_heads().is_none() && attention.mask().is_none());
        g.set_op(n, Op::new("com.microsoft", "Attention"));
        assert!(Attention::of(&g, n).is_none());
    }
}
