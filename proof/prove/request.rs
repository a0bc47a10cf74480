//! What a proof is asked.

use std::path::Path;

use kiln_graph::{Graph, Model};
use kiln_runtime::DeviceRequest;

use crate::fixed::Fixed;

/// What to compare with, and on what.
#[derive(Debug)]
pub struct Request<'a> {
    pub reference: &'a Path,
    /// The reference in memory, from whose graph inputs are made.
    pub original: &'a Model,
    /// A candidate's graph, from whose folded shapes sizes are found that exporters baked in.
    pub folded: &'a Graph,
    /// An `.npz` file with inputs.
    pub inputs: Option<&'a Path>,
    /// Inputs that always have one value.
    pub fixed: &'a Fixed,
    pub seed: u64,
    /// Candidates run as ONNX Runtime optimizes them, because that decides their numbers: its INT8 kernels saturate on some
    /// processors, and without optimization they are not used.
    pub optimized: bool,
    /// Cases beside the smallest, typical and largest sizes: several samples at once, and padding in every sample.
    pub thorough: bool,
    /// Sizes that are more operations than this stand in parts, as [`ENOUGH`](crate::shapes::ENOUGH) has it; `None` runs all of them whole.
    pub enough: Option<u64>,
    /// Candidates have inputs and outputs of half precision where the reference has FP32, as was asked for.
    pub half_io: bool,
    /// What is built serves one profile of sizes, whatever inputs select.
    pub one_profile: bool,
    /// What messages call candidates, if their files mean nothing to the user.
    pub result: Option<String>,
    pub device: DeviceRequest,
    pub ort_lib: Option<&'a Path>,
}
