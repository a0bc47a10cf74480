//! The stage that hands the model to TensorRT.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_graph::{Attr, Dim, Model, Op, caches, infer, onnx};
use kiln_passes::Remark;

use super::CompileError;
use crate::bundle::{self, Partial};
use crate::engine::{
    self, Attended, BuildRequest, ChildBuilder, ComputeCapability, DataType, EngineBuilder,
    EngineError, Kernels, Network, Otherwise, Paper, Profile, ProfileInput, RtxBuilder,
};
use crate::manifest::{EngineFacts, EngineKernels};
use crate::mapped;
use crate::options::Options;
use crate::pipeline::Rewritten;
use crate::precision::Format;
use crate::shapes::Shapes;
use crate::talk::Talk;
use crate::targets::{self, Targets};

/// What builds engines, if one is to be built. It gets ready while the passes run.
///
/// # Errors
/// When TensorRT is not there.
pub(super) fn builder(
    options: &Options,
    targets: &Targets,
    partial: &Partial,
) -> Result<Option<Box<dyn EngineBuilder>>, CompileError> {
    if !options.engine || !matches!(targets, Targets::Engines(_)) {
        return Ok(None);
    }
    let libraries = engine::locate(options.trt_lib.as_deref())?;
    Ok(Some(match &options.builder {
        Some(program) => Box::new(ChildBuilder::new(program, &libraries, &partial.file("")).warm()),
        None => Box::new(RtxBuilder::new(&libraries)?),
    }))
}

/// What stands in the engine's way whatever is searched or calibrated: operators that TensorRT has not or misreads. What is
/// fused needs no lowering for that.
///
/// # Errors
/// [`EngineError::Dialect`], with all of them.
pub(super) fn readable(model: &Model) -> Result<(), EngineError> {
    let refusals = engine::refusals(model);
    match refusals.is_empty() {
        true => Ok(()),
        false => Err(EngineError::Dialect(refusals)),
    }
}

/// Whether the targets have kernels for the model's products.
///
/// # Errors
/// [`EngineError::Fp32Products`], with the nodes.
pub(super) fn has_kernels(
    options: &Options,
    capabilities: &[ComputeCapability],
    rewritten: &Rewritten,
) -> Result<(), CompileError> {
    readable(&rewritten.model)?;
    let without = |c: &&ComputeCapability| c.has_fp32_products() == Some(false);
    let Some(&capability) = capabilities.iter().find(without) else {
        return Ok(());
    };
    let nodes = engine::fp32_products(&rewritten.model);
    let Some(first) = nodes.first() else {
        return Ok(());
    };
    let kept = rewritten.remarks.iter().find_map(|r| match r {
        Remark::Kept(kept) if kept.node == *first => Some(kept.why.clone()),
        _ => None,
    });
    let half = options.precision.half().is_some();
    Err(EngineError::Fp32Products {
        capability,
        nodes,
        half,
        kept,
    }
    .into())
}

/// The nodes, by their labels, that may not keep FP32 on the targets: `model` is fused, and nothing in it is half yet.
pub(super) fn bound(capabilities: Option<&[ComputeCapability]>, model: &Model) -> Vec<String> {
    let without = |c: &ComputeCapability| c.has_fp32_products() == Some(false);
    match capabilities.is_some_and(|all| all.iter().any(without)) {
        true => engine::fp32_products(model),
        false => Vec::new(),
    }
}

