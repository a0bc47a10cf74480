//! Buffers of one engine's tensors.

use kiln_graph::{DType, Tensor};

use crate::cuda::Buffer;
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
    pub buffer: Buffer,
}

impl BoundTensor {
    /// Whether these are the bytes that it has.
    pub fn holds(&self, tensor: &Tensor) -> bool {
        let bytes = self.buffer.host().ok();
        bytes.is_some_and(|b| b[..self.bytes] == tensor.bytes()[..])
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
