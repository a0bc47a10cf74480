//! `TensorProto` to [`Tensor`] and back.

use bytes::Bytes;
use half::f16;

use super::error::{Result, bad};
use super::proto::{StringStringEntryProto, TensorProto, tensor_proto};
use crate::tensor::{Dims, TensorError};
use crate::{DType, Element, Tensor};

/// Where a tensor's elements lie outside the file: location, offset and length in bytes.
pub(super) struct ExternalRef<'a> {
    pub location: &'a str,
    pub offset: u64,
    pub length: Option<u64>,
}

fn external_ref<'a>(name: &str, entries: &'a [StringStringEntryProto]) -> Result<ExternalRef<'a>> {
    let get = |key: &str| {
        let entry = entries.iter().find(|e| e.key.as_deref() == Some(key));
        entry.and_then(|e| e.value.as_deref())
    };
    let number = |key: &str| match get(key) {
        None => Ok(None),
        Some(text) => (text.trim().parse::<u64>().map(Some))
            .map_err(|_| bad(name, format!("its external {key} is no number: {text:?}"))),
    };
    Ok(ExternalRef {
        location: get("location").ok_or_else(|| bad(name, "its external data has no location"))?,
        offset: number("offset")?.unwrap_or(0),
        length: number("length")?,
    })
}

/// Fetches `length` external bytes for the tensor of this name.
pub(super) type Fetch<'a> = dyn FnMut(&str, ExternalRef<'_>, usize) -> Result<Bytes> + 'a;

pub(super) fn import(proto: TensorProto, fetch: &mut Fetch<'_>) -> Result<Tensor> {
    let name = proto.name.as_deref().unwrap_or("");
    let number = proto.data_type.unwrap_or(0);
    let dtype = DType::from_onnx(number).ok_or_else(|| {
        bad(
            name,
            format!("its element type is the unknown number {number}"),
        )
    })?;
    if proto.segment.is_some() {
        return Err(bad(
            name,
            "it is a segment of a larger tensor, which kiln does not read",
        ));
    }
    let dims = (proto.dims.iter())
        .map(|&d| usize::try_from(d).map_err(|_| bad(name, format!("it has the dimension {d}"))))
        .collect::<Result<Dims, _>>()?;
    let misfit = |e: TensorError| bad(name, e.to_string());
    if dtype == DType::String {
        return Tensor::from_strings(dims, proto.string_data).map_err(misfit);
    }
    if proto.data_location == Some(tensor_proto::DataLocation::External as i32) {
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let length = (count.and_then(|n| dtype.packed_len(n)))
            .ok_or_else(|| bad(name, format!("its shape {:?} overflows", &dims[..])))?;
        let at = external_ref(name, &proto.external_data)?;
        let data = fetch(name, at, length)?;
        return Tensor::from_raw(dtype, dims, data).map_err(misfit);
    }
    let data = match proto.raw_data {
        Some(raw) if !raw.is_empty() => raw,
        _ => typed_data(dtype, &proto),
    };
    Tensor::from_raw(dtype, dims, data).map_err(misfit)
}

/// The bytes of the typed list that ONNX prescribes for `dtype`.
fn typed_data(dtype: DType, proto: &TensorProto) -> Bytes {
    fn collect<T: Element>(values: impl Iterator<Item = T>) -> Bytes {
        let mut out = Vec::new();
        values.for_each(|v| v.push_le(&mut out));
        Bytes::from(out)
    }
    let ints = || proto.int32_data.iter().copied();
    match dtype {
        DType::F32 | DType::C64 => collect(proto.float_data.iter().copied()),
        DType::F64 | DType::C128 => collect(proto.double_data.iter().copied()),
        DType::I64 => collect(proto.int64_data.iter().copied()),
        DType::U64 => collect(proto.uint64_data.iter().copied()),
        DType::U32 => collect(proto.uint64_data.iter().map(|&v| v as u32)),
        DType::I32 => collect(ints()),
        DType::I16 | DType::U16 => collect(ints().map(|v| v as u16)),
        DType::F16 | DType::BF16 => collect(ints().map(|v| f16::from_bits(v as u16))),
        DType::F6E2M3 | DType::F6E3M2 => pack_sextets(ints()),
        _ => collect(ints().map(|v| v as u8)),
    }
}

