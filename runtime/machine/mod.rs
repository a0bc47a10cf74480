//! The machine: NVIDIA's drivers and libraries, Python's packages, the dynamic loader, folders and files.

pub mod environment;
pub mod loader;
pub mod mapped;
pub mod memory;
pub mod nvidia;
pub mod pysite;
pub mod scratch;
