//! Layer normalization over the last axis, from mean and variance spelled out.

use std::sync::OnceLock;

use kiln_graph::Graph;

use crate::fusion::Fusion;
use crate::pass::Miss;
use crate::pattern::Match;

/// LayerNormalization-17 (ONNX `docs/Operators.md`); Ba, Kiros and Hinton, "Layer Normalization", 2016.
pub static FUSE_LAYER_NORM: Fusion = Fusion {
    name: "fuse-layer-norm",
    about: "ReduceMean-Sub-Pow-ReduceMean-Sqrt-Div chains become LayerNormalization",
    why: "LayerNormalization(x) = (x - mean) / √(variance + ε) · scale + bias over the last axis. Scale and bias must be \
          vectors of that axis' size.",
    bodies: &[
        "LayerNormalization <epsilon, axis: int = -1> (x, scale, bias) => (y) {
    m = ReduceMean(x, {-1})
    d = Sub(x, m)
    q = Pow(d, {2.0})
    v = ReduceMean(q, {-1})
    a = Add(v, {@epsilon})
    s = Sqrt(a)
    n = Div(d, s)
    w = Mul(n, scale)
    y = Add(w, bias)
}",
        "LayerNormalization <epsilon, axis: int = -1> (x, scale, bias) => (y) {
    m = ReduceMean(x, {-1})
    d = Sub(x, m)
    q = Mul(d, d)
    v = ReduceMean(q, {-1})
    a = Add(v, {@epsilon})
    s = Sqrt(a)
    n = Div(d, s)
    w = Mul(n, scale)
    y = Add(w, bias)
}",
        "LayerNormalization <epsilon, axis: int = -1> (x, scale, bias) => (y) {
    m = ReduceMean(x, {-1})
    d = Sub(x, m)
    q = Mul(d, d)
    v = ReduceMean(q, {-1})
    a = Add(v, {@epsilon})
    s = Sqrt(a)
    r = Reciprocal(s)
    n = Mul(d, r)
    w = Mul(n, scale)
    y = Add(w, bias)
}",
    ],
    guard: vectors_of_the_last_axis,
    parsed: OnceLock::new(),
};

fn vectors_of_the_last_axis(g: &Graph, m: &Match) -> Result<(), Miss> {
    let x = m.input(0)?;
    let size = g
        .value(x)
        .ty()
        .shape()
        .and_then(|s| s.last())
        .and_then(|d| d.known());
    let size = size.ok_or_else(|| Miss::at(x, 9, "the size of its last axis is unknown"))?;
    for k in [1, 2] {
        let v = m.input(k)?;
        let shape = g.value(v).ty().shape().unwrap_or_default();
        if !matches!(shape, [d] if d.known() == Some(size)) {
            return Err(Miss::at(
                v,
                9,
                format!("it is no vector of {size} elements"),
            ));
        }
    }
    Ok(())
}
