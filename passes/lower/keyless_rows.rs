//! Rows whose keys are all hidden, in an attention that is written out.
//!
//! In FP32 the arithmetic of a mask says what becomes of them. In half precision it does not: FP16's largest number leaves
//! scores above 16 their differences, and a fused kernel adds the mask in FP32, where they keep all of them.

use kiln_graph::ops::Keyless;
use kiln_graph::{Attrs, DType, Tensor, ValueId};

use super::attention_words::Lower;
use crate::analysis::attention::keyless;
use crate::core::patch::Ref;

/// A bias up to this one hides. FP16's number for a mask's -3.4e38 is below it, with a relative position added to it; what
/// models are known to add in its place (-10000, -30000) is above it.
const HIDDEN: f64 = -40_000.0;

impl Lower<'_, '_> {
    /// The bias, if what becomes of a row is `keyless` and its arithmetic does not say so.
    fn told(&self, keyless: Keyless) -> Option<ValueId> {
        let half = matches!(self.dtype, DType::F16 | DType::BF16);
        let bias = self.attention.bias().filter(|_| half)?;
        (self.attention.keyless() == Some(keyless)).then_some(bias)
    }

    /// The queries, with zeros in rows whose keys all count the same: their scores are equal, whatever is added to them.
    pub(super) fn attending(&mut self, q: ValueId) -> Ref {
        match self.cx.target.facts.joins_attention {
            true => q.into(),
            false => self.zeroed(q),
        }
    }

    /// The same for every target: for an operator, between whose products nothing can be written.
    pub(super) fn zeroed(&mut self, q: ValueId) -> Ref {
        let Some(bias) = self.told(Keyless::Uniform) else {
            return q.into();
        };
        let seen = self.above(bias, HIDDEN);
        let zero = self.number(0.0);
        self.node("Where", &[seen, q.into(), zero], Attrs::new())
    }

    /// The biased scores, with those of hidden keys made equal: the same as [`Lower::attending`], where nothing is written
    /// between the products. No softmax sees how far below the others a hidden key is.
    pub(super) fn levelled(&mut self, scores: Ref) -> Ref {
        let uniform = self.told(Keyless::Uniform);
        let Some(bias) = uniform.filter(|_| self.cx.target.facts.joins_attention) else {
            return scores;
        };
        let lowest = self.number(HIDDEN);
        let level = self.node("Max", &[scores, lowest], Attrs::new());
        match self.attention.is_guarded() {
            // What is guarded is told by infinite numbers.
            true => self.where_finite(bias, level),
            false => self.counted(bias, level),
        }
    }

    /// The biased scores or the bias, whose hidden keys were made equal, without those that the sum of two masks hides twice: of a
    /// row without keys, the others count.
    pub(super) fn counted(&mut self, bias: ValueId, level: Ref) -> Ref {
        if !keyless::hides_twice(self.g, bias, HIDDEN) {
            return level;
        }
        if self.dtype != DType::F16 {
            return self.where_finite(bias, level);
        }
        // Twice FP16's lowest number is infinite, but for kernels that keep the sum in FP32: half of it is below that number in both.
        let half = self.number(0.5);
        let half = self.node("Mul", &[bias.into(), half], Attrs::new());
        let lowest = self.number(HIDDEN);
        let once = self.node("Greater", &[half, lowest], Attrs::new());
        let infinite = self.number(f64::NEG_INFINITY);
        self.node("Where", &[once, level, infinite], Attrs::new())
    }

    fn where_finite(&mut self, bias: ValueId, level: Ref) -> Ref {
        let infinite = self.number(f64::NEG_INFINITY);
        let finite = self.node("Greater", &[bias.into(), infinite], Attrs::new());
        self.node("Where", &[finite, level, infinite], Attrs::new())
    }

    /// The bias, without what is added to all keys of a row: no softmax sees the difference, and scores keep their digits.
    pub(super) fn shifted(&mut self, bias: ValueId) -> Ref {
        if self.told(Keyless::Shifted).is_none() {
            return bias.into();
        }
        let mut most = self.most(bias);
        if self.dtype == DType::BF16 {
            most = self.cast(most, DType::BF16);
        }
        self.node("Sub", &[bias.into(), most], Attrs::new())
    }

    /// Whether a row of scores has a key that is not hidden, as [batch, heads, queries, 1]; `None` if nothing guards it.
    pub(super) fn visible(&mut self) -> Option<Ref> {
        let bias = self
            .attention
            .bias()
            .filter(|_| self.attention.is_guarded())?;
        Some(self.above(bias, f64::NEG_INFINITY))
    }

    /// Probabilities with zeros in rows whose keys are all hidden by an infinite bias, where that costs nothing: softmax makes
    /// NaN of these.
    pub(super) fn defined(&mut self, weights: Ref) -> Ref {
        let guarded = self.attention.is_guarded() && self.attention.bias().is_some();
        if !guarded || !self.cx.target.facts.joins_attention {
            return weights;
        }
        let missing = self.node("IsNaN", &[weights], Attrs::new());
        let zero = self.number(0.0);
        self.node("Where", &[missing, zero, weights], Attrs::new())
    }

    /// Zeros for the rows whose keys are all hidden, as `Where(IsNaN(p), 0, p)` gives them.
    pub(super) fn guard(&mut self, made: Ref) -> Ref {
        if self.cx.target.facts.joins_attention {
            return made;
        }
        let Some(visible) = self.visible() else {
            return made;
        };
        let zero = self.number(0.0);
        self.node("Where", &[visible, made, zero], Attrs::new())
    }

    /// Whether a row has a bias above `limit`, as [batch, heads, queries, 1].
    pub(super) fn above(&mut self, bias: ValueId, limit: f64) -> Ref {
        let most = self.most(bias);
        let limit = match self.dtype {
            DType::BF16 => self.patch.constant(Tensor::scalar(limit as f32)),
            _ => self.number(limit),
        };
        self.node("Greater", &[most, limit], Attrs::new())
    }

    /// What is added to the key of each row that is hidden least; of BF16 in FP32, as ONNX Runtime's providers have no kernels that
    /// compare or look for the largest in BF16.
    fn most(&mut self, bias: ValueId) -> Ref {
        let at = match self.dtype {
            DType::BF16 => self.cast(bias.into(), DType::F32),
            _ => bias.into(),
        };
        let axes = self.patch.constant(Tensor::vector(&[-1i64]));
        let keep = Attrs::new().with("keepdims", 1i64);
        self.node("ReduceMax", &[at, axes], keep)
    }

    fn cast(&mut self, at: Ref, to: DType) -> Ref {
        let to = Attrs::new().with("to", i64::from(to.to_onnx()));
        self.node("Cast", &[at], to)
    }
}
