//! One scale for a quantized weight, and factors of its columns behind the product.

use half::f16;

/// Largest sum that a product may reach: half of what FP16 holds.
const MOST: f64 = 32768.0;

/// The weight's scale, a power of two, and the factor of each column: `scales[j]` is the scale times `factors[j]`.
///
/// `matrix` is [K, N] with one scale for each column, and `most` the largest magnitude of what it is multiplied by. No sum
/// of the product leaves FP16 before it has its factor. A power of two keeps the dequantized weight exact in 16 bits.
pub(in crate::precision) fn behind(matrix: &[f32], scales: &[f32], most: f32) -> (f32, Vec<f32>) {
    let mut norms = vec![0f64; scales.len()];
    for row in matrix.chunks(scales.len().max(1)) {
        for (norm, v) in norms.iter_mut().zip(row) {
            *norm += f64::from(v.abs());
        }
    }
    // A column of zeros has any scale.
    let used = |j: usize| norms[j] > 0.0;
    let all = || (0..scales.len()).filter(|&j| used(j));
    let widest = all().fold(0f32, |m, j| m.max(scales[j]));
    let steepest = all().fold(0f64, |m, j| m.max(norms[j] / f64::from(scales[j])));
    let normal = f64::from(f16::MIN_POSITIVE);
    let power = |v: f64| v.log2().floor().exp2();
    let scale = power(f64::from(widest)).max(normal);
    let fits = power(MOST / (f64::from(most) * steepest).max(f64::MIN_POSITIVE));
    let scale = scale.min(fits).clamp(1e-30, 1e30) as f32;
    let factor = |j: usize| if used(j) { scales[j] / scale } else { 1.0 };
    (scale, (0..scales.len()).map(factor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_and_factors_are_the_scales_of_columns() {
        let matrix = [0.5, -0.25, 0.0, -1.0, 0.125, 0.0];
        let scales = [1.0 / 127.0, 0.25 / 127.0, 1.0];
        let (scale, factors) = behind(&matrix, &scales, 3.0);
        assert_eq!(scale, 1.0 / 128.0);
        assert_eq!(factors[..2], [scales[0] / scale, scales[1] / scale]);
        assert_eq!(factors[2], 1.0, "a column of zeros says nothing");
    }

    #[test]
    fn no_sum_leaves_fp16() {
        let matrix = vec![0.5f32; 4096];
        let scales = [0.5f32 / 127.0];
        let (scale, factors) = behind(&matrix, &scales, 100.0);
        let sum = 100.0 * 4096.0 * 127.0 * scale;
        assert!(sum <= 32768.0 && sum > 8192.0, "{sum}");
        assert_eq!(scale * factors[0], scales[0]);
    }

    #[test]
    fn small_weights_keep_a_scale_that_fp16_holds() {
        let (scale, _) = behind(&[1e-5; 16], &[1e-5 / 127.0], 1.0);
        assert_eq!(scale, f16::MIN_POSITIVE.to_f32());
        let (scale, factors) = behind(&[0.0; 16], &[1.0], 0.0);
        assert!(scale.is_finite() && scale > 0.0 && factors == [1.0]);
    }
}
