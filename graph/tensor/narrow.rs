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
    /// The largest finite magnitude seen.
    pub abs_max: f32,
    /// The smallest and the largest of the values that are clamped; equal if all of them are one number.
    pub beyond: Option<(f32, f32)>,
    /// The sum of squares of the finite values.
    pub power: f64,
    /// The sum of squares of their errors. Where [`NarrowingLoss::relative`] is below 1/128 this is an upper bound.
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

    /// Adds numbers one by one; `format` is F16 or BF16.
    fn add(&mut self, wide: &[f32], format: DType) {
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
            let (v, error) = (f64::from(v), f64::from(v) - near);
            self.power += v * v;
            self.error += error * error;
        }
    }
}

/// What bounds the loss of numbers of which none is clamped, in loops without branches that become vectors.
#[derive(Default)]
struct Bound {
    most: f32,
    /// Not finite if a number is NaN.
    power: f64,
    /// Numbers below the format's smallest normal number, zeros among them.
    small: u64,
}

/// Numbers that compilers take together in vectors.
const LANES: usize = 8;

impl Bound {
    fn add(&mut self, block: &[f32], normal: f32) {
        let (mut power, mut small) = ([0f32; LANES], [0u32; LANES]);
        let mut add = |lanes: &[f32; LANES]| {
            for k in 0..LANES {
                power[k] += lanes[k] * lanes[k];
                small[k] += u32::from(lanes[k].abs() < normal);
            }
        };
        let (whole, rest) = block.as_chunks::<LANES>();
        whole.iter().for_each(&mut add);
        let mut last = [0f32; LANES];
        last[..rest.len()].copy_from_slice(rest);
        add(&last);
        self.most = self.most.max(largest(block));
        self.power += power.iter().map(|&p| f64::from(p)).sum::<f64>();
        self.small += u64::from(small.iter().sum::<u32>());
    }

    /// The loss, if it surely is small: normal numbers move by half of the last place, others by half of the smallest
    /// number.
    fn loss(&self, format: DType) -> Option<NarrowingLoss> {
        let (digits, smallest) = match format {
            DType::BF16 => (
                f64::from(bf16::MANTISSA_DIGITS),
                bf16::from_bits(1).to_f64(),
            ),
            _ => (f64::from(f16::MANTISSA_DIGITS), f16::from_bits(1).to_f64()),
        };
        let loss = NarrowingLoss {
            abs_max: self.most,
            power: self.power,
            error: self.power * 4f64.powf(-digits) + self.small as f64 * (smallest / 2.0).powi(2),
            ..NarrowingLoss::default()
        };
        let sure = self.most <= end(format) && self.power.is_finite() && self.power > 0.0;
        (sure && loss.relative() < FINE).then_some(loss)
    }
}

/// Below this relative error a bound of it is enough.
const FINE: f64 = 1.0 / 128.0;

/// Elements whose conversion stays in the first cache.
const BLOCK: usize = 512;

/// The largest finite number of F16 or BF16.
fn end(format: DType) -> f32 {
    match format {
        DType::BF16 => bf16::MAX.to_f32(),
        _ => f16::MAX.to_f32(),
    }
}

/// The largest magnitude, NaN aside.
fn largest(block: &[f32]) -> f32 {
    let mut most = [0f32; LANES];
    let (whole, rest) = block.as_chunks::<LANES>();
    for lanes in whole {
        for (most, v) in most.iter_mut().zip(lanes) {
            *most = if v.abs() > *most { v.abs() } else { *most };
        }
    }
    most.iter().chain(rest).fold(0.0, |m, v| m.max(v.abs()))
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
                    DType::BF16 => push_bf16(block, &mut buffer),
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
        let normal = match to {
            DType::BF16 => bf16::MIN_POSITIVE.to_f32(),
            _ => f16::MIN_POSITIVE.to_f32(),
        };
        let mut bound = Bound::default();
        each(lazy, |block| bound.add(block, normal));
        bound.loss(to).or_else(|| {
            let mut loss = NarrowingLoss::default();
            each(lazy, |block| loss.add(block, to));
            Some(loss)
        })
    }
}

fn each(lazy: &Lazy, mut take: impl FnMut(&[f32])) {
    let read = lazy.chunks(&mut |chunk| {
        blocks(chunk, |block| {
            take(block);
            Ok::<(), Infallible>(())
        })
    });
    read.unwrap_or_else(|never| match never {});
}

