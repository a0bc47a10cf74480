//! What a comparison is worth: numbers that agree prove nothing where they could not have differed.

use std::fmt;
use std::hash::{Hash, Hasher};

use kiln_graph::Tensor;
use rustc_hash::FxHasher;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metrics::or_infinite;
use super::number::{Floats, numbers};

/// Why an output's comparison proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Unproved {
    /// The reference's output has no elements, whatever the inputs.
    Empty,
    /// Nothing in the reference's output is a finite number.
    NotFinite,
    /// All elements are the same number, whatever the inputs.
    Constant,
    /// The reference gives the same for all inputs that were tried.
    Independent,
    /// The reference gives other numbers each time it is run on the same inputs.
    Random {
        /// Between two runs, in relative L2, or the fraction of elements for dtypes other than floats; `null` if it is not finite.
        #[serde(deserialize_with = "or_infinite")]
        #[schemars(with = "Option<f64>")]
        difference: f64,
    },
    /// The last bit of the reference's weights decides its output.
    Unstable {
        #[serde(deserialize_with = "or_infinite")]
        #[schemars(with = "Option<f64>")]
        difference: f64,
    },
}

impl Unproved {
    /// Whether it holds however many other cases agree: a result was out of tolerance, and so is the reference from itself.
    pub(super) fn is_of_the_reference(self) -> bool {
        matches!(self, Unproved::Random { .. } | Unproved::Unstable { .. })
    }
}

impl fmt::Display for Unproved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unproved::Empty => f.write_str("the original gives no elements, whatever its inputs"),
            Unproved::NotFinite => f.write_str("the original gives no finite number"),
            Unproved::Constant => {
                f.write_str("all numbers that the original gives are equal, whatever its inputs")
            }
            Unproved::Independent => {
                f.write_str("the original gives the same for all inputs that were tried")
            }
            Unproved::Random { difference } => write!(
                f,
                "it is random: two runs of the original on the same inputs differ by {:.3} % of it",
                100.0 * difference
            ),
            Unproved::Unstable { difference } => write!(
                f,
                "the original amplifies rounding: a last bit of its weights moves it by {:.3} % of it",
                100.0 * difference
            ),
        }
    }
}

/// What became of an output, or of all.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passes,
    NotProved,
    Fails,
}

impl Outcome {
    /// For the end of a row.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Passes => "ok",
            Outcome::NotProved => "not proved",
            Outcome::Fails => "FAIL",
        }
    }
}

/// What a tensor could show, in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traits {
    pub empty: bool,
    /// There are elements, and one that is a finite number, or of no float.
    pub finite: bool,
    /// All finite elements are equal.
    pub uniform: bool,
    /// The largest finite float, by its size; 0 of other dtypes.
    pub largest: f64,
    /// Tensors of other values have another, all but surely.
    pub fingerprint: u64,
}

impl Traits {
    pub fn of(tensor: &Tensor) -> Traits {
        let (finite, uniform, largest) = match Floats::of(tensor) {
            Some(floats) => of_floats(&floats),
            None => {
                let uniform = match (tensor.strings(), numbers(tensor)) {
                    (Some(strings), _) => strings.windows(2).all(|w| w[0] == w[1]),
                    (None, Some(numbers)) => numbers.windows(2).all(|w| w[0] == w[1]),
                    (None, None) => false,
                };
                (!tensor.is_empty(), uniform, 0.0)
            }
        };
        Traits {
            empty: tensor.is_empty(),
            finite,
            uniform,
            largest,
            fingerprint: fingerprint(tensor, uniform),
        }
    }
}

/// Of all elements: that of [`Tensor::fingerprint`] is of samples. Zeros of both signs are the same where there is nothing else.
fn fingerprint(tensor: &Tensor, uniform: bool) -> u64 {
    let mut hasher = FxHasher::default();
    tensor.dims().hash(&mut hasher);
    match (tensor.strings(), Floats::of(tensor)) {
        (Some(strings), _) => strings.hash(&mut hasher),
        (None, Some(floats)) if uniform => pieces(&floats, |piece| {
            piece
                .iter()
                .for_each(|v| (v + 0.0).to_bits().hash(&mut hasher));
            true
        }),
        _ => tensor.bytes().hash(&mut hasher),
    }
    hasher.finish()
}

/// Goes over all numbers, as long as that is asked for.
fn pieces(floats: &Floats, mut each: impl FnMut(&[f64]) -> bool) {
    const CHUNK: usize = 8 * 1024;
    let mut piece = [0.0; CHUNK];
    for start in (0..floats.len()).step_by(CHUNK) {
        let size = CHUNK.min(floats.len() - start);
        floats.read(start, &mut piece[..size]);
        if !each(&piece[..size]) {
            return;
        }
    }
}

/// Whether a number is finite, whether all that are equal the first, and the largest.
fn of_floats(floats: &Floats) -> (bool, bool, f64) {
    let (mut first, mut uniform, mut largest) = (None, true, 0f64);
    pieces(floats, |piece| {
        for v in piece.iter().filter(|v| v.is_finite()) {
            uniform &= *first.get_or_insert(*v) == *v;
            largest = largest.max(v.abs());
        }
        true
    });
    (first.is_some(), uniform, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tensors_could_show() {
        let traits = |v: &[f32]| Traits::of(&Tensor::vector(v));
        let nan = traits(&[f32::NAN, f32::INFINITY]);
        assert!(!nan.finite && nan.uniform);
        let same = traits(&[2.0, f32::NAN, 2.0]);
        assert!(same.finite && same.uniform);
        assert!(!traits(&[2.0, 2.5]).uniform && !traits(&[]).finite);
        let zeros = |v: &[f32]| traits(v).fingerprint;
        assert_eq!(zeros(&[0.0, -0.0]), zeros(&[-0.0, 0.0]));
        assert_ne!(zeros(&[0.0, f32::INFINITY]), zeros(&[f32::INFINITY, 0.0]));
        let ints = |v: &[i64]| Traits::of(&Tensor::vector(v));
        assert!(ints(&[0, 0]).uniform && ints(&[0, 0]).finite && !ints(&[0, 1]).uniform);
        assert_ne!(ints(&[0, 1]).fingerprint, ints(&[1, 0]).fingerprint);
    }

    #[test]
    fn the_worst_outcome_is_the_largest() {
        assert!(Outcome::Fails > Outcome::NotProved && Outcome::NotProved > Outcome::Passes);
    }
}
