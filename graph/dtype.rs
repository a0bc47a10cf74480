//! Element types of tensors, numbered as ONNX numbers them (`TensorProto.DataType`).

use std::fmt;

/// The element type of a tensor. The discriminant is ONNX's `TensorProto.DataType`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    C64 = 14,
    C128 = 15,
    BF16 = 16,
    F8E4M3FN = 17,
    F8E4M3FNUZ = 18,
    F8E5M2 = 19,
    F8E5M2FNUZ = 20,
    U4 = 21,
    I4 = 22,
    F4E2M1 = 23,
    F8E8M0 = 24,
    U2 = 25,
    I2 = 26,
    F6E2M3 = 27,
    F6E3M2 = 28,
}

/// `(dtype, ONNX text name, bits of one element)`; strings have no fixed size.
const TABLE: &[(DType, &str, u32)] = &[
    (DType::F32, "float", 32),
    (DType::U8, "uint8", 8),
    (DType::I8, "int8", 8),
    (DType::U16, "uint16", 16),
    (DType::I16, "int16", 16),
    (DType::I32, "int32", 32),
    (DType::I64, "int64", 64),
    (DType::String, "string", 0),
    (DType::Bool, "bool", 8),
    (DType::F16, "float16", 16),
    (DType::F64, "double", 64),
    (DType::U32, "uint32", 32),
    (DType::U64, "uint64", 64),
    (DType::C64, "complex64", 64),
    (DType::C128, "complex128", 128),
    (DType::BF16, "bfloat16", 16),
    (DType::F8E4M3FN, "float8e4m3fn", 8),
    (DType::F8E4M3FNUZ, "float8e4m3fnuz", 8),
    (DType::F8E5M2, "float8e5m2", 8),
    (DType::F8E5M2FNUZ, "float8e5m2fnuz", 8),
    (DType::U4, "uint4", 4),
    (DType::I4, "int4", 4),
    (DType::F4E2M1, "float4e2m1", 4),
    (DType::F8E8M0, "float8e8m0", 8),
    (DType::U2, "uint2", 2),
    (DType::I2, "int2", 2),
    (DType::F6E2M3, "float6e2m3", 6),
    (DType::F6E3M2, "float6e3m2", 6),
];

impl DType {
    /// The dtype with this `TensorProto.DataType` number; `None` for 0 (undefined) and unknown numbers.
    pub fn from_onnx(number: i32) -> Option<DType> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        TABLE.get(index).map(|row| row.0)
    }

    /// ONNX's `TensorProto.DataType` number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// The dtype by its name in ONNX text (`float`, `int64`, `bfloat16`, …).
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in ONNX text.
    pub fn name(self) -> &'static str {
        TABLE[self as usize - 1].1
    }

    /// Bits of one element as stored; 0 for strings, which have no fixed size.
    pub fn bits(self) -> u32 {
        TABLE[self as usize - 1].2
    }

    /// Bytes that `count` elements take when packed as `raw_data` packs them (sub-byte elements share bytes,
    /// the last byte padded). `None` for strings and on overflow.
    pub fn packed_len(self, count: usize) -> Option<usize> {
        match self.bits() {
            0 => None,
            bits if bits >= 8 => count.checked_mul(bits as usize / 8),
            bits => Some(count.checked_mul(bits as usize)?.div_ceil(8)),
        }
    }

    /// A floating-point type of any width (not complex).
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(
            self,
            F32 | F16
                | F64
                | BF16
                | F8E4M3FN
                | F8E4M3FNUZ
                | F8E5M2
                | F8E5M2FNUZ
                | F4E2M1
                | F8E8M0
                | F6E2M3
                | F6E3M2
        )
    }

    /// A signed or unsigned integer type of any width (not bool).
    pub fn is_int(self) -> bool {
        use DType::*;
        matches!(
            self,
            U8 | I8 | U16 | I16 | I32 | I64 | U32 | U64 | U4 | I4 | U2 | I2
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_onnx_numbers() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index + 1);
            assert_eq!(DType::from_onnx(row.0.to_onnx()), Some(row.0));
            assert_eq!(DType::from_name(row.1), Some(row.0));
        }
        assert_eq!(DType::from_onnx(0), None);
        assert_eq!(DType::from_onnx(-1), None);
        assert_eq!(DType::from_onnx(29), None);
    }

    #[test]
    fn sub_byte_elements_share_bytes() {
        assert_eq!(DType::I4.packed_len(3), Some(2));
        assert_eq!(DType::U2.packed_len(5), Some(2));
        assert_eq!(DType::F6E2M3.packed_len(4), Some(3));
        assert_eq!(DType::F6E3M2.packed_len(5), Some(4));
        assert_eq!(DType::F6E3M2.packed_len(usize::MAX), None);
        assert_eq!(DType::F64.packed_len(usize::MAX), None);
        assert_eq!(DType::String.packed_len(1), None);
    }
}
