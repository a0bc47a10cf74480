//! The files of a bundle.

/// The optimized model's file in a bundle.
pub const MODEL: &str = "model.onnx";
/// The model for ONNX Runtime's CUDA provider, in a bundle that has an engine too.
pub const CUDA_MODEL: &str = "model.cuda.onnx";
/// The engine's file in a bundle.
pub const ENGINE: &str = "model.engine";
/// What was done, for machines.
pub const MANIFEST: &str = "manifest.json";
/// What was done, for people.
pub const REPORT: &str = "report.md";
/// The report as a page.
pub const REPORT_PAGE: &str = "report.html";
/// The inputs of the proof and the original's outputs.
pub const PROOF: &str = "parity.npz";
/// Which models generate together, in a bundle of several.
pub const ROLES: &str = "generation.json";
