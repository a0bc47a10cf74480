//! Values inside of two graphs of one function, by the names that both have for them.

use kiln_graph::{DType, Graph, Model, Tensor, ValueId};
use rustc_hash::FxHashMap;

/// A value that both graphs compute.
pub(crate) struct Pair {
    pub name: String,
    pub original: ValueId,
    pub candidate: ValueId,
}

/// Float values that nodes of both outermost graphs compute under one name, in the order of the original.
pub(crate) fn common(original: &Graph, candidate: &Graph) -> Vec<Pair> {
    let float = |g: &Graph, v: ValueId| {
        let dtype = g.value(v).ty().dtype();
        g.producer(v).is_some() && dtype.is_none_or(|d| d.is_float())
    };
    let named: FxHashMap<&str, ValueId> = (candidate.values())
        .filter(|&(v, value)| float(candidate, v) && !value.name().is_empty())
        .map(|(v, value)| (value.name(), v))
        .collect();
    let order = original.topo_order().unwrap_or_default();
    let outputs = order
        .iter()
        .flat_map(|&id| original.node(id).outputs().iter().flatten());
    let pairs = outputs.filter(|&&v| float(original, v)).filter_map(|&v| {
        let name = original.value(v).name();
        Some(Pair {
            name: name.to_string(),
            original: v,
            candidate: *named.get(name)?,
        })
    });
    pairs.collect()
}

/// The model with these values as its outputs.
pub(crate) fn exposed(model: &Model, values: &[ValueId], names: &[&str]) -> Model {
    let mut model = model.clone();
    model.graph.take_outputs();
    for (&value, &name) in values.iter().zip(names) {
        model.graph.add_output(name, value);
    }
    model
}

/// Halves as FP32, so that a value of one type in one graph and of another in the other compares.
pub(crate) fn wide(tensor: &Tensor) -> Option<Tensor> {
    match tensor.dtype() {
        DType::F32 => Some(tensor.clone()),
        DType::F16 | DType::BF16 | DType::F64 => {
            let values: Vec<f32> = tensor.to_f64s()?.into_iter().map(|v| v as f32).collect();
            Tensor::from_values(tensor.dims(), &values).ok()
        }
        _ => None,
    }
}
