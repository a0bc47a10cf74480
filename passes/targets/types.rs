//! Lists of types that tables share.

use kiln_graph::DType;

/// Every type that an operator may have.
pub(super) const ANY: &[DType] = &[];
pub(super) const HALF_AND_SINGLE: &[DType] = &[DType::F32, DType::F16];
pub(super) const THREE_FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::F64];
