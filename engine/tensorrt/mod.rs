//! TensorRT itself: its libraries, its builder and its runtime, by its bindings.

mod api;
mod builder;
mod logger;
mod monitor;
mod network;
mod owned;
mod parser_error;
mod raw;
mod run;
mod serve;
mod stream;
#[cfg(test)]
mod tests;
mod timing_cache;

pub use builder::RtxBuilder;
#[cfg(test)]
use raw::headers;
pub use run::Session;
pub use serve::serve;
