//! Engines on a GPU.

mod binding;
mod bound;
mod ffi;
mod given;
mod profiler;
mod refit;
mod session;

pub use session::Session;
