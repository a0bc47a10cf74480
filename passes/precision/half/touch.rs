//! What a node reads and writes, by type.

use kiln_graph::{DType, Graph, NodeId, ValueId};

pub(in crate::precision) fn is_f32(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty().dtype() == Some(DType::F32)
}

pub(in crate::precision) fn touches(g: &Graph, id: NodeId, test: impl Fn(ValueId) -> bool) -> bool {
    let node = g.node(id);
    let all = node.inputs().iter().chain(node.outputs()).flatten();
    all.copied()
        .chain(node.captures().iter().copied())
        .any(test)
}
