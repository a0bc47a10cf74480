//! The caches of a decoder, counted.

use kiln_graph::Graph;
use kiln_graph::caches::{self, Cache, Update};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bytes;

/// Caches that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Caches {
    /// Attentions that have one.
    pub layers: usize,
    pub update: String,
    pub heads: Option<usize>,
    /// Elements of a head.
    pub size: Option<usize>,
    pub dtype: String,
    /// Inputs.
    pub tensors: usize,
    /// What one token of one row takes in all of them.
    pub bytes_per_token: Option<usize>,
    /// Tokens that a buffer of one length holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<usize>,
}

/// The length at which a table says what caches take.
const LENGTH: usize = 2048;

/// The caches of a graph by kind, in the order of its inputs.
pub fn of(graph: &Graph) -> Vec<Caches> {
    let mut kinds: Vec<(Cache, Vec<Cache>)> = Vec::new();
    for cache in caches::caches(graph) {
        let like = |k: &Cache| {
            (k.update, k.heads, k.size, k.dtype)
                == (cache.update, cache.heads, cache.size, cache.dtype)
                && k.capacity(graph) == cache.capacity(graph)
        };
        match kinds.iter_mut().find(|(kind, _)| like(kind)) {
            Some((_, all)) => all.push(cache),
            None => kinds.push((cache.clone(), vec![cache])),
        }
    }
    kinds
        .into_iter()
        .map(|(kind, all)| row(&kind, &all, kind.capacity(graph)))
        .collect()
}

fn row(kind: &Cache, all: &[Cache], capacity: Option<usize>) -> Caches {
    let mut layers: Vec<usize> = all.iter().map(|c| c.attention).collect();
    layers.sort_unstable();
    layers.dedup();
    Caches {
        layers: layers.len(),
        update: match kind.update {
            Update::Grows => "grows",
            Update::Written => "written into",
            Update::Shared => "grows or is written into",
            Update::Kept => "read only",
        }
        .into(),
        heads: kind.heads,
        size: kind.size,
        dtype: kind.dtype.to_string(),
        tensors: all.len(),
        bytes_per_token: all.iter().map(Cache::bytes).sum(),
        capacity,
    }
}

impl Caches {
    /// `2 layers of 4 heads of 8, float, grows: 512 B a token, 1.0 MB at 2048`
    pub fn describe(&self) -> String {
        let known = |n: Option<usize>| n.map_or("?".into(), |n| n.to_string());
        let heads = match self.heads {
            Some(n) => format!("{n} heads of {}", known(self.size)),
            None => format!("{} elements a token", known(self.size)),
        };
        let plural = if self.layers == 1 { "layer" } else { "layers" };
        let sizes = self.bytes_per_token.map_or(String::new(), |n| {
            let length = self.capacity.unwrap_or(LENGTH);
            format!(": {} a token, {} at {length}", bytes(n), bytes(n * length))
        });
        format!(
            "{} {plural} of {heads}, {}, {}{sizes}",
            self.layers, self.dtype, self.update
        )
    }
}
