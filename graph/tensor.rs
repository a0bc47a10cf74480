//! Constant tensors: a dtype, dimensions and little-endian bytes that are shared, never copied by reading.

mod lazy;
mod narrow;
mod outer;

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use smallvec::SmallVec;

use crate::DType;

pub(crate) use lazy::Part;
use lazy::{Lazy, same_bytes};
pub use narrow::NarrowingLoss;

/// Dimensions of a constant tensor; rank 0 is a scalar.
pub type Dims = SmallVec<[usize; 4]>;

/// A tensor's data does not fit its dtype and dimensions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    #[error("{dtype}{dims:?} needs {expected} bytes but {found} are given")]
    Length {
        dtype: DType,
        dims: Vec<usize>,
        expected: usize,
        found: usize,
    },
    #[error("the shape {dims:?} has too many elements to address")]
    Overflow { dims: Vec<usize> },
    #[error("{0} tensors cannot be made from raw bytes")]
    NotRaw(DType),
}

/// A constant: initializer, `Constant` node and folded result alike. Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    dims: Dims,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    /// Little-endian, packed as ONNX's `raw_data`.
    Raw(Bytes),
    Strings(Arc<[Bytes]>),
    /// Bytes elsewhere, which become the tensor's when they are read or written.
    Lazy(Lazy),
}

impl Tensor {
    /// A tensor over `data`, little-endian and packed as `raw_data` packs it.
    ///
    /// # Errors
    /// When the length does not fit `dtype` and `dims`, when their product overflows, or for strings.
    pub fn from_raw(
        dtype: DType,
        dims: impl Into<Dims>,
        data: Bytes,
    ) -> Result<Tensor, TensorError> {
        let dims = dims.into();
        let expected = packed_len(dtype, &dims)?;
        if data.len() != expected {
            return Err(TensorError::Length {
                dtype,
                dims: dims.to_vec(),
                expected,
                found: data.len(),
            });
        }
        Ok(Tensor {
            dtype,
            dims,
            data: Data::Raw(data),
        })
    }

    /// A string tensor; elements are bytes, by convention UTF-8.
    ///
    /// # Errors
    /// When the number of strings is not the product of `dims`.
    pub fn from_strings(dims: impl Into<Dims>, strings: Vec<Bytes>) -> Result<Tensor, TensorError> {
        let dims = dims.into();
        let expected = count(&dims)?;
        if strings.len() != expected {
            return Err(TensorError::Length {
                dtype: DType::String,
                dims: dims.to_vec(),
                expected,
                found: strings.len(),
            });
        }
        Ok(Tensor {
            dtype: DType::String,
            dims,
            data: Data::Strings(strings.into()),
        })
    }

