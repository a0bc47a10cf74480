//! Nodes that compute on sizes alone: what follows from the shapes of inputs and from constants, not from elements.

use kiln_graph::{Def, Graph, Model};
use rustc_hash::FxHashSet;

/// The names of such nodes, in all graphs of a model. What a nested graph captures counts as elements.
pub fn derived(model: &Model) -> FxHashSet<String> {
    let mut names = FxHashSet::default();
    model.graph.for_each_graph(&mut |g| {
        // A graph with a cycle does not run either.
        let order = g.topo_order().unwrap_or_default();
        let mut sizes = FxHashSet::default();
        for id in order {
            let node = g.node(id);
            let op = node.op();
            let mut inputs = node.inputs().iter().flatten();
            let from_sizes = op.is("Shape")
                || op.is("Size")
                || !drawn(g, id) && inputs.all(|v| is_constant(g, *v) || sizes.contains(v));
            if from_sizes {
                sizes.extend(node.outputs().iter().flatten().copied());
                names.insert(node.name().to_string());
            }
        }
    });
    // Nodes without names cannot be told apart.
    names.remove("");
    names
}

fn is_constant(g: &Graph, v: kiln_graph::ValueId) -> bool {
    matches!(g.value(v).def(), Def::Constant(_))
}

/// Whether a node gives what follows from nothing: random numbers, or what a nested graph captures.
fn drawn(g: &Graph, id: kiln_graph::NodeId) -> bool {
    let node = g.node(id);
    node.op().name().starts_with("Random")
        || node
            .op()
            .is_any(&["Multinomial", "Bernoulli", "If", "Loop", "Scan"])
}

#[cfg(test)]
mod tests {
    use kiln_graph::onnx;

    use super::*;

    #[test]
    fn a_causal_mask_follows_from_sizes_and_its_use_does_not() {
        let model = onnx::read_text(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (int64[batch, seq] ids, float[batch, seq, seq] x) => (float[batch, seq, seq] y)
            <int64[1] one = {1}, int64 zero = {0}, int64 step = {1}, int64[1] axis = {1}, float low = {-10000.0}>
            {
                [shape] s = Shape(ids)
                [length] n = Gather(s, step)
                [range] r = Range(zero, n, step)
                [column] c = Unsqueeze(r, axis)
                [mask] m = LessOrEqual(r, c)
                [noise] e = RandomUniform<shape = [1]>()
                [use] w = Where(m, x, low)
                [sum] y = Add(w, e)
            }"#,
        )
        .unwrap();
        let mut names: Vec<String> = derived(&model).into_iter().collect();
        names.sort();
        assert_eq!(names, ["column", "length", "mask", "range", "shape"]);
    }
}
