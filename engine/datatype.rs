//! TensorRT's data types.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TensorRT's data types.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    Float32,
    Float16,
    Bfloat16,
    Float8,
    Float4,
    Int64,
    Int32,
    Int8,
    Int4,
    Uint8,
    Bool,
    /// A type of a TensorRT newer than kiln.
    Other,
}

impl DataType {
    /// Bits of an element, if it is a type of numbers that a model computes in.
    pub fn bits(self) -> Option<u8> {
        match self {
            Self::Float32 => Some(32),
            Self::Float16 | Self::Bfloat16 => Some(16),
            Self::Float8 | Self::Int8 | Self::Uint8 => Some(8),
            Self::Float4 | Self::Int4 => Some(4),
            Self::Int64 | Self::Int32 | Self::Bool | Self::Other => None,
        }
    }

    /// Bits that an element takes.
    pub(super) fn storage_bits(self) -> Option<u64> {
        match self {
            Self::Int64 => Some(64),
            Self::Int32 => Some(32),
            Self::Bool => Some(8),
            Self::Other => None,
            numbers => numbers.bits().map(u64::from),
        }
    }

    /// Its name in options and reports: `fp16`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Float32 => "fp32",
            Self::Float16 => "fp16",
            Self::Bfloat16 => "bf16",
            Self::Float8 => "fp8",
            Self::Float4 => "fp4",
            Self::Int64 => "int64",
            Self::Int32 => "int32",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Uint8 => "uint8",
            Self::Bool => "bool",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float8 => "float8",
            Self::Float4 => "float4",
            others => others.short(),
        })
    }
}
