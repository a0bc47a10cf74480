//! Roundings of INT8 weights that make up for each other on calibration data, as those of INT4 do (`calibrated/gptq.rs`).
//!
//! What rounding takes from the means of a product's columns is given back by a bias where there is one. Then only how the channels
//! change together counts: `XᵀX` without the means.

use std::cell::OnceCell;
use std::hash::{Hash, Hasher};

use kiln_graph::{DType, Model, Tensor, ValueId};
use rustc_hash::FxHasher;

use crate::precision::calibrated::gptq::{Curvature, Steps};
use crate::precision::calibrated::gram::{Gram, Grams};
use crate::precision::calibrated::stats::TensorStats;
use crate::precision::linear::{self, Linear};
use crate::precision::numbers::weights::{Quantized, Unfit, to_f32s};

/// The longest inputs whose layers are rounded so: time grows with the square, that of the factorization with the cube.
const LONGEST: usize = 2048;

/// The inputs of linear layers for which a [`Gram`] is of use.
pub fn wanted(model: &Model) -> Vec<ValueId> {
    let g = &model.graph;
    let short = |v: &ValueId| {
        let layers = g.value(*v).uses().iter();
        let rows = layers.filter_map(|u| Some(Linear::of(g, u.node)?.ok()?.rows));
        rows.max().is_some_and(|rows| rows <= LONGEST)
    };
    let mut all = linear::wanted(model);
    all.retain(short);
    all
}

/// What the input of layers is taken without.
#[derive(Clone, Debug)]
pub(super) enum Without {
    Nothing,
    /// The means, where those of the products are given back.
    Means,
    /// An offset for each channel.
    Offsets(Vec<f64>),
}

/// The means of a value's channels, what they are taken without, and the rows that were seen.
struct Shift {
    means: Vec<f64>,
    offsets: Vec<f64>,
    rows: u64,
}

/// What errors of weights cost that read one value.
pub(super) struct Compensation<'a> {
    grams: &'a Grams,
    value: ValueId,
    gram: &'a Gram,
    shift: Option<Shift>,
    factors: Vec<f32>,
    apart: Vec<usize>,
    /// Found when it is asked for.
    curvature: OnceCell<Option<Curvature>>,
}

impl<'a> Compensation<'a> {
    /// For weights that read the value divided by `factors` (empty where there are none), without the channels apart. `None` where
    /// nothing is known of how its channels move together.
    pub fn of(
        (grams, value): (&'a Grams, ValueId),
        stats: &TensorStats,
        without: Without,
        factors: Vec<f32>,
        apart: &[usize],
    ) -> Option<Compensation<'a>> {
        let gram = grams.get(value)?;
        let means = || stats.channel_means().filter(|m| m.len() == gram.size());
        let shift = |offsets: Option<Vec<f64>>| {
            let means = means()?;
            let offsets = offsets.unwrap_or_else(|| means.clone());
            let rows = stats.rows;
            Some(Shift {
                means,
                offsets,
                rows,
            })
        };
        let shift = match without {
            Without::Nothing => None,
            Without::Means => Some(shift(None)?),
            Without::Offsets(offsets) => Some(shift(Some(offsets))?),
        };
        Some(Compensation {
            grams,
            value,
            gram,
            shift,
            factors,
            apart: apart.to_vec(),
            curvature: OnceCell::new(),
        })
    }

    fn curvature(&self) -> Option<&Curvature> {
        let find = || {
            let shifted = match &self.shift {
                Some(s) => self.gram.shifted(&s.means, &s.offsets, s.rows),
                None => self.gram.clone(),
            };
            let divided = match self.factors.is_empty() {
                true => shifted,
                false => shifted.divided(&self.factors),
            };
            Curvature::of(&divided.apart(&self.apart))
        };
        self.curvature.get_or_init(find).as_ref()
    }

    /// The hash of all that the rounding of a weight depends on.
    fn key(&self, matrix: &[f32], scales: &[f32]) -> u64 {
        let mut hasher = FxHasher::default();
        (self.value, &self.apart).hash(&mut hasher);
        let offsets = self.shift.as_ref().map_or(&[][..], |s| &s.offsets);
        for values in [matrix, scales, &self.factors] {
            values.len().hash(&mut hasher);
            values.iter().for_each(|v| hasher.write_u32(v.to_bits()));
        }
        offsets.iter().for_each(|v| hasher.write_u64(v.to_bits()));
        hasher.finish()
    }

