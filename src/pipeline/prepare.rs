//! What is settled before passes run: targets, device, fixed inputs and sizes.

use std::collections::BTreeMap;

use kiln_graph::Model;

use super::Error;
use crate::engine::ComputeCapability;
use crate::fixed::{FixError, Fixed};
use crate::options::Options;
use crate::precision::{Format, Scheme};
use crate::runtime::{DeviceChoice, DeviceRequest};
use crate::setting::{BF16, CALIBRATE, FP16, INT4, INT8, TARGET};
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

fn in_floats() -> String {
    format!("give {FP16}, {BF16} or {INT4}, or a GPU such as sm_89 as {TARGET}")
}

/// Whether the targets have what is asked for.
pub(crate) fn fit(options: &Options, targets: &Targets) -> Result<(), Error> {
    if let Some(parts) = targets.parts() {
        return parts.iter().try_for_each(|part| fit(options, part));
    }
    let refuse = |what, why: String| Err(Error::Unsupported { what, why });
    let all = options.precision.formats();
    for (format, needs) in all.filter_map(|f| Some((f, f.needs()?))) {
        let (least, instead) = (needs.least, needs.instead.option());
        match targets {
            // It has all of BF16's kernels that the passes leave in BF16.
            Targets::Cuda if format == Format::Bf16 => {}
            Targets::Cuda => {
                return refuse(
                    format.option(),
                    format!(
                        "ONNX Runtime's CUDA provider does not multiply linear layers in {}: {}",
                        format.title(),
                        in_floats(),
                    ),
                );
            }
            Targets::Cpu | Targets::Local => {
                let lacks = needs.cpu_lacks;
                return refuse(
                    format.option(),
                    format!(
                        "ONNX Runtime's CPU provider has no {lacks}: give {least} or newer as {TARGET}, or {instead}"
                    ),
                );
            }
            Targets::Engines(capabilities) | Targets::EnginesAndCuda(capabilities) => {
                let without = |c: &&ComputeCapability| c.is_since(least) == Some(false);
                if let Some(old) = capabilities.iter().find(without) {
                    let title = format.title();
                    return refuse(
                        format.option(),
                        format!(
                            "{old} has no {title}: it takes {least} or newer, so give other targets or {instead}"
                        ),
                    );
                }
            }
        }
    }
    if *targets == Targets::Cuda && options.precision.linear.format() == Some(Format::Int8) {
        let why = format!(
            "ONNX Runtime's CUDA provider widens quantized layers and multiplies them in floats: {}",
            in_floats()
        );
        return refuse(INT8.to_string(), why);
    }
    // Plain ONNX without an engine is for any runtime.
    let dynamic = options.precision.linear.scheme() == Some(Scheme::Dynamic);
    if dynamic && matches!(targets, Targets::Engines(_)) && (options.engine || !options.standard) {
        let why = format!(
            "TensorRT has no dynamic quantization: give {INT8} with data for {CALIBRATE}, or {TARGET} cpu"
        );
        return refuse(format!("{INT8}=dynamic"), why);
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

/// The sizes that the user fixed for an engine, which takes no others, by their symbols.
pub(crate) fn held(targets: &Targets, shapes: &Shapes) -> BTreeMap<String, usize> {
    let fixed = shapes.ranges.iter().filter(|(_, range)| range.is_fixed());
    match targets {
        Targets::Engines(_) => fixed
            .map(|(name, range)| (name.clone(), range.opt))
            .collect(),
        _ => BTreeMap::new(),
    }
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
