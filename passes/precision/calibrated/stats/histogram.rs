use std::fmt;

/// Bins of a [`Histogram`]: half of them for negative, half for positive elements.
pub const BINS: usize = 2048;
const HALF: usize = BINS / 2;
/// The exponent of the smallest range.
const START: i32 = -100;
/// The exponent of the range that holds every finite FP32 number.
const END: i32 = 128;

/// How many elements lie where, over [−R, R] for a power of two R.
///
/// R is the smallest power of two above all magnitudes (at least 2⁻¹⁰⁰). When a larger element comes, R doubles and pairs
/// of bins become one, in each half for itself. So each bin lies on one side of zero, and the counts do not depend on the
/// order of the elements. Zeros are counted apart: every quantizer keeps them.
#[derive(Clone, PartialEq)]
pub struct Histogram {
    exponent: i32,
    zeros: u64,
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            exponent: START,
            zeros: 0,
            counts: vec![0; BINS],
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("exponent", &self.exponent)
            .field("zeros", &self.zeros)
            .field("others", &self.counts.iter().sum::<u64>())
            .finish_non_exhaustive()
    }
}

impl Histogram {
    /// A histogram over ±2^`exponent` with these counts; `None` if it has not [`BINS`] of them or no such exponent is used.
    pub fn from_parts(exponent: i32, zeros: u64, counts: Vec<u64>) -> Option<Histogram> {
        let fits = counts.len() == BINS && (START..=END).contains(&exponent);
        fits.then_some(Histogram {
            exponent,
            zeros,
            counts,
        })
    }

    /// R is two to the power of this.
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// The number of zeros, which are in no bin.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The number of elements in each bin, in ascending order: bin `k` of [`BINS`] lies between R(k/1024 − 1) and
    /// R((k + 1)/1024 − 1). An element at an edge is in the bin farther from zero.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The width of a bin.
    pub fn width(&self) -> f64 {
        2f64.powi(self.exponent) / HALF as f64
    }

    /// The lower and the upper edge of bin `k`.
    pub fn edges(&self, k: usize) -> (f64, f64) {
        let edge = |k: usize| (k as f64 - HALF as f64) * self.width();
        (edge(k), edge(k + 1))
    }

    /// The counts by magnitude: bin `k` of 1024 lies between kR/1024 and (k + 1)R/1024. Zeros are left out.
    pub fn magnitudes(&self) -> Vec<u64> {
        let both = self.counts[..HALF].iter().rev().zip(&self.counts[HALF..]);
        both.map(|(a, b)| a + b).collect()
    }

    /// Doubles the range until this finite magnitude lies in it.
    pub(super) fn widen(&mut self, absmax: f32) {
        let mut exponent = self.exponent;
        while exponent < END && f64::from(absmax) >= 2f64.powi(exponent) {
            exponent += 1;
        }
        self.widen_to(exponent);
    }

    fn widen_to(&mut self, exponent: i32) {
        let shift = (exponent - self.exponent).max(0) as u32;
        if shift == 0 {
            return;
        }
        self.exponent = exponent;
        let mut wider = vec![0; BINS];
        for (k, &n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let (negative, place) = match k.checked_sub(HALF) {
                Some(place) => (false, place),
                None => (true, HALF - 1 - k),
            };
            let place = place.checked_shr(shift).unwrap_or(0);
            wider[bin(negative, place)] += n;
        }
        self.counts = wider;
    }

    /// Counts elements, none of which is outside of the range. What is not finite is left out.
    pub(super) fn count(&mut self, values: &[f32]) {
        // 2^(10 − exponent) is a normal FP32 number for all exponents, and the product is exact unless it is far below 1.
        let scale = 2f32.powi(10 - self.exponent);
        for &v in values {
            if !v.is_finite() {
                continue;
            }
            let place = ((v.abs() * scale) as usize).min(HALF - 1);
            let is_zero = v == 0.0;
            self.zeros += u64::from(is_zero);
            self.counts[bin(v < 0.0, place)] += u64::from(!is_zero);
        }
    }

    /// Without the bins that lie wholly beyond ±`most`.
    pub fn truncated(&self, most: f32) -> Histogram {
        let mut kept = self.clone();
        for k in 0..BINS {
            let (from, to) = self.edges(k);
            if from > f64::from(most) || to < -f64::from(most) {
                kept.counts[k] = 0;
            }
        }
        kept
    }

    /// Takes all that another has counted.
    pub fn merge(&mut self, other: &Histogram) {
        self.widen_to(other.exponent);
        let mut other = other.clone();
        other.widen_to(self.exponent);
        self.zeros += other.zeros;
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
    }
}

fn bin(negative: bool, place: usize) -> usize {
    match negative {
        true => HALF - 1 - place,
        false => HALF + place,
    }
}
