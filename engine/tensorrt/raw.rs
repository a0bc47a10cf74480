//! TensorRT's numbers as kiln's types.

#![allow(unsafe_code)]

#[cfg(not(feature = "tensorrt-enterprise"))]
use crate::ComputeCapability;
use crate::{DataType, Version};

/// The version whose headers kiln was compiled with.
pub fn headers() -> Version {
    // SAFETY: these return constants.
    unsafe {
        Version {
            major: trtx_sys::get_tensorrt_major_version(),
            minor: trtx_sys::get_tensorrt_minor_version(),
            patch: trtx_sys::get_tensorrt_patch_version(),
            build: trtx_sys::get_tensorrt_build_version(),
        }
    }
}

#[cfg(not(feature = "tensorrt-enterprise"))]
pub(super) fn capability(capability: ComputeCapability) -> trtx_sys::ComputeCapability {
    use trtx_sys::ComputeCapability as Raw;
    match capability {
        ComputeCapability::Current => Raw::kCURRENT,
        ComputeCapability::Sm75 => Raw::kSM75,
        ComputeCapability::Sm80 => Raw::kSM80,
        ComputeCapability::Sm86 => Raw::kSM86,
        ComputeCapability::Sm89 => Raw::kSM89,
        ComputeCapability::Sm120 => Raw::kSM120,
        ComputeCapability::Sm121 => Raw::kSM121,
    }
}

pub(super) fn data_type(raw: trtx_sys::DataType) -> DataType {
    use trtx_sys::DataType as Raw;
    match raw {
        Raw::kFLOAT => DataType::Float32,
        Raw::kHALF => DataType::Float16,
        Raw::kBF16 => DataType::Bfloat16,
        Raw::kFP8 => DataType::Float8,
        Raw::kFP4 => DataType::Float4,
        Raw::kINT64 => DataType::Int64,
        Raw::kINT32 => DataType::Int32,
        Raw::kINT8 => DataType::Int8,
        Raw::kINT4 => DataType::Int4,
        Raw::kUINT8 => DataType::Uint8,
        Raw::kBOOL => DataType::Bool,
        _ => DataType::Other,
    }
}
