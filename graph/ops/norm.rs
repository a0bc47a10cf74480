//! Softmax and the normalizations.

use super::{resolve_axis, view};
use crate::ValueId;

view! {
    /// Softmax, LogSoftmax and Hardmax.
    Softmax: "Softmax" | "LogSoftmax" | "Hardmax" { "axis": Int }
}

impl Softmax<'_> {
    /// The default is 1 in versions 1 and 11, -1 in Softmax-13.
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    /// Before Softmax-13 the input is coerced to two dimensions, and the function works over all axes from
    /// [`Softmax::axis`] on.
    pub fn flattens(&self) -> bool {
        self.opset() < 13
    }

    /// Whether the function certainly works over the last axis alone.
    pub fn is_over_last_axis(&self) -> bool {
        over_last_axis(self.axis(), self.rank(0))
    }
}

view! {
    LayerNormalization: "LayerNormalization" { "axis": Int, "epsilon": Float, "stash_type": Int }
}

impl LayerNormalization<'_> {
    /// The first of the axes that are normalized (LayerNormalization-17).
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }

    /// The dtype number in which the mean and the variance are computed; FP32 by default.
    pub fn stash_type(&self) -> i64 {
        self.int("stash_type")
    }

    pub fn scale(&self) -> Option<ValueId> {
        self.input(1)
    }

    pub fn bias(&self) -> Option<ValueId> {
        self.input(2)
    }

    /// Whether it certainly normalizes the last axis alone.
    pub fn is_over_last_axis(&self) -> bool {
        over_last_axis(self.axis(), self.rank(0))
    }
}

view! {
    RmsNormalization: "RMSNormalization" { "axis": Int, "epsilon": Float, "stash_type": Int }
}

impl RmsNormalization<'_> {
    /// The first of the axes that are normalized (RMSNormalization-23).
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }

    pub fn stash_type(&self) -> i64 {
        self.int("stash_type")
    }

    pub fn scale(&self) -> Option<ValueId> {
        self.input(1)
    }

    /// Whether it certainly normalizes the last axis alone.
    pub fn is_over_last_axis(&self) -> bool {
        over_last_axis(self.axis(), self.rank(0))
    }
}

fn over_last_axis(axis: i64, rank: Option<usize>) -> bool {
    match rank {
        Some(rank) => resolve_axis(axis, rank).is_some_and(|a| a + 1 == rank),
        None => axis == -1,
    }
}

view! {
    BatchNormalization: "BatchNormalization" {
        "epsilon": Float, "momentum": Float, "training_mode": Int, "spatial": Int, "is_test": Int,
    }
}

impl BatchNormalization<'_> {
    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }

    pub fn momentum(&self) -> f32 {
        self.float("momentum")
    }

    /// Whether it uses the batch's own statistics: an attribute from BatchNormalization-14 on, shown by further outputs
    /// in 7 and 9, and the default before.
    pub fn is_training(&self) -> bool {
        match self.opset() {
            14.. => self.flag("training_mode"),
            7.. => self.node().outputs().iter().skip(1).any(Option::is_some),
            _ => !self.flag("is_test"),
        }
    }

    /// Whether statistics are per channel; always from BatchNormalization-9 on.
    pub fn is_spatial(&self) -> bool {
        self.opset() >= 9 || self.flag("spatial")
    }
}

view! {
    InstanceNormalization: "InstanceNormalization" { "epsilon": Float }
}

impl InstanceNormalization<'_> {
    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }
}

view! {
    GroupNormalization: "GroupNormalization" { "num_groups": Int, "epsilon": Float, "stash_type": Int }
}

impl GroupNormalization<'_> {
    /// Required; `None` if it is missing or not positive.
    pub fn num_groups(&self) -> Option<i64> {
        self.node().attrs().int("num_groups").filter(|&n| n > 0)
    }

    pub fn epsilon(&self) -> f32 {
        self.float("epsilon")
    }

    /// GroupNormalization-18 has one scale and bias for each group, GroupNormalization-21 one for each channel.
    pub fn scale_is_per_group(&self) -> bool {
        self.opset() < 21
    }
}

view! {
    LpNormalization: "LpNormalization" { "axis": Int, "p": Int }
}

impl LpNormalization<'_> {
    pub fn axis(&self) -> i64 {
        self.int("axis")
    }

    pub fn p(&self) -> i64 {
        self.int("p")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::Attrs;

    #[test]
    fn softmax_changed_its_meaning_in_13() {
        let (g, n) = node(12, "Softmax", Attrs::new(), &[]);
        let old = Softmax::of(&g, n).unwrap();
        assert_eq!(
            (old.axis(), old.flattens(), old.is_over_last_axis()),
            (1, true, false)
        );
        let (g, n) = node(13, "LogSoftmax", Attrs::new(), &[]);
        let new = Softmax::of(&g, n).unwrap();
        assert_eq!(
            (new.axis(), new.flattens(), new.is_over_last_axis()),
            (-1, false, true)
        );
        let (g, n) = node(13, "Softmax", Attrs::new().with("axis", 7), &[]);
        assert!(!Softmax::of(&g, n).unwrap().is_over_last_axis());
    }

    #[test]
    fn normalization_defaults() {
        let (g, n) = node(17, "LayerNormalization", Attrs::new(), &[]);
        let view = LayerNormalization::of(&g, n).unwrap();
        assert_eq!(
            (view.axis(), view.epsilon(), view.stash_type()),
            (-1, 1e-5, 1)
        );
        assert!(view.scale().is_none() && view.is_over_last_axis());
        let (g, n) = node(23, "RMSNormalization", Attrs::new().with("axis", 1), &[]);
        assert!(!RmsNormalization::of(&g, n).unwrap().is_over_last_axis());
        let (g, n) = node(18, "GroupNormalization", Attrs::new(), &[]);
        let view = GroupNormalization::of(&g, n).unwrap();
        assert!(view.num_groups().is_none() && view.scale_is_per_group());
    }

    #[test]
    fn batch_normalization_trains_by_outputs_then_by_attribute() {
        let (mut g, n) = node(9, "BatchNormalization", Attrs::new(), &[]);
        assert!(!BatchNormalization::of(&g, n).unwrap().is_training());
        g.push_output(n, "mean");
        assert!(BatchNormalization::of(&g, n).unwrap().is_training());
        g.opsets_mut().set("", 14);
        assert!(!BatchNormalization::of(&g, n).unwrap().is_training());
    }
}
