//! Views of operators that rearrange: transposes, reshapes, joins.

use super::{resolve_axis, view};
use crate::{DType, Tensor};

view! {
    Transpose: "Transpose" { "perm": Ints }
}

impl Transpose<'_> {
    /// The permutation; reversed order by default, for which the rank must be known. `None` if it is none.
    pub fn perm(&self) -> Option<Vec<usize>> {
        let perm: Vec<usize> = match self.int_list("perm") {
            Some(perm) => {
                let perm = perm.iter().map(|&p| resolve_axis(p, perm.len()));
                perm.collect::<Option<_>>()?
            }
            None => (0..self.rank(0)?).rev().collect(),
        };
        let mut seen = vec![false; perm.len()];
        for &p in &perm {
            if std::mem::replace(seen.get_mut(p)?, true) {
                return None;
            }
        }
        Some(perm)
    }

    /// Whether it certainly exchanges the last two axes and nothing else.
    pub fn swaps_last_two(&self) -> bool {
        self.perm().is_some_and(|perm| {
            let n = perm.len();
            let swapped = |k: usize| match n - k {
                1 => k - 1,
                2 => k + 1,
                _ => k,
            };
            n >= 2 && perm.iter().enumerate().all(|(k, &p)| p == swapped(k))
        })
    }
}

view! {
    Reshape: "Reshape" { "allowzero": Int, "shape": Ints }
}

impl Reshape<'_> {
    /// Whether 0 means an empty dimension (Reshape-14) rather than the input's.
    pub fn allowzero(&self) -> bool {
        self.flag("allowzero")
    }

    /// The wanted shape: an attribute before Reshape-5, then an input; `None` if that is not constant.
    pub fn shape(&self) -> Option<Vec<i64>> {
        match self.opset() {
            ..5 => self.int_list("shape").map(<[i64]>::to_vec),
            _ => self.ints(1),
        }
    }
}

view! {
    Squeeze: "Squeeze" { "axes": Ints }
}

impl Squeeze<'_> {
    /// The removed axes: an attribute before Squeeze-13, then an input. `None` if they are not constant, and where they
    /// are left out, which removes every axis of size 1.
    pub fn axes(&self) -> Option<Vec<i64>> {
        match self.opset() {
            ..13 => self.int_list("axes").map(<[i64]>::to_vec),
            _ => self.ints(1),
        }
    }

    /// Whether the axes are left out: every axis of size 1 goes.
    pub fn squeezes_all(&self) -> bool {
        match self.opset() {
            ..13 => self.int_list("axes").is_none_or(<[i64]>::is_empty),
            _ => self.input(1).is_none(),
        }
    }
}

view! {
    Unsqueeze: "Unsqueeze" { "axes": Ints }
}

impl Unsqueeze<'_> {
    /// The inserted axes, counted in the result: an attribute before Unsqueeze-13, then an input. `None` if they are not
    /// constant.
    pub fn axes(&self) -> Option<Vec<i64>> {
        match self.opset() {
            ..13 => self.int_list("axes").map(<[i64]>::to_vec),
            _ => self.ints(1),
        }
    }
}

view! {
    Concat: "Concat" { "axis": Int }
}

impl Concat<'_> {
    /// Required from Concat-4 on, 1 before; `None` if it is missing.
    pub fn axis(&self) -> Option<i64> {
        let default = (self.opset() < 4).then_some(1);
        self.node().attrs().int("axis").or(default)
    }
}

view! {
    /// Gather, GatherElements and the scatters by element.
    Gather: "Gather" | "GatherElements" | "ScatterElements" | "Scatter" { "axis": Int }
}

impl Gather<'_> {
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// The one constant index, if it is a scalar: a `Gather` then takes one slice and drops the axis.
    pub fn scalar_index(&self) -> Option<i64> {
        self.constant(1).filter(|t| t.rank() == 0)?.as_i64()
    }
}

view! {
    OneHot: "OneHot" { "axis": Int }
}

impl OneHot<'_> {
    /// Where the new axis stands in the result.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }
}

view! {
    EyeLike: "EyeLike" { "k": Int, "dtype": Int }
}

impl EyeLike<'_> {
    /// The diagonal of ones: 0 is the main one, above it are positive ones.
    pub fn k(&self) -> i64 {
        self.int("k")
    }
}

view! {
    GatherND: "GatherND" { "batch_dims": Int }
}

impl GatherND<'_> {
    /// How many leading axes data and indices share, from GatherND-12 on.
    pub fn batch_dims(&self) -> i64 {
        self.int("batch_dims")
    }
}

view! {
    Shape: "Shape" { "start": Int, "end": Int }
}

impl Shape<'_> {
    /// The first axis, from Shape-15 on; out-of-range values are clamped.
    pub fn start(&self) -> i64 {
        self.int("start")
    }

    /// One past the last axis, from Shape-15 on; `None` for all that follow.
    pub fn end(&self) -> Option<i64> {
        self.node().attrs().int("end")
    }

    /// The axes whose sizes it gives, for an input of this rank.
    pub fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let clamp = |axis: i64| {
            let axis = if axis < 0 {
                axis.saturating_add(rank as i64)
            } else {
                axis
            };
            axis.clamp(0, rank as i64) as usize
        };
        let start = clamp(self.start());
        let end = self.end().map_or(rank, clamp);
        start..end.max(start)
    }
}

