//! A tensor as a kernel lists it: by name, dimensions and strides.

use super::kernels::known;
use super::{DataType, Operand};

/// A part or another view of a tensor: kernels read several under its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    pub(super) name: String,
    /// -1 stands for an open dimension.
    pub(super) listed: Vec<i64>,
    pub(super) dtype: DataType,
    strides: Vec<i64>,
}

impl View {
    pub(super) fn of(operand: &Operand) -> View {
        View {
            name: operand.name.clone(),
            listed: operand.shape.clone(),
            strides: operand.strides.clone(),
            dtype: operand.dtype,
        }
    }

    /// The product of the dimensions that are listed.
    pub(super) fn known(&self) -> u64 {
        known(&self.listed)
    }

    /// Whether nothing lies between its elements, as far as is listed.
    pub(super) fn is_whole(&self) -> bool {
        let mut next = Some(1);
        let mut dims = self.listed.iter().zip(&self.strides).rev();
        dims.all(|(&dim, &stride)| {
            let fits = dim == 1 || next.is_none_or(|n| n == stride);
            next = next
                .filter(|_| dim >= 0)
                .map(|n: i64| n.saturating_mul(dim));
            fits
        })
    }
}

/// Elements of a shape.
pub(super) fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}
