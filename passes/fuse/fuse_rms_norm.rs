//! Root-mean-square normalization over the last axis, spelled out.

use std::sync::OnceLock;

use kiln_graph::{DType, Graph};

use super::vectors_of_the_last_axis;
use crate::core::expand::Call;
use crate::core::fusion::{Fusion, Parsed};
use crate::core::pass::Miss;
use crate::core::pattern::Match;

/// RMSNormalization-23 (ONNX `docs/Operators.md`) step by step, so that Casts and a scale may follow
/// or not; Zhang and
/// Sennrich, "Root Mean Square Layer Normalization", 2019.
pub static FUSE_RMS_NORM: Fusion = Fusion {
    name: "fuse-rms-norm",
    about: "Mul-ReduceMean-Sqrt-Div chains become internal.RMSNormalization",
    why: "RMSNormalization(x) = x / √(mean(x²) + ε) · scale over the last axis. The scale must be a vector of that axis' \
          size; 16-bit values may be widened for the division.",
    bodies: &[
        "<domain: \"internal\">
RMSNormalization <epsilon, axis: int = -1> (x) => (y) {
    q = Mul(x, x)
    m = ReduceMean(q, {-1})
    a = Add(m, {@epsilon})
    s = Sqrt(a)
    y = Div(x, s)
}",
        "<domain: \"internal\">
RMSNormalization <epsilon, axis: int = -1> (x) => (y) {
    c = Cast <to = 1> (x)
    n = internal.RMSNormalization <axis = -1, epsilon: float = @epsilon> (c)
    y = Cast <to: int = @T> (n)
}",
        "<domain: \"internal\">
RMSNormalization <epsilon, axis: int = -1> (x, scale) => (y) {
    n = internal.RMSNormalization <axis = -1, epsilon: float = @epsilon> (x)
    y = Mul(n, scale)
}",
    ],
    guard,
    build: None,
    parsed: OnceLock::new(),
};

fn guard(g: &Graph, m: &Match) -> Result<(), Miss> {
    match m.named("scale") {
        Ok(_) => vectors_of_the_last_axis(g, m),
        Err(_) => Ok(()),
    }
}

/// The body that says what a call is: of its scale first, then of its Casts.
pub(crate) fn body(call: &Call<'_>) -> Option<&'static Parsed> {
    let which = match call.inputs {
        [_, Some(_)] => 2,
        [Some(Some(DType::F16 | DType::BF16)), ..] => 1,
        _ => 0,
    };
    FUSE_RMS_NORM.functions().get(which)
}
