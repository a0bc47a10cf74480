//! FP32 as FP16 or BF16: converted in chunks when it is read or written, and what that loses.

use std::convert::Infallible;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Data, Element, Lazy, Tensor};
use crate::DType;

/// How FP32 weights look to a narrower float type: what a conversion would do to them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NarrowingLoss {
    /// Finite values beyond the target's largest finite value (they are clamped to it).
    pub clamped: usize,
    /// Nonzero values that become zero.
    pub flushed: usize,
    /// The largest finite magnitude seen.
    pub abs_max: f32,
    /// The smallest and the largest of the values that are clamped; equal if all of them are one number.
    pub beyond: Option<(f32, f32)>,
    /// The sum of squares of the finite values.
    pub power: f64,
    /// The sum of squares of their errors.
    pub error: f64,
}

impl NarrowingLoss {
    /// The error in relation to the values, as norms; 0 if all are zero.
    pub fn relative(&self) -> f64 {
        match self.power > 0.0 {
            true => (self.error / self.power).sqrt(),
            false => 0.0,
        }
    }

    /// Adds a block of numbers; `format` is F16 or BF16.
    fn add(&mut self, wide: &[f32], format: DType) {
        let most = largest(wide);
        let squares_fit = most == 0.0 || (1e-15..=1e15).contains(&most);
        match squares_fit && most <= end(format) {
            true if format == DType::BF16 => self.add_in_range(wide, most, to_bf16),
            true => self.add_in_range(wide, most, to_f16),
            false => self.add_any(wide, format),
        }
    }

    /// Numbers of which none is clamped, in a form that compilers vectorize; `round` gives the nearest of the format.
    fn add_in_range(&mut self, wide: &[f32], most: f32, round: impl Fn(f32) -> f32) {
        const LANES: usize = 8;
        self.abs_max = self.abs_max.max(most);
        let (mut power, mut error, mut flushed) = ([0f32; LANES], [0f32; LANES], [0u32; LANES]);
        let mut add = |k: usize, v: f32| {
            let near = round(v);
            let e = v - near;
            power[k] += v * v;
            error[k] += e * e;
            flushed[k] += u32::from(near == 0.0) & u32::from(v != 0.0);
        };
        let (whole, rest) = wide.as_chunks::<LANES>();
        for lanes in whole {
            for (k, &v) in lanes.iter().enumerate() {
                add(k, v);
            }
        }
        rest.iter().for_each(|&v| add(0, v));
        self.power += power.iter().map(|&p| f64::from(p)).sum::<f64>();
        self.error += error.iter().map(|&e| f64::from(e)).sum::<f64>();
        self.flushed += flushed.iter().sum::<u32>() as usize;
    }

    fn add_any(&mut self, wide: &[f32], format: DType) {
        let end = end(format);
        for &v in wide.iter().filter(|v| v.is_finite()) {
            let magnitude = v.abs();
            self.abs_max = self.abs_max.max(magnitude);
            if magnitude > end {
                self.clamped += 1;
                let (least, most) = self.beyond.unwrap_or((v, v));
                self.beyond = Some((least.min(v), most.max(v)));
            }
            let near = v.clamp(-end, end);
            let near = match format {
                DType::BF16 => bf16::from_f32(near).to_f64(),
                _ => f16::from_f32(near).to_f64(),
            };
            self.flushed += usize::from(near == 0.0 && v != 0.0);
            let (v, error) = (f64::from(v), f64::from(v) - near);
            self.power += v * v;
            self.error += error * error;
        }
    }
}

/// Elements whose conversion stays in the first cache.
const BLOCK: usize = 512;

/// The largest finite number of F16 or BF16.
fn end(format: DType) -> f32 {
    match format {
        DType::BF16 => bf16::MAX.to_f32(),
        _ => f16::MAX.to_f32(),
    }
}

/// The largest magnitude; infinite or NaN if one is: the largest magnitude has the largest bits.
fn largest(block: &[f32]) -> f32 {
    let bits = |v: &f32| v.to_bits() & !(1 << 31);
    f32::from_bits(block.iter().map(bits).fold(0, u32::max))
}

