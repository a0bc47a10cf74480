//! Bytes that lie elsewhere: matrices side by side, with a sum of rank one.

use std::sync::Arc;

use bytes::Bytes;

use super::{CHUNK, Data, Tensor};
use crate::DType;

/// Matrices side by side; a tensor that is none is one row of one part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lazy {
    pub(super) parts: Arc<[Part]>,
    /// The parts are FP32 numbers that become the tensor's dtype, F16 or BF16.
    pub(super) narrows: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    data: Bytes,
    /// Bytes of a row.
    width: usize,
    added: Option<Outer>,
}

/// The product of a column and a row, in FP64.
#[derive(Clone, Debug, PartialEq)]
struct Outer {
    /// A number for each row of the part.
    rows: Arc<[f64]>,
    /// A number for each FP32 element of a row.
    columns: Arc<[f64]>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Part) -> bool {
        self.width == other.width
            && self.added == other.added
            && same_bytes(&self.data, &other.data)
    }
}

/// Whether they are equal, which one range of a mapped file is with itself without being read.
pub(super) fn same_bytes(a: &Bytes, b: &Bytes) -> bool {
    (a.as_ptr() == b.as_ptr() && a.len() == b.len()) || a == b
}

impl Part {
    pub(super) fn new(data: Bytes, width: usize) -> Part {
        Part {
            data,
            width,
            added: None,
        }
    }

    pub(super) fn data(&self) -> &Bytes {
        &self.data
    }

    fn push_row(&self, row: usize, out: &mut Vec<u8>) {
        let (start, end) = (row * self.width, out.len());
        out.extend_from_slice(&self.data[start..start + self.width]);
        if let Some(Outer { rows, columns }) = &self.added {
            let numbers = out[end..].as_chunks_mut().0;
            for (number, column) in numbers.iter_mut().zip(&columns[..]) {
                let sum = f64::from(f32::from_le_bytes(*number)) + rows[row] * column;
                *number = (sum as f32).to_le_bytes();
            }
        }
    }
}

impl Lazy {
    pub(super) fn whole(data: &Bytes) -> Arc<[Part]> {
        Arc::new([Part::new(data.clone(), data.len())])
    }

    pub(super) fn source_len(&self) -> usize {
        self.parts.iter().map(|p| p.data.len()).sum()
    }

    /// The bytes of the parts, row by row, in chunks of whole rows or, of a single part, whole elements.
    pub(super) fn chunks<E>(&self, out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const LEN: usize = CHUNK * 4;
        if let [
            Part {
                data, added: None, ..
            },
        ] = &self.parts[..]
        {
            return data.chunks(LEN).try_for_each(out);
        }
        let mut gathered = Vec::with_capacity(LEN);
        let rows = |part: &Part| part.data.len() / part.width.max(1);
        for row in 0..self.parts.first().map_or(0, rows) {
            for part in self.parts.iter() {
                part.push_row(row, &mut gathered);
            }
            if gathered.len() >= LEN {
                out(&gathered)?;
                gathered.clear();
            }
        }
        out(&gathered)
    }
}

impl Tensor {
    /// As parts of a wider matrix of `columns` bytes: what is stored, or a copy of what would have to be computed.
    pub(crate) fn parts(&self, width: usize) -> Arc<[Part]> {
        match &self.data {
            Data::Lazy(lazy) if !lazy.narrows => lazy.parts.clone(),
            _ => Arc::new([Part::new(self.bytes(), width)]),
        }
    }

    /// A tensor whose rows are those of the parts, one after another. The caller answers for the lengths.
    pub(crate) fn of_parts(
        dtype: DType,
        dims: impl Into<super::Dims>,
        parts: Arc<[Part]>,
    ) -> Tensor {
        Tensor {
            dtype,
            dims: dims.into(),
            data: Data::Lazy(Lazy {
                parts,
                narrows: false,
            }),
        }
    }

