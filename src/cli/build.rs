//! What an engine can do beside running: arguments of the commands that build one.

use std::path::PathBuf;

use super::help;
use crate::engine::Hardware;
use crate::recipe::Build;

#[derive(clap::Args, Debug)]
#[command(next_help_heading = help::ENGINE)]
pub(super) struct BuildArgs {
    /// Let the engine's weights be replaced. Takes a GPU.
    #[arg(long)]
    refittable: bool,
    /// Leave the weights out of the engine. Takes a GPU.
    ///
    /// Whoever opens the engine gives it the weights of model.onnx, as `kiln check` and `kiln bench` do.
    #[arg(long)]
    weight_stripped: bool,
    /// Let newer versions of TensorRT run the engine (TensorRT proper).
    #[arg(long)]
    version_compatible: bool,
    /// Let other GPUs run the engine (TensorRT proper).
    ///
    /// ampere-plus or same-capability. For TensorRT for RTX give several targets instead.
    #[arg(long, value_name = "GPUS", num_args = 0..=1, require_equals = true, default_missing_value = "ampere-plus",
          value_parser = hardware)]
    hardware_compatible: Option<Hardware>,
    /// Keep the timing of kernels in this file (TensorRT proper).
    #[arg(long, value_name = "FILE")]
    timing_cache: Option<PathBuf>,
    /// Let FP32 products round their factors to TF32.
    #[arg(long)]
    tf32: bool,
}

impl BuildArgs {
    pub(super) fn recipe(self) -> Build {
        Build {
            refittable: self.refittable.then_some(true),
            weight_stripped: self.weight_stripped.then_some(true),
            version_compatible: self.version_compatible.then_some(true),
            hardware_compatible: self.hardware_compatible,
            timing_cache: self.timing_cache,
            tf32: self.tf32.then_some(true),
        }
    }
}

fn hardware(text: &str) -> Result<Hardware, String> {
    match text {
        "ampere-plus" => Ok(Hardware::AmperePlus),
        "same-capability" => Ok(Hardware::SameCapability),
        _ => Err("one of: ampere-plus, same-capability".into()),
    }
}
