//! Removes nodes whose results nothing reads, and constants that nothing reads.

use kiln_graph::{Def, Graph, Model, NodeId, ValueId};

use crate::core::pass::{Context, Exactness, Pass, PassFailure};
use crate::core::patch::remove_dead;

#[derive(Debug)]
pub struct EliminateDead;

impl Pass for EliminateDead {
    fn name(&self) -> &'static str {
        "eliminate-dead"
    }

    fn about(&self) -> &'static str {
        "remove nodes and constants that no output depends on"
    }

    fn details(&self) -> String {
        "A node is dead when no output of the graph depends on it; ONNX operators have no side effects. What a nested \
         graph reads counts as read by the node that owns it."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let mut removed = 0;
        model
            .graph
            .for_each_graph_mut(&mut |g| removed += sweep(g, cx));
        Ok(removed)
    }
}

/// Removes dead nodes, each with what only it reads. Unused constants are never written, so they go without asking.
fn sweep(g: &mut Graph, cx: &mut Context<'_>) -> usize {
    let dead = |g: &Graph, id: NodeId| {
        let outputs = g.node(id).outputs().iter().flatten();
        outputs.into_iter().all(|&v| g.value(v).is_unused())
    };
    let seeds: Vec<NodeId> = g
        .nodes()
        .map(|(id, _)| id)
        .filter(|&id| dead(g, id))
        .collect();
    let mut removed = 0;
    for id in seeds {
        if !cx.admit("eliminate-dead", || g.label(id)) {
            break;
        }
        removed += remove_dead(g, vec![id]);
    }
    let unused: Vec<ValueId> = (g.values())
        .filter(|(_, v)| v.is_unused() && matches!(v.def(), Def::Constant(_)))
        .map(|(id, _)| id)
        .collect();
    for v in unused {
        g.remove_unused_value(v);
    }
    removed
}
