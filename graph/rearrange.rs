//! Constants rearranged: transposed and joined, byte for byte.

use bytes::Bytes;

use crate::tensor::Part;
use crate::{DType, Tensor};

/// Rows and columns moved together by a transposition, so that both sides stay in cache.
const TILE: usize = 32;
/// Joined tensors of so many bytes are put together when they are written; smaller ones, which passes read, at once.
const LAZY_MIN: usize = 1 << 20;

impl Tensor {
    /// A matrix with its axes swapped: [rows, columns] becomes [columns, rows]. `None` for another rank, for strings and
    /// for elements that are not whole bytes.
    pub fn transposed(&self) -> Option<Tensor> {
        let (&[rows, columns], size) = (self.dims(), whole_bytes(self.dtype())?) else {
            return None;
        };
        let data = self.bytes();
        let mut out = vec![0u8; data.len()];
        for row in (0..rows).step_by(TILE) {
            for column in (0..columns).step_by(TILE) {
                for r in row..rows.min(row + TILE) {
                    for c in column..columns.min(column + TILE) {
                        let (from, to) = ((r * columns + c) * size, (c * rows + r) * size);
                        out.get_mut(to..to + size)?
                            .copy_from_slice(data.get(from..from + size)?);
                    }
                }
            }
        }
        Tensor::from_raw(self.dtype(), &[columns, rows][..], Bytes::from(out)).ok()
    }

    /// The columns `start..start + width` of the last axis. `None` beyond it, for a scalar, for strings and for elements
    /// that are not whole bytes.
    pub fn columns(&self, start: usize, width: usize) -> Option<Tensor> {
        let size = whole_bytes(self.dtype())?;
        let (&all, lead) = self.dims().split_last()?;
        (start.checked_add(width)? <= all).then_some(())?;
        let data = self.bytes();
        let rows = lead.iter().product::<usize>();
        let mut out = Vec::with_capacity(rows * width * size);
        for row in 0..rows {
            let from = (row * all + start) * size;
            out.extend_from_slice(data.get(from..from + width * size)?);
        }
        let dims: Vec<usize> = lead.iter().copied().chain([width]).collect();
        Tensor::from_raw(self.dtype(), dims.as_slice(), Bytes::from(out)).ok()
    }

    /// Tensors of one dtype and rank joined along the last axis; large ones are not copied. `None` where another dimension differs, for strings and
    /// for elements that are not whole bytes.
    pub fn joined(parts: &[&Tensor]) -> Option<Tensor> {
        let first = parts.first()?;
        let size = whole_bytes(first.dtype())?;
        let (_, lead) = first.dims().split_last()?;
        let fits = |t: &&Tensor| {
            t.dtype() == first.dtype() && t.dims().split_last().is_some_and(|(_, l)| l == lead)
        };
        if !parts.iter().all(fits) {
            return None;
        }
        let widths: Vec<usize> = parts
            .iter()
            .map(|t| t.dims().last().copied())
            .collect::<Option<_>>()?;
        let dims: Vec<usize> = lead.iter().copied().chain([widths.iter().sum()]).collect();
        let parts: Vec<Part> = (parts.iter().zip(&widths))
            .flat_map(|(t, width)| t.parts(width * size).to_vec())
            .collect();
        let joined = Tensor::of_parts(first.dtype(), dims.as_slice(), parts.into());
        match joined.byte_len() < LAZY_MIN {
            true => Tensor::from_raw(joined.dtype(), dims.as_slice(), joined.bytes()).ok(),
            false => Some(joined),
        }
    }
}

fn whole_bytes(dtype: DType) -> Option<usize> {
    let bytes = usize::try_from(dtype.bits() / 8).ok()?;
    (dtype != DType::String && bytes > 0 && dtype.bits().is_multiple_of(8)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_transpose_and_join() {
        let wide: Vec<f32> = (0..70 * 33).map(|v| v as f32).collect();
        let t = Tensor::from_values(&[70, 33][..], &wide).unwrap();
        let turned = t.transposed().unwrap();
        assert_eq!(turned.dims(), [33, 70]);
        assert_eq!(turned.values::<f32>().unwrap()[70], 1.0);
        assert!(turned.transposed().unwrap().same_bits(&t));

        let a = Tensor::from_values(&[2, 1][..], &[1i64, 2]).unwrap();
        let b = Tensor::from_values(&[2, 2][..], &[3i64, 4, 5, 6]).unwrap();
        let joined = Tensor::joined(&[&a, &b]).unwrap();
        assert_eq!(joined.dims(), [2, 3]);
        assert_eq!(joined.to_i64s().unwrap(), [1, 3, 4, 2, 5, 6]);
        assert!(Tensor::joined(&[&a, &turned]).is_none());

        // Large enough to be put together when it is written.
        let many: Vec<f32> = (0..400 * 700).map(|v| v as f32).collect();
        let whole = Tensor::from_values(&[400, 700][..], &many).unwrap();
        let columns =
            [0, 300, 301].map(|c| whole.columns(c, if c == 300 { 1 } else { [300, 399][c / 301] }));
        let columns = columns.map(Option::unwrap);
        let [left, middle, right] = &columns;
        let pair = Tensor::joined(&[middle, right]).unwrap();
        let again = Tensor::joined(&[left, &pair]).unwrap();
        assert!(again.same_bits(&whole) && whole.same_bits(&again));
        let (narrow, want) = (again.narrowed(DType::F16), whole.narrowed(DType::F16));
        assert_eq!(narrow.unwrap().bytes(), want.unwrap().bytes());
        assert_eq!(
            again.narrowing_loss(DType::F16),
            whole.narrowing_loss(DType::F16)
        );
        assert!(joined.columns(1, 2).unwrap().same_bits(&b) && joined.columns(2, 2).is_none());
        assert!(Tensor::scalar(1i64).transposed().is_none());
    }
}
