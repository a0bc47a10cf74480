//! One table for each dialect. A new dialect is a table here, its constructor below, and lowerings for what no table can say yet.

pub mod cpu;
pub mod cuda;
pub mod cuda_kernels;
pub mod standard;
pub mod tensorrt;

use kiln_graph::DType;

use crate::core::target::{Facts, Target};

/// Every type that an operator may have.
const ANY: &[DType] = &[];
const HALF_AND_SINGLE: &[DType] = &[DType::F32, DType::F16];
const THREE_FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::F64];

impl Target {
    /// ONNX Runtime's CPU provider.
    pub fn cpu() -> Target {
        Target::of("cpu", &cpu::FACTS)
    }

    /// ONNX Runtime's CUDA provider.
    pub fn cuda() -> Target {
        Target::of("cuda", &cuda::FACTS)
    }

    /// TensorRT on the GPU of this name.
    pub fn tensorrt(name: &str) -> Target {
        Target::of(name, &tensorrt::FACTS)
    }

    /// Any ONNX runtime.
    pub fn standard() -> Target {
        Target::of("standard", &standard::FACTS)
    }

    fn of(name: &str, facts: &'static Facts) -> Target {
        Target {
            name: name.into(),
            fp32_products: true,
            facts,
        }
    }
}
