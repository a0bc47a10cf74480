//! Whether a model computes in the precision that it was asked for.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_graph::{DType, Graph, Model, Node};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::bundle;

/// A precision of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    Fp16,
    Bf16,
    Int8,
    Fp8,
    Int4,
}

/// Where a precision was looked for, and what was there.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PrecisionReport {
    pub asked: Precision,
    pub present: bool,
    /// The network that TensorRT read, where the bundle has an engine; else the ONNX model.
    pub of: &'static str,
    /// Products by precision, or layers of the engine's network by type.
    pub found: BTreeMap<String, usize>,
}

impl PrecisionReport {
    pub fn describe(&self) -> String {
        let found = self.found.iter().map(|(k, n)| format!("{n} in {k}"));
        let found = found.collect::<Vec<_>>().join(", ");
        let asked = name(self.asked);
        let Self { of, .. } = self;
        match (self.present, found.is_empty()) {
            (_, true) => format!("{asked}: the {of} has no products"),
            (true, _) => format!("{asked} is in the {of}: {found}"),
            (false, _) => format!("{asked} is absent: the {of} has {found}"),
        }
    }
}

fn name(p: Precision) -> &'static str {
    match p {
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
        Precision::Fp8 => "fp8",
        Precision::Int4 => "int4",
    }
}

pub(super) fn find(asked: Precision, candidate: &Path, model: &Model) -> PrecisionReport {
    if let Some(found) = engine(candidate) {
        return PrecisionReport {
            asked,
            present: found.contains_key(name(asked)),
            of: "engine's network",
            found,
        };
    }
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    model.graph.for_each_graph(&mut |g| {
        for (_, node) in g.nodes() {
            if let Some(p) = product(g, node) {
                *found.entry(name(p).to_string()).or_default() += 1;
            }
        }
    });
    PrecisionReport {
        asked,
        present: found.contains_key(name(asked)),
        of: "model",
        found,
    }
}

/// What the bundle's manifest says of the network that TensorRT read: results of layers in floats, operands of dequantizing
/// layers in less.
fn engine(candidate: &Path) -> Option<BTreeMap<String, usize>> {
    let text = std::fs::read(candidate.join(bundle::MANIFEST)).ok()?;
    let manifest: Value = serde_json::from_slice(&text).ok()?;
    let network = &manifest["engine"]["network"];
    let mut found = BTreeMap::new();
    for (part, types) in [
        ("tensors", &["fp32", "fp16", "bf16"][..]),
        ("dequantized", &["int8", "fp8", "int4"][..]),
    ] {
        for (dtype, count) in network[part].as_object()? {
            let count = usize::try_from(count.as_u64()?).ok()?;
            let short = dtype.to_lowercase();
            let short = match short.as_str() {
                "float32" | "float" => "fp32",
                "float16" | "half" => "fp16",
                "bfloat16" => "bf16",
                "float8" | "fp8e4m3" => "fp8",
                other => other,
            };
            if types.contains(&short) {
                found.insert(short.to_string(), count);
            }
        }
    }
    Some(found)
}

/// The precision of a product: of its weight where that is quantized, else of its operand.
fn product(g: &Graph, node: &Node) -> Option<Precision> {
    match node.op().name() {
        "MatMulNBits" => return Some(Precision::Int4),
        "MatMulInteger"
        | "QLinearMatMul"
        | "MatMulIntegerToFloat"
        | "DynamicQuantizeMatMul"
        | "QAttention" => return Some(Precision::Int8),
        "MatMul" | "Gemm" | "FusedMatMul" | "Conv" | "Attention" | "MultiHeadAttention" => {}
        _ => return None,
    }
    let operand = |k: usize| {
        let v = node.input(k)?;
        let from = g.producer(v).map(|id| g.node(id));
        let dtype = match from.filter(|n| n.op().is("DequantizeLinear")) {
            Some(dequantize) => g
                .value(dequantize.input(0)?)
                .ty()
                .dtype()
                .or_else(|| g.constant(dequantize.input(0)?).map(|t| t.dtype())),
            None => g.value(v).ty().dtype(),
        };
        Some(match dtype? {
            DType::I4 | DType::U4 => Precision::Int4,
            DType::I8 | DType::U8 => Precision::Int8,
            DType::F8E4M3FN => Precision::Fp8,
            DType::F16 => Precision::Fp16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::Fp32,
        })
    };
    let weight = operand(1);
    match weight {
        Some(Precision::Int4 | Precision::Int8 | Precision::Fp8) => weight,
        _ => operand(0).or(weight),
    }
}
