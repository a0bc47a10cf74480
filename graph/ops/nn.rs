//! Convolutions and pooling.

use super::view;
use crate::ValueId;

/// How a convolution or pooling finds its padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AutoPad {
    /// From `pads`.
    NotSet,
    SameUpper,
    SameLower,
    Valid,
}

impl AutoPad {
    fn from_name(name: &str) -> Option<AutoPad> {
        Some(match name {
            "NOTSET" => AutoPad::NotSet,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            _ => return None,
        })
    }
}

view! {
    /// Conv and ConvTranspose.
    Conv: "Conv" | "ConvTranspose" {
        "auto_pad": Str, "dilations": Ints, "group": Int, "kernel_shape": Ints, "pads": Ints, "strides": Ints,
    }
}

impl Conv<'_> {
    /// `None` for an unknown name.
    pub fn auto_pad(&self) -> Option<AutoPad> {
        AutoPad::from_name(self.str("auto_pad"))
    }

    pub fn group(&self) -> i64 {
        self.int("group")
    }

    /// The number of spatial axes, from the kernel's shape or the ranks.
    pub fn spatial_rank(&self) -> Option<usize> {
        let kernel = self.int_list("kernel_shape").map(<[i64]>::len);
        kernel.or_else(|| self.rank(1).or(self.rank(0))?.checked_sub(2))
    }

    /// One for each spatial axis; 1 by default.
    pub fn strides(&self) -> Option<Vec<i64>> {
        self.per_axis("strides", 1, 1)
    }

    /// One for each spatial axis; 1 by default.
    pub fn dilations(&self) -> Option<Vec<i64>> {
        self.per_axis("dilations", 1, 1)
    }

    /// Sizes before, then behind each spatial axis; 0 by default.
    pub fn pads(&self) -> Option<Vec<i64>> {
        self.per_axis("pads", 0, 2)
    }

    fn per_axis(&self, name: &str, default: i64, each: usize) -> Option<Vec<i64>> {
        match self.int_list(name) {
            Some(list) => Some(list.to_vec()),
            None => Some(vec![default; self.spatial_rank()? * each]),
        }
    }

    /// The kernel's spatial sizes, from the attribute or the shape of the weights.
    pub fn kernel(&self) -> Option<Vec<i64>> {
        if let Some(kernel) = self.int_list("kernel_shape") {
            return Some(kernel.to_vec());
        }
        let dims = self.graph().value(self.input(1)?).ty().shape()?.iter();
        dims.skip(2)
            .map(|d| i64::try_from(d.known()?).ok())
            .collect()
    }

    pub fn bias(&self) -> Option<ValueId> {
        self.input(2)
    }
}

view! {
    /// MaxPool, AveragePool and LpPool.
    Pool: "MaxPool" | "AveragePool" | "LpPool" {
        "auto_pad": Str, "ceil_mode": Int, "count_include_pad": Int, "dilations": Ints, "kernel_shape": Ints,
        "pads": Ints, "storage_order": Int, "strides": Ints,
    }
}

impl<'g> Pool<'g> {
    /// `None` for an unknown name.
    pub fn auto_pad(&self) -> Option<AutoPad> {
        AutoPad::from_name(self.str("auto_pad"))
    }

    /// Required; `None` if it is missing.
    pub fn kernel(&self) -> Option<&'g [i64]> {
        self.int_list("kernel_shape")
    }

    /// From MaxPool-10 and AveragePool-10 on.
    pub fn ceil_mode(&self) -> bool {
        self.flag("ceil_mode")
    }

    pub fn counts_padding(&self) -> bool {
        self.flag("count_include_pad")
    }

    pub fn strides(&self) -> Option<Vec<i64>> {
        self.per_axis("strides", 1, 1)
    }

    /// From MaxPool-10, LpPool-18 and AveragePool-19 on; 1 by default.
    pub fn dilations(&self) -> Option<Vec<i64>> {
        self.per_axis("dilations", 1, 1)
    }

    pub fn pads(&self) -> Option<Vec<i64>> {
        self.per_axis("pads", 0, 2)
    }

    fn per_axis(&self, name: &str, default: i64, each: usize) -> Option<Vec<i64>> {
        match self.int_list(name) {
            Some(list) => Some(list.to_vec()),
            None => Some(vec![default; self.kernel()?.len() * each]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::node;
    use super::*;
    use crate::{Attrs, Tensor};

    #[test]
    fn defaults_follow_the_weights() {
        let w = Tensor::from_values([4usize, 3, 5].as_slice(), &[0f32; 60]).unwrap();
        let (g, n) = node(11, "Conv", Attrs::new(), &[Some(w)]);
        let conv = Conv::of(&g, n).unwrap();
        assert_eq!(conv.kernel(), Some(vec![5]));
        assert_eq!(
            (conv.strides(), conv.pads()),
            (Some(vec![1]), Some(vec![0, 0]))
        );
        assert_eq!((conv.auto_pad(), conv.group()), (Some(AutoPad::NotSet), 1));
        let (g, n) = node(11, "Conv", Attrs::new().with("auto_pad", "SOME"), &[]);
        assert_eq!(Conv::of(&g, n).unwrap().auto_pad(), None);
        let (g, n) = node(11, "MaxPool", Attrs::new(), &[]);
        let pool = Pool::of(&g, n).unwrap();
        assert!(pool.kernel().is_none() && pool.strides().is_none() && !pool.ceil_mode());
    }
}
