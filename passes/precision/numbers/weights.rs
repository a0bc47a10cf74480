//! Weights in few bits: one scale for each block of rows of a column, and a zero point where the format has one.

use std::marker::PhantomData;

use half::{bf16, f16};
use kiln_graph::{DType, Tensor};

use super::format::Format;

/// How a weight is rounded: the format, and whether blocks have zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    Int4,
    /// With a zero point for each block.
    Int4Affine,
    /// Without -128, which has no counterpart and which TensorRT clamps.
    Int8,
    Fp8,
}

impl Rounding {
    pub fn format(self) -> Format {
        match self {
            Rounding::Int4 | Rounding::Int4Affine => Format::Int4,
            Rounding::Int8 => Format::Int8,
            Rounding::Fp8 => Format::Fp8,
        }
    }

    /// Scales that are tried are the largest magnitude of a block over these. The first reaches it; beyond, outliers are
    /// clamped for the sake of the others. 8 uses INT4's -8 where the largest value is negative.
    fn divisors(self) -> &'static [f32] {
        match self {
            Rounding::Int4 | Rounding::Int4Affine => {
                &[7.0, 7.25, 7.5, 7.75, 8.0, 8.5, 9.0, 9.5, 10.0, 11.0]
            }
            Rounding::Int8 => &[127.0, 131.0, 136.0, 142.0, 150.0, 160.0, 172.0, 190.0],
            // Its steps are relative, so these only move where the powers of two lie.
            Rounding::Fp8 => &[448.0, 416.0, 384.0, 352.0, 320.0, 288.0, 256.0],
        }
    }
}

/// Columns quantized together, so that the loops over them vectorize and a tile stays in cache.
pub(in crate::precision) const LANES: usize = 32;

/// The range of a block with a zero point is tried in these parts of what its numbers span.
const PARTS: [f32; 7] = [1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78];

/// Smallest positive normal and smallest positive number of half precision.
const HALF_NORMAL: f32 = 6.103_515_6e-5;
const HALF_TINY: f32 = 5.960_464_5e-8;

/// A weight in another format.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// [K, N] of the format's dtype.
    pub values: Tensor,
    /// [ceil(K / block), N] in the weight's dtype, all positive: `weight ≈ (values - zeros) · scales`.
    pub scales: Tensor,
    /// As many zero points of the format's dtype, if it has any.
    pub zeros: Option<Tensor>,
    /// Root of the squared error over the squared weight; both are weighted by the moments if there are any.
    pub error: f64,
}

/// A weight cannot be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("its weight is not a matrix of 16- or 32-bit floats")]
    Type,
    #[error("its weight contains infinities or NaN")]
    NotFinite,
    #[error("the moments do not match the rows of its weight")]
    Moments,
    #[error("its weight or the block is empty")]
    Empty,
}

/// A weight [K, N] in blocks of `block` rows; the last block is shorter where `block` does not divide K. The scale of a
/// block is the one of a small grid, or the least-squares fit to the integers that it gives, with the smallest squared
/// error. `moments` are K means of squared inputs E[x_j²], which weigh the rows: the error is then that of the product.
///
/// # Errors
/// When the weight is not a finite matrix of F32, F16 or BF16, or the number of moments is not K.
pub fn quantize(
    weight: &Tensor,
    rounding: Rounding,
    block: usize,
    moments: Option<&[f64]>,
) -> Result<Quantized, Unfit> {
    match rounding {
        Rounding::Int4 => search::<Int4>(weight, rounding, block, moments),
        Rounding::Int4Affine => search::<Int4Affine>(weight, rounding, block, moments),
        Rounding::Int8 => search::<Int8>(weight, rounding, block, moments),
        Rounding::Fp8 => search::<Fp8>(weight, rounding, block, moments),
    }
}

/// A weight [K, N] in INT8 with one scale for each column, each so many times as large as `found` has it; no code grows.
///
/// # Errors
/// When the numbers do not belong together.
pub(in crate::precision) fn coarser(
    weight: &[f32],
    found: Quantized,
    times: &[f32],
) -> Result<Quantized, Unfit> {
    let old = to_f32s(&found.scales).filter(|s| s.len() == times.len() && !s.is_empty());
    let old = old.ok_or(Unfit::Type)?;
    let scales: Vec<f32> = old.iter().zip(times).map(|(s, t)| s * t.max(1.0)).collect();
    let code = |(k, v): (usize, &f32)| Int8::byte(Int8::nearest(v / scales[k % scales.len()], 0.0));
    let codes: Vec<u8> = weight.iter().enumerate().map(code).collect();
    let (dims, like) = (found.values.dims(), found.scales.dims());
    let values = Tensor::from_raw(DType::I8, dims, codes.into()).map_err(|_| Unfit::Type)?;
    let scales = Tensor::from_values(like, &scales).map_err(|_| Unfit::Type)?;
    Ok(Quantized {
        values,
        scales,
        ..found
    })
}

