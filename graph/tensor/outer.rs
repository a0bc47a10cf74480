//! Weights that are joined and summed where they are read.

use std::sync::Arc;

use super::lazy::{Lazy, Part};
use super::{Data, Dims, Tensor};
use crate::DType;

impl Tensor {
    /// As parts of a wider matrix of `columns` bytes: what is stored, or a copy of what would have to be computed.
    pub(crate) fn parts(&self, width: usize) -> Arc<[Part]> {
        match &self.data {
            Data::Lazy(lazy) if !lazy.narrows => lazy.parts.clone(),
            _ => Arc::new([Part::new(self.bytes(), width)]),
        }
    }

    /// A tensor whose rows are those of the parts, one after another. The caller answers for the lengths.
    pub(crate) fn of_parts(dtype: DType, dims: impl Into<Dims>, parts: Arc<[Part]>) -> Tensor {
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
        let parts = self.parts(width);
        let whole = parts.iter().map(Part::width).sum::<usize>() == width;
        let mut rest = columns;
        let summed = parts.iter().map(|part| {
            let (columns, others) = rest.split_at_checked(part.width() / size_of::<f32>())?;
            rest = others;
            part.plus(&rows, columns)
        });
        let parts = match summed.collect::<Option<Arc<[Part]>>>().filter(|_| whole) {
            Some(parts) => parts,
            None => Arc::new([Part::new(self.bytes(), width).plus(&rows, columns)?]),
        };
        Some(Tensor::of_parts(DType::F32, self.dims.clone(), parts))
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