/// `int32_data` holds one 6-bit float an entry; `raw_data` packs four into three bytes from the low bits up.
fn pack_sextets(values: impl Iterator<Item = i32>) -> Bytes {
    let (mut out, mut pending, mut bits) = (Vec::new(), 0u32, 0);
    for v in values {
        pending |= (v as u32 & 0x3f) << bits;
        bits += 6;
        while bits >= 8 {
            out.push(pending as u8);
            pending >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(pending as u8);
    }
    Bytes::from(out)
}

/// The message without its elements, strings excepted.
pub(super) fn export_header(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: (!name.is_empty()).then(|| name.to_string()),
        dims: tensor.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().to_onnx()),
        string_data: tensor.strings().map(<[_]>::to_vec).unwrap_or_default(),
        ..TensorProto::default()
    }
}

/// The whole message.
pub(super) fn export(name: &str, tensor: &Tensor) -> TensorProto {
    let raw = tensor.strings().is_none().then(|| tensor.bytes());
    TensorProto {
        raw_data: raw,
        ..export_header(name, tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dtype: DType, count: i64, data: TensorProto) -> Result<Tensor, String> {
        let proto = TensorProto {
            name: Some("w".into()),
            dims: vec![count],
            data_type: Some(dtype.to_onnx()),
            ..data
        };
        let none: &mut Fetch<'_> = &mut |_, _, _| Err(bad("w", "no external data is here"));
        import(proto, none).map_err(|e| e.to_string())
    }

    #[test]
    fn six_bits_are_packed_four_to_three_bytes() {
        // onnx.proto, `raw_data`: x0 | (x1 & 3) << 6, x1 >> 2 | (x2 & 15) << 4, x2 >> 4 | x3 << 2.
        let x = [0x21u8, 0x3e, 0x15, 0x2a, 0x33];
        let packed = [
            x[0] | (x[1] & 3) << 6,
            x[1] >> 2 | (x[2] & 15) << 4,
            x[2] >> 4 | x[3] << 2,
            x[4],
        ];
        for dtype in [DType::F6E2M3, DType::F6E3M2] {
            for (count, bytes) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4)] {
                // One element an entry; bits beyond the sixth are none of it.
                let listed = x[..count].iter().map(|&v| i32::from(v) | 0x40);
                let listed = TensorProto {
                    int32_data: listed.collect(),
                    ..TensorProto::default()
                };
                let tensor = read(dtype, count as i64, listed).unwrap();
                // The last byte is filled with zeros.
                let mut want = packed[..bytes].to_vec();
                if let (Some(last), 1..=3) = (want.last_mut(), count) {
                    *last &= (1 << ((6 * count - 1) % 8 + 1)) - 1;
                }
                assert_eq!(tensor.bytes()[..], want, "{count} of {dtype}");
                let written = export("w", &tensor);
                let back = read(dtype, count as i64, written).unwrap();
                assert!(back.same_bits(&tensor));
            }
            let raw = |bytes: &'static [u8]| TensorProto {
                raw_data: Some(Bytes::from_static(bytes)),
                ..TensorProto::default()
            };
            assert!(read(dtype, 4, raw(&[1, 2, 3])).is_ok());
            // Neither an element a byte nor the next multiple of four.
            for wrong in [&[1, 2, 3, 4][..], &[1, 2], &[1, 2, 3, 4, 5, 6]] {
                let err = read(dtype, 4, raw(wrong)).unwrap_err();
                assert!(err.contains("needs 3 bytes"), "{err}");
            }
        }
    }
}
