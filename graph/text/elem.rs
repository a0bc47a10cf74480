//! Element types of tensors: their names in text, their layout in `raw_data`, and one element in decimal both ways.

use super::lexer::Number;
use super::minifloat::{Minifloat, Special, Unfit};
use crate::onnx::proto::tensor_proto::DataType;
use std::collections::HashMap;
use std::fmt::Write;

/// An element type.
#[derive(Debug)]
pub(super) struct Elem {
    pub name: &'static str,
    pub data_type: DataType,
    pub kind: Kind,
    /// Bits of one part; 0 for strings.
    pub bits: u32,
    /// Numbers that make one element: two for complex types.
    pub parts: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F64,
    Small(Minifloat),
    Signed,
    Unsigned,
    String,
}

const fn elem(name: &'static str, data_type: DataType, kind: Kind, bits: u32) -> Elem {
    Elem {
        name,
        data_type,
        kind,
        bits,
        parts: 1,
    }
}

const fn pair(name: &'static str, data_type: DataType, kind: Kind, bits: u32) -> Elem {
    Elem {
        parts: 2,
        ..elem(name, data_type, kind, bits)
    }
}

const fn small(exponent: u32, mantissa: u32, bias: i32, special: Special) -> Kind {
    Kind::Small(Minifloat {
        exponent,
        mantissa,
        bias,
        special,
    })
}

static ELEMS: &[Elem] = &[
    elem("float", DataType::Float, Kind::F32, 32),
    elem("int64", DataType::Int64, Kind::Signed, 64),
    elem(
        "float16",
        DataType::Float16,
        small(5, 10, 15, Special::Ieee),
        16,
    ),
    elem(
        "bfloat16",
        DataType::Bfloat16,
        small(8, 7, 127, Special::Ieee),
        16,
    ),
    elem("bool", DataType::Bool, Kind::Unsigned, 8),
    elem("int32", DataType::Int32, Kind::Signed, 32),
    elem("int8", DataType::Int8, Kind::Signed, 8),
    elem("uint8", DataType::Uint8, Kind::Unsigned, 8),
    elem("int16", DataType::Int16, Kind::Signed, 16),
    elem("uint16", DataType::Uint16, Kind::Unsigned, 16),
    elem("uint32", DataType::Uint32, Kind::Unsigned, 32),
    elem("uint64", DataType::Uint64, Kind::Unsigned, 64),
    elem("double", DataType::Double, Kind::F64, 64),
    elem("string", DataType::String, Kind::String, 0),
    pair("complex64", DataType::Complex64, Kind::F32, 32),
    pair("complex128", DataType::Complex128, Kind::F64, 64),
    elem(
        "float8e4m3fn",
        DataType::Float8e4m3fn,
        small(4, 3, 7, Special::NanOnly),
        8,
    ),
    elem(
        "float8e4m3fnuz",
        DataType::Float8e4m3fnuz,
        small(4, 3, 8, Special::NanIsNegativeZero),
        8,
    ),
    elem(
        "float8e5m2",
        DataType::Float8e5m2,
        small(5, 2, 15, Special::Ieee),
        8,
    ),
    elem(
        "float8e5m2fnuz",
        DataType::Float8e5m2fnuz,
        small(5, 2, 16, Special::NanIsNegativeZero),
        8,
    ),
    elem(
        "float8e8m0",
        DataType::Float8e8m0,
        small(8, 0, 127, Special::Scale),
        8,
    ),
    elem(
        "float6e2m3",
        DataType::Float6e2m3,
        small(2, 3, 1, Special::None),
        6,
    ),
    elem(
        "float6e3m2",
        DataType::Float6e3m2,
        small(3, 2, 3, Special::None),
        6,
    ),
    elem(
        "float4e2m1",
        DataType::Float4e2m1,
        small(2, 1, 1, Special::None),
        4,
    ),
    elem("int4", DataType::Int4, Kind::Signed, 4),
    elem("uint4", DataType::Uint4, Kind::Unsigned, 4),
    elem("int2", DataType::Int2, Kind::Signed, 2),
    elem("uint2", DataType::Uint2, Kind::Unsigned, 2),
];

