//! Operators of [`INTERNAL_DOMAIN`]: what fusions make, and what a target's lowering takes apart again.
//!
//! They are functions of their operands, like the standard operators that they stand for; the passes `fuse-…` hold their
//! definitions as bodies. Where a target's operator set has no such operator, the lowering says what takes its place.

use super::view;
use crate::{INTERNAL_DOMAIN, Op, ValueId};

/// The internal operator of this name.
pub fn op(name: &str) -> Op {
    Op::new(INTERNAL_DOMAIN, name)
}

view! { in INTERNAL_DOMAIN,
    /// RMSNormalization-23 without a minimal operator set: `(x, scale?)`, where a missing scale is 1. The statistics are
    /// computed in FP32, the result of the division is rounded to x's type before the scale.
    RmsNormalization: "RMSNormalization" { "axis": Int, "epsilon": Float }
}

impl RmsNormalization<'_> {
    /// The first of the axes that are normalized; the last one unless told otherwise.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }

    pub fn scale(&self) -> Option<ValueId> {
        self.input(1)
    }
}

view! { in INTERNAL_DOMAIN,
    /// Swish-24 without a minimal operator set: `x · σ(alpha · x)`.
    Swish: "Swish" { "alpha": Float }
}

impl Swish<'_> {
    pub fn alpha(&self) -> f32 {
        self.float("alpha")
    }
}

view! { in INTERNAL_DOMAIN,
    /// RotaryEmbedding-23 without positions: `(x [batch, heads, length, size], cos, sin)`, the tables `[batch or 1,
    /// length, rotated / 2]`, one row for each place of x.
    RotaryEmbedding: "RotaryEmbedding" { "interleaved": Int, "rotary_embedding_dim": Int }
}

impl RotaryEmbedding<'_> {
    /// Whether pairs lie side by side rather than half a head apart.
    pub fn is_interleaved(&self) -> bool {
        self.flag("interleaved")
    }

    /// How many elements of a head are rotated, from its start; 0 for all.
    pub fn rotary_embedding_dim(&self) -> i64 {
        self.int("rotary_embedding_dim")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, ops};

    #[test]
    fn internal_and_standard_operators_are_told_apart() {
        let (mut g, n) = node(23, "RMSNormalization", Attrs::new(), &[]);
        assert!(RmsNormalization::of(&g, n).is_none());
        g.set_op(n, op("RMSNormalization"));
        assert!(ops::RmsNormalization::of(&g, n).is_none());
        let norm = RmsNormalization::of(&g, n).unwrap();
        assert_eq!((norm.axis(), norm.epsilon()), (-1, 1e-5));
        assert!(norm.scale().is_none());
        g.set_op(n, op("Swish"));
        assert_eq!(Swish::of(&g, n).unwrap().alpha(), 1.0);
        g.set_op(n, op("RotaryEmbedding"));
        let rotary = RotaryEmbedding::of(&g, n).unwrap();
        assert!(!rotary.is_interleaved() && rotary.rotary_embedding_dim() == 0);
    }
}
