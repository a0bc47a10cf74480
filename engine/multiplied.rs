//! In which type the engine multiplies the layers that the model quantizes. Parity cannot see it, nor can the parsed network: the
//! builder may dequantize a weight first, and multiply in floats.

use std::collections::BTreeMap;

use kiln_graph::{DType, Graph, Model, NodeId, ValueId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DataType, Kernel, Kernels};

/// A quantized layer that the engine multiplies in another type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Otherwise {
    /// The product's label in the model.
    pub layer: String,
    /// The type of its weight in the model.
    pub asked: DataType,
    /// The types that its kernel multiplies; `None` where no kernel names the layer.
    pub multiplies: Option<String>,
}

/// The layers of a model as it was handed to the builder whose products are not in the type of their quantized weights.
pub fn otherwise(model: &Model, kernels: &Kernels) -> Vec<Otherwise> {
    let (products, others): (Vec<_>, Vec<_>) = kernels.launched().partition(|k| k.is_product());
    let (products, others) = (by_node(products), by_node(others));
    let mut found = Vec::new();
    model.graph.for_each_graph(&mut |g| {
        for (id, _) in g.nodes() {
            let Some(asked) = quantized(g, id) else {
                continue;
            };
            let name = parsed_name(g, id);
            // A small product may be part of a generated kernel; beside a product's own, that is what moves its operands.
            let products = products.get(name.as_str()).or(others.get(name.as_str()));
            let products = products.map_or(&[][..], Vec::as_slice);
            if !products.iter().any(|k| k.multiplies().is(asked)) {
                found.push(Otherwise {
                    layer: g.label(id),
                    asked,
                    multiplies: products.first().map(|k| k.multiplies().to_string()),
                });
            }
        }
    });
    found
}

fn by_node(kernels: Vec<&Kernel>) -> BTreeMap<&str, Vec<&Kernel>> {
    let mut found: BTreeMap<&str, Vec<&Kernel>> = BTreeMap::new();
    for kernel in kernels {
        for node in &kernel.nodes {
            found.entry(node).or_default().push(kernel);
        }
    }
    found
}

/// What TensorRT's parser calls a node.
pub(super) fn parsed_name(g: &Graph, id: NodeId) -> String {
    let node = g.node(id);
    match (node.name(), node.output(0)) {
        ("", Some(v)) => format!("node_of_{}", g.value(v).name()),
        (name, _) => name.to_string(),
    }
}

/// The type of a product's weight, if it is quantized, and where that has 8 bits the other factor is, too.
fn quantized(g: &Graph, id: NodeId) -> Option<DataType> {
    let node = g.node(id);
    if !node
        .op()
        .is_any(&["MatMul", "Gemm", "Conv", "ConvTranspose"])
    {
        return None;
    }
    let weight = dequantized(g, node.input(1)?)?;
    match weight {
        DataType::Int4 | DataType::Float4 => Some(weight),
        _ => (dequantized(g, node.input(0)?)? == weight).then_some(weight),
    }
}

/// The type that a value is dequantized from, maybe moved on the way.
fn dequantized(g: &Graph, mut v: ValueId) -> Option<DataType> {
    loop {
        let node = g.node(g.producer(v)?);
        if node.op().is("DequantizeLinear") {
            let from = node.input(0)?;
            let constant = || g.constant(from).map(|t| t.dtype());
            return match g.value(from).ty().dtype().or_else(constant)? {
                DType::I8 => Some(DataType::Int8),
                DType::I4 => Some(DataType::Int4),
                DType::F8E4M3FN => Some(DataType::Float8),
                DType::F4E2M1 => Some(DataType::Float4),
                _ => None,
            };
        }
        let moves = node
            .op()
            .is_any(&["Transpose", "Reshape", "Unsqueeze", "Squeeze"]);
        v = node.input(0).filter(|_| moves)?;
    }
}