fn search<C: Code>(
    weight: &Tensor,
    rounding: Rounding,
    block: usize,
    moments: Option<&[f64]>,
) -> Result<Quantized, Unfit> {
    let divisors = rounding.divisors();
    let &[rows, columns] = weight.dims() else {
        return Err(Unfit::Type);
    };
    let grid = Grid::of(weight.dtype()).ok_or(Unfit::Type)?;
    if rows == 0 || columns == 0 || block == 0 {
        return Err(Unfit::Empty);
    }
    let values = to_f32s(weight).ok_or(Unfit::Type)?;
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if !values.iter().all(|v| v.is_finite()) {
        return Err(Unfit::NotFinite);
    }
    let moments = match moments {
        Some(all) if all.len() != rows => return Err(Unfit::Moments),
        Some(all) => relative(all),
        None => vec![1.0; rows],
    };
    // A block of next to nothing beside others gets a scale that half precision can still hold.
    let floor = match largest / 8.0 >= HALF_NORMAL {
        true => HALF_TINY,
        false => 0.0,
    };
    let mut codes = vec![0u8; rows * columns];
    let mut scales = vec![0f32; rows.div_ceil(block) * columns];
    let mut zeros = vec![0u8; if C::AFFINE { scales.len() } else { 0 }];
    let (mut lost, mut whole) = (0f64, 0f64);
    let mut tile = Tile::<C>::new(block.min(rows), grid, floor);
    for (index, start) in (0..rows).step_by(block).enumerate() {
        let weights = &moments[start..rows.min(start + block)];
        for column in (0..columns).step_by(LANES) {
            let width = LANES.min(columns - column);
            let at = |row: usize| (start + row) * columns + column;
            tile.load(weights, |row| &values[at(row)..at(row) + width]);
            let found = tile.search(divisors, weights);
            lost += found.errors[..width]
                .iter()
                .map(|&e| f64::from(e))
                .sum::<f64>();
            whole += tile.energy(weights);
            let to = index * columns + column;
            scales[to..to + width].copy_from_slice(&found.scales[..width]);
            for (zero, found) in zeros.iter_mut().skip(to).zip(&found.zeros[..width]) {
                *zero = C::byte(*found);
            }
            tile.codes(&found, |row, lane, code| {
                if lane < width {
                    codes[at(row) + lane] = code;
                }
            });
        }
    }
    let blocks = [rows.div_ceil(block), columns];
    let scales = Tensor::from_values(&blocks[..], &scales);
    let scales = scales.ok().and_then(|s| match weight.dtype() {
        DType::F32 => Some(s),
        narrow => s.narrowed(narrow),
    });
    Ok(Quantized {
        values: pack(rounding.format().dtype(), &[rows, columns], codes).ok_or(Unfit::Type)?,
        scales: scales.ok_or(Unfit::Type)?,
        zeros: match C::AFFINE {
            true => Some(pack(rounding.format().dtype(), &blocks, zeros).ok_or(Unfit::Type)?),
            false => None,
        },
        error: if whole > 0.0 {
            (lost / whole).sqrt()
        } else {
            0.0
        },
    })
}

/// Codes, one in each byte, as a tensor. Of 4 bits two are in a byte, the first in the low half (ONNX
/// `docs/docsgen/source/technical/int4.md`).
pub(crate) fn pack(dtype: DType, dims: &[usize], codes: Vec<u8>) -> Option<Tensor> {
    let pair = |pair: &[u8]| pair[0] & 0xf | pair.get(1).copied().unwrap_or(0) << 4;
    let packed = match dtype.bits() {
        4 => codes.chunks(2).map(pair).collect(),
        _ => codes,
    };
    Tensor::from_raw(dtype, dims, packed.into()).ok()
}

/// The elements of a tensor of 4-bit integers in two's complement, one in the low half of each byte.
pub fn unpack(tensor: &Tensor) -> Option<Vec<u8>> {
    matches!(tensor.dtype(), DType::I4 | DType::U4).then_some(())?;
    let bytes = tensor.bytes();
    let mut codes: Vec<u8> = bytes.iter().flat_map(|&b| [b & 0xf, b >> 4]).collect();
    codes.truncate(tensor.len());
    Some(codes)
}

