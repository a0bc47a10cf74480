//! One table for each dialect. A new dialect is a table here, its constructor below, and lowerings for what no table can say yet.

pub mod cpu;
pub mod cuda;
pub mod cuda_forms;
pub mod cuda_kernels;
pub mod standard;
pub mod tensorrt;
mod types;

use crate::core::target::{Facts, Target};

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
