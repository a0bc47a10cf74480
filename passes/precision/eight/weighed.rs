//! The weight of a linear layer in 8 bits.

use kiln_graph::Tensor;

use super::columns;
use super::compensate::Compensation;
use super::qdq::Weight;
use crate::precision::linear::Linear;
use crate::precision::numbers::weights::{self, Quantized, Rounding, Unfit, to_f32s};

/// What a weight's rounding depends on.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    /// Channels that are multiplied apart.
    pub outliers: &'a [usize],
    /// These are multiplied by the quantized numbers.
    pub rounds_apart: bool,
    /// The mean square of each channel.
    pub moments: Option<&'a [f64]>,
    /// The mean of each channel.
    pub means: Option<&'a [f64]>,
    /// The largest magnitude, where the columns have their factors behind the product.
    pub behind: Option<f32>,
}

/// A weight [K, N], and what it is in 8 bits with each number rounded to the nearest.
pub(super) struct Matrix<'a> {
    columns: usize,
    input: Operand<'a>,
    /// Zero in the rows apart.
    values: Vec<f32>,
    /// The rows that are multiplied apart: which, and their floats.
    apart: Option<(Tensor, Tensor)>,
    found: Quantized,
}

impl<'a> Matrix<'a> {
    /// # Errors
    /// When the weight has no numbers of the format, or its numbers and the operand's do not belong together.
    pub fn of(
        layer: &Linear,
        mut values: Vec<f32>,
        rounding: Rounding,
        input: &Operand<'a>,
    ) -> Result<Matrix<'a>, Unfit> {
        let Linear { rows, columns, .. } = *layer;
        let outliers = input.outliers;
        let mut apart = Vec::with_capacity(outliers.len() * columns);
        for &row in outliers {
            let row = values
                .get_mut(row * columns..(row + 1) * columns)
                .ok_or(Unfit::Moments)?;
            apart.extend_from_slice(row);
            row.fill(0.0);
        }
        let tensor = |dims: &[usize], values: &[f32]| {
            Tensor::from_values(dims, values).map_err(|_| Unfit::Type)
        };
        let whole = tensor(&[rows, columns], &values)?;
        let found = weights::quantize(&whole, rounding, rows, input.moments)?;
        let places: Vec<i64> = outliers.iter().map(|&j| j as i64).collect();
        let apart = match outliers.is_empty() {
            true => None,
            false => Some((
                Tensor::vector(&places),
                tensor(&[outliers.len(), columns], &apart)?,
            )),
        };
        Ok(Matrix {
            columns,
            input: *input,
            values,
            apart,
            found,
        })
    }

    /// # Errors
    /// When the numbers do not belong together.
    pub fn nearest(&self) -> Result<Weight, Unfit> {
        self.weight(self.found.clone())
    }

    /// The weight with each column so many times as coarse as it would be, if `coarser` is not empty, and with roundings that make up
    /// for each other, if it is known what errors cost; `None` if neither is asked for.
    pub fn rounded_anew(
        &self,
        coarser: &[f32],
        compensation: Option<&Compensation<'_>>,
    ) -> Option<Result<Weight, Unfit>> {
        let coarser = (!coarser.is_empty()).then_some(coarser);
        let asked = coarser.is_some() || compensation.is_some();
        asked.then(|| {
            let mut found = self.found.clone();
            if let Some(times) = coarser {
                found = weights::coarser(&self.values, found, times)?;
            }
            if let Some(compensation) = compensation {
                found = compensation.rounded(&self.values, found)?;
            }
            self.weight(found)
        })
    }

    fn weight(&self, found: Quantized) -> Result<Weight, Unfit> {
        let scales = found.scales.reshaped(&[self.columns][..]);
        let mut scales = scales.map_err(|_| Unfit::Type)?;
        let mut factors = None;
        if let Some(most) = self.input.behind {
            let each = to_f32s(&scales).ok_or(Unfit::Type)?;
            let (scale, behind) = columns::behind(&self.values, &each, most);
            (scales, factors) = (Tensor::scalar(scale), Some(Tensor::vector(&behind)));
        }
        let steps = match &factors {
            Some(factors) => to_f32s(factors)
                .zip(scales.as_f64())
                .map(|(f, s)| f.iter().map(|&f| f64::from(f) * s).collect::<Vec<_>>()),
            None => to_f32s(&scales).map(|s| s.iter().map(|&s| f64::from(s)).collect()),
        };
        let codes = || found.values.bytes();
        let means = self.input.means.zip(steps);
        let lost = means.map(|(means, steps)| lost(&self.values, &codes(), &steps, means));
        Ok(Weight {
            lost,
            values: found.values,
            scales,
            factors,
            apart: self.apart.clone(),
            rounds_apart: self.input.rounds_apart,
        })
    }
}

/// The means of a product's columns that rounding a weight [K, N] to INT8 takes away.
fn lost(matrix: &[f32], codes: &[u8], steps: &[f64], means: &[f64]) -> Vec<f64> {
    let columns = steps.len().max(1);
    let mut lost = vec![0f64; steps.len()];
    let rows = matrix.chunks(columns).zip(codes.chunks(columns));
    for ((row, codes), mean) in rows.zip(means) {
        for (k, (v, &code)) in row.iter().zip(codes).enumerate() {
            lost[k] += mean * (f64::from(*v) - f64::from(code as i8) * steps[k]);
        }
    }
    lost
}