pub(crate) fn to_f32s(tensor: &Tensor) -> Option<Vec<f32>> {
    match tensor.dtype() {
        DType::F32 => tensor.values(),
        DType::F16 => Some(tensor.values::<f16>()?.iter().map(|v| v.to_f32()).collect()),
        DType::BF16 => Some(
            tensor
                .values::<bf16>()?
                .iter()
                .map(|v| v.to_f32())
                .collect(),
        ),
        _ => None,
    }
}

/// Moments over the largest of them: only ratios matter, and sums of them stay in FP32's range.
fn relative(moments: &[f64]) -> Vec<f32> {
    let usable = |m: f64| if m.is_finite() { m.max(0.0) } else { 0.0 };
    let largest = moments.iter().fold(0f64, |all, &m| all.max(usable(m)));
    if largest == 0.0 {
        return vec![1.0; moments.len()];
    }
    moments
        .iter()
        .map(|&m| (usable(m) / largest) as f32)
        .collect()
}

/// The numbers that a scale can be.
#[derive(Clone, Copy, Debug)]
enum Grid {
    F32,
    F16,
    Bf16,
}

impl Grid {
    fn of(dtype: DType) -> Option<Grid> {
        match dtype {
            DType::F32 => Some(Grid::F32),
            DType::F16 => Some(Grid::F16),
            DType::BF16 => Some(Grid::Bf16),
            _ => None,
        }
    }

    /// The nearest scale with a finite reciprocal; 1 where that is 0, of blocks that are.
    fn nearest(self, scale: f32, floor: f32) -> f32 {
        let scale = scale.max(floor);
        let scale = match self {
            Grid::F32 => scale,
            Grid::F16 => f16::from_f32(scale).to_f32(),
            Grid::Bf16 => bf16::from_f32(scale).to_f32(),
        };
        let usable = scale >= f32::MIN_POSITIVE && scale.is_finite();
        if usable { scale } else { 1.0 }
    }
}

pub(in crate::precision) type Lane = [f32; LANES];

/// One block of rows of [`LANES`] columns; missing columns are zero.
struct Tile<C> {
    rows: Vec<Lane>,
    grid: Grid,
    floor: f32,
    code: PhantomData<C>,
}

/// The steps of a tile's columns and their weighted squared errors.
struct Found {
    scales: Lane,
    /// Zero where the format has no zero points.
    zeros: Lane,
    errors: Lane,
}

impl<C: Code> Tile<C> {
    fn new(rows: usize, grid: Grid, floor: f32) -> Tile<C> {
        Tile {
            rows: Vec::with_capacity(rows),
            grid,
            floor,
            code: PhantomData,
        }
    }

    fn load<'a>(&mut self, weights: &[f32], row: impl Fn(usize) -> &'a [f32]) {
        self.rows.clear();
        for k in 0..weights.len() {
            let mut lane = [0f32; LANES];
            let values = row(k);
            lane[..values.len()].copy_from_slice(values);
            self.rows.push(lane);
        }
    }

    fn energy(&self, weights: &[f32]) -> f64 {
        let row = |(row, &w): (&Lane, &f32)| w * row.iter().map(|v| v * v).sum::<f32>();
        self.rows.iter().zip(weights).map(row).map(f64::from).sum()
    }

    fn search(&self, divisors: &[f32], weights: &[f32]) -> Found {
        let (mut least, mut most) = ([0f32; LANES], [0f32; LANES]);
        for row in &self.rows {
            for l in 0..LANES {
                least[l] = least[l].min(row[l]);
                most[l] = most[l].max(row[l]);
            }
        }
        let none = [0f32; LANES];
        let largest: Lane = std::array::from_fn(|l| most[l].max(-least[l]));
        let scales = |divisor: f32| largest.map(|m| self.grid.nearest(m / divisor, self.floor));
        let mut best = self.tried(scales(divisors[0]), none, weights);
        for &divisor in &divisors[1..] {
            best.improve(self.tried(scales(divisor), none, weights));
        }
        if C::AFFINE {
            for part in PARTS {
                let step = |l: usize| (most[l] - least[l]) * part / 15.0;
                let scales = std::array::from_fn(|l| self.grid.nearest(step(l), self.floor));
                for shift in [-1.0, 0.0, 1.0] {
                    // The smallest number becomes -8, or what clamping leaves of it.
                    let zero = |l: usize| whole(-least[l] * part / scales[l]) - 8.0 + shift;
                    let zeros = std::array::from_fn(|l| zero(l).clamp(-8.0, 7.0));
                    best.improve(self.tried(scales, zeros, weights));
                }
            }
        }
        let fitted = self.fitted(&best, weights);
        best.improve(self.tried(fitted, best.zeros, weights));
        best
    }

    fn tried(&self, scales: Lane, zeros: Lane, weights: &[f32]) -> Found {
        let inverse = scales.map(f32::recip);
        let mut errors = [0f32; LANES];
        for (row, &w) in self.rows.iter().zip(weights) {
            for l in 0..LANES {
                let off = row[l] - scales[l] * C::nearest(row[l] * inverse[l], zeros[l]);
                errors[l] += w * off * off;
            }
        }
        Found {
            scales,
            zeros,
            errors,
        }
    }

    /// The scales that minimize the error for the integers that were found.
    fn fitted(&self, found: &Found, weights: &[f32]) -> Lane {
        let Found { scales, zeros, .. } = found;
        let inverse = scales.map(f32::recip);
        let (mut products, mut squares) = ([0f32; LANES], [0f32; LANES]);
        for (row, &w) in self.rows.iter().zip(weights) {
            for l in 0..LANES {
                let q = C::nearest(row[l] * inverse[l], zeros[l]);
                products[l] += w * row[l] * q;
                squares[l] += w * q * q;
            }
        }
        let mut fitted = *scales;
        for l in 0..LANES {
            if squares[l] > 0.0 && products[l] > 0.0 {
                fitted[l] = self.grid.nearest(products[l] / squares[l], self.floor);
            }
        }
        fitted
    }

    fn codes(&self, found: &Found, mut put: impl FnMut(usize, usize, u8)) {
        let inverse = found.scales.map(f32::recip);
        for (k, row) in self.rows.iter().enumerate() {
            for l in 0..LANES {
                let near = C::nearest(row[l] * inverse[l], found.zeros[l]);
                put(k, l, C::byte(near + found.zeros[l]));
            }
        }
    }
}

