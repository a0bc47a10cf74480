//! The sizes of an engine's tensors at one point of its profile.

use kiln_graph::Graph;

use super::view::{View, product};
use super::{Kernel, Kernels, Operand, operands};

/// Elements of operands whose listed shape leaves dimensions open, and what follows from the model for kernels with such operands.
///
/// [`Sizes::default`] knows none, which is enough for an engine of fixed sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    elements: operands::Elements,
    multiplications: operands::Multiplications,
}

impl Sizes {
    /// The sizes of an engine's tensors where the model's inputs have these shapes. `graph` is what the builder was handed, with
    /// dimensions of one size as numbers.
    pub fn at(kernels: &Kernels, graph: &Graph, inputs: &[(String, Vec<usize>)]) -> Sizes {
        let (elements, multiplications) = operands::at(kernels, graph, inputs);
        Sizes {
            elements,
            multiplications,
        }
    }

    /// Elements of an operand; `None` where they are not known.
    pub fn elements(&self, operand: &Operand) -> Option<u64> {
        match operand.open() {
            0 => product(&fixed(operand)?),
            _ => self.elements.get(&View::of(operand)).copied(),
        }
    }

    /// An operand's shape in elements; `None` where a dimension is not known.
    pub fn shape(&self, operand: &Operand) -> Option<Vec<u64>> {
        match operand.open() {
            0 => fixed(operand),
            1 => {
                let (all, known) = (self.elements(operand)?, operand.known());
                let open = all.checked_div(known).filter(|n| n * known == all)?;
                let dims = operand.shape.iter();
                Some(dims.map(|&d| u64::try_from(d).unwrap_or(open)).collect())
            }
            _ => None,
        }
    }

    /// Multiplications of a kernel that are known by its nodes and not by its operands.
    pub(super) fn multiplications(&self, kernel: &Kernel) -> Option<u64> {
        self.multiplications.get(&kernel.name).copied()
    }

    /// `None` where a size or the type is not known.
    pub fn bytes(&self, operand: &Operand) -> Option<u64> {
        bytes(self.elements(operand)?, operand)
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
                let sizes = others.map(|o| self.elements(o));
                sizes.collect::<Option<Vec<_>>>()?.into_iter().max()?
            }
        };
        let read = kernel.constants.iter().map(|constant| {
            let elements = self.elements(constant)?;
            bytes(elements.min(most), constant)
        });
        read.sum()
    }
}

fn fixed(operand: &Operand) -> Option<Vec<u64>> {
    let dims = operand.shape.iter();
    dims.map(|&d| u64::try_from(d).ok()).collect()
}

fn bytes(elements: u64, operand: &Operand) -> Option<u64> {
    let bits = elements.checked_mul(operand.dtype.storage_bits()?)?;
    Some(bits.div_ceil(8))
}
