//! How far two rows of scores are apart.

/// [`distance`] of scores without the mean of each row: what is added to all scores of a step, no softmax and no choice sees. A trained
/// Whisper in INT8 moves all of a row whose scores are small by most of their magnitude, and no probability by more than 2 %.
pub(super) fn scores_apart(a: &[f32], b: &[f32]) -> (f64, f64) {
    distance(&centred(a), &centred(b))
}

/// The row without its mean.
pub(super) fn centred(row: &[f32]) -> Vec<f32> {
    let finite = || row.iter().filter(|x| x.is_finite());
    let mean = finite().map(|x| f64::from(*x)).sum::<f64>() / finite().count().max(1) as f64;
    row.iter().map(|x| (f64::from(*x) - mean) as f32).collect()
}

/// Relative L2 and cosine; NaN where a side is not finite.
pub(super) fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut aa, mut bb, mut ab, mut dd) = (0.0, 0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        aa += x * x;
        bb += y * y;
        ab += x * y;
        dd += (x - y) * (x - y);
    }
    if a.len() != b.len() {
        return (f64::NAN, f64::NAN);
    }
    match aa == 0.0 && bb == 0.0 {
        true => (0.0, 1.0),
        false => ((dd / aa).sqrt(), ab / (aa * bb).sqrt()),
    }
}

/// `Σ p (ln p − ln q)` of the distributions that scores stand for.
pub(super) fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let log_sum = |s: &[f32]| {
        let top = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = s.iter().map(|x| f64::from(x - top).exp()).sum();
        f64::from(top) + sum.ln()
    };
    let (za, zb) = (log_sum(a), log_sum(b));
    let terms = a.iter().zip(b).map(|(x, y)| {
        let (p, q) = (f64::from(*x) - za, f64::from(*y) - zb);
        // What has no chance adds nothing.
        if p == f64::NEG_INFINITY {
            0.0
        } else {
            p.exp() * (p - q)
        }
    });
    // What cannot happen for the result is written as the largest number: JSON has no infinity.
    terms.sum::<f64>().min(f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_all_scores_is_no_difference() {
        let (l2, cosine) = scores_apart(&[1.0, 2.0, 4.0], &[11.0, 12.0, 14.0]);
        assert!(l2 < 1e-6 && cosine > 1.0 - 1e-6);
        // Beside the mean, (-1, 1) became (-2, 2).
        let (l2, cosine) = scores_apart(&[4.0, 6.0], &[3.0, 7.0]);
        assert_eq!((l2, cosine), (1.0, 1.0));
        assert!(scores_apart(&[1.0, 2.0], &[f32::NAN, 2.0]).0.is_nan());
        assert!(
            !scores_apart(&[1.0, 2.0], &[f32::INFINITY, 2.0])
                .0
                .is_finite()
        );
    }

    #[test]
    fn divergence_is_zero_for_the_same_and_grows() {
        let a = [1.0, 2.0, 3.0];
        assert!(divergence(&a, &a).abs() < 1e-12);
        // A shift of all scores is the same distribution.
        assert!(divergence(&a, &[11.0, 12.0, 13.0]).abs() < 1e-6);
        let p = [0.0f32, 2f32.ln()];
        // p = (1/3, 2/3), q = (1/2, 1/2): 1/3 ln 2/3 + 2/3 ln 4/3.
        let right = (2f64 / 3.0).ln() / 3.0 + 2.0 * (4f64 / 3.0).ln() / 3.0;
        assert!((divergence(&p, &[0.0, 0.0]) - right).abs() < 1e-7);
    }
}
