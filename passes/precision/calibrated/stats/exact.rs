//! Sums that do not depend on the order of addition.
//!
//! A float is an integer times a power of two. Integers of nearby exponents are shifted to a common one and added as 128-bit
//! integers, exactly; groups of exponents have an integer each. Only the end rounds, once and in a fixed order.

/// The exact sum of any finite f64 numbers, up to 2⁴² of them.
#[derive(Clone, Debug)]
pub(super) struct ExactSum {
    /// By groups of 32 exponents; the unit of group `k` is 2^(32k − 1075).
    groups: [i128; 64],
}

impl Default for ExactSum {
    fn default() -> ExactSum {
        ExactSum { groups: [0; 64] }
    }
}

impl ExactSum {
    /// Adds a number; one that is not finite is left out.
    pub fn add(&mut self, v: f64) {
        if v == 0.0 || !v.is_finite() {
            return;
        }
        let bits = v.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        let (exponent, mantissa) = match exponent {
            0 => (1, fraction),
            e => (e, fraction | 1 << 52),
        };
        let units = i128::from(mantissa) << (exponent % 32);
        let group = &mut self.groups[exponent / 32];
        *group = group.saturating_add(if v < 0.0 { -units } else { units });
    }

    pub fn merge(&mut self, other: &ExactSum) {
        for (a, b) in self.groups.iter_mut().zip(&other.groups) {
            *a = a.saturating_add(*b);
        }
    }

    pub fn finish(&self) -> f64 {
        let groups = self.groups.iter().enumerate().rev();
        groups.fold(0.0, |sum, (k, &units)| {
            sum + scaled(units as f64, 32 * k as i32 - 1075)
        })
    }
}

/// `v` · 2^`exponent`, where the power alone may be out of range.
fn scaled(v: f64, exponent: i32) -> f64 {
    if v == 0.0 {
        return 0.0;
    }
    let half = exponent / 2;
    v * 2f64.powi(half) * 2f64.powi(exponent - half)
}

/// Biased exponent and mantissa of a finite number, whose size is mantissa · 2^(exponent − 150).
fn parts(v: f32) -> Option<(usize, u64)> {
    let bits = v.to_bits();
    let fraction = u64::from(bits & ((1 << 23) - 1));
    match (bits >> 23 & 0xff) as usize {
        255 => None,
        0 => Some((1, fraction)),
        e => Some((e, fraction | 1 << 23)),
    }
}

/// Integers that sums are made of.
trait Units: Copy + Default {
    fn plus(self, other: Self) -> Self;
    fn float(self) -> f64;
}

impl Units for i128 {
    fn plus(self, other: i128) -> i128 {
        self.saturating_add(other)
    }

    fn float(self) -> f64 {
        self as f64
    }
}

impl Units for u128 {
    fn plus(self, other: u128) -> u128 {
        self.saturating_add(other)
    }

    fn float(self) -> f64 {
        self as f64
    }
}

/// Sums of channels by groups of exponents; a group that no number fell into is empty. Their units are 64 binary places apart.
#[derive(Clone, Debug)]
struct Groups<N> {
    channels: usize,
    sums: Vec<Vec<N>>,
}

impl<N: Units> Groups<N> {
    fn new(channels: usize, groups: usize) -> Groups<N> {
        Groups {
            channels,
            sums: vec![Vec::new(); groups],
        }
    }

    fn add(&mut self, group: usize, channel: usize, units: N) {
        let sums = &mut self.sums[group];
        if sums.is_empty() {
            sums.resize(self.channels, N::default());
        }
        sums[channel] = sums[channel].plus(units);
    }

    fn merge(&mut self, other: &Groups<N>) {
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            if mine.is_empty() {
                mine.clone_from(theirs);
                continue;
            }
            for (a, b) in mine.iter_mut().zip(theirs) {
                *a = a.plus(*b);
            }
        }
    }

    /// The sums, where the unit of the first group is 2^`unit`.
    fn finish(&self, unit: i32) -> Vec<f64> {
        let mut sums = vec![0.0; self.channels];
        for (k, group) in self.sums.iter().enumerate().rev() {
            for (sum, &units) in sums.iter_mut().zip(group) {
                *sum += scaled(units.float(), 64 * k as i32 + unit);
            }
        }
        sums
    }
}

/// For each channel, the exact sum of FP32 numbers, of which 2³⁸ fit. A group has 64 exponents of the number.
#[derive(Clone, Debug)]
pub(super) struct ChannelSums(Groups<i128>);

impl ChannelSums {
    pub fn new(channels: usize) -> ChannelSums {
        ChannelSums(Groups::new(channels, 4))
    }

    /// Adds each channel's number; one that is not finite is left out.
    pub fn add(&mut self, row: &[f32]) {
        for (c, &v) in row.iter().enumerate().take(self.0.channels) {
            let Some((exponent, mantissa)) = parts(v).filter(|&(_, m)| m != 0) else {
                continue;
            };
            let units = i128::from(mantissa) << (exponent % 64);
            let units = if v < 0.0 { -units } else { units };
            self.0.add(exponent / 64, c, units);
        }
    }

    pub fn merge(&mut self, other: &ChannelSums) {
        self.0.merge(&other.0);
    }

    pub fn finish(&self) -> Vec<f64> {
        self.0.finish(-150)
    }
}

/// For each channel, the sum of squares of FP32 numbers. A square has 48 bits, of which the upper 32 are added, so that 2³⁴
/// rows fit. A group has 32 exponents of the number; most tensors need two of them.
#[derive(Clone, Debug)]
pub(super) struct ChannelSquares(Groups<u128>);

impl ChannelSquares {
    pub fn new(channels: usize) -> ChannelSquares {
        ChannelSquares(Groups::new(channels, 8))
    }

    /// Adds the square of each channel's number; one that is not finite is left out.
    pub fn add(&mut self, row: &[f32]) {
        for (c, &v) in row.iter().enumerate().take(self.0.channels) {
            let Some((exponent, mantissa)) = parts(v) else {
                continue;
            };
            let square = (mantissa * mantissa + (1 << 15)) >> 16;
            if square != 0 {
                let units = u128::from(square) << (2 * (exponent % 32));
                self.0.add(exponent / 32, c, units);
            }
        }
    }

    pub fn merge(&mut self, other: &ChannelSquares) {
        self.0.merge(&other.0);
    }

    pub fn finish(&self) -> Vec<f64> {
        self.0.finish(-284)
    }
}
