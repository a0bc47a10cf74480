//! The Gaussian error linear unit, from the ways exporters spell it.

use std::sync::OnceLock;

use crate::fusion::Fusion;

/// Gelu-20 (ONNX `docs/Operators.md`); Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
pub static FUSE_GELU: Fusion = Fusion {
    name: "fuse-gelu",
    about: "Div-Erf-Add-Mul-Mul and Pow-Tanh chains become Gelu",
    why: "Gelu(x) = x/2 · (1 + erf(x/√2)); with `approximate = \"tanh\"`, x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).",
    bodies: &[
        "Gelu (x) => (y) {
    d = Div(x, {1.41421356})
    e = Erf(d)
    a = Add(e, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
        "Gelu (x) => (y) {
    d = Div(x, {1.41421356})
    e = Erf(d)
    a = Add(e, {1.0})
    h = Mul(x, {0.5})
    y = Mul(h, a)
}",
        "Gelu (x) => (y) {
    d = Div(x, {1.41421356})
    e = Erf(d)
    a = Add(e, {1.0})
    h = Mul(a, {0.5})
    y = Mul(x, h)
}",
        "Gelu (x) => (y) {
    d = Mul(x, {0.70710678})
    e = Erf(d)
    a = Add(e, {1.0})
    m = Mul(x, a)
    y = Mul(m, {0.5})
}",
        "Gelu (x) => (y) {
    d = Mul(x, {0.70710678})
    e = Erf(d)
    a = Add(e, {1.0})
    h = Mul(x, {0.5})
    y = Mul(h, a)
}",
        "Gelu (x) => (y) {
    d = Mul(x, {0.70710678})
    e = Erf(d)
    a = Add(e, {1.0})
    h = Mul(a, {0.5})
    y = Mul(x, h)
}",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {
    c = Pow(x, {3.0})
    s = Mul(c, {0.044715})
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
    h = Mul(x, {0.5})
    y = Mul(h, a)
}",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {
    q = Mul(x, x)
    c = Mul(q, x)
    s = Mul(c, {0.044715})
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
    h = Mul(x, {0.5})
    y = Mul(h, a)
}",
    ],
    guard: |_, _| Ok(()),
    parsed: OnceLock::new(),
};
