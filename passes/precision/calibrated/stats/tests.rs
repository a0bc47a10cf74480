use super::*;
use crate::precision::numbers::format::Format;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / 2f64.powi(53)
    }

    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }
}

/// Normal numbers with outliers, zeros, and a wide spread of magnitudes.
fn wild(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let values = (0..n).map(|_| match random.next() % 20 {
        0 => 0.0,
        1 => -0.0,
        2 => random.normal() * 1e20,
        3 => random.normal() * 1e-20,
        4 => f32::from_bits(random.next() as u32 % 0x0080_0000),
        5 => random.normal() * 300.0,
        _ => random.normal(),
    });
    values.collect()
}

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.normal()).collect()
}

fn stats(values: &[f32]) -> TensorStats {
    let mut collector = Collector::new();
    collector.add(Some(values.len()), values);
    collector.finish()
}

fn same_bits(a: &TensorStats, b: &TensorStats) {
    assert_eq!(a, b);
    assert_eq!(a.sum.to_bits(), b.sum.to_bits());
    assert_eq!(a.sumsq.to_bits(), b.sumsq.to_bits());
    assert_eq!(a.min.to_bits(), b.min.to_bits());
    assert_eq!(a.max.to_bits(), b.max.to_bits());
}

#[test]
fn any_split_and_any_order_gives_the_same() {
    for seed in 0..8 {
        let row = 13;
        let mut values = wild(row * 42, seed);
        values[5] = f32::NAN;
        values[77] = f32::NEG_INFINITY;
        let mut whole = Collector::new();
        whole.add(Some(row), &values);
        let whole = whole.finish();
        for batch in [1, 3, 7] {
            let mut split = Collector::new();
            let mut backwards = Collector::new();
            let mut merged = Collector::new();
            for part in values.chunks(row * batch) {
                split.add(Some(row), part);
            }
            for part in values.chunks(row * batch).rev() {
                backwards.add(Some(row), part);
                let mut alone = Collector::new();
                alone.add(Some(row), part);
                alone.merge(&merged);
                merged = alone;
            }
            for other in [split, backwards, merged] {
                same_bits(&whole, &other.finish());
            }
        }
        let mut scalars = Collector::new();
        scalars.add(None, &values);
        let mut reversed = Collector::new();
        values.reverse();
        reversed.add(None, &values);
        same_bits(&scalars.finish(), &reversed.finish());
    }
}

#[test]
fn numbers_are_those_of_brute_force() {
    let row = 8;
    let mut values = wild(row * 50, 3);
    values[3] = f32::NAN;
    values[4] = f32::INFINITY;
    let mut collector = Collector::new();
    collector.add(Some(row), &values);
    let got = collector.finish();
    let finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    assert_eq!(
        (got.count, got.nan, got.infinite, got.rows),
        (400, 1, 1, 50)
    );
    assert_eq!(got.finite(), 398);
    assert_eq!(
        got.min,
        finite.iter().copied().fold(f32::INFINITY, f32::min)
    );
    assert_eq!(
        got.max,
        finite.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    );
    assert_eq!(got.absmax, got.max.max(-got.min));
    let sumsq: f64 = finite.iter().map(|v| f64::from(*v).powi(2)).sum();
    assert!((got.sumsq / sumsq - 1.0).abs() < 1e-12);
    let magnitude: f64 = finite.iter().map(|v| f64::from(v.abs())).sum();
    let sum: f64 = finite.iter().map(|v| f64::from(*v)).sum();
    assert!((got.sum - sum).abs() < 1e-12 * magnitude);
    for c in 0..row {
        let channel = values.iter().skip(c).step_by(row).filter(|v| v.is_finite());
        let absmax = channel.clone().fold(0f32, |m, v| m.max(v.abs()));
        let sumsq: f64 = channel.clone().map(|v| f64::from(*v).powi(2)).sum();
        let sum: f64 = channel.clone().map(|v| f64::from(*v)).sum();
        let magnitude: f64 = channel.clone().map(|v| f64::from(v.abs())).sum();
        let max = channel.clone().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let min = channel.fold(f32::INFINITY, |m, v| m.min(*v));
        assert_eq!(got.channel_absmax[c], absmax);
        assert_eq!((got.channel_min[c], got.channel_max[c]), (min, max));
        assert!((got.channel_sum[c] - sum).abs() < 1e-12 * magnitude);
        assert!((got.channel_sumsq[c] / sumsq - 1.0).abs() < 1e-9);
    }
    let histogram = &got.histogram;
    assert!(f64::from(got.absmax) < 2f64.powi(histogram.exponent()));
    assert!(f64::from(got.absmax) >= 2f64.powi(histogram.exponent() - 1));
    let zeros = finite.iter().filter(|v| **v == 0.0).count();
    assert_eq!(histogram.zeros(), zeros as u64);
    for (k, &n) in histogram.counts().iter().enumerate() {
        let (from, to) = histogram.edges(k);
        let inside = finite
            .iter()
            .map(|v| f64::from(*v))
            .filter(|&v| match v > 0.0 {
                true => from <= v && v < to,
                false => v < 0.0 && from < v && v <= to,
            });
        assert_eq!(n, inside.count() as u64, "bin {k}");
    }
}

