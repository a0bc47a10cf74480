//! One table for each dialect. A new dialect is a table here, a name in `Target`, and lowerings for what no table can say yet.

pub mod cpu;
pub mod cuda;
pub mod standard;
pub mod tensorrt;

use kiln_graph::DType;

/// Every type that an operator may have.
const ANY: &[DType] = &[];
const HALF_AND_SINGLE: &[DType] = &[DType::F32, DType::F16];
const THREE_FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::F64];
