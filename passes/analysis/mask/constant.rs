//! Elements of constants: splats, counted indices, and matrices that are constant along each diagonal.

use kiln_graph::{DType, Tensor};

use super::affine::{Affine, Space};
use super::arith::at_most_zero;
use super::element::{Cond, Element};

/// Constants beyond this many bytes are not read; a causal mask of 4096 × 4096 bools is.
const MAX_BYTES: usize = 1 << 24;

/// The element of a constant at these coordinates; `None` where it cannot be expressed by them.
pub(super) fn element(tensor: &Tensor, at: &[Affine], space: &Space) -> Option<Element> {
    if tensor.rank() != at.len() || tensor.is_empty() || tensor.byte_len() > MAX_BYTES {
        return None;
    }
    let numbers = Numbers::read(tensor)?;
    // What is left after the axes at which the coordinate is a number.
    let (mut start, mut stride) = (0usize, 1usize);
    let mut free: Vec<Axis<'_>> = Vec::new();
    for (&size, at) in tensor.dims().iter().zip(at).rev() {
        match at.as_i64() {
            _ if size == 1 => {}
            Some(k) => start += usize::try_from(k).ok().filter(|&k| k < size)? * stride,
            None => free.push(Axis { size, stride, at }),
        }
        stride *= size;
    }
    match free.as_slice() {
        [] => numbers.leaf(start),
        [column, row] => numbers.band(start, row, column, space),
        _ => None,
    }
    .or_else(|| numbers.splat())
    .or_else(|| numbers.counted(start, &free))
}

struct Axis<'a> {
    size: usize,
    stride: usize,
    at: &'a Affine,
}

/// The elements.
struct Numbers {
    dtype: DType,
    bits: Bits,
}

/// Integers or the bits of floats; bools, of which there are many, as bytes.
enum Bits {
    Bytes(Vec<u8>),
    Wide(Vec<i64>),
}

impl Bits {
    fn get(&self, k: usize) -> Option<i64> {
        match self {
            Bits::Bytes(bytes) => bytes.get(k).map(|&b| i64::from(b != 0)),
            Bits::Wide(numbers) => numbers.get(k).copied(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Bits::Bytes(bytes) => bytes.len(),
            Bits::Wide(numbers) => numbers.len(),
        }
    }
}

impl Numbers {
    fn read(tensor: &Tensor) -> Option<Numbers> {
        let dtype = tensor.dtype();
        let bits = match dtype {
            DType::Bool => Bits::Bytes(tensor.bytes().to_vec()),
            dtype if dtype.is_int() => Bits::Wide(tensor.to_i64s()?),
            _ => {
                let floats = tensor.to_f64s()?;
                Bits::Wide(floats.into_iter().map(|x| x.to_bits() as i64).collect())
            }
        };
        Some(Numbers { dtype, bits })
    }

    fn of_bits(&self, bits: i64) -> Option<Element> {
        match self.dtype {
            DType::Bool => Some(Element::Truth(Cond::Const(bits != 0))),
            dtype if dtype.is_int() => Some(Element::Whole(bits.into())),
            _ => {
                let real = f64::from_bits(bits as u64);
                (!real.is_nan()).then_some(Element::Real(real))
            }
        }
    }

    fn leaf(&self, k: usize) -> Option<Element> {
        self.of_bits(self.bits.get(k)?)
    }

    fn splat(&self) -> Option<Element> {
        let first = self.bits.get(0)?;
        let mut all = 1..self.bits.len();
        all.all(|k| self.bits.get(k) == Some(first))
            .then(|| self.of_bits(first))?
    }

    /// Whole numbers that count in equal steps along each axis.
    fn counted(&self, start: usize, axes: &[Axis<'_>]) -> Option<Element> {
        if !self.dtype.is_int() {
            return None;
        }
        let get = |k: usize| self.bits.get(k);
        let first = get(start)?;
        let mut places = vec![(start, first)];
        let mut sum = Affine::from(first);
        for axis in axes {
            let step = get(start + axis.stride)?.checked_sub(first)?;
            let before = places.len();
            for k in 1..axis.size {
                for n in before * (k - 1)..before * k {
                    let (place, number) = *places.get(n)?;
                    places.push((place + axis.stride, number.checked_add(step)?));
                }
            }
            sum = sum.add(&axis.at.scale(&step.into())?)?;
        }
        let all = places
            .into_iter()
            .all(|(place, number)| get(place) == Some(number));
        all.then_some(Element::Whole(sum))
    }

    /// A matrix that is constant along each diagonal, with one number in a band of diagonals and one outside: what
    /// `tril`, `triu` and a sliding window leave.
    fn band(
        &self,
        start: usize,
        row: &Axis<'_>,
        column: &Axis<'_>,
        space: &Space,
    ) -> Option<Element> {
        let (rows, columns) = (row.size, column.size);
        let get = |i: usize, j: usize| self.bits.get(start + i * row.stride + j * column.stride);
        // Diagonal d holds the elements with j - i = d - (rows - 1).
        let along = |d: usize| {
            if d < rows {
                (rows - 1 - d, 0)
            } else {
                (0, d - (rows - 1))
            }
        };
        let mut runs: Vec<(usize, i64)> = Vec::new();
        for d in 0..rows + columns - 1 {
            let (i, j) = along(d);
            let number = get(i, j)?;
            let length = (rows - i).min(columns - j);
            for k in 1..length {
                if get(i + k, j + k)? != number {
                    return None;
                }
            }
            if runs.last().is_none_or(|run| run.1 != number) {
                runs.push((d, number));
            }
            if runs.len() > 3 {
                return None;
            }
        }
        let apart = column.at.sub(row.at)?;
        let diagonal = |d: usize| Some(i64::try_from(d).ok()? - (i64::try_from(rows).ok()? - 1));
        // Whether the element lies before diagonal d: column - row <= d - 1.
        let before = |d: usize| {
            let last = Affine::from(diagonal(d)? - 1);
            Some(at_most_zero(apart.sub(&last)?, space))
        };
        match runs.as_slice() {
            [(_, a)] => self.of_bits(*a),
            [(_, a), (d, b)] => Element::select(before(*d)?, self.of_bits(*a)?, self.of_bits(*b)?),
            [(_, a), (from, b), (to, c)] if a == c => {
                let inside = Cond::all([before(*from)?.not()?, before(*to)?])?;
                Element::select(inside, self.of_bits(*b)?, self.of_bits(*a)?)
            }
            _ => None,
        }
    }
}
