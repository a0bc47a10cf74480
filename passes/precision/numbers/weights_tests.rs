use super::*;

/// INT4, which most of what follows is about.
fn quantize(weight: &Tensor, block: usize, moments: Option<&[f64]>) -> Result<Quantized, Unfit> {
    super::quantize(weight, Rounding::Int4, block, moments)
}

/// Numbers of a normal distribution, by summing uniform ones of a linear congruence (Knuth's MMIX).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
        .collect()
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> Tensor {
    Tensor::from_values(&[rows, columns][..], values).unwrap()
}

fn signed(code: u8) -> f32 {
    f32::from(((code << 4) as i8) >> 4)
}

fn dequantized(q: &Quantized, block: usize) -> Vec<f64> {
    let scales = q.scales.to_f64s().unwrap();
    let &[_, columns] = q.values.dims() else {
        panic!()
    };
    (unpack(&q.values).unwrap().iter().enumerate())
        .map(|(k, &code)| {
            let (row, column) = (k / columns, k % columns);
            f64::from(signed(code)) * scales[row / block * columns + column]
        })
        .collect()
}

fn error(weight: &[f32], found: &[f64], columns: usize, moments: Option<&[f64]>) -> f64 {
    let at = |k: usize| moments.map_or(1.0, |m| m[k / columns]);
    let (mut lost, mut whole) = (0.0, 0.0);
    for (k, (&w, &f)) in weight.iter().zip(found).enumerate() {
        lost += at(k) * (f64::from(w) - f).powi(2);
        whole += at(k) * f64::from(w).powi(2);
    }
    (lost / whole).sqrt()
}

#[test]
fn errors_are_small_and_as_reported() {
    // 70 rows leave a short block, 37 columns an odd number of them and a part of the lanes.
    let (rows, columns) = (70, 37);
    let values = normal(rows * columns, 1);
    let weight = matrix(rows, columns, &values);
    let mut last = 0.0;
    for block in [16, 32, 64, 128] {
        let q = quantize(&weight, block, None).unwrap();
        assert_eq!(q.values.dtype(), DType::I4);
        assert_eq!(q.values.dims(), [rows, columns]);
        assert_eq!(q.scales.dims(), [rows.div_ceil(block), columns]);
        let found = error(&values, &dequantized(&q, block), columns, None);
        assert!((found - q.error).abs() < 1e-4, "{found} {}", q.error);
        assert!(found > last && found < 0.115, "{block}: {found}");
        last = found;
    }
}

#[test]
fn the_search_beats_the_largest_magnitude_over_7() {
    let values = normal(128 * 64, 2);
    let q = quantize(&matrix(128, 64, &values), 64, None).unwrap();
    let mut plain = vec![0f64; values.len()];
    for column in 0..64 {
        for start in [0, 64] {
            let at = |r: usize| (start + r) * 64 + column;
            let largest = (0..64).fold(0f32, |m, r| m.max(values[at(r)].abs()));
            let scale = largest / 7.0;
            for r in 0..64 {
                plain[at(r)] = f64::from((values[at(r)] / scale).round() * scale);
            }
        }
    }
    let plain = error(&values, &plain, 64, None);
    assert!(q.error < 0.97 * plain, "{} against {plain}", q.error);
}

#[test]
fn integers_times_a_scale_come_back_as_they_were() {
    let values: Vec<f32> = (0..64).map(|k| (k % 16) as f32 * 0.25 - 2.0).collect();
    // One column from -8 to 7, read downwards.
    let q = quantize(&matrix(64, 1, &values), 32, None).unwrap();
    assert_eq!(q.scales.to_f64s().unwrap(), [0.25, 0.25]);
    assert_eq!(q.error, 0.0);
    assert_eq!(q.values.bytes()[..2], [0x98, 0xba]);
}

#[test]
fn moments_move_the_error_to_rows_that_matter_less() {
    let (rows, columns) = (64, 48);
    let values = normal(rows * columns, 3);
    let weight = matrix(rows, columns, &values);
    let moments: Vec<f64> = (0..rows)
        .map(|r| if r % 8 == 0 { 100.0 } else { 0.1 })
        .collect();
    let plain = quantize(&weight, 32, None).unwrap();
    let weighed = quantize(&weight, 32, Some(&moments)).unwrap();
    let of = |q: &Quantized| error(&values, &dequantized(q, 32), columns, Some(&moments));
    assert!(of(&weighed) < 0.8 * of(&plain));
    assert!((of(&weighed) - weighed.error).abs() < 1e-4);
    assert_eq!(
        quantize(&weight, 32, Some(&[1.0])).unwrap_err(),
        Unfit::Moments
    );
    let useless = vec![f64::NAN; rows];
    assert_eq!(
        quantize(&weight, 32, Some(&useless)).unwrap().error,
        plain.error
    );
}

