//! Layer normalization over the last axis, from mean and variance spelled out.

use std::sync::OnceLock;

use super::vectors_of_the_last_axis;
use crate::core::fusion::Fusion;

/// LayerNormalization-17 (ONNX `docs/Operators.md`) in two steps, so that a bias may be missing; Ba, Kiros and Hinton,
/// "Layer Normalization", 2016.
pub static FUSE_LAYER_NORM: Fusion = Fusion {
    name: "fuse-layer-norm",
    about: "ReduceMean-Sub-Mul-ReduceMean-Sqrt-Div chains become LayerNormalization",
    why: "LayerNormalization(x) = (x - mean) / √(variance + ε) · scale + bias over the last axis. Scale and bias must be \
          vectors of that axis' size; 16-bit values may be widened for the statistics.",
    bodies: &[
        "LayerNormalization <epsilon, axis: int = -1> (x, scale) => (y) {
    m = ReduceMean(x, {-1})
    d = Sub(x, m)
    q = Mul(d, d)
    v = ReduceMean(q, {-1})
    a = Add(v, {@epsilon})
    s = Sqrt(a)
    n = Div(d, s)
    y = Mul(n, scale)
}",
        "LayerNormalization <epsilon, axis: int = -1> (x, scale) => (y) {
    c = Cast <to = 1> (x)
    m = ReduceMean(c, {-1})
    d = Sub(c, m)
    q = Mul(d, d)
    v = ReduceMean(q, {-1})
    a = Add(v, {@epsilon})
    s = Sqrt(a)
    n = Div(d, s)
    k = Cast <to: int = @T> (n)
    y = Mul(k, scale)
}",
        "LayerNormalization <epsilon, axis: int = -1> (x, scale, bias) => (y) {
    n = LayerNormalization <axis = -1, epsilon: float = @epsilon> (x, scale)
    y = Add(n, bias)
}",
    ],
    guard: vectors_of_the_last_axis,
    build: None,
    parsed: OnceLock::new(),
};