/// The nearest number with so many bits of mantissa less, ties to even.
fn without_bits(v: f32, bits: u32) -> f32 {
    let word = v.to_bits();
    let half = (1 << (bits - 1)) - 1 + (word >> bits & 1);
    f32::from_bits((word + half) >> bits << bits)
}

/// The nearest BF16 of a finite number in its range.
fn to_bf16(v: f32) -> f32 {
    without_bits(v, 16)
}

/// The nearest F16 of a number in its range. Below 2⁻¹⁴ its numbers are multiples of 2⁻²⁴, the last place of FP32 from ½ to 1.
fn to_f16(v: f32) -> f32 {
    const NORMAL: f32 = 6.103_515_6e-5;
    const SHIFT: f32 = 0.75;
    match v.abs() < NORMAL {
        true => (v + SHIFT) - SHIFT,
        false => without_bits(v, 13),
    }
}

/// The blocks of little-endian numbers, which need not be aligned: protobuf does not align `raw_data`.
fn blocks<E>(bytes: &[u8], mut take: impl FnMut(&mut [f32]) -> Result<(), E>) -> Result<(), E> {
    let mut block = [0f32; BLOCK];
    for bytes in bytes.chunks(4 * BLOCK) {
        let block = &mut block[..bytes.len() / 4];
        for (v, bytes) in block.iter_mut().zip(bytes.chunks_exact(4)) {
            *v = f32::from_le(bytes);
        }
        take(block)?;
    }
    Ok(())
}

impl Tensor {
    /// The narrowed numbers in chunks.
    pub(super) fn narrow<E>(
        &self,
        lazy: &Lazy,
        out: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = Vec::new();
        lazy.chunks(&mut |chunk| {
            buffer.clear();
            blocks(chunk, |block| {
                clamp(block, end(self.dtype));
                match self.dtype {
                    DType::BF16 => push(block, bf16::from_f32, &mut buffer),
                    _ => push_f16(block, &mut buffer),
                }
                Ok(())
            })?;
            out(&buffer)
        })
    }

    /// This FP32 tensor as F16 or BF16, rounded to nearest even and clamped to the finite range when it is read or
    /// written; infinities and NaN stay. `None` if it is not FP32 or `to` is no 16-bit float.
    pub fn narrowed(&self, to: DType) -> Option<Tensor> {
        let (DType::F32, DType::F16 | DType::BF16) = (self.dtype, to) else {
            return None;
        };
        let parts = match &self.data {
            Data::Raw(data) => Lazy::whole(data),
            Data::Lazy(lazy) => lazy.parts.clone(),
            Data::Strings(_) => return None,
        };
        Some(Tensor {
            dtype: to,
            dims: self.dims.clone(),
            data: Data::Lazy(Lazy {
                parts,
                narrows: true,
            }),
        })
    }

    /// What [`Tensor::narrowed`] would lose; `None` if this is not an FP32 tensor or `to` is no 16-bit float. Reads the
    /// data once.
    pub fn narrowing_loss(&self, to: DType) -> Option<NarrowingLoss> {
        let narrowed = self.narrowed(to)?;
        let Data::Lazy(lazy) = &narrowed.data else {
            return None;
        };
        let mut loss = NarrowingLoss::default();
        let each = lazy.chunks(&mut |chunk| {
            blocks(chunk, |block| {
                loss.add(block, to);
                Ok::<(), Infallible>(())
            })
        });
        each.unwrap_or_else(|never| match never {});
        Some(loss)
    }
}

/// Finite numbers beyond ±`end` become it.
fn clamp(block: &mut [f32], end: f32) {
    if largest(block) > end || largest(block).is_nan() {
        for v in block.iter_mut().filter(|v| v.is_finite()) {
            *v = v.clamp(-end, end);
        }
    }
}

fn push<T: Element>(block: &[f32], narrow: impl Fn(f32) -> T, out: &mut Vec<u8>) {
    block.iter().for_each(|&v| narrow(v).push_le(out));
}