view! {
    Flatten: "Flatten" { "axis": Int }
}

impl Flatten<'_> {
    /// The first axis of the second dimension; equal to the rank is allowed.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }
}

view! {
    /// An operator without attributes; its view is its operands.
    Expand: "Expand" {}
}

impl Expand<'_> {
    /// The shape to broadcast with, if it is constant.
    pub fn shape(&self) -> Option<Vec<i64>> {
        self.ints(1)
    }
}

view! {
    ConstantOfShape: "ConstantOfShape" { "value": Tensor }
}

impl ConstantOfShape<'_> {
    /// The one element that fills the result; FP32 zero by default.
    pub fn value(&self) -> Tensor {
        let value = self.node().attrs().tensor("value").cloned();
        value.unwrap_or_else(|| Tensor::scalar(0f32))
    }

    pub fn to(&self) -> DType {
        self.value().dtype()
    }

    /// The shape, if it is constant.
    pub fn shape(&self) -> Option<Vec<i64>> {
        self.ints(0)
    }
}

view! {
    Trilu: "Trilu" { "upper": Int }
}

impl Trilu<'_> {
    pub fn is_upper(&self) -> bool {
        self.flag("upper")
    }

    /// The diagonal's offset, 0 by default; `None` if it is not constant.
    pub fn k(&self) -> Option<i64> {
        match self.input(1) {
            None => Some(0),
            Some(_) => self.constant(1)?.as_i64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::Attrs;

    #[test]
    fn permutations() {
        let (g, n) = node(13, "Transpose", Attrs::new(), &[]);
        let reversed = Transpose::of(&g, n).unwrap();
        assert_eq!(reversed.perm(), Some(vec![2, 1, 0]));
        assert!(!reversed.swaps_last_two());
        let perm = |p: &[i64]| node(13, "Transpose", Attrs::new().with("perm", p.to_vec()), &[]);
        let (g, n) = perm(&[0, 1, 3, 2]);
        assert!(Transpose::of(&g, n).unwrap().swaps_last_two());
        let (g, n) = perm(&[1, 0]);
        assert!(Transpose::of(&g, n).unwrap().swaps_last_two());
        for broken in [&[0, 0, 1][..], &[0, 5], &[i64::MIN, 0]] {
            let (g, n) = perm(broken);
            assert_eq!(Transpose::of(&g, n).unwrap().perm(), None);
        }
        let (g, n) = perm(&[]);
        assert!(!Transpose::of(&g, n).unwrap().swaps_last_two());
    }

    #[test]
    fn axes_before_and_after_13() {
        let axes = Attrs::new().with("axes", vec![0, 2]);
        let (g, n) = node(11, "Unsqueeze", axes.clone(), &[]);
        assert_eq!(Unsqueeze::of(&g, n).unwrap().axes(), Some(vec![0, 2]));
        let (g, n) = node(13, "Squeeze", axes, &[]);
        let squeeze = Squeeze::of(&g, n).unwrap();
        assert!(squeeze.axes().is_none() && squeeze.squeezes_all());
        let (g, n) = node(
            13,
            "Squeeze",
            Attrs::new(),
            &[Some(Tensor::vector(&[1i64]))],
        );
        assert_eq!(Squeeze::of(&g, n).unwrap().axes(), Some(vec![1]));
    }

    #[test]
    fn shape_slices_are_clamped() {
        let (g, n) = node(
            15,
            "Shape",
            Attrs::new().with("start", -2).with("end", 9),
            &[],
        );
        assert_eq!(Shape::of(&g, n).unwrap().range(3), 1..3);
        let (g, n) = node(
            15,
            "Shape",
            Attrs::new().with("start", 2).with("end", 1),
            &[],
        );
        assert_eq!(Shape::of(&g, n).unwrap().range(3), 2..2);
        let (g, n) = node(15, "Shape", Attrs::new().with("start", i64::MIN), &[]);
        assert_eq!(Shape::of(&g, n).unwrap().range(3), 0..3);
    }

    #[test]
    fn gather_trilu_concat() {
        let (g, n) = node(13, "Gather", Attrs::new(), &[Some(Tensor::scalar(-1i64))]);
        let gather = Gather::of(&g, n).unwrap();
        assert_eq!((gather.axis(), gather.scalar_index()), (0, Some(-1)));
        let (g, n) = node(13, "Gather", Attrs::new(), &[Some(Tensor::vector(&[1i64]))]);
        assert_eq!(Gather::of(&g, n).unwrap().scalar_index(), None);
        let (g, n) = node(13, "GatherND", Attrs::new(), &[]);
        assert_eq!(GatherND::of(&g, n).unwrap().batch_dims(), 0);
        let (g, n) = node(14, "Trilu", Attrs::new(), &[]);
        let trilu = Trilu::of(&g, n).unwrap();
        assert!(trilu.is_upper() && trilu.k() == Some(0));
        let (g, n) = node(13, "Concat", Attrs::new(), &[]);
        assert_eq!(Concat::of(&g, n).unwrap().axis(), None);
    }
}
