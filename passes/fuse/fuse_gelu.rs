//! The Gaussian error linear unit, from the ways exporters spell it.

use std::sync::OnceLock;

use crate::core::fusion::Fusion;

/// Each inner spelling of `a = 1 + erf(…)` or `a = 1 + tanh(…)` with the three orders in which `x`, `a` and ½ are
/// multiplied.
macro_rules! in_every_order {
    ($($head:literal: $inner:literal,)+) => {
        &[$(
            concat!($head, $inner, "    m = Mul(x, a)\n    y = Mul(m, {0.5})\n}"),
            concat!($head, $inner, "    h = Mul(x, {0.5})\n    y = Mul(h, a)\n}"),
            concat!($head, $inner, "    h = Mul(a, {0.5})\n    y = Mul(x, h)\n}"),
        )+]
    };
}

/// Gelu-20 (ONNX `docs/Operators.md`); Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
pub static FUSE_GELU: Fusion = Fusion {
    name: "fuse-gelu",
    about: "Div-Erf-Add-Mul-Mul and Pow-Tanh chains become Gelu",
    why: "Gelu(x) = x/2 · (1 + erf(x/√2)); with `approximate = \"tanh\"`, x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).",
    bodies: in_every_order![
        "Gelu (x) => (y) {\n": "    d = Div(x, {1.41421356})
    e = Erf(d)
    a = Add(e, {1.0})
",
        "Gelu (x) => (y) {\n": "    d = Mul(x, {0.70710678})
    e = Erf(d)
    a = Add(e, {1.0})
",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    c = Pow(x, {3.0})
    s = Mul(c, {0.044715})
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    q = Mul(x, x)
    c = Mul(q, x)
    s = Mul(c, {0.044715})
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
",
        // The factor on one of the three: JAX's `0.044715 * x * x * x`, and its other orders.
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    k = Mul(x, {0.044715})
    c = Mul(k, x)
    s = Mul(c, x)
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    k = Mul(x, {0.044715})
    q = Mul(x, x)
    s = Mul(q, k)
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    q = Mul(x, x)
    c = Mul(q, {0.044715})
    s = Mul(c, x)
    p = Add(x, s)
    t = Mul(p, {0.7978845608})
    u = Tanh(t)
    a = Add(u, {1.0})
",
        // Megatron's and Bloom's, as written: √(2/π) · x · (1 + 0.044715 · x · x).
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    k = Mul(x, {0.7978845608})
    c = Mul(x, {0.044715})
    q = Mul(c, x)
    p = Add(q, {1.0})
    t = Mul(k, p)
    u = Tanh(t)
    a = Add(u, {1.0})
",
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    k = Mul(x, {0.7978845608})
    q = Mul(x, x)
    c = Mul(q, {0.044715})
    p = Add(c, {1.0})
    t = Mul(k, p)
    u = Tanh(t)
    a = Add(u, {1.0})
",
        // The factors folded together: 0.7978845608 · 0.044715.
        "Gelu <approximate: string = \"tanh\"> (x) => (y) {\n": "    q = Mul(x, x)
    c = Mul(q, {0.0356774081})
    p = Add(c, {0.7978845608})
    t = Mul(x, p)
    u = Tanh(t)
    a = Add(u, {1.0})
",
    ],
    guard: |_, _| Ok(()),
    parsed: OnceLock::new(),
};
