//! How far a candidate's tensor is from the reference's.

use kiln_graph::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::number::{Floats, numbers};

/// Elements decoded at a time.
const CHUNK: usize = 8 * 1024;

/// How two tensors of the same dtype and shape differ. All arithmetic is in f64.
///
/// Places where either side is NaN or infinite are counted in [`FloatMetrics::nonfinite`] and left out of all other
/// numbers. Infinite numbers (a ratio to a reference of zero, the SQNR of equal tensors) become `null` in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Metrics {
    /// Elements compared, all of them.
    pub elements: usize,
    /// Elements that are not equal in value. NaN equals NaN here, and 0.0 equals -0.0.
    pub unequal: usize,
    /// Whether dtype, shape and every bit are equal.
    pub same_bits: bool,
    /// What only floats have; `None` for other dtypes.
    pub float: Option<FloatMetrics>,
}

/// How two tensors of floats differ.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct FloatMetrics {
    /// The largest `|candidate - reference|`.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_abs: f64,
    /// Where `max_abs` is: one index per dimension. Empty for scalars and where nothing was compared.
    pub max_abs_at: Vec<usize>,
    /// The mean of `|candidate - reference|`.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub mean_abs: f64,
    /// 99 % of the elements are at most this far from the reference.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub p99_abs: f64,
    /// The largest `|candidate - reference| / max(|reference|, rms)`, element by element: the error relative to the
    /// element, or to the typical magnitude of the reference for elements below that.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub max_scaled: f64,
    /// `‖candidate - reference‖ / ‖reference‖` in the Euclidean norm.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub relative_l2: f64,
    /// The cosine of the angle between the two: 1 if both are zero, 0 if one is.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub cosine: f64,
    /// Signal to noise in dB: `20 log10(1 / relative_l2)`.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub sqnr_db: f64,
    /// The largest magnitude in the reference.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub reference_max: f64,
    /// The root of the mean square of the reference.
    #[serde(deserialize_with = "or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub reference_rms: f64,
    /// Of the rows along the last axis, the fraction whose largest element is at the same place. A tie in the
    /// reference counts as the same place. `None` if the last axis has one element or there is none.
    pub argmax: Option<f64>,
    pub nonfinite: Nonfinite,
    /// Elements by the decade of `|candidate - reference| / rms`: the first are equal, the second below 1e-9, the third
    /// below 1e-8, the last at least 1. Empty in results of older versions.
    #[serde(default)]
    pub decades: Vec<usize>,
}

/// Decades of errors that are told apart, from 1e-9 to 1.
const DECADES: i32 = 9;

/// The places of [`FloatMetrics::decades`], in words.
pub fn decades() -> Vec<String> {
    let mut names = vec!["equal".to_string(), format!("< 1e-{DECADES}")];
    names.extend((0..DECADES).rev().map(|k| match k {
        0 => "< 1".into(),
        k => format!("< 1e-{k}"),
    }));
    names.push("≥ 1".into());
    names
}

/// The place of an error over the scale.
fn decade(error: f64) -> usize {
    if error == 0.0 {
        return 0;
    }
    let decade = error.log10().floor().clamp(-f64::from(DECADES) - 1.0, 0.0) as i32;
    (decade + DECADES + 2) as usize
}

/// JSON has no infinity: it became `null`.
pub(super) fn or_infinite<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::INFINITY))
}

/// Elements that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
pub struct Nonfinite {
    pub reference_nan: usize,
    pub candidate_nan: usize,
    pub reference_inf: usize,
    pub candidate_inf: usize,
    /// Places where one side is not finite and the other is something else: a finite number, the other infinity, or
    /// NaN against infinity.
    pub differ: usize,
}

impl Nonfinite {
    /// Elements that are not finite on the side that has more of them.
    pub fn most(&self) -> usize {
        let reference = self.reference_nan + self.reference_inf;
        reference.max(self.candidate_nan + self.candidate_inf)
    }
}