    /// An FP32 matrix of [rows, columns] with `rows[i] * columns[j]` added to its elements when it is read or written: the sum is
    /// computed in FP64 and rounded once. `None` of any other tensor.
    pub fn plus_outer(&self, rows: &[f64], columns: &[f64]) -> Option<Tensor> {
        if self.dtype != DType::F32 || self.dims() != [rows.len(), columns.len()] {
            return None;
        }
        let rows: Arc<[f64]> = rows.into();
        let width = columns.len() * size_of::<f32>();
        let mut parts = self.parts(width).to_vec();
        let whole = parts.iter().map(|p| p.width).sum::<usize>() == width;
        if !whole || parts.iter().any(|p| p.added.is_some()) {
            parts = vec![Part::new(self.bytes(), width)];
        }
        let mut rest = columns;
        for part in &mut parts {
            let (columns, others) = rest.split_at(part.width / size_of::<f32>());
            part.added = Some(Outer {
                rows: rows.clone(),
                columns: columns.into(),
            });
            rest = others;
        }
        Some(Tensor::of_parts(
            DType::F32,
            self.dims.clone(),
            parts.into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn matrix(height: usize, width: usize, scale: f32) -> Tensor {
        let numbers = (0..height * width).map(|k| (k as f32 * 0.37).sin() * scale);
        let numbers: Vec<f32> = numbers.collect();
        Tensor::from_values([height, width].as_slice(), &numbers).unwrap()
    }

    #[test]
    fn an_outer_product_is_added_when_it_is_read() {
        let (height, width) = (700, 900);
        let rows: Vec<f64> = (0..height).map(|k| 1.0 / (k as f64 + 3.0)).collect();
        let columns: Vec<f64> = (0..2 * width).map(|k| k as f64 * 1e-3 - 0.7).collect();
        let (left, right) = (matrix(height, width, 1.0), matrix(height, width, 0.1));
        let want = |t: &Tensor, columns: &[f64]| -> Vec<f32> {
            let numbers = t.values::<f32>().unwrap().into_iter().enumerate();
            let (rows, w) = (&rows, columns.len());
            numbers
                .map(|(k, v)| (f64::from(v) + rows[k / w] * columns[k % w]) as f32)
                .collect()
        };
        let one = left.plus_outer(&rows, &columns[..width]).unwrap();
        assert_eq!(one.values::<f32>(), Some(want(&left, &columns[..width])));
        let joined = [&left, &right].map(|t| t.parts(width * 4)[0].clone());
        let joined = Tensor::of_parts(DType::F32, [height, 2 * width].as_slice(), Arc::new(joined));
        let both = joined.plus_outer(&rows, &columns).unwrap();
        let numbers = want(&joined, &columns);
        assert_eq!(both.values::<f32>().as_ref(), Some(&numbers));
        let mut read = Vec::new();
        both.f32_rows(&mut |row| read.extend_from_slice(row))
            .unwrap();
        assert_eq!(read, numbers);
        // Twice, narrowed, and as a part of a wider matrix.
        let twice = both.plus_outer(&rows, &columns).unwrap();
        let again = Tensor::from_values([height, 2 * width].as_slice(), &numbers).unwrap();
        assert_eq!(twice.values::<f32>(), Some(want(&again, &columns)));
        let narrow = both.narrowed(DType::F16).unwrap();
        let halves = numbers.iter().map(|&v| f16::from_f32(v)).collect();
        assert_eq!(narrow.values::<f16>(), Some(halves));
        let part = Tensor::of_parts(DType::F32, one.dims(), one.parts(width * 4));
        assert_eq!(part.values::<f32>(), one.values::<f32>());
        assert!(part.same_bits(&one) && !part.same_bits(&left));
    }

    #[test]
    fn only_a_matrix_of_fp32_takes_an_outer_product() {
        let t = matrix(3, 2, 1.0);
        assert!(t.plus_outer(&[1.0; 3], &[1.0; 3]).is_none());
        assert!(
            Tensor::vector(&[1.0f32])
                .plus_outer(&[1.0], &[1.0])
                .is_none()
        );
        let halves = t.narrowed(DType::F16).unwrap();
        assert!(halves.plus_outer(&[1.0; 3], &[1.0; 2]).is_none());
    }
}
