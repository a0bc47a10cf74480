//! Arithmetic with attributes: Gemm, Einsum, Gelu, Cast, Clip, Dropout.

use super::view;
use crate::{DType, ValueId};

view! {
    Gemm: "Gemm" { "alpha": Float, "beta": Float, "transA": Int, "transB": Int }
}

impl Gemm<'_> {
    pub fn alpha(&self) -> f32 {
        self.float("alpha")
    }

    pub fn beta(&self) -> f32 {
        self.float("beta")
    }

    pub fn trans_a(&self) -> bool {
        self.flag("transA")
    }

    pub fn trans_b(&self) -> bool {
        self.flag("transB")
    }

    /// Optional from Gemm-11 on.
    pub fn c(&self) -> Option<ValueId> {
        self.input(2)
    }
}

view! {
    Einsum: "Einsum" { "equation": Str }
}

impl Einsum<'_> {
    /// The equation, which is required; empty where it is missing.
    pub fn equation(&self) -> &str {
        self.str("equation")
    }
}

view! {
    Gelu: "Gelu" { "approximate": Str }
}

impl Gelu<'_> {
    /// Whether it is the `tanh` approximation (Gelu-20); by default it is exact.
    pub fn is_tanh(&self) -> bool {
        self.str("approximate") == "tanh"
    }
}

view! {
    LeakyRelu: "LeakyRelu" { "alpha": Float }
}

impl LeakyRelu<'_> {
    pub fn alpha(&self) -> f32 {
        self.float("alpha")
    }
}

view! {
    /// From Cast-6 on; before, `to` was a string.
    Cast: "Cast" { "to": Int, "saturate": Int, "round_mode": Str }
}

impl Cast<'_> {
    /// The dtype that it converts to; `None` for a missing or unknown number.
    pub fn to(&self) -> Option<DType> {
        let number = self.node().attrs().int("to")?;
        DType::from_onnx(i32::try_from(number).ok()?)
    }

    /// Whether values out of an 8-bit float's range are clamped (Cast-19).
    pub fn saturates(&self) -> bool {
        self.flag("saturate")
    }
}

view! {
    Clip: "Clip" { "min": Float, "max": Float }
}

impl Clip<'_> {
    /// The lower bound: an attribute before Clip-11, then an input. `None` if it is not constant;
    /// negative infinity if there is none.
    pub fn min(&self) -> Option<f64> {
        self.bound(1, "min", f64::NEG_INFINITY)
    }

    /// The upper bound, as [`Clip::min`].
    pub fn max(&self) -> Option<f64> {
        self.bound(2, "max", f64::INFINITY)
    }

    fn bound(&self, k: usize, name: &str, none: f64) -> Option<f64> {
        if self.opset() < 11 {
            let attr = self.node().attrs().float(name);
            return Some(attr.map_or(none, f64::from));
        }
        if self.input(k).is_none() {
            return Some(none);
        }
        let bound = self.constant(k)?;
        bound.as_f64().or_else(|| bound.as_i64().map(|v| v as f64))
    }
}

view! {
    Dropout: "Dropout" { "ratio": Float, "is_test": Int, "seed": Int }
}

impl Dropout<'_> {
    /// Whether it certainly passes its input through: Dropout-7 and 10 always do in inference; from Dropout-12 on when
    /// `training_mode` is left out or false, or the ratio is zero. Before 7, when `is_test` is set.
    pub fn is_inference(&self) -> bool {
        match self.opset() {
            12.. => {
                let off = |k: usize| self.constant(k).is_some_and(|t| t.as_i64() == Some(0));
                let ratio = self.constant(1).and_then(|t| t.as_f64());
                self.input(2).is_none() || off(2) || ratio == Some(0.0)
            }
            7.. => true,
            _ => self.flag("is_test"),
        }
    }

    pub fn mask(&self) -> Option<ValueId> {
        self.output(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Tensor};

    #[test]
    fn gemm_gelu_and_cast() {
        let (g, n) = node(13, "Gemm", Attrs::new().with("transB", 1), &[]);
        let gemm = Gemm::of(&g, n).unwrap();
        assert_eq!(
            (gemm.alpha(), gemm.beta(), gemm.trans_a(), gemm.trans_b()),
            (1.0, 1.0, false, true)
        );
        assert!(gemm.c().is_none());
        let (g, n) = node(20, "Gelu", Attrs::new().with("approximate", "tanh"), &[]);
        assert!(Gelu::of(&g, n).unwrap().is_tanh());
        let (g, n) = node(13, "Cast", Attrs::new().with("to", i64::MAX), &[]);
        assert_eq!(Cast::of(&g, n).unwrap().to(), None);
        let (g, n) = node(13, "Cast", Attrs::new().with("to", 10), &[]);
        assert_eq!(Cast::of(&g, n).unwrap().to(), Some(DType::F16));
    }

    #[test]
    fn clip_bounds_moved_to_inputs() {
        let (g, n) = node(10, "Clip", Attrs::new().with("min", 0.0f32), &[]);
        let clip = Clip::of(&g, n).unwrap();
        assert_eq!((clip.min(), clip.max()), (Some(0.0), Some(f64::INFINITY)));
        let (g, n) = node(
            11,
            "Clip",
            Attrs::new(),
            &[None, Some(Tensor::scalar(6i32))],
        );
        let clip = Clip::of(&g, n).unwrap();
        assert_eq!(
            (clip.min(), clip.max()),
            (Some(f64::NEG_INFINITY), Some(6.0))
        );
    }

    #[test]
    fn dropout_is_inference_unless_told() {
        let (g, n) = node(12, "Dropout", Attrs::new(), &[]);
        assert!(Dropout::of(&g, n).unwrap().is_inference());
        let ratio = Some(Tensor::scalar(0.5f32));
        let (g, n) = node(
            13,
            "Dropout",
            Attrs::new(),
            &[ratio.clone(), Some(Tensor::scalar(true))],
        );
        assert!(!Dropout::of(&g, n).unwrap().is_inference());
        let (g, n) = node(
            13,
            "Dropout",
            Attrs::new(),
            &[ratio, Some(Tensor::scalar(false))],
        );
        assert!(Dropout::of(&g, n).unwrap().is_inference());
        let (g, n) = node(6, "Dropout", Attrs::new(), &[]);
        assert!(!Dropout::of(&g, n).unwrap().is_inference());
    }
}