    /// A rank-0 tensor of one element.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor {
            dtype: T::DTYPE,
            dims: Dims::new(),
            data: Data::Raw(to_bytes(&[value])),
        }
    }

    /// A rank-1 tensor.
    pub fn vector<T: Element>(values: &[T]) -> Tensor {
        Tensor {
            dtype: T::DTYPE,
            dims: Dims::from_slice(&[values.len()]),
            data: Data::Raw(to_bytes(values)),
        }
    }

    /// A tensor of these dimensions over `values` in row-major order.
    ///
    /// # Errors
    /// When the number of values is not the product of `dims`.
    pub fn from_values<T: Element>(
        dims: impl Into<Dims>,
        values: &[T],
    ) -> Result<Tensor, TensorError> {
        Tensor::from_raw(T::DTYPE, dims, to_bytes(values))
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The number of elements: the product of the dimensions.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the tensor takes in a file.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Strings(strings) => strings.iter().map(Bytes::len).sum(),
            Data::Raw(data) => data.len(),
            Data::Lazy(lazy) => lazy.source_len() / if lazy.narrows { 2 } else { 1 },
        }
    }

    /// Little-endian packed bytes: shared where they are stored so, computed for a narrowed or joined tensor, empty for
    /// strings.
    pub fn bytes(&self) -> Bytes {
        match &self.data {
            Data::Raw(data) => data.clone(),
            Data::Strings(_) => Bytes::new(),
            Data::Lazy(_) => {
                let mut out = Vec::with_capacity(self.byte_len());
                self.stream(&mut |chunk| {
                    out.extend_from_slice(chunk);
                    Ok::<(), std::convert::Infallible>(())
                })
                .unwrap_or_else(|never| match never {});
                Bytes::from(out)
            }
        }
    }

    /// Writes the packed bytes without ever holding a narrowed or joined tensor whole.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.stream(&mut |chunk| out.write_all(chunk))
    }

    fn stream<E>(&self, out: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match &self.data {
            Data::Raw(data) => out(data),
            Data::Strings(_) => Ok(()),
            Data::Lazy(lazy) if lazy.narrows => self.narrow(lazy, out),
            Data::Lazy(lazy) => lazy.chunks(out),
        }
    }

    /// Hands out the rows of an FP32 matrix, one after another, without ever holding it whole. `None` of any other tensor.
    pub fn f32_rows(&self, take: &mut dyn FnMut(&[f32])) -> Option<()> {
        let (DType::F32, &[_, width]) = (self.dtype, self.dims()) else {
            return None;
        };
        let long = width * size_of::<f32>();
        let mut row = vec![0f32; width];
        let mut give = |bytes: &[u8]| {
            for (v, bytes) in row.iter_mut().zip(bytes.chunks_exact(size_of::<f32>())) {
                *v = f32::from_le(bytes);
            }
            take(&row);
        };
        // Of a row that began in another chunk.
        let mut begun: Vec<u8> = Vec::new();
        let read = self.stream(&mut |mut chunk| {
            if !begun.is_empty() {
                let (end, rest) = chunk.split_at(chunk.len().min(long - begun.len()));
                begun.extend_from_slice(end);
                chunk = rest;
                if begun.len() == long {
                    give(&begun);
                    begun.clear();
                }
            }
            let mut rows = chunk.chunks_exact(long.max(1));
            (&mut rows).for_each(&mut give);
            begun.extend_from_slice(rows.remainder());
            Ok::<(), std::convert::Infallible>(())
        });
        read.unwrap_or_else(|never| match never {});
        Some(())
    }

    /// The strings of a string tensor.
    pub fn strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Strings(strings) => Some(strings),
            _ => None,
        }
    }

    /// A copy of the values, if the dtype is `T`'s.
    pub fn values<T: Element>(&self) -> Option<Vec<T>> {
        if T::DTYPE != self.dtype {
            return None;
        }
        Some(
            self.bytes()
                .chunks_exact(size_of::<T>())
                .map(T::from_le)
                .collect(),
        )
    }

    /// The values of any integer or bool tensor of at least 8 bits, widened; `None` for other types, and for
    /// `uint64` values that do not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        fn widen<T: Element + Into<i64>>(tensor: &Tensor) -> Option<Vec<i64>> {
            Some(tensor.values::<T>()?.into_iter().map(Into::into).collect())
        }
        match self.dtype {
            DType::I64 => self.values(),
            DType::I32 => widen::<i32>(self),
            DType::I16 => widen::<i16>(self),
            DType::I8 => widen::<i8>(self),
            DType::U8 => widen::<u8>(self),
            DType::U16 => widen::<u16>(self),
            DType::U32 => widen::<u32>(self),
            DType::U64 => self
                .values::<u64>()?
                .into_iter()
                .map(|v| i64::try_from(v).ok())
                .collect(),
            DType::Bool => Some(self.bytes().iter().map(|&b| i64::from(b != 0)).collect()),
            _ => None,
        }
    }

    /// The values of an F64, F32, F16 or BF16 tensor as `f64`, exactly.
    pub fn to_f64s(&self) -> Option<Vec<f64>> {
        match self.dtype {
            DType::F64 => self.values(),
            DType::F32 => Some(self.values::<f32>()?.into_iter().map(f64::from).collect()),
            DType::F16 => Some(self.values::<f16>()?.into_iter().map(f64::from).collect()),
            DType::BF16 => Some(self.values::<bf16>()?.into_iter().map(f64::from).collect()),
            _ => None,
        }
    }

    /// The one element of a scalar or one-element integer tensor.
    pub fn as_i64(&self) -> Option<i64> {
        if self.len() != 1 {
            return None;
        }
        self.to_i64s()?.first().copied()
    }

    /// The one element of a scalar or one-element float tensor.
    pub fn as_f64(&self) -> Option<f64> {
        if self.len() != 1 {
            return None;
        }
        self.to_f64s()?.first().copied()
    }

    /// The same bytes under other dimensions with the same number of elements.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshaped(&self, dims: impl Into<Dims>) -> Result<Tensor, TensorError> {
        let dims = dims.into();
        if count(&dims)? != self.len() {
            return Err(TensorError::Length {
                dtype: self.dtype,
                dims: dims.to_vec(),
                expected: count(&dims)?,
                found: self.len(),
            });
        }
        Ok(Tensor {
            dims,
            ..self.clone()
        })
    }

    /// Bit-for-bit equality of dtype, dimensions and data.
    pub fn same_bits(&self, other: &Tensor) -> bool {
        if self.dtype != other.dtype || self.dims != other.dims {
            return false;
        }
        match (&self.data, &other.data) {
            (Data::Strings(a), Data::Strings(b)) => a == b,
            (Data::Raw(a), Data::Raw(b)) => same_bytes(a, b),
            (Data::Lazy(a), Data::Lazy(b)) if a == b => true,
            (Data::Lazy(a), Data::Lazy(b)) if a.narrows && b.narrows => false,
            _ => self.bytes() == other.bytes(),
        }
    }

    /// A cheap fingerprint: equal tensors have equal fingerprints; samples the data, so unequal ones may collide.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash, Hasher};
        let mut hasher = rustc_hash::FxHasher::default();
        (self.dtype, &self.dims).hash(&mut hasher);
        match &self.data {
            Data::Strings(strings) => strings.hash(&mut hasher),
            Data::Raw(data) => sample(data, &mut hasher),
            Data::Lazy(lazy) => lazy
                .parts
                .iter()
                .for_each(|p| sample(p.data(), &mut hasher)),
        }
        hasher.finish()
    }
}

