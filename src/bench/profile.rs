//! Where the time of a session goes: by operator and by block of the Transformer, from ONNX Runtime's own profile.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::engine::blocks;

/// Time by operator and by block, of the average run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Profile {
    pub model: String,
    pub runs: usize,
    /// Microseconds in kernels of one run.
    pub micros: f64,
    /// Longest first.
    pub operators: Vec<Part>,
    /// In the order of the names; the last is everything outside of blocks.
    pub blocks: Vec<Part>,
}

/// A part of the time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Part {
    pub name: String,
    pub nodes: usize,
    /// Microseconds of one run.
    pub micros: f64,
}

/// Everything whose name has no number of a block.
const OUTSIDE: &str = "outside of blocks";

/// A profile could not be read.
#[derive(Debug, thiserror::Error)]
#[error("ONNX Runtime's profile {file}: {reason}")]
pub struct ProfileError {
    pub file: String,
    pub reason: String,
}

impl Profile {
    /// Reads what ONNX Runtime wrote of so many runs.
    ///
    /// # Errors
    /// When the file is no profile.
    pub fn read(model: &str, path: &Path, runs: usize) -> Result<Profile, ProfileError> {
        let fail = |reason: String| ProfileError {
            file: path.display().to_string(),
            reason,
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let events: Vec<Value> = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        Ok(Profile::of(model, &events, runs))
    }

    fn of(model: &str, events: &[Value], runs: usize) -> Profile {
        let mut nodes: BTreeMap<(&str, &str), f64> = BTreeMap::new();
        let mut order = Vec::new();
        for event in events {
            let (Some("Node"), Some(name)) = (event["cat"].as_str(), event["name"].as_str()) else {
                continue;
            };
            let (Some(node), Some(op)) = (
                name.strip_suffix("_kernel_time"),
                event["args"]["op_name"].as_str(),
            ) else {
                continue;
            };
            let time = nodes.entry((node, op)).or_insert_with(|| {
                order.push((node, op));
                0.0
            });
            *time += event["dur"].as_f64().unwrap_or(0.0);
        }
        // The first time that a node ran says where it stands among the others.
        let keys_of: Vec<(&str, &str)> = order.iter().map(|&(node, op)| (bare(node), op)).collect();
        let found = blocks::find(&keys_of);
        let found: BTreeMap<_, _> = order.iter().copied().zip(found).collect();
        let runs_ = runs.max(1) as f64;
        let mut operators: BTreeMap<&str, Part> = BTreeMap::new();
        let mut blocks: BTreeMap<(bool, Vec<Key>), Part> = BTreeMap::new();
        for (&(node, op), micros) in &nodes {
            let add = |part: &mut Part| {
                part.nodes += 1;
                part.micros += micros / runs_;
            };
            add(operators.entry(op).or_insert_with(|| Part::empty(op)));
            let block = found.get(&(node, op)).and_then(Option::as_deref);
            let block = block.unwrap_or(OUTSIDE);
            let key = (block == OUTSIDE, keys(block));
            add(blocks.entry(key).or_insert_with(|| Part::empty(block)));
        }
        let mut operators: Vec<Part> = operators.into_values().collect();
        operators.sort_by(|a, b| b.micros.total_cmp(&a.micros));
        Profile {
            model: model.to_string(),
            runs,
            micros: operators.iter().map(|p| p.micros).sum(),
            operators,
            blocks: blocks.into_values().collect(),
        }
    }
}

/// The name without what ONNX Runtime puts before it where it inserts a cast.
fn bare(node: &str) -> &str {
    node.strip_prefix("InsertedPrecisionFreeCast_")
        .unwrap_or(node)
}

impl Part {
    fn empty(name: &str) -> Part {
        Part {
            name: name.to_string(),
            nodes: 0,
            micros: 0.0,
        }
    }
}

/// A name cut where numbers begin and end, so that layer 10 comes behind layer 9.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Text(String),
    Number(u64),
}

fn keys(name: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != digits)
            .unwrap_or(rest.len());
        let (part, behind) = rest.split_at(end);
        keys.push(match part.parse() {
            Ok(number) if digits => Key::Number(number),
            _ => Key::Text(part.to_string()),
        });
        rest = behind;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn time_is_told_by_operator_and_block() {
        let event = |name: &str, op: &str, dur: u64| json!({"cat": "Node", "name": format!("{name}_kernel_time"), "dur": dur, "args": {"op_name": op}});
        let mut events = vec![json!({"cat": "Session", "name": "model_run", "dur": 1000})];
        for layer in [0, 2, 10] {
            events.push(event(
                &format!("/encoder/layer.{layer}/MatMul"),
                "MatMul",
                40,
            ));
            events.push(event(
                &format!("/encoder/layer.{layer}/MatMul"),
                "MatMul",
                60,
            ));
        }
        events.push(event("/pooler/Tanh", "Tanh", 20));
        let profile = Profile::of("m", &events, 2);
        let parts = |parts: &[Part]| -> Vec<_> {
            parts
                .iter()
                .map(|p| (p.name.clone(), p.nodes, p.micros))
                .collect()
        };
        assert_eq!(
            parts(&profile.operators),
            [("MatMul".into(), 3, 150.0), ("Tanh".into(), 1, 10.0)]
        );
        assert_eq!(
            parts(&profile.blocks),
            [
                ("encoder/layer.0".into(), 1, 50.0),
                ("encoder/layer.2".into(), 1, 50.0),
                ("encoder/layer.10".into(), 1, 50.0),
                (OUTSIDE.into(), 1, 10.0)
            ]
        );
        assert_eq!(profile.micros, 160.0);
    }
}
