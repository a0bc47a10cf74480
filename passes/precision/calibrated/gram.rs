//! How the channels of an activation move together.

use std::sync::{Mutex, PoisonError};

use kiln_graph::{Tensor, ValueId};
use rustc_hash::{FxBuildHasher, FxHashMap};

/// By value. A search quantizes a model many times, mostly the same layers: what was rounded by these is kept.
#[derive(Debug)]
pub struct Grams {
    all: FxHashMap<ValueId, Gram>,
    rounded: Mutex<FxHashMap<u64, Tensor>>,
}

impl Grams {
    pub const fn new() -> Grams {
        Grams {
            all: FxHashMap::with_hasher(FxBuildHasher),
            rounded: Mutex::new(FxHashMap::with_hasher(FxBuildHasher)),
        }
    }

    pub fn insert(&mut self, value: ValueId, gram: Gram) {
        self.all.insert(value, gram);
    }

    pub fn get(&self, value: ValueId) -> Option<&Gram> {
        self.all.get(&value)
    }

    /// A weight that was rounded before by all that `key` is the hash of, or else as `make` rounds it.
    pub(in crate::precision) fn rounded(
        &self,
        key: u64,
        make: impl FnOnce() -> Option<Tensor>,
    ) -> Option<Tensor> {
        let kept = || self.rounded.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept().get(&key).cloned();
        found.or_else(|| {
            let made = make()?;
            kept().insert(key, made.clone());
            Some(made)
        })
    }
}

impl Default for Grams {
    fn default() -> Grams {
        Grams::new()
    }
}

/// `XᵀX` of an activation's rows X [rows, size]: what the error of a weight costs in the product. Of the symmetric matrix the
/// lower triangle is kept, in FP64.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    size: usize,
    /// Row i begins at i · (i + 1) / 2.
    lower: Vec<f64>,
}

impl Gram {
    /// The longest activation that one is made of: beyond, the matrix and its factorization take gigabytes and minutes.
    pub const MAX_SIZE: usize = 8192;

    /// Of no rows.
    pub fn new(size: usize) -> Gram {
        Gram {
            size,
            lower: vec![0.0; size * (size + 1) / 2],
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes that one of this size takes.
    pub fn bytes(size: usize) -> usize {
        size.saturating_mul(size + 1) / 2 * size_of::<f64>()
    }

    /// Adds the rows of `XᵀX` [size, size] of more rows of X. The sum depends on the order of additions in its last bits.
    pub fn add<R: Iterator<Item = f32>>(&mut self, products: impl Iterator<Item = R>) {
        let mut sums = self.lower.as_mut_slice();
        for (i, row) in products.enumerate().take(self.size) {
            let (these, rest) = sums.split_at_mut(i + 1);
            for (sum, product) in these.iter_mut().zip(row) {
                *sum += f64::from(product);
            }
            sums = rest;
        }
    }

    pub fn at(&self, i: usize, j: usize) -> f64 {
        let (row, column) = (i.max(j), i.min(j));
        let place = row * (row + 1) / 2 + column;
        self.lower.get(place).copied().unwrap_or(0.0)
    }

    /// The sum of squares of each channel.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.size).map(|i| self.at(i, i)).collect()
    }

    pub fn is_finite(&self) -> bool {
        self.lower.iter().all(|v| v.is_finite())
    }

    /// Of the activation's `rows` rows, which have these means, without these offsets.
    pub fn shifted(&self, means: &[f64], offsets: &[f64], rows: u64) -> Gram {
        let mut out = self.clone();
        let mut values = out.lower.iter_mut();
        let channels = means.iter().zip(offsets);
        for (i, (a, c)) in channels.clone().enumerate().take(self.size) {
            for (value, (b, d)) in values.by_ref().take(i + 1).zip(channels.clone()) {
                *value += rows as f64 * ((a - c) * (b - d) - a * b);
            }
        }
        out
    }

    /// Channels of which nothing is known but their own size: no other makes up for them.
    pub fn apart(mut self, channels: &[usize]) -> Gram {
        for i in 0..self.size {
            for j in 0..i {
                if channels.contains(&i) || channels.contains(&j) {
                    self.lower[i * (i + 1) / 2 + j] = 0.0;
                }
            }
        }
        self
    }

    /// Of the activation divided by a factor for each channel.
    pub fn divided(&self, factors: &[f32]) -> Gram {
        let mut out = self.clone();
        let mut values = out.lower.iter_mut();
        for (i, a) in factors.iter().enumerate().take(self.size) {
            for (value, b) in values.by_ref().take(i + 1).zip(factors) {
                *value /= f64::from(*a) * f64::from(*b);
            }
        }
        out
    }
}