#[test]
fn odd_weights_are_refused_or_survive() {
    let no = |t: &Tensor| quantize(t, 32, None).unwrap_err();
    assert_eq!(no(&matrix(1, 2, &[1.0, f32::NAN])), Unfit::NotFinite);
    assert_eq!(no(&matrix(0, 2, &[])), Unfit::Empty);
    assert_eq!(no(&Tensor::vector(&[1f32])), Unfit::Type);
    let doubles = Tensor::from_values(&[1, 1][..], &[1f64]).unwrap();
    assert_eq!(no(&doubles), Unfit::Type);
    for value in [0.0, 1e-45, 1e-38, f32::MIN_POSITIVE, 3.4e38, -3.4e38] {
        let q = quantize(&matrix(2, 1, &[value, 0.0]), 32, None).unwrap();
        let scale = q.scales.to_f64s().unwrap()[0];
        assert!(scale > 0.0 && scale.is_finite(), "{value}: {scale}");
    }
    // A block that is next to nothing beside another, and would be zero in half precision.
    let mut values = vec![1e-20f32; 32];
    values.extend([1.0; 32]);
    let q = quantize(&matrix(64, 1, &values), 32, None).unwrap();
    let scales = q.scales.narrowed(DType::F16).unwrap().to_f64s().unwrap();
    assert!(scales.iter().all(|&s| s > 0.0), "{scales:?}");
}

#[test]
fn scales_of_half_weights_are_halves() {
    let values = normal(64 * 8, 4);
    for dtype in [DType::F16, DType::BF16] {
        let half = matrix(64, 8, &values).narrowed(dtype).unwrap();
        let q = quantize(&half, 32, None).unwrap();
        assert_eq!(q.scales.dtype(), dtype);
        let wide: Vec<f32> = half.to_f64s().unwrap().iter().map(|&v| v as f32).collect();
        let found = error(&wide, &dequantized(&q, 32), 8, None);
        assert!((found - q.error).abs() < 1e-4, "{found} {}", q.error);
    }
}

#[test]
fn int8_rounds_to_a_127th_and_clamps_for_the_others() {
    let values = normal(256 * 40, 5);
    let q = super::quantize(&matrix(256, 40, &values), Rounding::Int8, 256, None).unwrap();
    assert_eq!(q.scales.dims(), [1, 40]);
    let scales = q.scales.to_f64s().unwrap();
    let codes: Vec<i8> = q.values.values().unwrap();
    assert!(codes.iter().all(|&c| c != i8::MIN));
    let found: Vec<f64> = (codes.iter().enumerate())
        .map(|(k, &c)| f64::from(c) * scales[k % 40])
        .collect();
    let found = error(&values, &found, 40, None);
    assert!((found - q.error).abs() < 1e-5 && found < 0.01, "{found}");
}

#[test]
fn fp8_has_every_number_of_e4m3() {
    // Its bits as numbers (OCP "8-bit Floating Point Specification", table 1), NaN left out.
    let number = |bits: u8| {
        let (exponent, mantissa) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
        let magnitude = match exponent {
            0 => mantissa / 512.0,
            e => (1.0 + mantissa / 8.0) * 2f32.powi(e - 7),
        };
        if bits & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    };
    for bits in (0..=255u8).filter(|b| b & 0x7f != 0x7f) {
        let v = number(bits);
        assert_eq!(Fp8::nearest(v, 0.0), v);
        if v != 0.0 {
            assert_eq!(Fp8::byte(v), bits, "{v}");
        }
        // A little more and a little less is rounded back.
        for near in [v * 1.01, v * 0.99] {
            assert_eq!(Fp8::nearest(near, 0.0), v, "{near}");
        }
    }
    // Halfway, to the even one.
    assert_eq!(Fp8::nearest(17.0, 0.0), 16.0);
    assert_eq!(Fp8::nearest(19.0, 0.0), 20.0);
    assert_eq!(Fp8::nearest(1000.0, 0.0), 448.0);
}