impl Elem {
    pub fn named(name: &str) -> Option<&'static Elem> {
        ELEMS.iter().find(|e| e.name == name)
    }

    pub fn numbered(number: i32) -> Option<&'static Elem> {
        ELEMS.iter().find(|e| e.data_type as i32 == number)
    }

    /// Bytes of `raw_data` that this many elements take.
    pub fn byte_len(&self, count: usize) -> Option<usize> {
        let bits = count
            .checked_mul(self.parts)?
            .checked_mul(self.bits as usize)?;
        Some(bits.div_ceil(8))
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits.clamp(1, 64))
    }

    /// The bits of a part written as this number. Of a float narrower than 32 bits an integer is the bits themselves,
    /// as the reference parser has it.
    pub fn encode(&self, number: Number) -> Result<u64, String> {
        let text = number.text;
        let misfit = || format!("`{text}` is no number that fits into {}", self.name);
        match self.kind {
            Kind::F32 => parse_f32(text).map(|v| u64::from(v.to_bits())).ok_or_else(misfit),
            Kind::F64 => parse_f64(text).map(f64::to_bits).ok_or_else(misfit),
            Kind::Small(_) if !number.is_float => {
                text.parse().ok().filter(|&bits| bits <= self.mask()).ok_or_else(|| {
                    let name = self.name;
                    format!("`{text}` has no dot and so means the bits of a {name}, but does not fit into them")
                })
            }
            Kind::Small(format) => {
                let value = parse_f64(text).filter(|v| !v.is_nan() || !text.ends_with(')'));
                let bits = format.encode(value.ok_or_else(misfit)?);
                bits.map(u64::from).map_err(|why| match why {
                    Unfit::TooLarge => misfit(),
                    Unfit::NoNan => format!("{} has no such NaN", self.name),
                    Unfit::NoInfinity => format!("{} has no infinity", self.name),
                    Unfit::NotPositive => format!("{} holds powers of two, not `{text}`", self.name),
                })
            }
            _ if number.is_float => Err(format!("expected an integer for {}, found `{text}`", self.name)),
            Kind::Signed => {
                let value: i64 = text.parse().map_err(|_| misfit())?;
                let unused = 64 - self.bits;
                let fits = (value << unused) >> unused == value;
                fits.then_some(value as u64 & self.mask()).ok_or_else(misfit)
            }
            Kind::Unsigned => text.parse().ok().filter(|&v| v <= self.mask()).ok_or_else(misfit),
            Kind::String => Err("expected a string".into()),
        }
    }
}

/// Puts parts one after another, little endian and from the low bits up.
#[derive(Default)]
pub(super) struct Packer {
    bytes: Vec<u8>,
    pending: u32,
    filled: u32,
}

