//! NVIDIA's side of a machine: its driver and GPUs, and the CUDA libraries that runtimes want.
//!
//! Nothing here runs a model, and everything works, and says what is missing, without a GPU.

pub mod driver;
pub mod elf;
pub mod gpus;
pub mod libraries;
pub mod packages;

pub use driver::{CudaVersion, Driver, Gpu, NoDevice};
pub use libraries::{Needs, Places};

/// What the loader says of a failure; the crate's own words do not have it.
pub fn told(error: &libloading::Error) -> String {
    use std::error::Error;
    error
        .source()
        .map_or_else(|| error.to_string(), |e| e.to_string())
}
