//! FP32 as FP16 or BF16: converted in chunks when it is read or written, and what that loses.

use std::borrow::Cow;

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

    /// `largest` and `smallest` are the target's largest finite and smallest nonzero magnitude.
    fn add(&mut self, wide: &[f32], narrow: &[u8], to: DType, largest: f32, smallest: f32) {
        let mut buffer = [0f32; BLOCK];
        for (wide, narrow) in wide.chunks(BLOCK).zip(narrow.chunks(BLOCK * 2)) {
            let back = &mut buffer[..wide.len()];
            widen(narrow, to, back);
            // Of finite numbers, the largest magnitude has the largest bits.
            let bits = |v: &f32| v.to_bits() & !(1 << 31);
            let most = f32::from_bits(wide.iter().map(bits).fold(0, u32::max));
            match most <= largest {
                true => self.add_in_range(wide, back, most, smallest / 2.0),
                false => self.add_any(wide, back, largest, smallest / 2.0),
            }
        }
    }

    /// Numbers of which none is clamped, in a form that compilers vectorize.
    fn add_in_range(&mut self, wide: &[f32], back: &[f32], most: f32, flushed: f32) {
        const LANES: usize = 8;
        self.abs_max = self.abs_max.max(most);
        let tiny = |v: &f32| u32::from(v.abs() <= flushed) & u32::from(*v != 0.0);
        self.flushed += wide.iter().map(tiny).sum::<u32>() as usize;
        let (mut power, mut error) = ([0f64; LANES], [0f64; LANES]);
        let (wide, wide_rest) = wide.as_chunks::<LANES>();
        let (back, back_rest) = back.as_chunks::<LANES>();
        for (wide, back) in wide.iter().zip(back) {
            for k in 0..LANES {
                let (v, e) = (f64::from(wide[k]), f64::from(wide[k] - back[k]));
                power[k] += v * v;
                error[k] += e * e;
            }
        }
        for (v, back) in wide_rest.iter().zip(back_rest) {
            let (v, e) = (f64::from(*v), f64::from(v - back));
            power[0] += v * v;
            error[0] += e * e;
        }
        self.power += power.iter().sum::<f64>();
        self.error += error.iter().sum::<f64>();
    }

    fn add_any(&mut self, wide: &[f32], back: &[f32], largest: f32, flushed: f32) {
        for (&v, &back) in wide.iter().zip(back) {
            if !v.is_finite() {
                continue;
            }
            let magnitude = v.abs();
            self.abs_max = self.abs_max.max(magnitude);
            if magnitude > largest {
                self.clamped += 1;
                let (least, most) = self.beyond.unwrap_or((v, v));
                self.beyond = Some((least.min(v), most.max(v)));
            }
            // Half of the smallest subnormal ties to even, which is zero.
            self.flushed += usize::from(magnitude > 0.0 && magnitude <= flushed);
            let (v, error) = (f64::from(v), f64::from(v) - f64::from(back));
            self.power += v * v;
            self.error += error * error;
        }
    }
}

/// Elements whose conversion stays in the first cache.
const BLOCK: usize = 512;

/// F16 or BF16 numbers, at most [`BLOCK`], as FP32.
fn widen(narrow: &[u8], from: DType, out: &mut [f32]) {
    let halves = narrow.chunks_exact(2);
    if from == DType::BF16 {
        for (out, half) in out.iter_mut().zip(halves) {
            *out = bf16::from_le(half).to_f32();
        }
        return;
    }
    let mut buffer = [f16::ZERO; BLOCK];
    for (slot, half) in buffer.iter_mut().zip(halves) {
        *slot = f16::from_le(half);
    }
    buffer[..out.len()].convert_to_f32_slice(out);
}

impl Tensor {
    /// The numbers before and after they are narrowed, in chunks.
    pub(super) fn narrow<E>(
        &self,
        lazy: &Lazy,
        mut out: impl FnMut(&[f32], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = Vec::new();
        lazy.chunks(&mut |chunk| {
            let wide = aligned_f32(chunk);
            buffer.resize(chunk.len() / 2, 0u8);
            match self.dtype {
                DType::BF16 => narrow_chunk(&wide, &mut buffer, bf16::MAX.to_f32(), |v, dst| {
                    dst.copy_from_slice(&bf16::from_f32(v).to_le_bytes())
                }),
                _ => narrow_to_f16(&wide, &mut buffer),
            }
            out(&wide, &buffer)
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
        let (largest, smallest) = match to {
            DType::BF16 => (bf16::MAX.to_f32(), bf16::from_bits(1).to_f32()),
            _ => (f16::MAX.to_f32(), f16::from_bits(1).to_f32()),
        };
        let mut loss = NarrowingLoss::default();
        let add = |wide: &[f32], narrow: &[u8]| {
            loss.add(wide, narrow, to, largest, smallest);
            Ok::<(), std::convert::Infallible>(())
        };
        narrowed
            .narrow(lazy, add)
            .unwrap_or_else(|never| match never {});
        Some(loss)
    }
}

/// Protobuf does not align `raw_data`, so a slice of a mapped file may have to be copied to be read as floats.
fn aligned_f32(bytes: &[u8]) -> Cow<'_, [f32]> {
    if let (true, Ok(numbers)) = (
        cfg!(target_endian = "little"),
        bytemuck::try_cast_slice(bytes),
    ) {
        return Cow::Borrowed(numbers);
    }
    if cfg!(target_endian = "big") {
        return Cow::Owned(bytes.chunks_exact(4).map(f32::from_le).collect());
    }
    let mut copy = vec![0f32; bytes.len() / 4];
    let whole = copy.len() * 4;
    bytemuck::cast_slice_mut(&mut copy).copy_from_slice(&bytes[..whole]);
    Cow::Owned(copy)
}

fn narrow_chunk(wide: &[f32], out: &mut [u8], max: f32, put: impl Fn(f32, &mut [u8])) {
    for (v, dst) in wide.iter().zip(out.chunks_exact_mut(2)) {
        put(clamp_finite(*v, max), dst);
    }
}

fn clamp_finite(v: f32, max: f32) -> f32 {
    if v.is_finite() { v.clamp(-max, max) } else { v }
}

fn narrow_to_f16(wide: &[f32], out: &mut [u8]) {
    let max = f16::MAX.to_f32();
    let mut clamped = [0f32; BLOCK];
    let mut halves = [f16::ZERO; BLOCK];
    for (wide, out) in wide.chunks(BLOCK).zip(out.chunks_mut(BLOCK * 2)) {
        for (dst, v) in clamped.iter_mut().zip(wide) {
            *dst = clamp_finite(*v, max);
        }
        let halves = &mut halves[..wide.len()];
        halves.convert_from_f32_slice(&clamped[..wide.len()]);
        for (dst, h) in out.chunks_exact_mut(2).zip(halves.iter()) {
            dst.copy_from_slice(&h.to_le_bytes());
        }
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
            .map(|&v| f16::from_f32(clamp_finite(v, 65504.0)).to_bits())
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
