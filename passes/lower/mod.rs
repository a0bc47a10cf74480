//! Bringing the model into the form that the target takes.

pub mod raise_opset;