/// Compares two tensors of the same dtype and shape; `None` if they are not, or have no values to compare (complex).
pub fn metrics(reference: &Tensor, candidate: &Tensor) -> Option<Metrics> {
    if reference.dtype() != candidate.dtype() || reference.dims() != candidate.dims() {
        return None;
    }
    let same_bits = reference.same_bits(candidate);
    let elements = reference.len();
    if let (Some(r), Some(c)) = (Floats::of(reference), Floats::of(candidate)) {
        let (unequal, float) = float_metrics(&r, &c, reference.dims());
        return Some(Metrics {
            elements,
            unequal,
            same_bits,
            float: Some(float),
        });
    }
    let unequal = if same_bits {
        0
    } else if let (Some(r), Some(c)) = (reference.strings(), candidate.strings()) {
        unequal(r, c)
    } else {
        unequal(&numbers(reference)?, &numbers(candidate)?)
    };
    Some(Metrics {
        elements,
        unequal,
        same_bits,
        float: None,
    })
}

fn unequal<T: PartialEq>(reference: &[T], candidate: &[T]) -> usize {
    reference
        .iter()
        .zip(candidate)
        .filter(|(r, c)| r != c)
        .count()
}

#[derive(Default)]
struct Sums {
    finite: usize,
    unequal: usize,
    reference: f64,
    candidate: f64,
    dot: f64,
    error: f64,
    error_abs: f64,
    max_abs: f64,
    max_abs_at: Option<usize>,
    reference_max: f64,
    nonfinite: Nonfinite,
}

impl Sums {
    fn add(&mut self, at: usize, r: f64, c: f64) {
        let differs = r != c && !(r.is_nan() && c.is_nan());
        self.unequal += usize::from(differs);
        if !(r.is_finite() && c.is_finite()) {
            let n = &mut self.nonfinite;
            n.reference_nan += usize::from(r.is_nan());
            n.candidate_nan += usize::from(c.is_nan());
            n.reference_inf += usize::from(r.is_infinite());
            n.candidate_inf += usize::from(c.is_infinite());
            n.differ += usize::from(differs);
            return;
        }
        let error = (c - r).abs();
        self.finite += 1;
        self.reference += r * r;
        self.candidate += c * c;
        self.dot += r * c;
        self.error += error * error;
        self.error_abs += error;
        self.reference_max = self.reference_max.max(r.abs());
        if error > self.max_abs || self.max_abs_at.is_none() {
            self.max_abs = error;
            self.max_abs_at = Some(at);
        }
    }
}

fn float_metrics(reference: &Floats, candidate: &Floats, dims: &[usize]) -> (usize, FloatMetrics) {
    let mut sums = Sums::default();
    each(reference, candidate, |at, r, c| sums.add(at, r, c));
    let mean = |sum: f64| {
        if sums.finite == 0 {
            0.
        } else {
            sum / sums.finite as f64
        }
    };
    let rms = mean(sums.reference).sqrt();

    let mut max_scaled = 0f64;
    let mut errors = Vec::with_capacity(sums.finite);
    let mut decades = vec![0; DECADES as usize + 3];
    each(reference, candidate, |_, r, c| {
        if r.is_finite() && c.is_finite() {
            let error = (c - r).abs();
            max_scaled = max_scaled.max(ratio(error, r.abs().max(rms)));
            decades[decade(ratio(error, rms))] += 1;
            errors.push(error);
        }
    });
    let relative_l2 = ratio(sums.error.sqrt(), sums.reference.sqrt());
    let float = FloatMetrics {
        max_abs: sums.max_abs,
        max_abs_at: sums.max_abs_at.map_or_else(Vec::new, |at| index(at, dims)),
        mean_abs: mean(sums.error_abs),
        p99_abs: percentile_99(&mut errors),
        max_scaled,
        relative_l2,
        cosine: cosine(&sums),
        sqnr_db: -20. * relative_l2.log10(),
        reference_max: sums.reference_max,
        reference_rms: rms,
        argmax: argmax_agreement(reference, candidate, dims),
        nonfinite: sums.nonfinite,
        decades,
    };
    (sums.unequal, float)
}

/// `error / scale`, where no error over a scale of zero is no error.
fn ratio(error: f64, scale: f64) -> f64 {
    if error == 0. { 0. } else { error / scale }
}

fn cosine(sums: &Sums) -> f64 {
    match (sums.reference == 0., sums.candidate == 0.) {
        (true, true) => 1.,
        (true, false) | (false, true) => 0.,
        (false, false) => {
            // Rounding can push the quotient of equal tensors beyond 1.
            let cosine = sums.dot / (sums.reference.sqrt() * sums.candidate.sqrt());
            cosine.clamp(-1., 1.)
        }
    }
}

