//! What the model's own numbers decide: which keys are seen, which expert is asked.
//!
//! A rounding anywhere before a decision may turn it, and what follows is another number altogether. So the layers on the way to
//! a decision stand together, however little each of them errs alone.

use kiln_graph::{Graph, NodeId};
use kiln_passes::precision::decides;
use rustc_hash::FxHashSet;

/// The labels of nodes, those of bodies included.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    /// What decides by floats.
    turning: FxHashSet<String>,
    /// That, and all that it follows from.
    way: FxHashSet<String>,
}

impl Decisions {
    pub fn of(g: &Graph) -> Decisions {
        let mut found = Decisions::default();
        let mut todo: Vec<NodeId> = Vec::new();
        for (id, _) in g.nodes() {
            let decides = each(g, id).filter(|&(g, id)| turns(g, id));
            let labels: Vec<String> = decides.map(|(g, id)| g.label(id)).collect();
            if !labels.is_empty() {
                todo.push(id);
                found.turning.extend(labels);
            }
        }
        let mut seen: FxHashSet<NodeId> = todo.iter().copied().collect();
        while let Some(id) = todo.pop() {
            found.way.extend(each(g, id).map(|(g, id)| g.label(id)));
            let node = g.node(id);
            // Sizes follow from no number.
            if node.op().is_any(&["Shape", "Size"]) {
                continue;
            }
            let read = node.inputs().iter().flatten().chain(node.captures());
            let made = read.filter_map(|&v| g.producer(v));
            todo.extend(made.filter(|&p| seen.insert(p)));
        }
        found
    }

    /// Whether one of the layers decides.
    pub fn turn(&self, layers: &[String]) -> bool {
        layers.iter().any(|l| self.turning.contains(l))
    }

    /// Whether it decides, or a decision follows from it.
    pub fn leads(&self, layer: &String) -> bool {
        self.way.contains(layer)
    }
}

/// A node, and those of its bodies.
fn each(g: &Graph, id: NodeId) -> impl Iterator<Item = (&Graph, NodeId)> {
    let mut all = vec![(g, id)];
    for body in g
        .node(id)
        .attrs()
        .iter()
        .flat_map(|(_, attr)| attr.graphs())
    {
        body.for_each_graph(&mut |g| all.extend(g.nodes().map(|(id, _)| (g, id))));
    }
    all.into_iter()
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
