//! What is computed from what.

use kiln_graph::{Graph, NodeId, ValueId};
use rustc_hash::FxHashSet;

/// Whether one of `values` is computed from a result of `nodes`.
pub fn depends(g: &Graph, values: impl IntoIterator<Item = ValueId>, nodes: &[NodeId]) -> bool {
    let mut open: Vec<ValueId> = values.into_iter().collect();
    let mut seen = FxHashSet::default();
    while let Some(v) = open.pop() {
        let Some(id) = g.producer(v).filter(|id| seen.insert(*id)) else {
            continue;
        };
        if nodes.contains(&id) {
            return true;
        }
        let node = g.node(id);
        open.extend(node.inputs().iter().flatten());
        open.extend(node.captures());
    }
    false
}
