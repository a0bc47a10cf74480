//! The swish activations: SiLU, and the sigmoid approximation of Gelu.

use std::sync::OnceLock;

use crate::core::expand::Call;
use crate::core::fusion::{Fusion, Parsed};

/// Swish-24 (ONNX `docs/Operators.md`); Ramachandran, Zoph and Le, "Searching for Activation Functions", 2017.
pub static FUSE_SWISH: Fusion = Fusion {
    name: "fuse-swish",
    about: "Sigmoid-Mul becomes internal.Swish, with QuickGelu's factor or without",
    why: "Swish(x) = x · σ(alpha · x): SiLU with alpha = 1, QuickGelu with alpha = 1.702. In a gated unit, the product with \
          the other branch stays.",
    bodies: &[
        "<domain: \"internal\">
Swish <alpha: float = 1.0> (x) => (y) {
    s = Sigmoid(x)
    y = Mul(x, s)
}",
        "<domain: \"internal\">
Swish <alpha> (x) => (y) {
    t = Mul(x, {@alpha})
    s = Sigmoid(t)
    y = Mul(x, s)
}",
        "<domain: \"internal\">
Swish <alpha: float = 1.0> (x) => (y) {
    n = Neg(x)
    e = Exp(n)
    a = Add(e, {1.0})
    y = Div(x, a)
}",
    ],
    guard: |_, _| Ok(()),
    build: None,
    parsed: OnceLock::new(),
};

/// The body that says what a call is.
pub(crate) fn body(call: &Call<'_>) -> Option<&'static Parsed> {
    let plain = call.attrs.float("alpha").is_none_or(|alpha| alpha == 1.0);
    FUSE_SWISH.functions().get(if plain { 0 } else { 1 })
}
