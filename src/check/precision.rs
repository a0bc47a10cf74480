//! Whether a model computes in the precision that it was asked for.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_graph::{Graph, Model, Node};
use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::{Kernels, Otherwise};
use crate::manifest;
use crate::precision::Format;

/// Where a precision was looked for, and what was there.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PrecisionReport {
    pub asked: Format,
    pub present: bool,
    /// The engine, where the bundle has one; else the ONNX model.
    pub of: &'static str,
    /// Products by precision.
    pub found: BTreeMap<String, usize>,
    /// Why it is not what was asked for, where something else is wrong than that it is absent.
    pub otherwise: Option<String>,
}

impl PrecisionReport {
    pub fn describe(&self) -> String {
        let found = self.found.iter().map(|(k, n)| format!("{n} in {k}"));
        let found = found.collect::<Vec<_>>().join(", ");
        let asked = self.asked;
        let Self { of, .. } = self;
        match (self.present, found.is_empty()) {
            (_, true) => format!("{asked}: the {of} has no products"),
            (true, _) => format!("{asked} is in the {of}: {found}"),
            (false, _) => match &self.otherwise {
                Some(why) => format!("{asked}: {why}"),
                None => format!("{asked} is absent: the {of} has {found}"),
            },
        }
    }
}

/// What an engine's products multiply.
#[derive(Debug, Default)]
pub struct Multiplication {
    /// Products by type, attention kernels among them.
    pub found: BTreeMap<String, usize>,
    otherwise: Vec<Otherwise>,
}

/// Layers that a message names.
const NAMED: usize = 3;

impl Multiplication {
    pub fn of(kernels: &Kernels, otherwise: &[Otherwise]) -> Multiplication {
        let mut found = BTreeMap::new();
        for product in kernels
            .launched()
            .filter(|k| k.is_product() || k.is_attention())
        {
            *found.entry(product.multiplies().to_string()).or_default() += 1;
        }
        Multiplication {
            found,
            otherwise: otherwise.to_vec(),
        }
    }

    /// Why the engine is not in this precision; `None` if it is: no product is wider than floats of the precision, and every
    /// quantized layer multiplies as the model says.
    pub fn lacks(&self, asked: Format) -> Option<String> {
        let others: Vec<String> = (self
            .otherwise
            .iter()
            .filter(|o| o.asked == asked.data_type()))
        .map(|o| match &o.multiplies {
            Some(types) => format!("`{}` in {types}", o.layer),
            None => format!("`{}` in no kernel that names it", o.layer),
        })
        .collect();
        if !others.is_empty() {
            let more = match others.len().saturating_sub(NAMED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            let first = others[..others.len().min(NAMED)].join(", ");
            return Some(format!("the engine multiplies {first}{more}"));
        }
        let is = |types: &String| types.split(" x ").any(|t| t == asked.name());
        match self.found.keys().any(is) {
            true => None,
            false => Some(match self.found.is_empty() {
                true => "the engine has no products".into(),
                false => {
                    let found = self.found.iter().map(|(k, n)| format!("{n} in {k}"));
                    let found = found.collect::<Vec<_>>().join(", ");
                    format!("the engine has no product in it, but {found}")
                }
            }),
        }
    }
}

pub(super) fn find(asked: Format, candidate: &Path, model: &Model) -> PrecisionReport {
    if let Ok(engine) = manifest::kernels(candidate) {
        let multiplied = Multiplication::of(&engine.kernels, &engine.otherwise);
        let otherwise = multiplied.lacks(asked);
        return PrecisionReport {
            asked,
            present: otherwise.is_none(),
            of: "engine",
            found: multiplied.found,
            otherwise,
        };
    }
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    model.graph.for_each_graph(&mut |g| {
        for (_, node) in g.nodes() {
            if let Some(p) = product(g, node) {
                *found.entry(p.to_string()).or_default() += 1;
            }
        }
    });
    PrecisionReport {
        asked,
        present: found.contains_key(asked.name()),
        of: "model",
        found,
        otherwise: None,
    }
}

/// The precision of a product: of its weight where that is quantized, else of its operand.
fn product(g: &Graph, node: &Node) -> Option<Format> {
    match node.op().name() {
        "MatMulNBits" => return Some(Format::Int4),
        "MatMulInteger"
        | "QLinearMatMul"
        | "MatMulIntegerToFloat"
        | "DynamicQuantizeMatMul"
        | "QAttention" => return Some(Format::Int8),
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
        dtype.map(Format::of)
    };
    let weight = operand(1);
    match weight {
        Some(Format::Int4 | Format::Int8 | Format::Fp8) => weight,
        _ => operand(0).or(weight),
    }
}