impl Packer {
    pub fn push(&mut self, value: u64, bits: u32) {
        if bits >= 8 {
            let wide = value.to_le_bytes();
            self.bytes.extend(wide.iter().take(bits as usize / 8));
            return;
        }
        self.pending |= (value as u32) << self.filled;
        self.filled += bits;
        if self.filled >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.filled -= 8;
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// The part at `index` of packed data; bits past the end are zero.
fn part(raw: &[u8], index: usize, bits: u32) -> u64 {
    if bits >= 8 {
        let width = bits as usize / 8;
        let from = index.saturating_mul(width);
        let bytes = raw.get(from..from.saturating_add(width)).unwrap_or(&[]);
        return bytes
            .iter()
            .rev()
            .fold(0, |value, &b| value << 8 | u64::from(b));
    }
    let from = index.saturating_mul(bits as usize);
    let byte = |at: usize| raw.get(at).copied().map_or(0, u64::from);
    let window = byte(from / 8) | byte(from / 8 + 1) << 8;
    (window >> (from % 8)) & ((1 << bits) - 1)
}

/// Writes `count` parts of packed data in decimal, separated by commas.
pub(super) fn push_parts(out: &mut String, elem: &Elem, raw: &[u8], count: usize) {
    let mut known: HashMap<u32, String> = HashMap::new();
    for index in 0..count {
        if index > 0 {
            out.push_str(", ");
        }
        let bits = part(raw, index, elem.bits);
        let _ = match elem.kind {
            Kind::F32 => {
                push_f32(out, f32::from_bits(bits as u32));
                Ok(())
            }
            Kind::F64 => {
                push_f64(out, f64::from_bits(bits));
                Ok(())
            }
            Kind::Small(format) => {
                let bits = bits as u32;
                out.push_str(
                    known
                        .entry(bits)
                        .or_insert_with(|| small_text(format, bits)),
                );
                Ok(())
            }
            Kind::Signed => {
                let unused = 64 - elem.bits;
                write!(out, "{}", ((bits << unused) as i64) >> unused)
            }
            Kind::Unsigned => write!(out, "{bits}"),
            Kind::String => Ok(()),
        };
    }
}

/// A NaN that has no word of its own is written as its bits.
fn small_text(format: Minifloat, bits: u32) -> String {
    match format.decode(bits) {
        value if !value.is_nan() => format!(
            "{:?}",
            if value.is_finite() {
                format.shortest(bits)
            } else {
                value
            }
        ),
        _ if format.nan(false) == Some(bits) => "nan".into(),
        _ if format.nan(true) == Some(bits) => "-nan".into(),
        _ => bits.to_string(),
    }
}

/// The shortest decimal that reads back as the same bits, with a dot or an exponent so that it is not read as an integer.
pub(super) fn push_f32(out: &mut String, value: f32) {
    let _ = match (value.is_nan(), value.to_bits()) {
        (false, _) => write!(out, "{value:?}"),
        (true, 0x7fc0_0000) => write!(out, "nan"),
        (true, 0xffc0_0000) => write!(out, "-nan"),
        (true, bits) => write!(out, "nan(0x{bits:08x})"),
    };
}

pub(super) fn push_f64(out: &mut String, value: f64) {
    let _ = match (value.is_nan(), value.to_bits()) {
        (false, _) => write!(out, "{value:?}"),
        (true, 0x7ff8_0000_0000_0000) => write!(out, "nan"),
        (true, 0xfff8_0000_0000_0000) => write!(out, "-nan"),
        (true, bits) => write!(out, "nan(0x{bits:016x})"),
    };
}

/// The bits in `nan(0x…)`.
fn nan_bits(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("nan(0x")?.strip_suffix(')')?;
    u64::from_str_radix(digits, 16).ok()
}

/// `None` where the number is beyond the type's range.
pub(super) fn parse_f32(text: &str) -> Option<f32> {
    if text.ends_with(')') {
        let bits = u32::try_from(nan_bits(text)?).ok()?;
        return Some(f32::from_bits(bits)).filter(|v| v.is_nan());
    }
    let value: f32 = text.parse().ok()?;
    let negative = text.starts_with('-');
    match value {
        v if v.is_nan() => Some(f32::from_bits(if negative {
            0xffc0_0000
        } else {
            0x7fc0_0000
        })),
        v if v.is_infinite() && !text.ends_with(|c: char| c.is_ascii_alphabetic()) => None,
        v => Some(v),
    }
}

/// `None` where the number is beyond the type's range.
pub(super) fn parse_f64(text: &str) -> Option<f64> {
    if text.ends_with(')') {
        return Some(f64::from_bits(nan_bits(text)?)).filter(|v| v.is_nan());
    }
    let value: f64 = text.parse().ok()?;
    let negative = text.starts_with('-');
    match value {
        v if v.is_nan() => Some(f64::from_bits(if negative {
            0xfff8_0000_0000_0000
        } else {
            0x7ff8_0000_0000_0000
        })),
        v if v.is_infinite() && !text.ends_with(|c: char| c.is_ascii_alphabetic()) => None,
        v => Some(v),
    }
}