#[test]
fn extremes_do_not_break_anything() {
    let empty = Collector::new().finish();
    assert_eq!((empty.min, empty.max, empty.count), (0.0, 0.0, 0));
    let bad = stats(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    assert_eq!(
        (bad.nan, bad.infinite, bad.finite(), bad.absmax),
        (1, 2, 0, 0.0)
    );
    let wide = stats(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1)]);
    assert_eq!(wide.histogram.exponent(), 128);
    let zeros = stats(&[-0.0; 4]);
    assert_eq!(zeros.min.to_bits(), 0);
    for s in [&empty, &bad, &wide, &zeros] {
        for format in [Format::Int8, Format::Uint8, Format::Fp8] {
            let (lo, hi) = s.mse_range(format);
            assert!(lo <= 0.0 && hi >= 0.0);
            assert!(s.quantization_error(lo, hi, format).is_finite());
        }
        for (lo, hi) in [s.percentile(99.9), s.entropy_range(), s.full_range()] {
            assert!(lo <= 0.0 && hi >= 0.0 && lo >= s.min.min(0.0) && hi <= s.max.max(0.0));
        }
    }
}

#[test]
fn channels_need_rows_of_one_length() {
    let mut collector = Collector::new();
    collector.add(Some(2), &[1.0, 2.0, 3.0, 4.0]);
    let mut other = Collector::new();
    other.add(Some(3), &[1.0, 2.0, 3.0]);
    let mut merged = collector.clone();
    merged.merge(&other);
    collector.add(Some(3), &[1.0, 2.0, 3.0]);
    let (collector, merged) = (collector.finish(), merged.finish());
    assert!(collector.channel_absmax.is_empty() && collector.count == 7 && collector.rows == 0);
    same_bits(&collector, &merged);
    let mut long = Collector::new();
    long.add(Some(MAX_CHANNELS + 1), &[1.0; MAX_CHANNELS + 1]);
    assert!(long.finish().channel_absmax.is_empty());
}

/// Rounds to the nearest number that the format has over the range.
fn quantize(x: f64, lo: f64, hi: f64, format: Format) -> f64 {
    let most = lo.abs().max(hi.abs());
    match format {
        Format::Int8 => {
            let s = most / 127.0;
            (x / s).round().clamp(-128.0, 127.0) * s
        }
        Format::Uint8 => {
            let s = (hi - lo) / 255.0;
            let z = (-lo / s).round();
            ((x / s + z).round().clamp(0.0, 255.0) - z) * s
        }
        Format::Fp8 => {
            let s = most / 448.0;
            let codes = (0..=0x7eu8).map(|c| {
                let (e, m) = (i32::from(c >> 3), f64::from(c & 7));
                match e {
                    0 => m / 8.0 * 2f64.powi(-6),
                    e => (1.0 + m / 8.0) * 2f64.powi(e - 7),
                }
            });
            let nearest = codes
                .map(|c| c * s)
                .min_by(|a, b| (a - x.abs()).abs().total_cmp(&(b - x.abs()).abs()));
            nearest.unwrap_or(0.0).copysign(x)
        }
        other => panic!("{} is no format of activations", other.name()),
    }
}

