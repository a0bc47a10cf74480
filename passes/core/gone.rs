//! Which nodes of the given model a pass removed, by the names of their results.

use rustc_hash::FxHashMap;

use kiln_graph::{Def, Graph, ValueId};

/// Results that are still computed by a node under their names.
#[derive(Debug)]
pub(super) struct Results(Vec<(ValueId, String)>);

impl Results {
    /// The named results of the outermost graph's nodes.
    pub(super) fn of(graph: &Graph) -> Results {
        let results = graph.nodes().flat_map(|(_, node)| node.outputs());
        let named = results
            .flatten()
            .map(|&v| (v, graph.value(v).name().to_string()));
        Results(named.filter(|(_, name)| !name.is_empty()).collect())
    }

    /// Takes out those that no node computes any more, and gives their names.
    pub(super) fn gone(&mut self, graph: &Graph) -> Vec<String> {
        let computed = |v: ValueId| matches!(graph.value(v).def(), Def::Node(..));
        let here = |v: ValueId, name: &str| computed(v) && graph.value(v).name() == name;
        if self.0.iter().all(|(v, name)| here(*v, name)) {
            return Vec::new();
        }
        // What took a node's place took its name.
        let named: FxHashMap<&str, ValueId> = (graph.values())
            .filter(|(v, value)| computed(*v) && !value.name().is_empty())
            .map(|(v, value)| (value.name(), v))
            .collect();
        let mut gone = Vec::new();
        self.0.retain_mut(|(v, name)| {
            if here(*v, name) {
                return true;
            }
            match named.get(name.as_str()) {
                Some(&at) => *v = at,
                None => gone.push(std::mem::take(name)),
            }
            !name.is_empty()
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::graph::Opsets;
    use kiln_graph::{Attrs, Op, Type};

    #[test]
    fn what_takes_a_name_over_is_not_gone() {
        let mut g = Graph::new(Opsets::default());
        let x = g.add_input("x", Type::Unknown);
        let mut add = |from, name: &str| {
            let id = g.add_node_named(
                Op::onnx("Relu"),
                "",
                [Some(from)],
                &[Some(name)],
                Attrs::new(),
            );
            (id, g.node(id).output(0).unwrap())
        };
        let (_, a) = add(x, "a");
        let (b_id, b) = add(a, "b");
        let (_, c) = add(b, "c");
        g.add_output("c", c);
        let mut results = Results::of(&g);
        assert!(results.gone(&g).is_empty());
        // Another node computes b; a is read no more.
        let again = g.add_node(Op::onnx("Tanh"), "", [Some(x)], 1, Attrs::new());
        let new = g.node(again).output(0).unwrap();
        g.set_value_name(new, "b");
        g.replace_uses(b, new);
        assert!(g.remove_node(b_id));
        assert!(results.gone(&g).is_empty());
        assert!(g.remove_node(g.producer(a).unwrap()));
        assert_eq!(results.gone(&g), ["a"]);
        assert!(results.gone(&g).is_empty());
    }
}
