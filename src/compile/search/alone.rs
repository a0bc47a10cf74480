//! What each layer alone does to numbers, from one run of the original and one of the converted model.
//!
//! The original's run gives the values that both graphs have by name. The converted model is cut at all of them and given the
//! original's numbers there, so that each of its values shows the error of the nodes between, and none from before them.

use std::path::Path;

use kiln_graph::{DType, Dim, Graph, Model, NodeId, Tensor, ValueId, infer, onnx};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::compile::CompileError;
use crate::inner::{Pair, common, exposed, wide};
use crate::parity::{self, Case, Side};
use crate::prove::{self, Reference};

/// Bytes of the original's values that are held at once; of more values than that, only some are cut at.
const HELD: u64 = 256 << 20;

/// By the labels of the layers the largest relative L2 error of a value that they make; `None` if it is not finite. Layers of which
/// nothing is known are not in it.
pub(super) type Alone = FxHashMap<String, Option<f64>>;

/// Runs both models at a case. `written` is the converted model's file, and `fused` names its layers.
///
/// # Errors
/// When the file cannot be read, or one of the models does not run so.
pub(super) fn measure(
    reference: &Reference,
    fused: &Graph,
    written: &Path,
    case: &Case,
) -> Result<Alone, CompileError> {
    let mut candidate = onnx::read(written).map_err(prove::Error::from)?;
    infer::annotate(&mut candidate.graph);
    let original = reference.original();
    let pairs = within(
        &original.graph,
        case,
        pairs(&original.graph, &candidate.graph),
    );
    let names: Vec<&str> = pairs.iter().map(|p| p.name.as_str()).collect();
    let values: Vec<ValueId> = pairs.iter().map(|p| p.original).collect();
    let left = exposed(original, &values, &names);
    let left = prove::owned(reference.run(&left, &case.inputs, Side::Reference)?);
    let numbers: FxHashMap<&str, &Tensor> = left.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let (right, given) = cut(&candidate, &pairs, &numbers);
    let inputs = [&case.inputs[..], &given].concat();
    let right = reference.run(&right, &inputs, Side::Candidate)?;
    let cuts: FxHashSet<&str> = names.iter().copied().collect();
    let named: FxHashMap<&str, ValueId> = (fused.values())
        .filter(|(v, _)| fused.producer(*v).is_some())
        .map(|(v, value)| (value.name(), v))
        .collect();
    let mut alone = Alone::default();
    for (name, tensor) in &right {
        let name = name.as_str();
        let (Some(&expected), Some(&made)) = (numbers.get(name), named.get(name)) else {
            continue;
        };
        let Some(error) = error(expected, tensor) else {
            continue;
        };
        for layer in layers(fused, made, &cuts) {
            let known = alone.entry(layer).or_insert(Some(0.0));
            *known = known.zip(error).map(|(a, b)| a.max(b));
        }
    }
    Ok(alone)
}

/// The values of both graphs that can be given.
fn pairs(original: &Graph, candidate: &Graph) -> Vec<Pair> {
    let fits = |p: &Pair| {
        let dtype = candidate.value(p.candidate).ty().dtype();
        matches!(dtype, Some(DType::F32 | DType::F16 | DType::BF16))
    };
    common(original, candidate)
        .into_iter()
        .filter(fits)
        .collect()
}

/// As many of them as may be held, from all over the model.
fn within(original: &Graph, case: &Case, mut pairs: Vec<Pair>) -> Vec<Pair> {
    let shapes = original.inputs().iter().filter_map(|&v| {
        let given = case
            .inputs
            .iter()
            .find(|(n, _)| n == original.value(v).name());
        let dims = given?.1.dims().iter().map(|&d| Dim::Known(d));
        Some((v, dims.collect()))
    });
    let facts = infer::with_inputs(original, &shapes.collect::<Vec<_>>());
    let bytes = |p: &Pair| -> u64 {
        let sizes = facts.ty(p.original).shape().map(|dims| {
            let known = dims.iter().map(|d| d.known().unwrap_or(1) as u64);
            known.fold(size_of::<f32>() as u64, u64::saturating_mul)
        });
        sizes.unwrap_or(0)
    };
    let total = pairs.iter().map(bytes).fold(0, u64::saturating_add);
    let every = total.div_ceil(HELD).max(1);
    let mut at = 0;
    pairs.retain(|_| {
        at += 1;
        at % every == 0
    });
    pairs
}

/// The model with these values as its outputs, and read from inputs of their own instead. Gives those inputs, too.
fn cut(
    candidate: &Model,
    pairs: &[Pair],
    numbers: &FxHashMap<&str, &Tensor>,
) -> (Model, Vec<(String, Tensor)>) {
    let mut model = candidate.clone();
    let g = &mut model.graph;
    g.take_outputs();
    let mut given = Vec::new();
    for pair in pairs {
        let number = numbers.get(pair.name.as_str());
        let ty = g.value(pair.candidate).ty().clone();
        let tensor = number.and_then(|&t| match ty.dtype() {
            Some(DType::F32) => wide(t),
            Some(half) => wide(t)?.narrowed(half),
            None => None,
        });
        if let Some(tensor) = tensor {
            let name = format!("given: {}", pair.name);
            let input = g.add_input(&name, ty);
            g.replace_uses(pair.candidate, input);
            given.push((name, tensor));
        }
        g.add_output(&pair.name, pair.candidate);
    }
    (model, given)
}

/// The relative L2 error, `Some(None)` if it is not finite. `None` of what are no floats.
fn error(expected: &Tensor, found: &Tensor) -> Option<Option<f64>> {
    let metrics = parity::metrics(&wide(expected)?, &wide(found)?)?;
    let float = metrics.float?;
    let finite = float.relative_l2.is_finite() && float.nonfinite.differ == 0;
    Some(finite.then_some(float.relative_l2))
}

/// The labels of the nodes that make a value of those at which the graph is cut, nodes of bodies included.
fn layers(g: &Graph, made: ValueId, cuts: &FxHashSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut todo: Vec<NodeId> = g.producer(made).into_iter().collect();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        found.push(g.label(id));
        let node = g.node(id);
        for (_, attr) in node.attrs().iter() {
            for body in attr.graphs() {
                body.for_each_graph(&mut |g| found.extend(g.nodes().map(|(id, _)| g.label(id))));
            }
        }
        let read = node.inputs().iter().flatten().chain(node.captures());
        let whole = read.filter(|&&v| !cuts.contains(g.value(v).name()));
        todo.extend(whole.filter_map(|&v| g.producer(v)));
    }
    found
}
