//! Buffers of one engine's tensors.

use kiln_graph::{DType, Tensor};

use crate::cuda::{Buffer, Room};
use crate::run::EngineRunError;

/// Buffers with the shapes that they were made for.
pub(super) struct Bound {
    /// As in `Shared::io`.
    pub tensors: Vec<BoundTensor>,
}

pub(super) struct BoundTensor {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub bytes: usize,
    pub memory: Memory,
    /// What a step of a generation was given.
    pub given: Option<Tensor>,
    /// Whether the GPU has the input already.
    pub is_there: bool,
}

/// Where a tensor is.
pub(super) enum Memory {
    /// On the GPU, copied from or to the host at each run.
    Copied(Buffer),
    /// On the GPU alone, from run to run.
    Kept(Room),
    /// In the memory of the input with this place, in which the engine writes it.
    Of(usize),
}

impl BoundTensor {
    /// Whether these are the bytes that it has.
    pub fn holds(&self, tensor: &Tensor) -> bool {
        let bytes = match &self.memory {
            Memory::Copied(buffer) => buffer.host().ok(),
            Memory::Kept(_) | Memory::Of(_) => None,
        };
        bytes.is_some_and(|b| b[..self.bytes] == tensor.bytes()[..])
    }

    /// Takes an input. Where `stays`, what was given before is not copied again.
    pub fn take(&mut self, tensor: &Tensor, stays: bool) -> Result<(), EngineRunError> {
        let same = |a: &Tensor| a.bytes().as_ptr() == tensor.bytes().as_ptr();
        self.is_there = stays && self.given.as_ref().is_some_and(same);
        if self.is_there {
            return Ok(());
        }
        self.given = stays.then(|| tensor.clone());
        match self.copied() {
            Some(buffer) => fill(buffer, tensor),
            None => Ok(()),
        }
    }

    /// What is copied at each run.
    pub fn copied(&mut self) -> Option<&mut Buffer> {
        match &mut self.memory {
            Memory::Copied(buffer) => Some(buffer),
            Memory::Kept(_) | Memory::Of(_) => None,
        }
    }
}

impl Bound {
    /// What is copied of a tensor at each run; `None` for what stays on the GPU.
    pub fn buffer(&self, index: usize) -> Option<&Buffer> {
        match &self.tensors.get(index)?.memory {
            Memory::Copied(buffer) => Some(buffer),
            Memory::Kept(_) => None,
            // Inputs are in no other's memory.
            Memory::Of(input) => match &self.tensors.get(*input)?.memory {
                Memory::Copied(buffer) => Some(buffer),
                Memory::Kept(_) | Memory::Of(_) => None,
            },
        }
    }

    /// As [`Bound::buffer`], to be written.
    pub fn buffer_mut(&mut self, index: usize) -> Option<&mut Buffer> {
        let at = match self.tensors.get(index)?.memory {
            Memory::Of(input) => input,
            Memory::Copied(_) | Memory::Kept(_) => index,
        };
        self.tensors.get_mut(at)?.copied()
    }
}

/// Copies a tensor to the host's side of a buffer.
pub(super) fn fill(buffer: &mut Buffer, tensor: &Tensor) -> Result<(), EngineRunError> {
    let bytes = tensor.bytes();
    let host = buffer.host_mut()?;
    let room = host.len();
    let place = host.get_mut(..bytes.len()).ok_or_else(|| {
        EngineRunError::Inputs(format!("{} bytes do not fit into {room}", bytes.len()))
    })?;
    place.copy_from_slice(&bytes);
    Ok(())
}

/// The bytes of a tensor; `None` if no number holds them.
pub(super) fn packed(dtype: DType, dims: &[usize]) -> Option<usize> {
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    dtype.packed_len(count)
}