fn brute_error(values: &[f32], lo: f32, hi: f32, format: Format) -> f64 {
    let (lo, hi) = (f64::from(lo), f64::from(hi));
    let squares = values.iter().map(|&v| {
        let x = f64::from(v);
        (x - quantize(x, lo, hi, format)).powi(2)
    });
    squares.sum::<f64>() / values.len() as f64
}

#[test]
fn the_expected_error_is_close_to_the_real_one() {
    let values = normal(40_000, 1);
    let relu: Vec<f32> = values.iter().map(|v| v.max(0.0)).collect();
    for values in [&values, &relu] {
        let s = stats(values);
        for format in [Format::Int8, Format::Uint8, Format::Fp8] {
            for part in [1.0, 0.4, 0.1] {
                let (lo, hi) = (s.min * part, s.max * part);
                let expected = s.quantization_error(lo, hi, format);
                let real = brute_error(values, lo, hi, format);
                assert!(
                    (expected / real - 1.0).abs() < 0.02,
                    "{format:?} {part}: {expected} {real}"
                );
            }
        }
    }
}

#[test]
fn the_mse_range_is_as_good_as_any() {
    let mut values = normal(10_000, 2);
    values.extend([9.0, -7.0]);
    let s = stats(&values);
    for format in [Format::Int8, Format::Uint8] {
        let (lo, hi) = s.mse_range(format);
        let chosen = brute_error(&values, lo, hi, format);
        let all = (1..=60).map(|k| {
            let part = k as f32 / 60.0;
            brute_error(&values, s.min * part, s.max * part, format)
        });
        let least = all.fold(f64::INFINITY, f64::min);
        assert!(chosen < least * 1.05, "{format:?}: {chosen} {least}");
    }
}

#[test]
fn percentiles_are_those_of_the_sorted_elements() {
    let mut values = normal(50_000, 5);
    values.extend([0.0; 10_000]);
    let s = stats(&values);
    values.sort_by(f32::total_cmp);
    for p in [99.9, 99.0, 90.0, 50.0] {
        let (lo, hi) = s.percentile(p);
        let tail = (100.0 - p) / 200.0;
        let at = |part: f64| values[(part * (values.len() - 1) as f64) as usize];
        let width = s.histogram.width() as f32;
        assert!((lo - at(tail)).abs() <= width, "{p}: {lo}");
        assert!((hi - at(1.0 - tail)).abs() <= width, "{p}: {hi}");
    }
    assert_eq!(s.percentile(100.0), (s.min, s.max));
}

#[test]
fn the_entropy_range_cuts_outliers() {
    let mut values = normal(100_000, 9);
    values.push(60.0);
    let s = stats(&values);
    let (lo, hi) = s.entropy_range();
    assert!(hi < 15.0 && hi > 2.5 && lo < -2.5, "{lo} {hi}");
    // Uniform elements have nothing to cut.
    let mut random = Random(1);
    let even: Vec<f32> = (0..100_000).map(|_| random.unit() as f32).collect();
    let (lo, hi) = stats(&even).entropy_range();
    assert!(lo == 0.0 && hi > 0.98, "{lo} {hi}");
}

#[test]
fn parts_make_the_same_histogram() {
    let s = stats(&wild(1000, 4)).histogram;
    let again = Histogram::from_parts(s.exponent(), s.zeros(), s.counts().to_vec());
    assert_eq!(again, Some(s));
    assert!(Histogram::from_parts(0, 0, vec![0; 3]).is_none());
    assert!(Histogram::from_parts(200, 0, vec![0; BINS]).is_none());
}