fn sample(data: &Bytes, hasher: &mut impl std::hash::Hasher) {
    use std::hash::Hash;
    // Each sample of a mapped file that is not in memory reads a page and those around it.
    const SAMPLES: usize = 4;
    const WIDTH: usize = 64;
    if data.len() <= SAMPLES * WIDTH {
        data.hash(hasher);
        return;
    }
    for k in 0..SAMPLES {
        let at = (data.len() - WIDTH) / (SAMPLES - 1) * k;
        data[at..at + WIDTH].hash(hasher);
    }
}

fn count(dims: &[usize]) -> Result<usize, TensorError> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| TensorError::Overflow {
            dims: dims.to_vec(),
        })
}

fn packed_len(dtype: DType, dims: &[usize]) -> Result<usize, TensorError> {
    if dtype == DType::String {
        return Err(TensorError::NotRaw(dtype));
    }
    dtype
        .packed_len(count(dims)?)
        .ok_or_else(|| TensorError::Overflow {
            dims: dims.to_vec(),
        })
}

fn to_bytes<T: Element>(values: &[T]) -> Bytes {
    let mut out = Vec::with_capacity(size_of_val(values));
    for v in values {
        v.push_le(&mut out);
    }
    Bytes::from(out)
}

/// A Rust number that is an element of a tensor.
pub trait Element: Copy {
    const DTYPE: DType;
    /// Reads one element from exactly its size in little-endian bytes.
    fn from_le(bytes: &[u8]) -> Self;
    fn push_le(self, out: &mut Vec<u8>);
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),* $(,)?) => {$(
        impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            fn from_le(bytes: &[u8]) -> Self {
                let mut le = [0; size_of::<$ty>()];
                le.copy_from_slice(bytes);
                <$ty>::from_le_bytes(le)
            }
            fn push_le(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

elements! {
    f32 => F32, f64 => F64, f16 => F16, bf16 => BF16,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
}

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn from_le(bytes: &[u8]) -> Self {
        bytes.first().is_some_and(|&b| b != 0)
    }
    fn push_le(self, out: &mut Vec<u8>) {
        out.push(u8::from(self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_must_fit() {
        let err = Tensor::from_raw(
            DType::F32,
            [2usize, 3].as_slice(),
            Bytes::from_static(&[0; 20]),
        );
        assert!(matches!(
            err,
            Err(TensorError::Length {
                expected: 24,
                found: 20,
                ..
            })
        ));
        let err = Tensor::from_raw(DType::F32, [usize::MAX, 3].as_slice(), Bytes::new());
        assert!(matches!(err, Err(TensorError::Overflow { .. })));
        assert!(
            Tensor::from_raw(DType::I4, [3usize].as_slice(), Bytes::from_static(&[0; 2])).is_ok()
        );
    }

    #[test]
    fn rows_are_whole_wherever_chunks_end() {
        // A chunk is no multiple of a row.
        let (height, widths) = (1000, [300, 477]);
        let [left, right] = widths.map(|width| {
            let values: Vec<f32> = (0..height * width).map(|k| (k + width) as f32).collect();
            Tensor::from_values([height, width].as_slice(), &values).unwrap()
        });
        let parts = [&left, &right].map(|t| t.parts(t.dims()[1] * 4)[0].clone());
        let width = widths.iter().sum();
        let both = Tensor::of_parts(DType::F32, [height, width].as_slice(), Arc::new(parts));
        let chunked = Lazy::whole(&both.bytes());
        let chunked = Tensor::of_parts(DType::F32, [height, width].as_slice(), chunked);
        for tensor in [left, both, chunked] {
            let mut rows = Vec::new();
            tensor.f32_rows(&mut |row| rows.push(row.to_vec())).unwrap();
            assert!(rows.iter().all(|r| r.len() == tensor.dims()[1]));
            assert_eq!(Some(rows.concat()), tensor.values());
        }
        let none = Tensor::from_values([3, 0].as_slice(), &[0f32; 0]).unwrap();
        none.f32_rows(&mut |row| assert!(row.is_empty())).unwrap();
        let vector = Tensor::vector(&[1f32]);
        let numbers = Tensor::from_values([1, 1].as_slice(), &[1i32]).unwrap();
        assert!(
            [vector, numbers]
                .iter()
                .all(|t| t.f32_rows(&mut |_| ()).is_none())
        );
    }

    #[test]
    fn fingerprints_of_equal_tensors_are_equal() {
        let a = Tensor::vector(&vec![1.5f32; 1000]);
        let b = Tensor::vector(&vec![1.5f32; 1000]);
        assert!(a.same_bits(&b) && a.fingerprint() == b.fingerprint());
        assert!(!a.same_bits(&Tensor::vector(&vec![1.5f32; 999])));
    }
}
