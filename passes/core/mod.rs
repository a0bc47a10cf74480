//! What a pass is, how passes change a graph, and what they may ask of a target. Nothing here knows a pass.

pub mod driver;
pub mod expand;
pub mod fusion;
mod gone;
pub mod kernels;
pub mod local;
pub mod options;
pub mod pass;
pub mod patch;
pub mod pattern;
mod product;
pub mod remark;
pub mod rule;
pub mod target;
