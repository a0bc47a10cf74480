//! com.microsoft:GroupQueryAttention.

use super::view;
use crate::ValueId;

const MICROSOFT: &str = "com.microsoft";

view! { in MICROSOFT,
    /// Attention over a cache that it updates itself (ONNX Runtime `docs/ContribOperators.md`): query [batch, new, heads · size],
    /// key and value [batch, new, kv heads · size], or all three packed in the query; past key and value [batch, kv heads,
    /// past or capacity, size]; the place of each row's last token, the length of the longest row, rotary tables.
    GroupQueryAttention: "GroupQueryAttention" {
        "causal": Int, "do_rotary": Int, "k_quant_type": Str, "kv_cache_bit_width": Int, "kv_num_heads": Int,
        "local_window_size": Int, "num_heads": Int, "qk_output": Int, "rotary_interleaved": Int, "scale": Float,
        "sliding_window_cache": Int, "smooth_softmax": Int, "softcap": Float, "v_quant_type": Str,
    }
}

impl GroupQueryAttention<'_> {
    /// Heads of queries, and of keys and values.
    pub fn heads(&self) -> Option<[i64; 2]> {
        let heads = |name: &str| self.node().attrs().int(name).filter(|&n| n > 0);
        Some([heads("num_heads")?, heads("kv_num_heads")?])
    }

    /// The factor on the scores; `None` for `1 / sqrt(head size)`. The kernels read 0 as left out.
    pub fn scale(&self) -> Option<f32> {
        let scale = self.node().attrs().float("scale");
        scale.filter(|&s| s != 0.0)
    }

    /// Scores are capped at this by a hyperbolic tangent; 0 for no cap.
    pub fn softcap(&self) -> f32 {
        self.float("softcap")
    }

    /// How many keys a query sees, its own included; `None` for all before it.
    pub fn window(&self) -> Option<i64> {
        let window = self.node().attrs().int("local_window_size");
        window.filter(|&n| n > 0)
    }

    pub fn is_interleaved(&self) -> bool {
        self.flag("rotary_interleaved")
    }

    /// Whether key and value stand behind the queries in the first operand.
    pub fn is_packed(&self) -> bool {
        self.input(1).is_none() && self.input(2).is_none()
    }

    pub fn past(&self) -> Option<[ValueId; 2]> {
        Some([self.input(3)?, self.input(4)?])
    }

    /// The tables of cosines and sines, [places, rotated / 2], where it rotates queries and keys.
    pub fn tables(&self) -> Option<[ValueId; 2]> {
        self.flag("do_rotary").then_some(())?;
        Some([self.input(7)?, self.input(8)?])
    }

    pub fn position_ids(&self) -> Option<ValueId> {
        self.input(9)
    }

    /// What is added to the scores.
    pub fn attention_bias(&self) -> Option<ValueId> {
        self.input(10)
    }

    /// The attribute or operand whose meaning only the operator itself has, by its name.
    pub fn peculiar(&self) -> Option<&'static str> {
        let int = |name: &str| self.node().attrs().int(name);
        let given = |k: usize| self.input(k).is_some();
        let quantized = |name: &str| !matches!(self.str(name), "" | "NONE");
        let all = [
            ("causal", int("causal") == Some(0)),
            (
                "smooth_softmax",
                int("smooth_softmax").is_some_and(|n| n > 0),
            ),
            ("head_sink", given(11)),
            ("sliding_window_cache", self.flag("sliding_window_cache")),
            ("k_quant_type", quantized("k_quant_type")),
            ("v_quant_type", quantized("v_quant_type")),
            ("k_scale", given(12)),
            ("v_scale", given(13)),
            ("q_norm_weight", given(14)),
            ("k_norm_weight", given(15)),
            (
                "qk_output",
                self.output(3)
                    .is_some_and(|v| !self.graph().value(v).is_unused()),
            ),
        ];
        all.into_iter().find(|(_, is)| *is).map(|(name, _)| name)
    }
}
