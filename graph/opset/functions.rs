//! Local functions on the way up.
//!
//! A function names the operator sets its body was written for, but runtimes inline it under those of the model (ONNX
//! Runtime does), where a body of an older version would be refused or, worse, mean something else.

use super::error::OpsetError;
use super::steps::Steps;
use crate::Model;
use crate::onnx::proto::NodeProto;

/// Refuses a model with a function whose body holds an operator that changes between the function's version and `to`.
pub(super) fn check(model: &Model, steps: &Steps, from: i64, to: i64) -> Result<(), OpsetError> {
    for function in &model.header.functions {
        let mut imports = function.opset_import.iter();
        let import = imports.find(|i| is_default(i.domain.as_deref().unwrap_or("")));
        let own = import.map_or(from, |i| i.version.unwrap_or(1));
        if let Some((op, version)) = changed(&function.node, steps, own, to) {
            return Err(OpsetError::Function {
                function: function.name.clone().unwrap_or_default(),
                op,
                version,
                from: own,
                to,
            });
        }
    }
    Ok(())
}

fn changed(nodes: &[NodeProto], steps: &Steps, from: i64, to: i64) -> Option<(String, i64)> {
    nodes
        .iter()
        .find_map(|node| {
            let op = node.op_type.as_deref().unwrap_or("");
            let known = is_default(node.domain.as_deref().unwrap_or(""));
            let versions = steps.get(op).filter(|_| known)?.iter();
            let version = versions
                .map(|(v, _)| *v)
                .find(|v| (from + 1..=to).contains(v));
            version.map(|v| (op.to_string(), v))
        })
        .or_else(|| {
            let attributes = nodes.iter().flat_map(|n| &n.attribute);
            let mut graphs = attributes.flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs));
            graphs.find_map(|g| changed(&g.node, steps, from, to))
        })
}

/// Whether a domain is the default one, by either of its names.
pub(super) fn is_default(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}