fn percentile_99(errors: &mut [f64]) -> f64 {
    let Some(last) = errors.len().checked_sub(1) else {
        return 0.;
    };
    let rank = (errors.len() * 99).div_ceil(100) - 1;
    *errors
        .select_nth_unstable_by(rank.min(last), f64::total_cmp)
        .1
}

fn each(reference: &Floats, candidate: &Floats, mut f: impl FnMut(usize, f64, f64)) {
    let (mut r, mut c) = ([0.; CHUNK], [0.; CHUNK]);
    let len = reference.len();
    for start in (0..len).step_by(CHUNK) {
        let size = CHUNK.min(len - start);
        reference.read(start, &mut r[..size]);
        candidate.read(start, &mut c[..size]);
        for i in 0..size {
            f(start + i, r[i], c[i]);
        }
    }
}

fn index(mut at: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (i, &dim) in index.iter_mut().zip(dims).rev() {
        *i = at % dim.max(1);
        at /= dim.max(1);
    }
    index
}

fn argmax_agreement(reference: &Floats, candidate: &Floats, dims: &[usize]) -> Option<f64> {
    let width = dims.last().copied().filter(|&w| w > 1)?;
    let rows = reference.len() / width;
    if rows == 0 {
        return None;
    }
    let (mut r, mut c) = (vec![0.; width], vec![0.; width]);
    let mut agreeing = 0;
    for row in 0..rows {
        reference.read(row * width, &mut r);
        candidate.read(row * width, &mut c);
        agreeing += usize::from(match (argmax(&r), argmax(&c)) {
            (Some(at_r), Some(at_c)) => r[at_r] == r[at_c],
            (None, None) => true,
            _ => false,
        });
    }
    Some(agreeing as f64 / rows as f64)
}