/// As [`push`], with the processor's instructions.
fn push_f16(block: &[f32], out: &mut Vec<u8>) {
    let mut halves = [f16::ZERO; BLOCK];
    let halves = &mut halves[..block.len()];
    halves.convert_from_f32_slice(block);
    let start = out.len();
    out.resize(start + 2 * halves.len(), 0);
    for (dst, h) in out[start..].chunks_exact_mut(2).zip(halves.iter()) {
        dst.copy_from_slice(&h.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn narrowing_rounds_and_clamps_whatever_the_alignment() {
        let values: Vec<f32> = (0..200_000)
            .map(|i| (i as f32 - 1e5) * 1.37)
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-9, -3.4e38])
            .collect();
        let want: Vec<u16> = values
            .iter()
            .map(|&v| {
                f16::from_f32(if v.is_finite() {
                    v.clamp(-65504.0, 65504.0)
                } else {
                    v
                })
                .to_bits()
            })
            .collect();
        let mut raw = vec![0u8];
        values.iter().for_each(|v| v.push_le(&mut raw));
        let unaligned = Bytes::from(raw).slice(1..);
        let aligned = Tensor::vector(&values);
        for data in [unaligned, aligned.bytes()] {
            let tensor = Tensor::from_raw(DType::F32, [values.len()].as_slice(), data).unwrap();
            let half = tensor.narrowed(DType::F16).unwrap();
            assert_eq!(half.byte_len(), values.len() * 2);
            let got: Vec<u16> = half
                .values::<f16>()
                .unwrap()
                .iter()
                .map(|h| h.to_bits())
                .collect();
            assert_eq!(got, want);
            let mut streamed = Vec::new();
            half.write_to(&mut streamed).unwrap();
            assert_eq!(streamed, half.bytes());
            let loss = tensor.narrowing_loss(DType::F16).unwrap();
            let beyond: Vec<f32> = (values.iter().copied())
                .filter(|v| v.is_finite() && v.abs() > 65504.0)
                .collect();
            assert_eq!((loss.clamped, loss.flushed), (beyond.len(), 1));
            assert_eq!(loss.abs_max, 3.4e38);
            let most = beyond.iter().copied().fold(0.0, f32::max);
            assert_eq!(loss.beyond, Some((-3.4e38, most)));
        }
    }

    #[test]
    fn rounding_in_fp32_gives_the_numbers_of_the_formats() {
        // Every number of the formats, its neighbours, and the middle to the next.
        for bits in 0..=u16::MAX {
            let around = |v: f32, next: f32| {
                let middle = v + (next - v) / 2.0;
                [
                    v,
                    middle,
                    middle.next_up(),
                    middle.next_down(),
                    v.next_up(),
                    v.next_down(),
                ]
            };
            let (v, next) = (f16::from_bits(bits), f16::from_bits(bits.wrapping_add(1)));
            for v in around(v.to_f32(), next.to_f32()) {
                if v.abs() <= f16::MAX.to_f32() {
                    assert_eq!(to_f16(v), f16::from_f32(v).to_f32(), "{v:e}");
                }
            }
            let (v, next) = (bf16::from_bits(bits), bf16::from_bits(bits.wrapping_add(1)));
            for v in around(v.to_f32(), next.to_f32()) {
                if v.abs() <= bf16::MAX.to_f32() {
                    assert_eq!(to_bf16(v), bf16::from_f32(v).to_f32(), "{v:e}");
                }
            }
        }
    }

    #[test]
    fn losses_are_those_of_the_format() {
        let loss = |values: &[f32], to| Tensor::vector(values).narrowing_loss(to).unwrap();
        let tiny = loss(&[3e-8, 1e-9, 0.0, f32::INFINITY], DType::F16);
        assert_eq!((tiny.flushed, tiny.clamped), (1, 0));
        assert!((tiny.power - 9.01e-16).abs() < 1e-19 && tiny.relative() > 0.9);
        // 2⁻⁸ is half of a unit in BF16's last place.
        let bf16 = loss(&[1.0 + 1.0 / 256.0, 1e-9], DType::BF16);
        assert_eq!((bf16.flushed, bf16.clamped), (0, 0));
        assert!((bf16.relative() - 1.0 / 257.0).abs() < 1e-6);
        // FP32 ends beyond BF16.
        let mask = loss(&[f32::MIN, 0.0], DType::BF16);
        assert_eq!(mask.beyond, Some((f32::MIN, f32::MIN)));
        assert_eq!(loss(&[0.0], DType::F16).relative(), 0.0);
        assert!(Tensor::vector(&[1i64]).narrowing_loss(DType::F16).is_none());
    }
}
