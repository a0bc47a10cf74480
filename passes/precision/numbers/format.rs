//! Number formats: what each can hold.

use kiln_graph::DType;

/// A format that values or weights are narrowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Whole numbers from -8 to 7.
    Int4,
    /// Whole numbers from -128 to 127, around zero.
    Int8,
    /// Whole numbers from 0 to 255, with a zero point.
    Uint8,
    /// E4M3 without infinities, up to ±448 (Micikevicius et al., "FP8 Formats for Deep Learning").
    Fp8,
    /// IEEE 754 binary16.
    Fp16,
    /// The upper half of FP32.
    Bf16,
}

/// How a format of floats divides its bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floats {
    /// Bits of a number, the hidden one with them.
    pub significant: i32,
    /// Exponent of the smallest normal number; below it, numbers lie as far apart as just above.
    pub least: i32,
    /// The largest finite number.
    pub max: f64,
}

impl Format {
    pub fn dtype(self) -> DType {
        match self {
            Format::Int4 => DType::I4,
            Format::Int8 => DType::I8,
            Format::Uint8 => DType::U8,
            Format::Fp8 => DType::F8E4M3FN,
            Format::Fp16 => DType::F16,
            Format::Bf16 => DType::BF16,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Int4 => "INT4",
            Format::Int8 => "INT8",
            Format::Uint8 => "UINT8",
            Format::Fp8 => "FP8",
            Format::Fp16 => "FP16",
            Format::Bf16 => "BF16",
        }
    }

    /// `None` for whole numbers.
    pub fn floats(self) -> Option<Floats> {
        let (significant, least, max) = match self {
            Format::Int4 | Format::Int8 | Format::Uint8 => return None,
            Format::Fp8 => (4, -6, 448.0),
            Format::Fp16 => (11, -14, 65504.0),
            Format::Bf16 => (8, -126, f64::from(half::bf16::MAX)),
        };
        Some(Floats {
            significant,
            least,
            max,
        })
    }

    /// Its smallest and its largest finite number.
    pub fn range(self) -> (f64, f64) {
        match self {
            Format::Int4 => (-8.0, 7.0),
            Format::Int8 => (-128.0, 127.0),
            Format::Uint8 => (0.0, 255.0),
            Format::Fp8 | Format::Fp16 | Format::Bf16 => {
                let max = self.floats().map_or(0.0, |f| f.max);
                (-max, max)
            }
        }
    }

    /// The largest number: of those around zero, the largest that has a counterpart.
    pub fn max(self) -> f64 {
        self.range().1
    }

    /// Whether its numbers stand for others by a zero point, not around zero.
    pub fn has_zero_point(self) -> bool {
        self == Format::Uint8
    }

    /// How far apart its numbers are at this magnitude.
    pub fn step(self, magnitude: f64) -> f64 {
        self.floats().map_or(1.0, |f| f.step(magnitude))
    }
}

impl Floats {
    /// The smallest positive normal number; below it, numbers have fewer digits.
    pub fn normal(self) -> f64 {
        2f64.powi(self.least)
    }

    /// The smallest positive number.
    pub fn tiny(self) -> f64 {
        2f64.powi(self.least - self.significant + 1)
    }

    /// The largest relative error of a rounding: half a unit in the last of the significant bits.
    pub fn unit(self) -> f64 {
        2f64.powi(-self.significant)
    }

    fn step(self, magnitude: f64) -> f64 {
        let exponent = magnitude.abs().max(self.normal()).log2().floor();
        2f64.powi(exponent as i32 - self.significant + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_formats() {
        let floats = |f: Format| f.floats().unwrap();
        assert_eq!(Format::Bf16.max(), 3.389_531_389_251_535_5e38);
        assert_eq!(Format::Fp16.max(), f64::from(half::f16::MAX));
        assert_eq!(
            (floats(Format::Fp16).normal(), floats(Format::Fp16).tiny()),
            (2f64.powi(-14), 2f64.powi(-24))
        );
        assert_eq!(
            (floats(Format::Bf16).normal(), floats(Format::Bf16).tiny()),
            (2f64.powi(-126), 2f64.powi(-133))
        );
        assert_eq!(
            (floats(Format::Fp8).normal(), floats(Format::Fp8).tiny()),
            (2f64.powi(-6), 2f64.powi(-9))
        );
    }

    #[test]
    fn steps_grow_with_floats_only() {
        assert_eq!(Format::Fp8.step(448.0), 32.0);
        assert_eq!(Format::Fp8.step(0.001), 2f64.powi(-9));
        assert_eq!(Format::Fp16.step(2048.0), 2.0);
        assert_eq!(Format::Bf16.step(1.0), 2f64.powi(-7));
        assert_eq!(Format::Int8.step(100.0), 1.0);
    }
}