/// Finite numbers beyond ±`end` become it.
fn clamp(block: &mut [f32], end: f32) {
    if largest(block) > end {
        for v in block.iter_mut().filter(|v| v.is_finite()) {
            *v = v.clamp(-end, end);
        }
    }
}

/// To nearest even: the upper half of the words, which are vectors' work if none is NaN.
fn push_bf16(block: &[f32], out: &mut Vec<u8>) {
    if block.iter().any(|v| v.is_nan()) {
        block.iter().for_each(|&v| bf16::from_f32(v).push_le(out));
        return;
    }
    put(block, out, |v| {
        let word = v.to_bits();
        let half = 0x7fff + (word >> 16 & 1);
        (word.wrapping_add(half) >> 16) as u16
    });
}

fn put<T: Copy>(block: &[T], out: &mut Vec<u8>, bits: impl Fn(T) -> u16) {
    let start = out.len();
    out.resize(start + 2 * block.len(), 0);
    for (dst, &v) in out[start..].chunks_exact_mut(2).zip(block) {
        dst.copy_from_slice(&bits(v).to_le_bytes());
    }
}

/// To nearest even, with the processor's instructions.
fn push_f16(block: &[f32], out: &mut Vec<u8>) {
    let mut halves = [f16::ZERO; BLOCK];
    let halves = &mut halves[..block.len()];
    halves.convert_from_f32_slice(block);
    put(halves, out, f16::to_bits);
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
            let brain = tensor
                .narrowed(DType::BF16)
                .unwrap()
                .values::<bf16>()
                .unwrap();
            let near = |v: f32| {
                bf16::from_f32(if v.is_finite() {
                    v.clamp(-bf16::MAX.to_f32(), bf16::MAX.to_f32())
                } else {
                    v
                })
            };
            let near = values.iter().map(|&v| near(v).to_bits());
            assert!(brain.iter().map(|b| b.to_bits()).eq(near));
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
            assert_eq!(loss.clamped, beyond.len());
            assert_eq!(loss.abs_max, 3.4e38);
            let most = beyond.iter().copied().fold(0.0, f32::max);
            assert_eq!(loss.beyond, Some((-3.4e38, most)));
        }
    }

    /// The sum of squared errors, number by number.
    fn error(values: &[f32], to: DType) -> f64 {
        let mut loss = NarrowingLoss::default();
        loss.add(values, to);
        loss.error
    }

    #[test]
    fn small_losses_are_bounded_and_others_exact() {
        let values: Vec<f32> = (0..1003).map(|k| (k as f32 * 0.7311).sin()).collect();
        for to in [DType::F16, DType::BF16] {
            for scale in [1e-12f32, 3e-8, 2e-6, 1e-4, 0.02, 1.0, 6e4] {
                let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
                let loss = Tensor::vector(&scaled).narrowing_loss(to).unwrap();
                let exact = error(&scaled, to);
                match loss.relative() < FINE {
                    true => assert!(
                        (exact..12.0 * exact).contains(&loss.error),
                        "{to} {scale:e} {loss:?} {exact}"
                    ),
                    false => assert_eq!(loss.error, exact, "{to} {scale:e}"),
                }
            }
        }
    }

    #[test]
    fn losses_are_those_of_the_format() {
        let loss = |values: &[f32], to| Tensor::vector(values).narrowing_loss(to).unwrap();
        let tiny = loss(&[3e-8, 1e-9, 0.0, f32::INFINITY], DType::F16);
        assert_eq!(tiny.clamped, 0);
        assert!((tiny.power - 9.01e-16).abs() < 1e-19 && tiny.relative() > 0.9);
        // 2⁻⁸ is half of a unit in BF16's last place.
        let bf16 = loss(&[1.0 + 1.0 / 256.0, 1e-9], DType::BF16);
        assert_eq!(bf16.clamped, 0);
        assert!((bf16.relative() - 1.0 / 256.0).abs() < 1e-6);
        // FP32 ends beyond BF16.
        let mask = loss(&[f32::MIN, 0.0], DType::BF16);
        assert_eq!(mask.beyond, Some((f32::MIN, f32::MIN)));
        assert_eq!(loss(&[0.0], DType::F16).relative(), 0.0);
        assert!(Tensor::vector(&[1i64]).narrowing_loss(DType::F16).is_none());
    }
}
