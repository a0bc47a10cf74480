//! What TensorRT's parser made of a model, read back from the network that an engine is built from.
//!
//! The network is strongly typed, so its types are those that the engine computes in, but for products that the builder
//! dequantizes first: what it fused and which kernels it took, [`Kernels`](super::Kernels) tells.

use std::collections::{BTreeMap, BTreeSet};

use kiln_graph::{DType, Graph, Model, NodeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DataType;

/// Layers and types of a parsed network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Layers by kind, as TensorRT names them: `matrix_multiply`.
    pub layers: BTreeMap<String, usize>,
    /// Results of layers by type, but for those of constants and casts.
    pub tensors: BTreeMap<DataType, usize>,
    /// Operands of dequantizing layers by type.
    pub dequantized: BTreeMap<DataType, usize>,
    /// Inputs that no layer reads.
    #[serde(default)]
    pub unread: Vec<String>,
}

/// One layer of a network.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// TensorRT's name of its kind, such as `kMATRIX_MULTIPLY`.
    pub(super) kind: String,
    /// Names of the operands.
    pub(super) reads: Vec<String>,
    pub(super) operands: Vec<DataType>,
    pub(super) results: Vec<DataType>,
}

impl Network {
    /// `inputs` are the names of the network's inputs.
    pub(super) fn of<'a>(
        layers: impl IntoIterator<Item = Layer>,
        inputs: impl IntoIterator<Item = &'a str>,
    ) -> Network {
        let mut network = Network::default();
        let mut read = BTreeSet::new();
        for layer in layers {
            read.extend(layer.reads);
            let kind = layer.kind.trim_start_matches('k').to_lowercase();
            if !matches!(kind.as_str(), "constant" | "cast") {
                for dtype in layer.results {
                    *network.tensors.entry(dtype).or_default() += 1;
                }
            }
            if let ("dequantize", Some(&dtype)) = (kind.as_str(), layer.operands.first()) {
                *network.dequantized.entry(dtype).or_default() += 1;
            }
            *network.layers.entry(kind).or_default() += 1;
        }
        let inputs = inputs.into_iter().filter(|&name| !read.contains(name));
        network.unread = inputs.map(str::to_string).collect();
        network
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.values().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of these precisions, those that the network does not have: floats as results, integers and 8-bit floats as
    /// operands of dequantizing layers.
    pub fn lacks(&self, precisions: impl IntoIterator<Item = DataType>) -> Vec<DataType> {
        let has = |p: &DataType| match p {
            DataType::Float16 | DataType::Bfloat16 => self.tensors.contains_key(p),
            _ => self.dequantized.contains_key(p),
        };
        precisions.into_iter().filter(|p| !has(p)).collect()
    }
}

/// The precisions that a model is written in beside FP32: what it computes in, and what it dequantizes. Its types must be
/// inferred.
pub fn precisions(model: &Model) -> BTreeSet<DataType> {
    let mut found = BTreeSet::new();
    model.graph.for_each_graph(&mut |g| {
        for (id, _) in g.nodes() {
            found.extend(precision(g, id));
        }
    });
    found
}

fn precision(g: &Graph, id: NodeId) -> Option<DataType> {
    let node = g.node(id);
    let dtype = |v: Option<kiln_graph::ValueId>| g.value(v?).ty().dtype();
    if node.op().is("DequantizeLinear") {
        return match dtype(node.input(0))? {
            DType::I8 => Some(DataType::Int8),
            DType::I4 => Some(DataType::Int4),
            DType::F8E4M3FN => Some(DataType::Float8),
            DType::F4E2M1 => Some(DataType::Float4),
            _ => None,
        };
    }
    // What only moves elements may fold away.
    let computes = node
        .op()
        .is_any(&["MatMul", "Gemm", "Conv", "Attention", "Softmax"]);
    match dtype(node.output(0)).filter(|_| computes)? {
        DType::F16 => Some(DataType::Float16),
        DType::BF16 => Some(DataType::Bfloat16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::onnx;

    #[test]
    fn casts_and_constants_compute_nothing() {
        let layer = |kind: &str, operands: &[DataType], results: &[DataType]| Layer {
            kind: kind.into(),
            reads: vec![kind.into()],
            operands: operands.to_vec(),
            results: results.to_vec(),
        };
        let layers = [
            layer("kCONSTANT", &[], &[DataType::Int8]),
            layer("kCAST", &[DataType::Float32], &[DataType::Float16]),
            layer(
                "kDEQUANTIZE",
                &[DataType::Int8, DataType::Float32],
                &[DataType::Float32],
            ),
            layer(
                "kMATRIX_MULTIPLY",
                &[DataType::Float32; 2],
                &[DataType::Float32],
            ),
        ];
        let network = Network::of(layers, ["kCAST", "x"]);
        assert_eq!(network.unread, ["x"]);
        assert_eq!(network.len(), 4);
        assert_eq!(network.tensors, BTreeMap::from([(DataType::Float32, 2)]));
        assert_eq!(network.dequantized, BTreeMap::from([(DataType::Int8, 1)]));
        let asked = [DataType::Float16, DataType::Int8, DataType::Int4];
        assert_eq!(network.lacks(asked), [DataType::Float16, DataType::Int4]);
    }

    #[test]
    fn a_model_says_what_it_is_written_in() {
        let text = r#"<ir_version: 10, opset_import: ["" : 21]>
            g (float16[2, 4] x) => (float16[2, 4] y) <int8[4, 4] w = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}, float16 s = {0.5}>
            { v = DequantizeLinear(w, s) y = MatMul(x, v) }"#;
        let mut model = onnx::read_text(text).unwrap();
        kiln_graph::infer::annotate(&mut model.graph);
        let found: Vec<DataType> = precisions(&model).into_iter().collect();
        assert_eq!(found, [DataType::Float16, DataType::Int8]);
    }
}
