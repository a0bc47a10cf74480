//! Slice, Split, Pad and Where.

use super::view;
use crate::{Tensor, ValueId};

/// One axis of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub axis: i64,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

impl Range {
    /// Whether it certainly keeps the whole axis, whatever its size.
    pub fn is_whole(&self) -> bool {
        // Exporters write "to the end" as any huge number.
        self.start == 0 && self.step == 1 && self.end >= i64::from(i32::MAX)
    }
}

view! {
    Slice: "Slice" { "starts": Ints, "ends": Ints, "axes": Ints }
}

impl Slice<'_> {
    fn part(&self, name: &str, k: usize) -> Option<Option<Vec<i64>>> {
        if self.opset() < 10 {
            return Some(self.int_list(name).map(<[i64]>::to_vec));
        }
        match self.input(k) {
            None => Some(None),
            Some(_) => self.ints(k).map(Some),
        }
    }

    pub fn starts(&self) -> Option<Vec<i64>> {
        self.part("starts", 1)?
    }

    pub fn ends(&self) -> Option<Vec<i64>> {
        self.part("ends", 2)?
    }

    /// The axes, the first ones by default; `None` if they are not constant.
    pub fn axes(&self) -> Option<Vec<i64>> {
        match self.part("axes", 3)? {
            Some(axes) => Some(axes),
            None => Some((0..self.starts()?.len() as i64).collect()),
        }
    }

    /// The steps, from Slice-10 on; 1 by default. `None` if they are not constant.
    pub fn steps(&self) -> Option<Vec<i64>> {
        match if self.opset() < 10 {
            None
        } else {
            self.part("", 4)?
        } {
            Some(steps) => Some(steps),
            None => Some(vec![1; self.starts()?.len()]),
        }
    }

    /// All axes of the slice; `None` unless everything is constant and of one length.
    pub fn ranges(&self) -> Option<Vec<Range>> {
        let (starts, ends) = (self.starts()?, self.ends()?);
        let (axes, steps) = (self.axes()?, self.steps()?);
        let n = starts.len();
        if ends.len() != n || axes.len() != n || steps.len() != n {
            return None;
        }
        let parts = starts.into_iter().zip(ends).zip(axes).zip(steps);
        let range = |(((start, end), axis), step)| Range {
            axis,
            start,
            end,
            step,
        };
        Some(parts.map(range).collect())
    }
}

view! {
    Split: "Split" { "axis": Int, "split": Ints, "num_outputs": Int }
}

impl Split<'_> {
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// The sizes where they are written: an attribute before Split-13, then an input. `None` if they are left out (equal
    /// parts) or not constant.
    pub fn sizes(&self) -> Option<Vec<i64>> {
        match self.opset() {
            ..13 => self.int_list("split").map(<[i64]>::to_vec),
            _ => self.ints(1),
        }
    }

    /// Whether the sizes are left out: as many equal parts as there are outputs.
    pub fn is_even(&self) -> bool {
        match self.opset() {
            ..13 => self.int_list("split").is_none(),
            _ => self.input(1).is_none(),
        }
    }
}

view! {
    Pad: "Pad" { "mode": Str, "pads": Ints, "value": Float, "paddings": Ints }
}

impl<'g> Pad<'g> {
    pub fn mode(&self) -> &'g str {
        self.str("mode")
    }

    /// Sizes before, then behind each axis: an attribute before Pad-11, then an input. `None` if they are not constant.
    pub fn pads(&self) -> Option<Vec<i64>> {
        match self.opset() {
            ..2 => self.int_list("paddings").map(<[i64]>::to_vec),
            2..11 => self.int_list("pads").map(<[i64]>::to_vec),
            _ => self.ints(1),
        }
    }

    /// The axes that [`Pad::pads`] speaks of, an input from Pad-18 on; `Some(None)` for all, `None` if not constant.
    pub fn axes(&self) -> Option<Option<Vec<i64>>> {
        match self.input(3) {
            Some(_) if self.opset() >= 18 => self.ints(3).map(Some),
            _ => Some(None),
        }
    }

    /// What is filled in: an attribute before Pad-11, then an input. `Some(None)` for zero by default, `None` if it is
    /// not constant.
    pub fn value(&self) -> Option<Option<Tensor>> {
        if self.opset() < 11 {
            let value = self.node().attrs().float("value");
            return Some(value.map(Tensor::scalar));
        }
        match self.input(2) {
            None => Some(None),
            Some(_) => self.constant(2).cloned().map(Some),
        }
    }
}

view! {
    /// An operator without attributes; its view names its operands.
    Where: "Where" {}
}

impl Where<'_> {
    pub fn condition(&self) -> Option<ValueId> {
        self.input(0)
    }

    /// The value where the condition holds.
    pub fn x(&self) -> Option<ValueId> {
        self.input(1)
    }

    /// The value where the condition does not hold.
    pub fn y(&self) -> Option<ValueId> {
        self.input(2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::Attrs;

    fn ints(v: &[i64]) -> Option<Tensor> {
        Some(Tensor::vector(v))
    }

    #[test]
    fn slices_of_both_forms() {
        let attrs = Attrs::new().with("starts", vec![1]).with("ends", vec![3]);
        let (g, n) = node(9, "Slice", attrs.with("axes", vec![-1]), &[]);
        let want = Range {
            axis: -1,
            start: 1,
            end: 3,
            step: 1,
        };
        assert_eq!(Slice::of(&g, n).unwrap().ranges(), Some(vec![want]));
        let inputs = [ints(&[1]), ints(&[3]), ints(&[-1])];
        let (g, n) = node(10, "Slice", Attrs::new(), &inputs);
        assert_eq!(Slice::of(&g, n).unwrap().ranges(), Some(vec![want]));
        let (g, n) = node(
            13,
            "Slice",
            Attrs::new(),
            &[ints(&[0, 0]), ints(&[i64::MAX, 2])],
        );
        let ranges = Slice::of(&g, n).unwrap().ranges().unwrap();
        assert!(ranges[0].is_whole() && !ranges[1].is_whole() && ranges[1].axis == 1);
        let (g, n) = node(13, "Slice", Attrs::new(), &[ints(&[0, 0]), ints(&[1])]);
        assert_eq!(Slice::of(&g, n).unwrap().ranges(), None);
        let (g, n) = node(13, "Slice", Attrs::new(), &[]);
        assert_eq!(Slice::of(&g, n).unwrap().ranges(), None);
    }

    #[test]
    fn split_and_pad_of_both_forms() {
        let (g, n) = node(11, "Split", Attrs::new().with("split", vec![1, 2]), &[]);
        assert_eq!(Split::of(&g, n).unwrap().sizes(), Some(vec![1, 2]));
        let (g, n) = node(18, "Split", Attrs::new().with("num_outputs", 2), &[]);
        assert!(Split::of(&g, n).unwrap().is_even());
        let attrs = Attrs::new().with("pads", vec![0, 1]).with("value", 2.0f32);
        let (g, n) = node(10, "Pad", attrs, &[]);
        let pad = Pad::of(&g, n).unwrap();
        assert_eq!((pad.pads(), pad.mode()), (Some(vec![0, 1]), "constant"));
        assert_eq!(pad.value().flatten().and_then(|t| t.as_f64()), Some(2.0));
        let (g, n) = node(18, "Pad", Attrs::new(), &[ints(&[0, 1]), None, ints(&[2])]);
        let pad = Pad::of(&g, n).unwrap();
        assert!(pad.value().is_some_and(|v| v.is_none()));
        assert_eq!(pad.axes(), Some(Some(vec![2])));
    }
}
