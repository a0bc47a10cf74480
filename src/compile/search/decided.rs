//! What the model's own numbers decide: which keys are seen, which expert is asked.
//!
//! A rounding anywhere before a decision may turn it, and what follows is another number altogether. So the layers on the way to
//! a decision stand together, however little each of them errs alone.

use kiln_graph::{Graph, NodeId};
use kiln_passes::precision::decides;
use rustc_hash::FxHashSet;

/// The labels of nodes that a decision by floats follows from, of those that decide, and of all nodes of bodies among these.
pub(super) fn deciding(g: &Graph) -> FxHashSet<String> {
    let mut todo: Vec<NodeId> = (g.nodes().map(|(id, _)| id))
        .filter(|&id| within(g, id, &turns))
        .collect();
    let mut seen: FxHashSet<NodeId> = todo.iter().copied().collect();
    let mut labels = FxHashSet::default();
    while let Some(id) = todo.pop() {
        labels.insert(g.label(id));
        let node = g.node(id);
        for body in node.attrs().iter().flat_map(|(_, attr)| attr.graphs()) {
            body.for_each_graph(&mut |g| labels.extend(g.nodes().map(|(id, _)| g.label(id))));
        }
        // Sizes follow from no number.
        if node.op().is_any(&["Shape", "Size"]) {
            continue;
        }
        let read = node.inputs().iter().flatten().chain(node.captures());
        let made = read.filter_map(|&v| g.producer(v));
        todo.extend(made.filter(|&p| seen.insert(p)));
    }
    labels
}

/// Whether it holds of a node, or of one in its bodies.
fn within(g: &Graph, id: NodeId, of: &impl Fn(&Graph, NodeId) -> bool) -> bool {
    let mut found = of(g, id);
    for body in g.node(id).attrs().iter().flat_map(|(_, a)| a.graphs()) {
        body.for_each_graph(&mut |g| found |= g.nodes().any(|(id, _)| of(g, id)));
    }
    found
}

/// Whether it decides by floats. The largest numbers themselves are as continuous as what they are taken from; their places are not.
fn turns(g: &Graph, id: NodeId) -> bool {
    let node = g.node(id);
    let places = decides(g, id).unwrap_or_default();
    let values = node.op().is("TopK") && (node.output(1)).is_none_or(|v| g.value(v).is_unused());
    let float = |v| g.value(v).ty().dtype().is_some_and(|d| d.is_float());
    !values
        && (places.iter())
            .filter_map(|&k| node.input(k))
            .any(|v| float(v) && g.constant(v).is_none())
}