impl Found {
    fn improve(&mut self, other: Found) {
        for l in 0..LANES {
            if other.errors[l] < self.errors[l] {
                self.errors[l] = other.errors[l];
                self.scales[l] = other.scales[l];
                self.zeros[l] = other.zeros[l];
            }
        }
    }
}

/// How a number is rounded to a format, and what its byte is.
trait Code {
    /// Blocks have zero points.
    const AFFINE: bool = false;

    /// To nearest even, saturating where the number plus the zero point, which is zero without any, does.
    fn nearest(v: f32, zero: f32) -> f32;
    /// Of a number that the format has.
    fn byte(v: f32) -> u8;
}

/// `round_ties_even` is a call on processors without SSE 4.1; adding 1.5 · 2²³ leaves no bits for a fraction.
pub(in crate::precision) fn whole(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

struct Int4;

impl Code for Int4 {
    fn nearest(v: f32, _: f32) -> f32 {
        whole(v.clamp(-8.0, 7.0))
    }

    fn byte(v: f32) -> u8 {
        v as i8 as u8 & 0xf
    }
}

struct Int4Affine;

impl Code for Int4Affine {
    const AFFINE: bool = true;

    fn nearest(v: f32, zero: f32) -> f32 {
        whole(v.clamp(-8.0 - zero, 7.0 - zero))
    }

    fn byte(v: f32) -> u8 {
        Int4::byte(v)
    }
}

struct Int8;

impl Code for Int8 {
    fn nearest(v: f32, _: f32) -> f32 {
        whole(v.clamp(-127.0, 127.0))
    }

    fn byte(v: f32) -> u8 {
        v as i8 as u8
    }
}

struct Fp8;

impl Code for Fp8 {
    /// As [`whole`], with a shift of 1.5 · 2^(e + 20) for a number of exponent e, or of −6 for a smaller one: its last bit
    /// is the last of three bits of mantissa.
    fn nearest(v: f32, _: f32) -> f32 {
        const EXPONENT: u32 = 0x7f80_0000;
        const LEAST: u32 = (127 - 6) << 23;
        let v = v.clamp(-448.0, 448.0);
        let exponent = (v.to_bits() & EXPONENT).max(LEAST);
        let shift = f32::from_bits((exponent + (20 << 23)) | 0x40_0000);
        (v + shift) - shift
    }

    fn byte(v: f32) -> u8 {
        let sign = ((v.to_bits() >> 24) & 0x80) as u8;
        let magnitude = v.abs();
        // Below 2⁻⁶ it counts steps of 2⁻⁹; above, exponent and mantissa are the top bits of FP32's, biased by 7 for 127.
        let code = match magnitude < 0.015_625 {
            true => (magnitude * 512.0) as u32,
            false => (magnitude.to_bits() >> 20).wrapping_sub((127 - 7) << 3),
        };
        sign | (code & 0x7f) as u8
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
