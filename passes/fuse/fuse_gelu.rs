//! The Gaussian error linear unit, from the ways exporters spell it.

use std::sync::OnceLock;

use crate::core::fusion::Fusion;

/// Gelu-20 (ONNX `docs/Operators.md`); Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
pub static FUSE_GELU: Fusion = Fusion {
    name: "fuse-gelu",
    about: "Div-Erf-Add-Mul-Mul and Pow-Tanh chains become Gelu",
    why: "Gelu(x) = x/2 · (1 + erf(x/√2)); with `approximate = \"tanh\"`, x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).",
    bodies: &[
        "Gelu (x) => (y) {
    d = Mul(x, {0.70710678})
    e = Erf(d)
    a = Add(e, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {
    q = Mul(x, x)
    c = Mul(q, x)
    s = Mul(c, {0.044715})
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
        // Megatron's and Bloom's, as written: √(2/π) · x · (1 + 0.044715 · x · x).
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {
    q = Mul(x, x)
    c = Mul(q, {0.044715})
    p = Add(c, {1.0})
    k = Mul(x, {0.7978845608})
    t = Mul(k, p)
    u = Tanh(t)
    a = Add(u, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
        // The factors folded together: 0.7978845608 · 0.044715.
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {
    q = Mul(x, x)
    c = Mul(q, {0.0356774081})
    p = Add(c, {0.7978845608})
    t = Mul(x, p)
    u = Tanh(t)
    a = Add(u, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
    ],
    guard: |_, _| Ok(()),
    build: None,
    parsed: OnceLock::new(),
};
