//! Branches that no engine has as long as a size is open: an engine's tensors have one rank, and the branches of an If that
//! asks for a size may give different ones.

use kiln_graph::infer::{self, Facts};
use kiln_graph::{Dim, Graph, NodeId};

use super::{Range, Shapes};

impl Shapes {
    /// Holds open sizes that decide between branches of different ranks at their typical values; gives their names. None if
    /// there are no such branches, or if sizes alone do not decide.
    pub(crate) fn decide_branches(&mut self, graph: &Graph) -> Vec<String> {
        if !has_branches(graph) || decided(graph, self) {
            return Vec::new();
        }
        let names: Vec<String> = self
            .ranges
            .keys()
            .filter(|n| self.is_free(n))
            .cloned()
            .collect();
        let before = self.ranges.clone();
        for name in &names {
            self.fix(name);
        }
        if !decided(graph, self) {
            self.ranges = before;
            self.follow();
            return Vec::new();
        }
        let mut held = Vec::new();
        for name in names {
            self.ranges.insert(name.clone(), before[&name]);
            self.follow();
            if !decided(graph, self) {
                self.fix(&name);
                held.push(name);
            }
        }
        self.baked.extend(held.iter().cloned());
        held
    }

    fn fix(&mut self, name: &str) {
        if let Some(range) = self.ranges.get_mut(name) {
            *range = Range::fixed(range.opt);
        }
        self.follow();
    }
}

fn has_branches(graph: &Graph) -> bool {
    let mut any = false;
    graph.for_each_graph(&mut |g| any |= g.nodes().any(|(_, n)| n.op().is("If")));
    any
}

/// Whether each If whose branches differ in rank has a condition that follows from the sizes that are fixed.
fn decided(graph: &Graph, shapes: &Shapes) -> bool {
    let inputs = super::overrides(graph, shapes, |dim| match dim {
        Dim::Symbol(s) => match shapes.ranges.get(&**s) {
            Some(range) if range.is_fixed() => Dim::Known(range.opt),
            _ => dim.clone(),
        },
        _ => dim.clone(),
    });
    holds(graph, &infer::with_inputs(graph, &inputs))
}

fn holds(graph: &Graph, facts: &Facts) -> bool {
    graph.nodes().all(|(id, node)| {
        let bodies = node.attrs().iter().flat_map(|(_, a)| a.graphs());
        let bodies: Vec<(&Graph, &Facts)> = bodies.zip(facts.nested(id)).collect();
        let condition = node.input(0).filter(|_| node.op().is("If"));
        let known = condition.and_then(|v| facts.values(v)?.first()?.as_i64());
        match known {
            // Attributes are sorted: `else_branch`, then `then_branch`.
            Some(taken) => bodies
                .get(usize::from(taken != 0))
                .is_none_or(|(inner, facts)| holds(inner, facts)),
            None => {
                !differ(graph, id, &bodies)
                    && bodies.iter().all(|(inner, facts)| holds(inner, facts))
            }
        }
    })
}

/// Whether outputs of two branches have ranks that are known, and are not one.
fn differ(graph: &Graph, id: NodeId, bodies: &[(&Graph, &Facts)]) -> bool {
    let [(no, without), (yes, with)] = bodies else {
        return false;
    };
    graph.node(id).op().is("If")
        && no.outputs().iter().zip(yes.outputs()).any(|(a, b)| {
            let ranks = (without.dims(a.value), with.dims(b.value));
            matches!(ranks, (Some(a), Some(b)) if a.len() != b.len())
        })
}
