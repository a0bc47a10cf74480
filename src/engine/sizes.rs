//! The sizes of an engine's tensors at one point of its profile.

use std::collections::BTreeMap;

use super::{Kernel, Kernels, Operand};

/// Shapes of operands whose listed shape leaves dimensions open.
///
/// [`Sizes::default`] knows none, which is enough for an engine of fixed sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// By name and listed shape: kernels read parts and other views of one tensor under its name.
    found: BTreeMap<String, Vec<View>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    listed: Vec<i64>,
    shape: Vec<u64>,
}

impl Sizes {
    /// An operand's shape in elements; `None` where a dimension is not known.
    pub fn shape(&self, operand: &Operand) -> Option<Vec<u64>> {
        let fixed: Result<Vec<u64>, _> = operand.shape.iter().map(|&d| u64::try_from(d)).collect();
        fixed.ok().or_else(|| {
            let views = self.found.get(&operand.name)?;
            let view = views.iter().find(|v| v.listed == operand.shape)?;
            Some(view.shape.clone())
        })
    }

    /// `None` where a size or the type is not known.
    pub fn bytes(&self, operand: &Operand) -> Option<u64> {
        let elements = product(&self.shape(operand)?)?;
        bytes(elements, operand)
    }

    /// Bytes of activations that a kernel reads and writes; `None` where a size is not known.
    pub fn moved(&self, kernel: &Kernel) -> Option<u64> {
        let moved = kernel.inputs.iter().chain(&kernel.outputs);
        moved.map(|o| self.bytes(o)).sum()
    }

    /// Bytes of activations that all kernels read and write; `None` where a size is not known.
    pub fn traffic(&self, kernels: &Kernels) -> Option<u64> {
        kernels.launched().map(|k| self.moved(k)).sum()
    }

    /// Bytes of constants that a kernel reads at least; `None` where a size is not known.
    ///
    /// A product reads its weights whole. What looks rows up in a table, or takes part of it, reads no more of them than it
    /// writes or reads otherwise.
    pub fn constants(&self, kernel: &Kernel) -> Option<u64> {
        let most = match kernel.is_product() {
            true => u64::MAX,
            false => {
                let others = kernel.inputs.iter().chain(&kernel.outputs);
                let sizes = others.map(|o| product(&self.shape(o)?));
                sizes.collect::<Option<Vec<_>>>()?.into_iter().max()?
            }
        };
        let read = kernel.constants.iter().map(|constant| {
            let elements = product(&self.shape(constant)?)?;
            bytes(elements.min(most), constant)
        });
        read.sum()
    }
}

/// Elements of a shape.
pub(super) fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

fn bytes(elements: u64, operand: &Operand) -> Option<u64> {
    let bits = elements.checked_mul(operand.dtype.storage_bits()?)?;
    Some(bits.div_ceil(8))
}
