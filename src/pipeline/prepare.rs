//! What is settled before passes run: targets, device, fixed inputs and sizes.

use kiln_graph::Model;
use kiln_passes::precision::HalfFormat;

use super::Error;
use crate::engine::ComputeCapability;
use crate::fixed::{FixError, Fixed};
use crate::options::{Int8, Options};
use crate::runtime::{DeviceChoice, DeviceRequest};
use crate::shapes::Shapes;
use crate::talk::Talk;
use crate::targets::Targets;

pub(crate) fn targets(options: &Options, talk: &dyn Talk) -> Result<Targets, Error> {
    let (targets, why) = Targets::resolved(options.targets.as_ref())?;
    if let Some(why) = why.filter(|_| options.engine) {
        talk.warn(&why);
    }
    Ok(targets)
}

/// Where ONNX Runtime runs: what is compiled for the CPU is proved there unless another device is asked for.
pub(crate) fn device(options: &Options, targets: &Targets) -> DeviceRequest {
    match (options.device.choice, targets) {
        (DeviceChoice::Auto, Targets::Cpu) => DeviceRequest {
            choice: DeviceChoice::Cpu,
            ..options.device
        },
        _ => options.device,
    }
}

/// Whether the targets have what is asked for.
pub(crate) fn fit(options: &Options, targets: &Targets) -> Result<(), Error> {
    let refuse = |what, why: String| Err(Error::Unsupported { what, why });
    let bf16 = options.half() == Some(HalfFormat::Bf16);
    let Targets::Engines(capabilities) = targets else {
        return match (bf16, options.fp8) {
            (true, _) => refuse(
                "--bf16",
                "ONNX Runtime's CPU provider has no BF16 kernels: give sm_80 or newer as --target, or --fp16".into(),
            ),
            (_, true) => refuse(
                "--fp8",
                "ONNX Runtime's CPU provider has no FP8 products: give sm_89 or newer as --target, or --int8".into(),
            ),
            _ => Ok(()),
        };
    };
    let without = |c: &&ComputeCapability| c.has_bf16() == Some(false);
    if let (true, Some(old)) = (bf16, capabilities.iter().find(without)) {
        return refuse(
            "--bf16",
            format!("{old} has no BF16: it takes sm_80 or newer, so give other targets or --fp16"),
        );
    }
    let old = |c: &&ComputeCapability| c.has_fp8() == Some(false);
    if let (true, Some(old)) = (options.fp8, capabilities.iter().find(old)) {
        return refuse(
            "--fp8",
            format!("{old} has no FP8: it takes sm_89 or newer, so give other targets or --int8"),
        );
    }
    // Plain ONNX without an engine is for any runtime.
    if options.int8 == Some(Int8::Dynamic) && (options.engine || !options.standard) {
        let why = "TensorRT has no dynamic quantization: give --int8 with data for --calibrate, or --target cpu";
        return refuse("--int8=dynamic", why.into());
    }
    Ok(())
}

/// Makes constants of the inputs that the options fix.
pub(crate) fn fix(options: &Options, original: &mut Model) -> Result<Fixed, Error> {
    if options.drop_inputs && options.fixed.is_empty() {
        return Err(FixError::NothingToDrop.into());
    }
    let fixed = Fixed {
        dropped: options.drop_inputs,
        ..Fixed::of(&original.graph, &options.fixed, &options.dims)?
    };
    fixed.fold(&mut original.graph);
    Ok(fixed)
}

pub(crate) fn shapes(options: &Options, original: &Model) -> Result<Shapes, Error> {
    Ok(Shapes::new(
        &original.graph,
        &options.dims,
        &options.shapes,
    )?)
}

/// The original for the sizes at which alone it runs, and the values of controls that alone are served; `None` if there is
/// nothing of this. All that was computed from those folds, and the result says what sizes it takes.
pub(crate) fn narrowed(original: &Model, shapes: &Shapes, chosen: &Fixed) -> Option<Model> {
    if shapes.baked.is_empty() && chosen.values.is_empty() {
        return None;
    }
    let mut model = original.clone();
    chosen.fold(&mut model.graph);
    let baked = !shapes.baked.is_empty() && shapes.fix_inputs(&mut model.graph);
    (baked || !chosen.values.is_empty()).then_some(model)
}
