//! What was found and written.

use std::path::PathBuf;

use kiln_graph::Tensor;
use serde::Serialize;

use super::flags::Head;
use crate::runtime::Chosen;

/// What queries and keys are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The same values.
    SelfAttention,
    /// Different ones, as where a decoder reads an encoder.
    CrossAttention,
}

/// One attention.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// In the order of computation, from 0.
    pub layer: usize,
    pub name: String,
    pub kind: Kind,
    /// What is hidden, as in `causal+padding`.
    pub mask: String,
    pub samples: usize,
    pub queries: usize,
    pub keys: usize,
    /// The inputs whose tokens stand along the axes; without one, positions do.
    pub query_tokens: Option<String>,
    pub key_tokens: Option<String>,
    pub heads: Vec<Head>,
    /// FP32 [samples, heads shown, queries, keys].
    #[serde(skip)]
    pub weights: Tensor,
}

/// What was found and written.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub model: String,
    pub data: String,
    pub page: PathBuf,
    pub arrays: PathBuf,
    pub layers: Vec<Layer>,
    /// Where the model ran.
    pub device: Chosen,
    /// What is not shown, and why.
    pub warnings: Vec<String>,
}
