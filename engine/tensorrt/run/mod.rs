//! Engines on a GPU.

mod ffi;
mod profiler;
mod refit;
mod session;

pub use session::Session;
