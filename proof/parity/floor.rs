//! How far a reference is from itself: what it gives when its numbers change by their last bit, or when it is computed in
//! another order.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits::{FLOOR_FACTOR, LARGE_FLOOR, NOTHING_LEFT, Preset};
use super::metrics::{Metrics, or_infinite};

/// The worst that an output of the reference differs from itself, by metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Floor {
    /// Runs that were compared with the first.
    pub runs: usize,
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_scaled: f64,
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_abs: f64,
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub p99_abs: f64,
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub relative_l2: f64,
    /// The least.
    pub cosine: f64,
    /// The least.
    pub argmax: f64,
    /// The largest fraction of unequal elements, for dtypes other than floats.
    pub unequal: f64,
}

impl Default for Floor {
    fn default() -> Floor {
        Floor {
            runs: 0,
            max_scaled: 0.0,
            max_abs: 0.0,
            p99_abs: 0.0,
            relative_l2: 0.0,
            cosine: 1.0,
            argmax: 1.0,
            unequal: 0.0,
        }
    }
}

impl Floor {
    /// Takes another run of the reference into account.
    pub fn add(&mut self, m: &Metrics) {
        self.runs += 1;
        match &m.float {
            Some(f) => {
                self.max_scaled = self.max_scaled.max(f.max_scaled);
                self.max_abs = self.max_abs.max(f.max_abs);
                self.p99_abs = self.p99_abs.max(f.p99_abs);
                self.relative_l2 = self.relative_l2.max(f.relative_l2);
                self.cosine = self.cosine.min(f.cosine);
                self.argmax = self.argmax.min(f.argmax.unwrap_or(1.0));
            }
            None => {
                let fraction = m.unequal as f64 / m.elements.max(1) as f64;
                self.unequal = self.unequal.max(fraction);
            }
        }
    }

    /// Whether a metric that is beyond its limit is within what the reference differs from itself.
    ///
    /// Up to what an INT8 model may differ, [`FLOOR_FACTOR`] times the floor is allowed; beyond that the floor itself.
    pub(super) fn allows(&self, metric: &str, value: f64) -> bool {
        let most = Preset::Int8.limits();
        // Of metrics that are good where they are large, what is missing counts. A cosine falls with the square of an error.
        let (floor, value, most, factor) = match metric {
            "max_scaled" => (self.max_scaled, value, most.max_scaled, FLOOR_FACTOR),
            "relative_l2" => (self.relative_l2, value, most.relative_l2, FLOOR_FACTOR),
            "cosine" => (
                1.0 - self.cosine,
                1.0 - value,
                most.cosine.map(|c| 1.0 - c),
                FLOOR_FACTOR * FLOOR_FACTOR,
            ),
            "sqnr_db" => (
                self.relative_l2,
                10f64.powf(-value / 20.0),
                most.relative_l2,
                FLOOR_FACTOR,
            ),
            "max_abs" => (self.max_abs, value, None, FLOOR_FACTOR),
            "p99_abs" => (self.p99_abs, value, None, FLOOR_FACTOR),
            "argmax" => (1.0 - self.argmax, 1.0 - value, None, 1.0),
            "unequal" => (self.unequal, value, None, 1.0),
            // Bits and what is not finite are the same or not.
            _ => return false,
        };
        let wide = (factor * floor).min(most.unwrap_or(0.0));
        self.runs > 0 && floor > 0.0 && value <= floor.max(wide)
    }

    /// Whether the model makes much of a last bit. Decisions do, by their nature.
    pub fn is_large(&self) -> bool {
        self.relative_l2 > LARGE_FLOOR
    }

    /// Whether the reference is so far from itself that a comparison with a result which is as far tells nothing. One that is
    /// [`FLOOR_FACTOR`] times as far is another function all the same.
    ///
    /// A reference that rounds activations to integers makes as much of a last bit as of any other rounding, once it makes much
    /// of it: both move some numbers by a step. So there its own limit is enough.
    pub fn leaves_nothing(&self, found: &Metrics, quantized: bool) -> bool {
        let far = found.float.as_ref().map_or(0.0, |f| f.relative_l2);
        let steps = Preset::Int8.limits().relative_l2.filter(|_| quantized);
        let large = self.relative_l2 > steps.unwrap_or(NOTHING_LEFT) || self.unequal > NOTHING_LEFT;
        large && (far <= FLOOR_FACTOR * self.relative_l2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parity::{Preset, Tolerance, metrics};
    use kiln_graph::Tensor;

    fn floor(of: &[f32], again: &[f32]) -> Floor {
        let mut floor = Floor::default();
        floor.add(&metrics(&Tensor::vector(of), &Tensor::vector(again)).unwrap());
        floor
    }

    #[test]
    fn what_the_reference_differs_from_itself_is_allowed_and_said() {
        let reference = [1f32, 2., 3., 4.];
        let noisy = floor(&reference, &[1.001, 2., 3., 4.]);
        let tolerance = Tolerance::from(Preset::Fp32Rewrite);
        let judge = |candidate: [f32; 4], floor| {
            let m = metrics(&Tensor::vector(&reference), &Tensor::vector(&candidate)).unwrap();
            tolerance.check_above("y", &m, floor)
        };
        let plain = judge([1.002, 2., 3., 4.], None);
        assert!(!plain.pass && plain.forgiven.is_empty());
        let allowed = judge([1.002, 2., 3., 4.], Some(&noisy));
        assert!(allowed.pass && allowed.forgiven.len() == plain.failed.len());
        assert!(!judge([1.02, 2., 3., 4.], Some(&noisy)).pass);
        // What is not finite is no noise, and a reference that is always the same allows nothing.
        assert!(!judge([f32::NAN, 2., 3., 4.], Some(&noisy)).pass);
        let quiet = floor(&reference, &reference);
        assert!(!judge([1.002, 2., 3., 4.], Some(&quiet)).pass);
    }

    #[test]
    fn a_large_floor_allows_itself_and_no_more() {
        let reference = [1f32, 1., 1., 1.];
        let noisy = floor(&reference, &[1.4, 1., 1., 1.]);
        let itself = metrics(&Tensor::vector(&reference), &Tensor::vector(&reference)).unwrap();
        assert!(noisy.is_large() && !noisy.leaves_nothing(&itself, false));
        assert!(noisy.leaves_nothing(&itself, true));
        assert!(noisy.allows("relative_l2", 0.19) && !noisy.allows("relative_l2", 0.21));
        let chaos = floor(&reference, &[3., -1., 2., 1.]);
        assert!(chaos.leaves_nothing(&itself, false));
        let far = [30f32, -90., 20., 7.];
        let far = metrics(&Tensor::vector(&reference), &Tensor::vector(&far)).unwrap();
        assert!(!chaos.leaves_nothing(&far, true));
    }

    #[test]
    fn integers_are_allowed_the_fraction_that_moves() {
        let mut noisy = Floor::default();
        let of = |v: &[i64]| Tensor::vector(v);
        noisy.add(&metrics(&of(&[1, 2, 3, 4]), &of(&[1, 2, 3, 5])).unwrap());
        assert!(noisy.allows("unequal", 0.25) && !noisy.allows("unequal", 0.5));
    }
}
