//! Random numbers that are the same on every machine.

/// SplitMix64, seeded for one input. Written out here because a library may change its algorithm from one version to
/// the next, and restricted to integer arithmetic because `ln` and `cos` differ in the last bit between machines.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn new(seed: u64, name: &str) -> Random {
        // FNV-1a of the name, so that each input has numbers of its own.
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Random(Random(seed).next() ^ name)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, upper: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(upper)) >> 64) as u64
    }

    /// The sum of twelve uniform numbers has variance 1 and is close to a normal distribution.
    pub(super) fn normal(&mut self) -> f64 {
        let sum: u64 = (0..12).map(|_| self.next() >> 32).sum();
        let mean = 6u64 << 32;
        (sum as i64 - mean as i64) as f64 / 2f64.powi(32)
    }
}