    /// A weight [K, N] in INT8, with the scales of its columns as they were found, rounded anew. As it was found, where the data says
    /// nothing.
    ///
    /// # Errors
    /// When the numbers do not belong together.
    pub fn rounded(&self, matrix: &[f32], found: Quantized) -> Result<Quantized, Unfit> {
        let scales = to_f32s(&found.scales).filter(|s| !s.is_empty());
        let scales = scales.ok_or(Unfit::Type)?;
        let steps = Steps {
            scales: &scales,
            zeros: None,
            block: matrix.len() / scales.len(),
            range: (-127.0, 127.0),
            // Rounding again takes four times as long, and moves the error by a few percent.
            sweeps: 0,
        };
        let dims = found.values.dims();
        let values = self.grams.rounded(self.key(matrix, &scales), || {
            let codes = self.curvature()?.rounded(matrix, scales.len(), steps);
            let codes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
            Tensor::from_raw(DType::I8, dims, codes.into()).ok()
        });
        Ok(match values {
            Some(values) => Quantized { values, ..found },
            None => found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::calibrated::stats::Collector;
    use crate::precision::numbers::weights::{Rounding, quantize};

    const K: usize = 32;
    const N: usize = 24;
    const ROWS: usize = 400;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Channels that move together around means that are far larger.
    fn input() -> (Vec<f32>, Gram, TensorStats) {
        let (own, shared) = (noise(ROWS * K, 3), noise(ROWS * 3, 5));
        let at = |k: usize| {
            let (row, channel) = (k / K, k % K);
            let common = |c: usize| shared[row * 3 + c] * ((channel * (c + 2)) as f32).sin();
            (channel % 5) as f32 + (0..3).map(common).sum::<f32>() + 0.1 * own[k]
        };
        let x: Vec<f32> = (0..own.len()).map(at).collect();
        let mut gram = Gram::new(K);
        for row in x.chunks(K) {
            gram.add(row.iter().map(|a| row.iter().map(move |b| a * b)));
        }
        let mut seen = Collector::new();
        seen.add(Some(K), &x);
        (x, gram, seen.finish())
    }

    /// The squared error of the products without that of their means.
    fn error(x: &[f32], weight: &[f32], found: &Quantized) -> f64 {
        let scales = to_f32s(&found.scales).unwrap();
        let codes = found.values.bytes();
        let off = |i: usize, j: usize| {
            f64::from(weight[i * N + j] - f32::from(codes[i * N + j] as i8) * scales[j])
        };
        let product = |row: &[f32], j: usize| {
            let each = row.iter().enumerate();
            each.map(|(i, &v)| f64::from(v) * off(i, j)).sum::<f64>()
        };
        let column = |j: usize| {
            let all: Vec<f64> = x.chunks(K).map(|row| product(row, j)).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            all.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
        };
        (0..N).map(column).sum()
    }

    fn value() -> ValueId {
        let mut g = kiln_graph::Graph::new(kiln_graph::graph::Opsets::default());
        g.add_constant("x", Tensor::scalar(0f32))
    }

    fn grams(gram: Gram) -> Grams {
        let mut grams = Grams::new();
        grams.insert(value(), gram);
        grams
    }

    fn compensated(
        grams: &Grams,
        stats: &TensorStats,
        without: Without,
        factors: &[f32],
        apart: &[usize],
        weight: &[f32],
        nearest: &Quantized,
    ) -> Quantized {
        let found = Compensation::of((grams, value()), stats, without, factors.to_vec(), apart);
        found.unwrap().rounded(weight, nearest.clone()).unwrap()
    }

    #[test]
    fn roundings_make_up_for_each_other_around_the_means() {
        let (x, gram, stats) = input();
        let weight = noise(K * N, 7);
        let whole = Tensor::from_values(&[K, N][..], &weight).unwrap();
        let nearest = quantize(&whole, Rounding::Int8, K, None).unwrap();
        let grams = grams(gram);
        let made = compensated(&grams, &stats, Without::Means, &[], &[], &weight, &nearest);
        let (before, after) = (error(&x, &weight, &nearest), error(&x, &weight, &made));
        assert!(after < before / 3.0, "{before} {after}");
        // With the means in it, these have most of the say.
        let other = compensated(
            &grams,
            &stats,
            Without::Nothing,
            &[],
            &[],
            &weight,
            &nearest,
        );
        assert!(error(&x, &weight, &other) > after);
        // The same again is what was kept.
        let again = compensated(&grams, &stats, Without::Means, &[], &[], &weight, &nearest);
        assert_eq!(again.values.bytes(), made.values.bytes());
        let finer = compensated(
            &grams,
            &stats,
            Without::Means,
            &[],
            &[],
            &noise(K * N, 8),
            &nearest,
        );
        assert_ne!(finer.values.bytes(), made.values.bytes());
    }

    #[test]
    fn factors_belong_to_the_channels() {
        let (x, gram, stats) = input();
        let factors: Vec<f32> = (0..K).map(|i| 0.5 + (i % 3) as f32).collect();
        let divided: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(k, v)| v / factors[k % K])
            .collect();
        let weight = noise(K * N, 9);
        let whole = Tensor::from_values(&[K, N][..], &weight).unwrap();
        let nearest = quantize(&whole, Rounding::Int8, K, None).unwrap();
        let grams = grams(gram);
        let made = compensated(
            &grams,
            &stats,
            Without::Means,
            &factors,
            &[],
            &weight,
            &nearest,
        );
        let (before, after) = (
            error(&divided, &weight, &nearest),
            error(&divided, &weight, &made),
        );
        assert!(after < before / 3.0, "{before} {after}");
    }

    #[test]
    fn rows_that_stand_apart_stay_zero() {
        let (_, gram, stats) = input();
        let mut weight = noise(K * N, 11);
        weight[4 * N..5 * N].fill(0.0);
        let whole = Tensor::from_values(&[K, N][..], &weight).unwrap();
        let nearest = quantize(&whole, Rounding::Int8, K, None).unwrap();
        let grams = grams(gram);
        let made = compensated(&grams, &stats, Without::Means, &[], &[4], &weight, &nearest);
        assert!(made.values.bytes()[4 * N..5 * N].iter().all(|&c| c == 0));
    }
}
