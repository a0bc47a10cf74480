//! The elements of a `TensorProto`, however it stores them, as packed bytes.

use super::elem::{Elem, Kind, Packer};
use crate::onnx::proto::TensorProto;
use crate::onnx::proto::tensor_proto::DataLocation;
use bytes::Bytes;

pub(super) enum Elements {
    /// As many bytes as the shape asks for, laid out as `raw_data` is.
    Packed(Bytes),
    Strings(Vec<Bytes>),
}

pub(super) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

/// Number of elements the shape holds.
pub(super) fn element_count(dims: &[i64]) -> Option<usize> {
    dims.iter().try_fold(1usize, |count, &dim| {
        count.checked_mul(usize::try_from(dim).ok()?)
    })
}

/// `None` where the tensor does not hold what its shape and type say.
pub(super) fn elements(tensor: &TensorProto, elem: &Elem) -> Option<Elements> {
    let count = element_count(&tensor.dims)?;
    if elem.kind == Kind::String {
        let strings = (tensor.string_data.len() == count).then(|| tensor.string_data.clone());
        return strings.map(Elements::Strings);
    }
    let packed = match &tensor.raw_data {
        Some(raw) => raw.clone(),
        None => Bytes::from(typed_data(tensor, elem, count)),
    };
    (elem.byte_len(count) == Some(packed.len())).then_some(Elements::Packed(packed))
}

fn typed_data(tensor: &TensorProto, elem: &Elem, count: usize) -> Vec<u8> {
    let mut packer = Packer::default();
    let mut push_all = |values: &mut dyn Iterator<Item = u64>, bits: u32| {
        values.for_each(|value| packer.push(value, bits));
    };
    match (elem.kind, elem.bits) {
        (Kind::F32, _) => {
            push_all(
                &mut tensor.float_data.iter().map(|v| v.to_bits().into()),
                32,
            );
        }
        (Kind::F64, _) => push_all(&mut tensor.double_data.iter().map(|v| v.to_bits()), 64),
        (Kind::Signed, 64) => push_all(&mut tensor.int64_data.iter().map(|&v| v as u64), 64),
        (Kind::Unsigned, bits @ (32 | 64)) => {
            push_all(&mut tensor.uint64_data.iter().copied(), bits)
        }
        (_, bits) => {
            // An entry holds a byte of packed elements, but the reference parser makes one entry of each.
            let entries = tensor.int32_data.len();
            let is_packed = matches!(bits, 2 | 4) && entries != count;
            let mask = (1u64 << bits) - 1;
            let mut values = tensor.int32_data.iter().map(|&v| v as u64);
            match is_packed {
                true => push_all(&mut values, 8),
                false => push_all(&mut values.map(|v| v & mask), bits),
            }
        }
    }
    packer.finish()
}

/// A short hash of the elements, for text that leaves them out.
pub(super) fn fingerprint(elements: &Elements) -> u32 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    match elements {
        Elements::Packed(raw) => mix(&mut state, raw),
        Elements::Strings(strings) => strings.iter().for_each(|s| mix(&mut state, s)),
    }
    (state ^ state >> 32) as u32
}

fn mix(state: &mut u64, bytes: &[u8]) {
    let mut add = |word: u64| {
        *state = (*state ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        *state ^= *state >> 32;
    };
    add(bytes.len() as u64);
    let (words, tail) = bytes.as_chunks::<8>();
    words.iter().for_each(|w| add(u64::from_le_bytes(*w)));
    add(tail.iter().fold(0, |value, &b| value << 8 | u64::from(b)));
}
