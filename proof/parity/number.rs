//! Elements as numbers, whatever their dtype.

use bytes::Bytes;
use half::{bf16, f16};
use kiln_graph::{DType, Element, Tensor};

/// An element's value, exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn as_f64(self) -> f64 {
        match self {
            Number::Int(v) => v as f64,
            Number::Float(v) => v,
        }
    }

    /// The same value as an integer, if it is one.
    fn as_int(self) -> Option<i128> {
        match self {
            Number::Int(v) => Some(v),
            // Beyond this bound no dtype of integers reaches.
            Number::Float(v) if v.fract() == 0. && v.abs() < 1e20 => Some(v as i128),
            Number::Float(_) => None,
        }
    }
}

/// The floats of a tensor, decoded piece by piece.
pub(super) struct Floats {
    dtype: DType,
    bytes: Bytes,
    len: usize,
}

impl Floats {
    /// `None` if the tensor's dtype is no float.
    pub fn of(tensor: &Tensor) -> Option<Floats> {
        let dtype = tensor.dtype();
        dtype.is_float().then(|| Floats {
            dtype,
            bytes: tensor.bytes(),
            len: tensor.len(),
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Decodes the elements from `start` on into `out`.
    pub fn read(&self, start: usize, out: &mut [f64]) {
        fn typed<T: Element + Into<f64>>(bytes: &[u8], start: usize, out: &mut [f64]) {
            let elements = bytes.chunks_exact(size_of::<T>()).skip(start);
            for (v, bytes) in out.iter_mut().zip(elements) {
                *v = T::from_le(bytes).into();
            }
        }
        match self.dtype {
            DType::F64 => typed::<f64>(&self.bytes, start, out),
            DType::F32 => typed::<f32>(&self.bytes, start, out),
            DType::F16 => typed::<f16>(&self.bytes, start, out),
            DType::BF16 => typed::<bf16>(&self.bytes, start, out),
            small => {
                for (i, v) in out.iter_mut().enumerate() {
                    *v = small_float(small, bits_at(&self.bytes, small.bits(), start + i));
                }
            }
        }
    }
}

/// The value of a float of at most 8 bits.
fn small_float(dtype: DType, bits: u8) -> f64 {
    // Exponent bits, mantissa bits, bias.
    let (exponent_bits, mantissa_bits, bias) = match dtype {
        DType::F8E4M3FN => (4, 3, 7),
        DType::F8E4M3FNUZ => (4, 3, 8),
        DType::F8E5M2 => (5, 2, 15),
        DType::F8E5M2FNUZ => (5, 2, 16),
        DType::F6E2M3 => (2, 3, 1),
        DType::F6E3M2 => (3, 2, 3),
        DType::F4E2M1 => (2, 1, 1),
        DType::F8E8M0 if bits == 0xff => return f64::NAN,
        DType::F8E8M0 => return 2f64.powi(i32::from(bits) - 127),
        _ => return f64::NAN,
    };
    let magnitude = bits & ((1 << (exponent_bits + mantissa_bits)) - 1);
    let negative = bits != magnitude;
    let exponent = magnitude >> mantissa_bits;
    let mantissa = magnitude & ((1 << mantissa_bits) - 1);
    match dtype {
        DType::F8E4M3FN if magnitude == 0x7f => return f64::NAN,
        DType::F8E4M3FNUZ | DType::F8E5M2FNUZ if bits == 0x80 => return f64::NAN,
        DType::F8E5M2 if exponent == 0x1f && mantissa != 0 => return f64::NAN,
        DType::F8E5M2 if exponent == 0x1f && negative => return f64::NEG_INFINITY,
        DType::F8E5M2 if exponent == 0x1f => return f64::INFINITY,
        _ => {}
    }
    let fraction = f64::from(mantissa) / f64::from(1u8 << mantissa_bits);
    let (fraction, exponent) = match exponent {
        0 => (fraction, 1 - bias),
        e => (1. + fraction, i32::from(e) - bias),
    };
    let value = fraction * 2f64.powi(exponent);
    if negative { -value } else { value }
}

/// The element of at most 8 bits at `index`. Elements follow each other from the lowest bit of the first byte on.
fn bits_at(bytes: &[u8], bits: u32, index: usize) -> u8 {
    let at = index * bits as usize;
    let byte = |k: usize| u16::from(bytes.get(k).copied().unwrap_or(0));
    let pair = byte(at / 8) | byte(at / 8 + 1) << 8;
    (pair >> (at % 8)) as u8 & (0xff >> (8 - bits))
}

/// One byte per element: the data itself, and for elements that share bytes one byte each, sign extended.
pub(super) fn unpacked(tensor: &Tensor) -> Bytes {
    let (dtype, bytes) = (tensor.dtype(), tensor.bytes());
    let bits = dtype.bits();
    if bits == 0 || bits >= 8 {
        return bytes;
    }
    let signed = matches!(dtype, DType::I4 | DType::I2);
    (0..tensor.len())
        .map(|i| {
            let value = bits_at(&bytes, bits, i);
            if signed && value >> (bits - 1) == 1 {
                value | (0xff << bits)
            } else {
                value
            }
        })
        .collect()
}

/// A tensor whose elements share bytes, from one byte per element, of which the low bits count.
pub(super) fn pack(dtype: DType, dims: &[usize], elements: &[u8]) -> Result<Tensor, String> {
    let bits = dtype.bits() as usize;
    let mask = 0xffu8 >> (8 - bits);
    let mut packed = vec![0u8; (elements.len() * bits).div_ceil(8)];
    for (index, element) in elements.iter().enumerate() {
        let at = index * bits;
        let pair = u16::from(element & mask) << (at % 8);
        packed[at / 8] |= pair as u8;
        // An element that crosses a byte ends in the next, so there is one.
        if let (Some(next), true) = (packed.get_mut(at / 8 + 1), pair > 0xff) {
            *next |= (pair >> 8) as u8;
        }
    }
    Tensor::from_raw(dtype, dims.to_vec(), packed.into()).map_err(|e| e.to_string())
}

/// The values of a tensor of numbers or bools.
pub(super) fn numbers(tensor: &Tensor) -> Option<Vec<Number>> {
    if let Some(floats) = Floats::of(tensor) {
        let mut values = vec![0.; floats.len()];
        floats.read(0, &mut values);
        return Some(values.into_iter().map(Number::Float).collect());
    }
    let int = |v: i64| Number::Int(v.into());
    match tensor.dtype() {
        DType::U64 => {
            let values = tensor.values::<u64>()?.into_iter();
            Some(values.map(|v| Number::Int(v.into())).collect())
        }
        DType::I4 | DType::I2 => {
            let values = unpacked(tensor);
            Some(values.iter().map(|&b| int((b as i8).into())).collect())
        }
        DType::U4 | DType::U2 => {
            let values = unpacked(tensor);
            Some(values.iter().map(|&b| int(b.into())).collect())
        }
        _ => Some(tensor.to_i64s()?.into_iter().map(int).collect()),
    }
}

/// What becomes of values that the dtype cannot hold exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Refuse,
    Nearest,
}

/// A tensor of these values.
///
/// # Errors
/// When a value does not fit the dtype, and for dtypes that numbers cannot be written as (strings, FP8, complex).
pub(super) fn from_numbers(
    dtype: DType,
    dims: &[usize],
    values: &[Number],
    rounding: Rounding,
) -> Result<Tensor, String> {
    let bytes = match dtype {
        DType::F32 => floats(dtype, values, rounding, |v| v as f32)?,
        DType::F64 => floats(dtype, values, rounding, |v| v)?,
        DType::F16 => floats(dtype, values, rounding, f16::from_f64)?,
        DType::BF16 => floats(dtype, values, rounding, bf16::from_f64)?,
        DType::I8 => ints::<i8>(dtype, values)?,
        DType::I16 => ints::<i16>(dtype, values)?,
        DType::I32 => ints::<i32>(dtype, values)?,
        DType::I64 => ints::<i64>(dtype, values)?,
        DType::U8 => ints::<u8>(dtype, values)?,
        DType::U16 => ints::<u16>(dtype, values)?,
        DType::U32 => ints::<u32>(dtype, values)?,
        DType::U64 => ints::<u64>(dtype, values)?,
        DType::Bool => ranged(dtype, values, 0, 1)?,
        DType::I4 => return pack(dtype, dims, &ranged(dtype, values, -8, 7)?),
        DType::U4 => return pack(dtype, dims, &ranged(dtype, values, 0, 15)?),
        DType::I2 => return pack(dtype, dims, &ranged(dtype, values, -2, 1)?),
        DType::U2 => return pack(dtype, dims, &ranged(dtype, values, 0, 3)?),
        other => return Err(format!("numbers cannot be written as {other}")),
    };
    Tensor::from_raw(dtype, dims.to_vec(), bytes.into()).map_err(|e| e.to_string())
}

fn floats<T: Element + Into<f64>>(
    dtype: DType,
    values: &[Number],
    rounding: Rounding,
    round: impl Fn(f64) -> T,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size_of::<T>() * values.len());
    for &value in values {
        let rounded = round(value.as_f64());
        let back: f64 = rounded.into();
        let exact = match value {
            Number::Int(v) => Number::Float(back).as_int() == Some(v),
            Number::Float(v) => v == back || v.is_nan(),
        };
        if !exact && rounding == Rounding::Refuse {
            return Err(does_not_fit(value, dtype));
        }
        rounded.push_le(&mut out);
    }
    Ok(out)
}

fn ints<T: Element + TryFrom<i128>>(dtype: DType, values: &[Number]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(size_of::<T>() * values.len());
    for &value in values {
        let fitting = value.as_int().and_then(|v| T::try_from(v).ok());
        fitting
            .ok_or_else(|| does_not_fit(value, dtype))?
            .push_le(&mut out);
    }
    Ok(out)
}

fn ranged(dtype: DType, values: &[Number], min: i128, max: i128) -> Result<Vec<u8>, String> {
    let fitting = |value: &Number| {
        let int = value.as_int().filter(|v| (min..=max).contains(v));
        int.map(|v| v as u8)
            .ok_or_else(|| does_not_fit(*value, dtype))
    };
    values.iter().map(fitting).collect()
}

fn does_not_fit(value: Number, dtype: DType) -> String {
    match value {
        Number::Int(v) => format!("{v} is not a {dtype}"),
        Number::Float(v) => format!("{v} is not a {dtype}"),
    }
}

/// The tensor in another dtype, if that changes no value.
///
/// # Errors
/// Names the first value that `to` cannot hold, or the dtypes that cannot be converted.
pub(super) fn convert(tensor: &Tensor, to: DType) -> Result<Tensor, String> {
    if tensor.dtype() == to {
        return Ok(tensor.clone());
    }
    let values = numbers(tensor).ok_or_else(|| format!("{} has no numbers", tensor.dtype()))?;
    from_numbers(to, tensor.dims(), &values, Rounding::Refuse)
}

/// A tensor of floats in another dtype of floats, rounded to nearest; `None` for other dtypes.
pub fn rounded(tensor: &Tensor, to: DType) -> Option<Tensor> {
    if !tensor.dtype().is_float() || !to.is_float() {
        return None;
    }
    from_numbers(to, tensor.dims(), &numbers(tensor)?, Rounding::Nearest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_conversions_are_made() {
        let ints = Tensor::vector(&[0i64, 1, 255]);
        assert_eq!(
            convert(&ints, DType::U8).unwrap().values::<u8>().unwrap(),
            [0, 1, 255]
        );
        assert_eq!(convert(&ints, DType::I8).unwrap_err(), "255 is not a int8");
        assert_eq!(
            convert(&ints, DType::Bool).unwrap_err(),
            "255 is not a bool"
        );
        assert_eq!(
            convert(&ints, DType::F16).unwrap().to_f64s().unwrap(),
            [0., 1., 255.]
        );
        assert!(convert(&Tensor::vector(&[16_777_217i64]), DType::F32).is_err());
        assert!(convert(&Tensor::vector(&[i64::MAX]), DType::F64).is_err());
        let floats = Tensor::vector(&[1.5f32, f32::NAN, f32::INFINITY]);
        assert!(convert(&floats, DType::F16).unwrap().to_f64s().unwrap()[1].is_nan());
        assert!(convert(&floats, DType::I32).is_err());
        assert!(convert(&Tensor::vector(&[0.1f32]), DType::BF16).is_err());
        assert!(convert(&Tensor::vector(&[2f64]), DType::U64).is_ok());
        let large = Tensor::vector(&[u64::MAX]);
        assert!(convert(&large, DType::I64).is_err() && convert(&large, DType::U64).is_ok());
    }

    #[test]
    fn small_integers_share_bytes() {
        let wide = Tensor::vector(&[-8i8, 7, -1]);
        let packed = convert(&wide, DType::I4).unwrap();
        assert_eq!(&packed.bytes()[..], [0x78, 0x0f]);
        assert!(convert(&packed, DType::I8).unwrap().same_bits(&wide));
        assert!(convert(&packed, DType::U4).is_err());
        let two = convert(&Tensor::vector(&[3u8, 0, 1, 2, 3]), DType::U2).unwrap();
        assert_eq!(&two.bytes()[..], [0b1001_0011, 0b11]);
    }

    #[test]
    fn small_floats_are_decoded() {
        let value = small_float;
        assert_eq!(value(DType::F8E4M3FN, 0x7e), 448.);
        assert_eq!(value(DType::F8E4M3FN, 0x01), 2f64.powi(-9));
        assert!(value(DType::F8E4M3FN, 0xff).is_nan());
        assert_eq!(value(DType::F8E4M3FNUZ, 0x7f), 240.);
        assert!(value(DType::F8E4M3FNUZ, 0x80).is_nan());
        assert_eq!(value(DType::F8E5M2, 0x7b), 57344.);
        assert_eq!(value(DType::F8E5M2, 0xfc), f64::NEG_INFINITY);
        assert!(value(DType::F8E5M2, 0x7d).is_nan());
        assert_eq!(value(DType::F8E5M2FNUZ, 0x7f), 57344.);
        let fours: Vec<_> = (0..16).map(|bits| value(DType::F4E2M1, bits)).collect();
        assert_eq!(fours[..8], [0., 0.5, 1., 1.5, 2., 3., 4., 6.]);
        assert_eq!(fours[9..], [-0.5, -1., -1.5, -2., -3., -4., -6.]);
        assert_eq!(
            (value(DType::F6E2M3, 0x1f), value(DType::F6E3M2, 0x3f)),
            (7.5, -28.)
        );
        assert_eq!(value(DType::F8E8M0, 128), 2.);
    }
}