/// The first place of the largest number; `None` if there is nothing but NaN.
fn argmax(row: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, v) in row.iter().enumerate() {
        if !v.is_nan() && best.is_none_or(|b| *v > row[b]) {
            best = Some(i);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use kiln_graph::DType;

    fn compare(reference: &[f32], candidate: &[f32], dims: &[usize]) -> Metrics {
        let tensor = |v: &[f32]| Tensor::from_values(dims, v).unwrap();
        metrics(&tensor(reference), &tensor(candidate)).unwrap()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn errors_fall_into_decades() {
        let found = compare(&[1.0; 5], &[1.0, 1.05, 3.0, 1.0 + 1.2e-7, 0.5], &[5]);
        let decades = found.float.unwrap().decades;
        let names = super::decades();
        assert_eq!(decades.len(), names.len());
        let filled: Vec<_> = names.iter().zip(decades).filter(|(_, n)| *n > 0).collect();
        let filled: Vec<_> = filled
            .into_iter()
            .map(|(name, n)| (name.as_str(), n))
            .collect();
        assert_eq!(
            filled,
            [
                ("equal", 1),
                ("< 1e-6", 1),
                ("< 1e-1", 1),
                ("< 1", 1),
                ("≥ 1", 1)
            ]
        );
        assert_eq!(
            (decade(1e-30), decade(f64::INFINITY), decade(1.0)),
            (1, 11, 11)
        );
    }

    #[test]
    fn numbers_worked_out_by_hand() {
        let m = compare(&[3., 4., 0., 0.], &[3., 4., 0., 5.], &[2, 2]);
        let f = m.float.unwrap();
        assert_eq!((m.elements, m.unequal, m.same_bits), (4, 1, false));
        assert_eq!((f.max_abs, f.mean_abs, f.p99_abs), (5., 1.25, 5.));
        assert_eq!(f.max_abs_at, [1, 1]);
        assert!(close(f.reference_rms, 2.5) && f.reference_max == 4.);
        assert!(close(f.max_scaled, 2.));
        assert!(close(f.relative_l2, 1.));
        assert!(close(f.sqnr_db, 0.));
        assert!(close(f.cosine, 25. / (5. * 50f64.sqrt())));
        // The first row agrees; the second ties in the reference.
        assert_eq!(f.argmax, Some(1.));
        let f = compare(&[1., 2., 3., 4.], &[1., 2., 4., 3.], &[2, 2])
            .float
            .unwrap();
        assert_eq!(f.argmax, Some(0.5));
    }

    #[test]
    fn a_hundred_errors_have_a_percentile() {
        let reference = [0f32; 200];
        let candidate: Vec<f32> = (1..=200).map(|i| i as f32).collect();
        let f = compare(&reference, &candidate, &[200]).float.unwrap();
        assert_eq!(f.p99_abs, 198.);
        assert_eq!(
            (f.relative_l2, f.max_scaled),
            (f64::INFINITY, f64::INFINITY)
        );
        assert_eq!(f.cosine, 0.);
    }

    #[test]
    fn equal_tensors_have_no_error() {
        let values = [1e-3, -7.25, 1e30, 0.1];
        let m = compare(&values, &values, &[4]);
        let f = m.float.unwrap();
        assert!(m.same_bits && m.unequal == 0);
        assert_eq!((f.max_abs, f.relative_l2, f.cosine), (0., 0., 1.));
        assert_eq!((f.sqnr_db, f.max_scaled), (f64::INFINITY, 0.));
        let zeros = compare(&[0., 0.], &[0., -0.], &[2]);
        assert!(!zeros.same_bits && zeros.unequal == 0);
        assert_eq!(zeros.float.unwrap().cosine, 1.);
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let m = compare(
            &[nan, inf, inf, 1., nan, 2.],
            &[nan, inf, -inf, nan, inf, 2.5],
            &[6],
        );
        let f = m.float.unwrap();
        let counts = Nonfinite {
            reference_nan: 2,
            candidate_nan: 2,
            reference_inf: 2,
            candidate_inf: 3,
            differ: 3,
        };
        assert_eq!(f.nonfinite, counts);
        assert_eq!((m.unequal, f.max_abs, f.max_scaled), (4, 0.5, 0.25));
        let f = compare(&[nan, nan], &[nan, nan], &[1, 2]).float.unwrap();
        assert_eq!((f.argmax, f.cosine, f.nonfinite.differ), (Some(1.), 1., 0));
    }

    #[test]
    fn empty_tensors_and_scalars_are_compared() {
        let m = compare(&[], &[], &[0, 3]);
        let f = m.float.clone().unwrap();
        assert!(m.same_bits && f.cosine == 1. && f.argmax.is_none() && f.max_abs_at.is_empty());
        let f = compare(&[2.], &[1.], &[]).float.unwrap();
        assert_eq!((f.max_abs, f.relative_l2), (1., 0.5));
    }

    #[test]
    fn other_dtypes_count_what_is_unequal() {
        let ints = |v: &[i64]| Tensor::vector(v);
        let m = metrics(&ints(&[1, 2, 3]), &ints(&[1, 5, 6])).unwrap();
        assert_eq!((m.unequal, m.float), (2, None));
        let texts = |v: [&'static str; 2]| {
            let v = v.map(|s| bytes::Bytes::from_static(s.as_bytes()));
            Tensor::from_strings(vec![2], v.to_vec()).unwrap()
        };
        assert_eq!(
            metrics(&texts(["a", "b"]), &texts(["a", "c"]))
                .unwrap()
                .unequal,
            1
        );
        let yes = Tensor::from_raw(DType::Bool, vec![1], bytes::Bytes::from_static(&[1])).unwrap();
        let also = Tensor::from_raw(DType::Bool, vec![1], bytes::Bytes::from_static(&[2])).unwrap();
        let m = metrics(&yes, &also).unwrap();
        assert!(m.unequal == 0 && !m.same_bits);
        assert_eq!(metrics(&yes, &ints(&[1])), None);
        assert_eq!(metrics(&ints(&[1]), &ints(&[1, 2])), None);
    }

    #[test]
    fn halves_are_compared_exactly_and_across_chunks() {
        let reference = vec![f16::ONE; CHUNK + 3];
        let mut candidate = reference.clone();
        candidate[CHUNK + 1] = f16::from_f32(1.5);
        let m = metrics(&Tensor::vector(&reference), &Tensor::vector(&candidate)).unwrap();
        let f = m.float.unwrap();
        assert_eq!((f.max_abs, f.max_abs_at), (0.5, vec![CHUNK + 1]));
        assert_eq!((m.unequal, f.p99_abs), (1, 0.));
    }
}