pub(super) fn build(
    options: &Options,
    builder: &dyn EngineBuilder,
    capabilities: &[ComputeCapability],
    model: &Model,
    shapes: &Shapes,
    partial: &Partial,
    talk: &dyn Talk,
) -> Result<EngineFacts, CompileError> {
    readable(model)?;
    let path = partial.file(bundle::MODEL);
    let broken = |source| CompileError::Io {
        path: partial.file(bundle::MODEL),
        why: "cannot be mapped",
        source,
    };
    let map = mapped::own(&path).map_err(broken)?;
    let specialized = specialize(model, shapes);
    let onnx: &[u8] = specialized.as_deref().unwrap_or(&map);
    let in_file = specialized.is_none().then_some(path.as_path());
    let request = |onnx, onnx_path| BuildRequest {
        onnx_path,
        data_dir: path.parent(),
        capabilities: capabilities.to_vec(),
        profiles: profiles(model, shapes),
        // A model that keeps its FP32 keeps all of its mantissa.
        tf32: options.tf32.unwrap_or(!options.precision.is_unchanged()),
        form: options.form.clone(),
        detailed: true,
        ..BuildRequest::new(onnx, capabilities[0])
    };
    let mut decomposed = false;
    let built = match builder.build(&request(onnx, in_file), talk.engine()) {
        Err(EngineError::Build { failures, log }) => {
            // Attention without a dedicated kernel builds when the node allows TensorRT to take it apart.
            let wants = failures
                .iter()
                .any(|f| f.reason.contains("dedicated kernel"));
            let marked = wants.then(|| decomposable(model, shapes)).flatten();
            match marked {
                None => return Err(EngineError::Build { failures, log }.into()),
                Some(bytes) => {
                    decomposed = true;
                    builder.build(&request(&bytes, None), talk.engine())?
                }
            }
        }
        other => other?,
    };
    let absent = built.network.lacks(asked(options, model));
    if !absent.is_empty() {
        let model = options.model.clone();
        return Err(CompileError::Precision { model, absent });
    }
    let dropped = dropped(model, &built.network);
    if !dropped.is_empty() {
        return Err(EngineError::Dropped(dropped).into());
    }
    let (kernels, steps) = built.kernels.by_profile();
    let aliased = engine::aliased(model, &kernels, &steps);
    let engine = partial.file(bundle::ENGINE);
    (built.plan.save(&engine)).map_err(|source| CompileError::Io {
        path: engine.clone(),
        why: "cannot be written",
        source,
    })?;
    let Facts {
        otherwise,
        attention,
        paper,
    } = facts(&path, model, &kernels, shapes, capabilities)?;
    Ok(EngineFacts {
        runtime: format!("{} {}", engine::LIBRARY, built.version),
        capabilities: capabilities.iter().map(named).collect(),
        bytes: built.plan.len() as u64,
        parse_seconds: built.parse_time.as_secs_f64(),
        build_seconds: built.build_time.as_secs_f64(),
        layers: built.network.len(),
        network: built.network,
        listed: EngineKernels {
            kernels,
            steps,
            otherwise,
            aliased,
            attention,
            paper,
        },
        attention_decomposed: decomposed,
        inputs: built.inputs,
        outputs: built.outputs,
        warnings: built.warnings.iter().map(|w| w.text.clone()).collect(),
    })
}

/// The optimization profile for these sizes; `None` if no input is dynamic.
pub fn profile(shapes: &Shapes) -> Option<Profile> {
    let [min, opt, max] = shapes.bounds().map(|point| shapes.at(&point));
    let wide = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let mut inputs = Vec::new();
    for (k, input) in shapes.inputs.iter().enumerate() {
        if input.dims.iter().any(|d| matches!(d, Dim::Symbol(_))) {
            inputs.push(ProfileInput {
                name: input.name.clone(),
                min: wide(&min[k].1),
                opt: wide(&opt[k].1),
                max: wide(&max[k].1),
            });
        }
    }
    (!inputs.is_empty()).then_some(Profile { inputs })
}

/// The profiles of an engine. A decoder whose caches are written into has two: prompts of many tokens, and steps of one.
fn profiles(model: &Model, shapes: &Shapes) -> Vec<Profile> {
    let whole = profile(shapes);
    let Some(new) = caches::new_tokens(&model.graph).filter(|_| whole.is_some()) else {
        return whole.into_iter().collect();
    };
    let mut step = shapes.clone();
    let steps = match step.ranges.get_mut(&new) {
        Some(range) if range.min == 1 && range.max > 1 => {
            (range.opt, range.max) = (1, 1);
            profile(&step)
        }
        _ => None,
    };
    whole.into_iter().chain(steps).collect()
}

