//! Resize.

use super::view;

view! {
    /// Resize; Upsample has fewer attributes and is none of this view.
    Resize: "Resize" {
        "antialias": Int, "axes": Ints, "coordinate_transformation_mode": Str, "cubic_coeff_a": Float,
        "exclude_outside": Int, "extrapolation_value": Float, "keep_aspect_ratio_policy": Str, "mode": Str,
        "nearest_mode": Str,
    }
}

impl<'g> Resize<'g> {
    pub fn mode(&self) -> &'g str {
        self.str("mode")
    }

    /// `half_pixel` by default from Resize-11 on; Resize-10 knows only what was later named `asymmetric`.
    pub fn coordinates(&self) -> &'g str {
        match self.opset() {
            ..11 => "asymmetric",
            _ => self.str("coordinate_transformation_mode"),
        }
    }

    /// From Resize-11 on.
    pub fn nearest_mode(&self) -> &'g str {
        self.str("nearest_mode")
    }

    /// The factors, if they are constant and used.
    pub fn scales(&self) -> Option<Vec<f64>> {
        let k = if self.opset() < 11 { 1 } else { 2 };
        self.constant(k)?.to_f64s().filter(|s| !s.is_empty())
    }

    /// The wanted sizes, if they are constant and used (Resize-11).
    pub fn sizes(&self) -> Option<Vec<i64>> {
        if self.opset() < 11 {
            return None;
        }
        self.ints(3).filter(|s| !s.is_empty())
    }

    /// The axes that scales or sizes speak of (Resize-18); `None` for all.
    pub fn axes(&self) -> Option<&'g [i64]> {
        self.int_list("axes")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Tensor};

    #[test]
    fn inputs_moved_in_11() {
        let scales = Some(Tensor::vector(&[1f32, 2.0, 2.0]));
        let (g, n) = node(10, "Resize", Attrs::new(), std::slice::from_ref(&scales));
        let old = Resize::of(&g, n).unwrap();
        assert_eq!(
            (old.coordinates(), old.scales()),
            ("asymmetric", Some(vec![1.0, 2.0, 2.0]))
        );
        let (g, n) = node(13, "Resize", Attrs::new(), &[None, scales]);
        let new = Resize::of(&g, n).unwrap();
        assert_eq!((new.coordinates(), new.mode()), ("half_pixel", "nearest"));
        assert!(new.scales().is_some() && new.sizes().is_none());
    }
}
