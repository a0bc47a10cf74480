//! Where the nodes of a session ran, from ONNX Runtime's own profile.
//!
//! A provider takes the nodes that it has kernels for; the others run on the CPU, with copies in between, and nobody is
//! told. Here everybody is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustc_hash::FxHashSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most integers that a node without a known name computes on behalf of shapes. ONNX Runtime puts nodes that follow from
/// shapes and from small constants on the CPU on purpose; `fallback_cpu_capability.cc` calls constants of up to 100
/// elements small.
const SIZES: u64 = 100;

/// The most floats of such a node: the factors of a Resize, one for each dimension.
const FACTORS: u64 = 8;

/// Which provider ran which nodes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Placement {
    /// The provider that was asked for.
    pub provider: String,
    /// Nodes by provider, copies between them not counted.
    pub nodes: BTreeMap<String, usize>,
    /// Nodes that ran elsewhere than asked, in the order in which they ran.
    pub fallbacks: Vec<Fallback>,
    /// Nodes elsewhere that only compute shapes.
    pub shapes: usize,
    /// Copies between the GPU and the host that the session makes inside of a run.
    pub copies: usize,
}

/// A node that did not run where it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
pub struct Fallback {
    pub node: String,
    pub op: String,
    pub provider: String,
    /// What it gave in its first run: `float[1,128,384]`.
    pub outputs: Vec<String>,
}

/// A profile could not be read.
#[derive(Debug, thiserror::Error)]
#[error("ONNX Runtime's profile {file}: {reason}")]
pub struct PlacementError {
    file: String,
    reason: String,
}

