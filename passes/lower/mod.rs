//! Bringing the model into the form that the target takes.

pub mod lower_attention;
pub mod raise_opset;
pub mod split_skip_norm;