/// Inputs that the model reads and TensorRT's network does not: its parser knows no such operand, and says nothing. An input that
/// only gives its sizes is not missed where those are known.
fn dropped(model: &Model, network: &Network) -> Vec<String> {
    let g = &model.graph;
    let matters = |name: &&String| {
        let input = g.inputs().iter().find(|&&v| g.value(v).name() == **name);
        let mut readers = input.iter().flat_map(|&&v| g.value(v).uses());
        readers.any(|usage| !g.node(usage.node).op().is_any(&["Shape", "Size"]))
    };
    network.unread.iter().filter(matters).cloned().collect()
}

/// What the written file and the engine's kernels tell together.
#[derive(Default)]
struct Facts {
    otherwise: Vec<Otherwise>,
    attention: Vec<Attended>,
    paper: Option<Paper>,
}

/// Kernels name nodes of the written file.
fn facts(
    path: &Path,
    model: &Model,
    kernels: &Kernels,
    shapes: &Shapes,
    capabilities: &[ComputeCapability],
) -> Result<Facts, CompileError> {
    if kernels.is_empty() {
        return Ok(Facts::default());
    }
    let mut written = onnx::read(path)?;
    shapes.fix_inputs(&mut written.graph);
    let typical = shapes.typical();
    let paper = Paper::new(
        kernels,
        &written.graph,
        &typical,
        &shapes.at(&typical),
        &engine::paper::cards(capabilities),
    );
    let quantized = (engine::precisions(model).iter()).any(|p| p.bits().is_some_and(|b| b <= 8));
    let otherwise = match quantized {
        true => {
            infer::annotate(&mut written.graph);
            engine::otherwise(&written, kernels)
        }
        false => Vec::new(),
    };
    Ok(Facts {
        otherwise,
        attention: engine::attended(&written, kernels),
        paper: Some(paper),
    })
}

/// What is to be said of inputs that the engine does not have: those with a value in the file, which TensorRT's parser makes
/// constants of.
pub(super) fn fixed_inputs(engine: &EngineFacts, original: &Model) -> Option<String> {
    let g = &original.graph;
    let names = g.defaults().iter().map(|(v, _)| g.value(*v).name());
    let gone = names.filter(|name| engine.inputs.iter().all(|i| i.name != *name));
    let gone: Vec<&str> = gone.collect();
    let shown = match gone.as_slice() {
        [] => return None,
        names if names.len() <= 5 => names.join(", "),
        names => format!("{} and {} more", names[..4].join(", "), names.len() - 4),
    };
    Some(format!(
        "the engine takes no {shown}: TensorRT makes constants of inputs that have a value in the file, and computes with those \
         values (model.onnx still takes them); an input without an initializer stays one"
    ))
}

/// The name of a capability; of the GPU's own where the engine was built for that.
fn named(capability: &ComputeCapability) -> String {
    let local = (*capability == ComputeCapability::Current).then(targets::local_name);
    local.flatten().unwrap_or(capability.name().into())
}

/// The precisions that the engine must have: those of the options, and those that the model is written in.
fn asked(options: &Options, model: &Model) -> BTreeSet<DataType> {
    let mut asked = engine::precisions(model);
    asked.extend(options.precision.formats().map(Format::data_type));
    asked
}

/// The model's bytes with input dimensions of one size written as numbers, so that TensorRT can compare them with other
/// sizes while it reads; `None` if there are none, or if the model is too large for one message.
fn specialize(model: &Model, shapes: &Shapes) -> Option<Vec<u8>> {
    let mut model = model.clone();
    shapes
        .fix_inputs(&mut model.graph)
        .then(|| onnx::to_bytes(&model).ok())
        .flatten()
}

/// The model's bytes with every Attention marked as decomposable; `None` if it has none. ONNX Runtime does not know the
/// attribute, so it is in what TensorRT reads only.
fn decomposable(model: &Model, shapes: &Shapes) -> Option<Vec<u8>> {
    let mut model = model.clone();
    shapes.fix_inputs(&mut model.graph);
    let attention = Op::onnx("Attention");
    let nodes: Vec<_> = (model.graph.nodes())
        .filter(|(_, n)| n.op() == attention)
        .map(|(id, _)| id)
        .collect();
    for &id in &nodes {
        model
            .graph
            .attrs_mut(id)
            .set("TRT_decomposable", Attr::Int(1));
    }
    match nodes.is_empty() {
        true => None,
        false => onnx::to_bytes(&model).ok(),
    }
}