impl Placement {
    /// Reads what ONNX Runtime wrote of one or more runs. Nodes of the names in `excused` follow from shapes; of others, those
    /// count as such that give no more than a shape has.
    ///
    /// # Errors
    /// When the file is no profile, or no node ran.
    pub fn read(
        path: &Path,
        provider: &str,
        excused: &FxHashSet<String>,
    ) -> Result<Placement, PlacementError> {
        let fail = |reason: String| PlacementError {
            file: path.display().to_string(),
            reason,
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let events: Vec<Value> = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        let placement = Placement::of(&events, provider, excused);
        match placement.nodes.is_empty() {
            true => Err(fail("no node ran".into())),
            false => Ok(placement),
        }
    }

    fn of(events: &[Value], asked: &str, excused: &FxHashSet<String>) -> Placement {
        let mut placement = Placement {
            provider: asked.to_string(),
            nodes: BTreeMap::new(),
            fallbacks: Vec::new(),
            shapes: 0,
            copies: 0,
        };
        let mut seen = BTreeSet::new();
        for event in events {
            let (Some("Node"), Some(name)) = (event["cat"].as_str(), event["name"].as_str()) else {
                continue;
            };
            let args = &event["args"];
            let (Some(node), Some(op), Some(provider)) = (
                name.strip_suffix("_kernel_time"),
                args["op_name"].as_str(),
                args["provider"].as_str(),
            ) else {
                continue;
            };
            // Nodes may have no name, and nodes of different graphs the same number.
            if !seen.insert((node, op, args["node_index"].as_str())) {
                continue;
            }
            if op.starts_with("Memcpy") {
                placement.copies += 1;
                continue;
            }
            *placement.nodes.entry(provider.to_string()).or_default() += 1;
            if provider == asked {
                continue;
            }
            let outputs = outputs(&args["output_type_shape"]);
            let small = |(dtype, dims): &(String, Vec<u64>)| is_small(dtype, dims);
            if excused.contains(node) || !outputs.is_empty() && outputs.iter().all(small) {
                placement.shapes += 1;
                continue;
            }
            let number = || format!("a {op} without a name");
            placement.fallbacks.push(Fallback {
                node: if node.is_empty() {
                    number()
                } else {
                    node.to_string()
                },
                op: op.to_string(),
                provider: provider.to_string(),
                outputs: outputs
                    .iter()
                    .map(|(dtype, dims)| {
                        let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
                        format!("{dtype}[{}]", dims.join(","))
                    })
                    .collect(),
            });
        }
        placement
    }

    /// Whether all that is more than shapes ran where it should.
    pub fn pass(&self) -> bool {
        self.fallbacks.is_empty()
    }

    /// `all 97 nodes on CUDAExecutionProvider`, or what ran elsewhere.
    pub fn describe(&self) -> String {
        let here = self.nodes.get(&self.provider).copied().unwrap_or(0);
        let shapes = match self.shapes {
            0 => String::new(),
            n => format!(", {n} that compute shapes on the CPU"),
        };
        if self.pass() {
            return format!("{here} nodes on {}{shapes}", self.provider);
        }
        const SHOWN: usize = 8;
        let shown = self.fallbacks.iter().take(SHOWN);
        let mut list: Vec<String> = shown.map(|f| format!("{} ({})", f.node, f.op)).collect();
        if let Some(more) = self.fallbacks.len().checked_sub(SHOWN).filter(|&n| n > 0) {
            list.push(format!("and {more} more"));
        }
        format!(
            "{} of {} nodes fell back from {} to the CPU: {}{shapes}",
            self.fallbacks.len(),
            self.nodes.values().sum::<usize>(),
            self.provider,
            list.join(", ")
        )
    }
}

/// Types and shapes, as a profile writes them: `[{"float": [1, 2]}, …]`.
fn outputs(value: &Value) -> Vec<(String, Vec<u64>)> {
    let one = |v: &Value| {
        let (dtype, dims) = v.as_object()?.iter().next()?;
        let dims = dims
            .as_array()?
            .iter()
            .map(|d| d.as_u64().unwrap_or(u64::MAX));
        Some((dtype.clone(), dims.collect()))
    };
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(one)
        .collect()
}

fn is_small(dtype: &str, dims: &[u64]) -> bool {
    let most = match dtype {
        "int64" | "int32" | "bool" => SIZES,
        _ => FACTORS,
    };
    dims.iter().fold(1u64, |n, &d| n.saturating_mul(d)) <= most
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{initializer, model, node, port, runtime};
    use super::super::{Session, SessionOptions};
    use super::*;
    use kiln_graph::{DType, Tensor};

    const CUDA: &str = "CUDAExecutionProvider";
    const CPU: &str = "CPUExecutionProvider";

    fn event(node: &str, op: &str, provider: &str, output: Value) -> Value {
        json!({"cat": "Node", "name": format!("{node}_kernel_time"), "dur": 3,
               "args": {"op_name": op, "provider": provider, "node_index": "0", "output_type_shape": [output]}})
    }

    #[test]
    fn what_falls_back_is_named_and_shapes_are_let_be() {
        let events = [
            json!({"cat": "Session", "name": "model_run", "dur": 9}),
            event(
                "layer.0/MatMul",
                "MatMul",
                CUDA,
                json!({"float": [1, 128, 384]}),
            ),
            event(
                "layer.0/MatMul",
                "MatMul",
                CUDA,
                json!({"float": [1, 128, 384]}),
            ),
            event("shape", "Shape", CPU, json!({"int64": [3]})),
            event("mask", "LessOrEqual", CPU, json!({"bool": [512, 512]})),
            event("scale", "Sqrt", CPU, json!({"float": []})),
            event(
                "Memcpy_token_1",
                "MemcpyToHost",
                CUDA,
                json!({"float": [1, 128, 384]}),
            ),
            event("layer.0/Erf", "Erf", CPU, json!({"float": [1, 128, 384]})),
            event("layer.0/Erf", "Erf", CPU, json!({"float": [1, 128, 384]})),
            event("", "MatMulInteger", CPU, json!({"int32": [128, 384]})),
        ];
        let excused = FxHashSet::from_iter(["mask".to_string()]);
        let placement = Placement::of(&events, CUDA, &excused);
        assert_eq!(
            placement.nodes,
            [(CPU.to_string(), 5), (CUDA.to_string(), 1)].into()
        );
        assert_eq!((placement.shapes, placement.copies), (3, 1));
        let fallen: Vec<_> = placement
            .fallbacks
            .iter()
            .map(|f| f.node.as_str())
            .collect();
        assert_eq!(fallen, ["layer.0/Erf", "a MatMulInteger without a name"]);
        assert_eq!(placement.fallbacks[0].outputs, ["float[1,128,384]"]);
        let text = placement.describe();
        assert!(
            text.starts_with("2 of 6 nodes fell back from CUDAExecutionProvider"),
            "{text}"
        );
        assert!(!placement.pass());
    }

    /// A real profile of a session on the CPU, judged as that of a GPU would be: everything but shapes fell back.
    #[test]
    fn a_session_on_the_cpu_is_a_fallback_for_whoever_asked_for_a_gpu() {
        let Some(runtime) = runtime() else {
            return;
        };
        let weights: Vec<f32> = (0..256).map(|k| k as f32 / 256.).collect();
        let model = model(
            &[
                node("MatMul", &["x", "w"], &["m"], &[]),
                node("Shape", &["m"], &["s"], &[]),
                node("Reshape", &["m", "s"], &["r"], &[]),
                node("Erf", &["r"], &["y"], &[]),
            ],
            &[initializer("w", &[16, 16], &weights)],
            &[port("x", DType::F32, &["n", "16"])],
            &[port("y", DType::F32, &["n", "16"])],
        );
        let options = SessionOptions {
            optimization: super::super::Optimization::Disabled,
            watched: true,
            ..SessionOptions::default()
        };
        let mut session = Session::from_bytes(runtime, "m", &model, &options).unwrap();
        let x = Tensor::from_values(vec![4, 16], &[1f32; 64]).unwrap();
        session.run(&[("x", x.clone())]).unwrap();
        session.run(&[("x", x)]).unwrap();
        let here = session.placement().unwrap().unwrap();
        assert_eq!((here.nodes[CPU], here.pass()), (4, true));
        // It is written once and stays.
        assert_eq!(session.placement().unwrap().unwrap(), here);
        let there = session.placement_for(CUDA).unwrap().unwrap();
        let fallen: Vec<_> = there.fallbacks.iter().map(|f| f.op.as_str()).collect();
        assert_eq!(fallen, ["MatMul", "Reshape", "Erf"]);
        assert_eq!((there.shapes, there.pass()), (1, false));
        let rest = ["the_MatMul", "the_Reshape", "the_Erf"].map(String::from);
        session.excuse(FxHashSet::from_iter(rest));
        assert!(session.placement_for(CUDA).unwrap().unwrap().pass());
    }

    #[test]
    fn other_files_are_no_profiles() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("empty", ""), ("object", "{}"), ("none", "[]")] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let read = Placement::read(&path, CPU, &FxHashSet::default());
            assert!(read.is_err(), "{name}");
        }
    }
}
