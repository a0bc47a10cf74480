//! Which nodes of the given model a pass removed, by the names of their results.

use rustc_hash::FxHashMap;

use kiln_graph::{Def, Graph, Op, ValueId};

/// Results that a node of the same operator still computes under their names.
#[derive(Debug)]
pub(super) struct Results(Vec<(ValueId, Op, String)>);

impl Results {
    /// The named results of the outermost graph's nodes.
    pub(super) fn of(graph: &Graph) -> Results {
        let nodes = graph.nodes().flat_map(|(_, node)| {
            let results = node.outputs().iter().flatten();
            results.map(|&v| (v, node.op(), graph.value(v).name().to_string()))
        });
        Results(nodes.filter(|(_, _, name)| !name.is_empty()).collect())
    }

    /// Takes out those that are computed no more, and gives their names.
    pub(super) fn gone(&mut self, graph: &Graph) -> Vec<String> {
        let by = |v: ValueId| graph.producer(v).map(|n| graph.node(n).op());
        let here = |(v, op, name): &(ValueId, Op, String)| {
            by(*v) == Some(*op) && graph.value(*v).name() == name
        };
        if self.0.iter().all(here) {
            return Vec::new();
        }
        // What took a node's place took its name.
        let named: FxHashMap<&str, ValueId> = (graph.values())
            .filter(|(_, value)| matches!(value.def(), Def::Node(..)) && !value.name().is_empty())
            .map(|(v, value)| (value.name(), v))
            .collect();
        let mut gone = Vec::new();
        self.0.retain_mut(|result| {
            if here(result) {
                return true;
            }
            let (v, op, name) = result;
            match named.get(name.as_str()) {
                Some(&at) if by(at) == Some(*op) => *v = at,
                _ => {
                    gone.push(std::mem::take(name));
                    return false;
                }
            }
            true
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_graph::graph::Opsets;
    use kiln_graph::{Attrs, Type};

    #[test]
    fn what_takes_a_name_over_is_not_gone_unless_it_is_another_operator() {
        let mut g = Graph::new(Opsets::default());
        let x = g.add_input("x", Type::Unknown);
        let mut add = |from, name: &str| {
            let id = g.add_node_named(
                Op::onnx("Tanh"),
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
        let other = g.add_node(Op::onnx("Relu"), "", [Some(x)], 1, Attrs::new());
        g.set_value_name(g.node(other).output(0).unwrap(), "b");
        g.replace_uses(new, g.node(other).output(0).unwrap());
        assert!(g.remove_node(again));
        assert_eq!(results.gone(&g), ["b"]);
    }
}
