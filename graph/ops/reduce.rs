//! Reductions, ArgMax and ArgMin, TopK.

use super::{resolve_axes, view};

/// The axes that a node works over, as far as they can be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Axes {
    /// Every axis.
    All,
    /// No axis: the node does nothing but what it does to single elements.
    None,
    /// These, as they are written; negative ones count from the back.
    These(Vec<i64>),
}

impl Axes {
    /// The axes counted from the front, in rising order. `None` where one is out of range or named twice.
    pub fn resolve(&self, rank: usize) -> Option<Vec<usize>> {
        let mut axes = match self {
            Axes::All => (0..rank).collect(),
            Axes::None => Vec::new(),
            Axes::These(axes) => resolve_axes(axes, rank)?,
        };
        axes.sort_unstable();
        Some(axes)
    }

    /// Whether it is certainly the last axis alone.
    pub fn is_last(&self, rank: Option<usize>) -> bool {
        match (self, rank) {
            (_, Some(rank)) => rank > 0 && self.resolve(rank).is_some_and(|a| a == [rank - 1]),
            (Axes::These(axes), None) => *axes == [-1],
            _ => false,
        }
    }
}

/// Which reduction a [`Reduce`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReduceKind {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

/// The operators that a [`Reduce`] can be. ReduceSum is the last: its axes became an input before those of the others.
pub const REDUCTIONS: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
    "ReduceSum",
];

/// Those whose axes became an input in version 18.
pub const REDUCTIONS_OF_18: &[&str] = REDUCTIONS.split_at(REDUCTIONS.len() - 1).0;

view! {
    /// The `Reduce…` operators.
    Reduce: REDUCTIONS
    { "axes": Ints, "keepdims": Int, "noop_with_empty_axes": Int }
}

impl Reduce<'_> {
    pub fn kind(&self) -> ReduceKind {
        match self.node().op().name() {
            "ReduceL1" => ReduceKind::L1,
            "ReduceL2" => ReduceKind::L2,
            "ReduceLogSum" => ReduceKind::LogSum,
            "ReduceLogSumExp" => ReduceKind::LogSumExp,
            "ReduceMax" => ReduceKind::Max,
            "ReduceMean" => ReduceKind::Mean,
            "ReduceMin" => ReduceKind::Min,
            "ReduceProd" => ReduceKind::Prod,
            "ReduceSumSquare" => ReduceKind::SumSquare,
            _ => ReduceKind::Sum,
        }
    }

    /// Whether `axes` is an input: from ReduceSum-13 and, for the others, version 18 on.
    pub fn axes_are_input(&self) -> bool {
        let since = match self.kind() {
            ReduceKind::Sum => 13,
            _ => 18,
        };
        self.opset() >= since
    }

    /// The axes; `None` if they are an input that is not constant.
    pub fn axes(&self) -> Option<Axes> {
        if !self.axes_are_input() {
            return Some(match self.int_list("axes") {
                None | Some([]) => Axes::All,
                Some(axes) => Axes::These(axes.to_vec()),
            });
        }
        let axes = match self.input(1) {
            None => Vec::new(),
            Some(_) => self.ints(1)?,
        };
        Some(match (axes.is_empty(), self.flag("noop_with_empty_axes")) {
            (false, _) => Axes::These(axes),
            (true, false) => Axes::All,
            (true, true) => Axes::None,
        })
    }

    pub fn keepdims(&self) -> bool {
        self.flag("keepdims")
    }

    /// Whether it certainly reduces the last axis alone.
    pub fn is_over_last_axis(&self) -> bool {
        self.axes().is_some_and(|a| a.is_last(self.rank(0)))
    }
}

view! {
    /// ArgMax and ArgMin.
    ArgReduce: "ArgMax" | "ArgMin" { "axis": Int, "keepdims": Int, "select_last_index": Int }
}

impl ArgReduce<'_> {
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    pub fn keepdims(&self) -> bool {
        self.flag("keepdims")
    }

    /// From ArgMax-12 on.
    pub fn selects_last_index(&self) -> bool {
        self.flag("select_last_index")
    }
}

view! {
    TopK: "TopK" { "axis": Int, "k": Int, "largest": Int, "sorted": Int }
}

impl TopK<'_> {
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// An attribute before TopK-10, then an input; `None` if that is not constant.
    pub fn k(&self) -> Option<i64> {
        match self.opset() {
            ..10 => self.node().attrs().int("k"),
            _ => self.constant(1)?.as_i64(),
        }
    }

    pub fn is_largest(&self) -> bool {
        self.flag("largest")
    }

    pub fn is_sorted(&self) -> bool {
        self.flag("sorted")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Tensor};

    #[test]
    fn axes_moved_to_an_input_at_different_versions() {
        let attrs = Attrs::new().with("axes", vec![-1]);
        let (g, n) = node(17, "ReduceMean", attrs.clone(), &[]);
        let mean = Reduce::of(&g, n).unwrap();
        assert_eq!(mean.axes(), Some(Axes::These(vec![-1])));
        assert!(mean.is_over_last_axis() && mean.keepdims() && mean.kind() == ReduceKind::Mean);
        let (g, n) = node(13, "ReduceSum", attrs, &[]);
        assert_eq!(Reduce::of(&g, n).unwrap().axes(), Some(Axes::All));
        let (g, n) = node(
            18,
            "ReduceMean",
            Attrs::new(),
            &[Some(Tensor::vector(&[2i64]))],
        );
        assert!(Reduce::of(&g, n).unwrap().is_over_last_axis());
        let noop = Attrs::new().with("noop_with_empty_axes", 1);
        let (g, n) = node(18, "ReduceMax", noop, &[Some(Tensor::vector::<i64>(&[]))]);
        assert_eq!(Reduce::of(&g, n).unwrap().axes(), Some(Axes::None));
    }

    #[test]
    fn computed_or_impossible_axes_are_not_guessed() {
        let (mut g, n) = node(
            18,
            "ReduceMean",
            Attrs::new(),
            &[Some(Tensor::vector(&[9i64]))],
        );
        assert!(!Reduce::of(&g, n).unwrap().is_over_last_axis());
        let axes = g.add_input("axes", crate::Type::Unknown);
        g.set_input(n, 1, Some(axes));
        assert_eq!(Reduce::of(&g, n).unwrap().axes(), None);
        assert_eq!(Axes::These(vec![1, -1]).resolve(2), None);
        assert!(!Axes::All.is_last(Some(0)));
    }
}
