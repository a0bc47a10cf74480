//! Changes as they are told: blocks, operators and counts.

use schemars::JsonSchema;
use serde::Serialize;

/// Blocks in which the same changed.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Blocks {
    /// Their names; empty: what is outside of blocks.
    pub names: Vec<String>,
    /// Nodes of one of them.
    pub nodes_a: usize,
    pub nodes_b: usize,
    pub rows: Vec<Row>,
}

/// An operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    pub operator: String,
    pub a: usize,
    pub b: usize,
    /// Nodes in the first model only.
    pub only_a: Vec<Count>,
    /// Nodes in the second model only.
    pub only_b: Vec<Count>,
    /// Nodes in both that are not the same.
    pub changed: Vec<Count>,
}

/// Nodes of one kind of change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Count {
    pub nodes: usize,
    /// What changed: `float → float16`, `attribute axis`; empty for nodes in one model only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// The pass that did it; `null` where none is known.
    pub pass: Option<String>,
}
