use super::*;

/// Numbers in -1 to 1 that look random.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Rows of channels that mostly move together.
fn activation(rows: usize, channels: usize) -> Vec<f32> {
    let own = noise(rows * channels, 3);
    let shared = noise(rows * 4, 5);
    let at = |k: usize| {
        let (row, channel) = (k / channels, k % channels);
        let common: f32 = (0..4)
            .map(|c| shared[row * 4 + c] * ((channel * (c + 2)) as f32).sin())
            .sum();
        common + 0.2 * own[k]
    };
    (0..own.len()).map(at).collect()
}

fn gram(x: &[f32], channels: usize) -> Gram {
    let mut gram = Gram::new(channels);
    for row in x.chunks(channels) {
        gram.add(row.iter().map(|a| row.iter().map(move |b| a * b)));
    }
    gram
}

const STEP: f32 = 0.15;

fn steps(scales: &[f32]) -> Steps<'_> {
    Steps {
        scales,
        zeros: None,
        block: 16,
        range: (-8.0, 7.0),
        sweeps: SWEEPS,
    }
}

fn error(weight: &[f32], codes: impl Iterator<Item = f32>) -> Vec<f32> {
    weight
        .iter()
        .zip(codes)
        .map(|(w, c)| w - c * STEP)
        .collect()
}

fn nearest(weight: &[f32]) -> Vec<f32> {
    let code = |w: &f32| (w / STEP).round().clamp(-8.0, 7.0);
    weight.iter().map(code).collect()
}

const K: usize = 48;
const N: usize = 40;

#[test]
fn errors_make_up_for_each_other() {
    let h = Curvature::of(&gram(&activation(400, K), K)).unwrap();
    let weight = noise(K * N, 7);
    let scales = vec![STEP; K / 16 * N];
    let codes = h.rounded(&weight, N, steps(&scales));
    let found = h.cost(&error(&weight, codes.iter().map(|&c| c.into())), N);
    let plain = h.cost(&error(&weight, nearest(&weight).into_iter()), N);
    assert!(found < 0.5 * plain, "{found} against {plain}");
}

#[test]
fn the_cost_is_the_squared_error_of_the_products() {
    let x = activation(100, K);
    let h = Curvature::of(&gram(&x, K)).unwrap();
    let off = noise(K * N, 9);
    let mut expected = 0f64;
    for row in x.chunks(K) {
        for n in 0..N {
            let product = row
                .iter()
                .enumerate()
                .map(|(k, v)| f64::from(v * off[k * N + n]));
            expected += product.sum::<f64>().powi(2);
        }
    }
    let found = h.cost(&off, N);
    assert!((found / expected - 1.0).abs() < 1e-4, "{found}, {expected}");
}

#[test]
fn channels_that_do_not_move_together_are_rounded_to_nearest() {
    let mut independent = Gram::new(K);
    independent.add((0..K).map(|i| (0..K).map(move |j| if i == j { 2.0 } else { 0.0 })));
    let h = Curvature::of(&independent).unwrap();
    let weight = noise(K * N, 11);
    let scales = vec![STEP; K / 16 * N];
    let codes = h.rounded(&weight, N, steps(&scales));
    let codes: Vec<f32> = codes.into_iter().map(f32::from).collect();
    assert_eq!(codes, nearest(&weight));
}

#[test]
fn zero_points_move_the_range() {
    let h = Curvature::of(&gram(&activation(400, K), K)).unwrap();
    // -12 to 3 steps.
    let weight: Vec<f32> = noise(K * N, 13)
        .iter()
        .map(|v| (v * 7.5 - 4.5) * STEP)
        .collect();
    let (scales, zeros) = (vec![STEP; K / 16 * N], vec![4f32; K / 16 * N]);
    let affine = Steps {
        zeros: Some(&zeros),
        ..steps(&scales)
    };
    let codes = h.rounded(&weight, N, affine);
    assert!(codes.iter().all(|c| (-8..=7).contains(c)));
    let with = h.cost(
        &error(&weight, codes.iter().map(|&c| f32::from(c) - 4.0)),
        N,
    );
    let codes = h.rounded(&weight, N, steps(&scales));
    let without = h.cost(&error(&weight, codes.iter().map(|&c| c.into())), N);
    assert!(with < 0.5 * without, "{with} against {without}");
}

#[test]
fn columns_do_not_see_each_other() {
    let h = Curvature::of(&gram(&activation(400, K), K)).unwrap();
    let weight = noise(K * N, 15);
    let scales = vec![STEP; K / 16 * N];
    let all = h.rounded(&weight, N, steps(&scales));
    for n in [0, 31, 32, N - 1] {
        let column: Vec<f32> = weight.iter().skip(n).step_by(N).copied().collect();
        let alone = h.rounded(&column, 1, steps(&scales[..K / 16]));
        let among: Vec<i8> = all.iter().skip(n).step_by(N).copied().collect();
        assert_eq!(alone, among, "column {n}");
    }
}

#[test]
fn the_factor_squared_is_the_matrix() {
    let h = gram(&activation(100, K), K);
    let mut factor: Vec<f64> = (0..K * K).map(|k| h.at(k / K, k % K)).collect();
    factorize(&mut factor, K).unwrap();
    for i in 0..K {
        for j in 0..=i {
            let product: f64 = (0..=j).map(|k| factor[i * K + k] * factor[j * K + k]).sum();
            assert!((product - h.at(i, j)).abs() < 1e-9 * h.at(0, 0), "{i}, {j}");
        }
    }
    let mut negative = vec![1.0, 0.0, 2.0, 1.0];
    assert!(factorize(&mut negative, 2).is_none());
}

#[test]
fn what_was_never_measured_has_no_curvature() {
    assert!(Curvature::of(&Gram::new(K)).is_none());
    let mut broken = gram(&activation(10, K), K);
    broken.add((0..K).map(|i| (0..K).map(move |j| if (i, j) == (1, 0) { f32::NAN } else { 0.0 })));
    assert!(Curvature::of(&broken).is_none());
}
