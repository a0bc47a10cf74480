//! Floats of 16 bits and fewer, between their bits and `f64`, which holds all of them exactly.

/// The layout of a small float: sign, exponent and mantissa from the top bit down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Minifloat {
    pub exponent: u32,
    pub mantissa: u32,
    pub bias: i32,
    pub special: Special,
}

/// What the bit patterns of a format that are not numbers stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// The highest exponent holds infinity and NaN.
    Ieee,
    /// All bits but the sign set is NaN; no infinity.
    NanOnly,
    /// What would be negative zero is NaN; no infinity.
    NanIsNegativeZero,
    /// Every pattern is a number.
    None,
    /// Powers of two: no sign, no zero, no subnormals; all bits set is NaN.
    Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    TooLarge,
    NoNan,
    NoInfinity,
    NotPositive,
}

impl Minifloat {
    fn sign_bit(self) -> u32 {
        match self.special {
            Special::Scale => 0,
            _ => 1 << (self.exponent + self.mantissa),
        }
    }

    fn magnitude_mask(self) -> u32 {
        (1 << (self.exponent + self.mantissa)) - 1
    }

    fn infinity(self) -> u32 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    /// The largest number's bits.
    fn max(self) -> u32 {
        match self.special {
            Special::Ieee => self.infinity() - 1,
            Special::NanOnly | Special::Scale => self.magnitude_mask() - 1,
            Special::NanIsNegativeZero | Special::None => self.magnitude_mask(),
        }
    }

    /// The NaN that the word `nan` (`-nan`) stands for.
    pub fn nan(self, negative: bool) -> Option<u32> {
        let sign = if negative { self.sign_bit() } else { 0 };
        match self.special {
            Special::Ieee => Some(sign | self.infinity() | 1 << (self.mantissa - 1)),
            Special::NanOnly => Some(sign | self.magnitude_mask()),
            Special::NanIsNegativeZero if !negative => Some(self.sign_bit()),
            Special::Scale if !negative => Some(self.magnitude_mask()),
            _ => None,
        }
    }

    pub fn decode(self, bits: u32) -> f64 {
        let negative = bits & self.sign_bit() != 0;
        let magnitude = bits & self.magnitude_mask();
        if self.special == Special::NanIsNegativeZero && negative && magnitude == 0 {
            return f64::NAN;
        }
        let value = if magnitude > self.max() {
            match self.special {
                Special::Ieee if magnitude == self.infinity() => f64::INFINITY,
                _ => f64::NAN,
            }
        } else {
            let exponent = (magnitude >> self.mantissa) as i32;
            let mantissa = f64::from(magnitude & ((1 << self.mantissa) - 1));
            let unit = 1 << self.mantissa;
            if exponent == 0 && self.special != Special::Scale {
                mantissa * power_of_two(1 - self.bias - self.mantissa as i32)
            } else {
                (f64::from(unit) + mantissa)
                    * power_of_two(exponent - self.bias - self.mantissa as i32)
            }
        };
        if negative { -value } else { value }
    }

    /// The nearest number's bits, ties to even.
    pub fn encode(self, value: f64) -> Result<u32, Unfit> {
        let negative = value.is_sign_negative();
        if value.is_nan() {
            return self.nan(negative).ok_or(Unfit::NoNan);
        }
        if self.special == Special::Scale && value <= 0.0 {
            return Err(Unfit::NotPositive);
        }
        let sign = if negative { self.sign_bit() } else { 0 };
        if value.is_infinite() {
            return match self.special {
                Special::Ieee => Ok(sign | self.infinity()),
                _ => Err(Unfit::NoInfinity),
            };
        }
        let smallest = match self.special {
            Special::Scale => -self.bias,
            _ => 1 - self.bias,
        };
        let magnitude = value.abs();
        let exponent = (((magnitude.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(smallest);
        let steps = (magnitude / power_of_two(exponent - self.mantissa as i32)).round_ties_even();
        // A value of the smallest exponent counts its steps from zero, and so comes out right when it is subnormal;
        // a mantissa rounded up past its end carries into the exponent.
        let base = f64::from(exponent - smallest) * f64::from(1 << self.mantissa);
        let code = match self.special {
            Special::Scale => base + steps - 1.0,
            _ => base + steps,
        };
        if code > f64::from(self.max()) {
            return Err(Unfit::TooLarge);
        }
        match code as u32 {
            0 if self.special == Special::NanIsNegativeZero => Ok(0),
            code => Ok(sign | code),
        }
    }

    /// The shortest decimal digits that [`encode`](Self::encode) reads back as these bits of a finite number; of the
    /// formats up to 8 bits the exact value, which says more and is hardly longer.
    pub fn shortest(self, bits: u32) -> f64 {
        let exact = self.decode(bits);
        if self.exponent + self.mantissa < 8 || self.special == Special::Scale {
            return exact;
        }
        (0..17)
            .filter_map(|digits| format!("{exact:.digits$e}").parse::<f64>().ok())
            .find(|&rounded| self.encode(rounded) == Ok(bits))
            .unwrap_or(exact)
    }
}

/// 2 to a power within the normal range of `f64`.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).clamp(1, 2046) as u64) << 52)
}
