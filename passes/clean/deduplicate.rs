//! One value for equal constants and for equal computations.

use std::hash::{Hash, Hasher};

use kiln_graph::{Attr, Graph, Model, Node, NodeId, ValueId, ops};
use rustc_hash::{FxHashMap, FxHasher};

use crate::core::pass::{Context, Exactness, Pass, PassFailure, in_each_graph};
use crate::core::patch::remove_dead;

#[derive(Debug)]
pub struct Deduplicate;

impl Pass for Deduplicate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "share equal constants and common subexpressions"
    }

    fn details(&self) -> String {
        "Constants with the same type, shape and bits become one; so do nodes with the same operator, attributes and \
         operands (in either order where the operator commutes). Nodes that draw random numbers or hold graphs stay."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        in_each_graph(model, &mut |g| Ok(constants(g, cx) + nodes(g, cx)?))
    }
}

const NAME: &str = "deduplicate";

fn constants(g: &mut Graph, cx: &mut Context<'_>) -> usize {
    let mut seen: FxHashMap<u64, Vec<ValueId>> = FxHashMap::default();
    let mut pairs = Vec::new();
    for (id, value) in g.values() {
        let Some(tensor) = value.constant() else {
            continue;
        };
        let candidates = seen.entry(tensor.fingerprint()).or_default();
        let equal = |&&c: &&ValueId| g.constant(c).is_some_and(|t| t.same_bits(tensor));
        match candidates.iter().find(equal) {
            Some(&first) => pairs.push((id, first)),
            None => candidates.push(id),
        }
    }
    let mut merged = 0;
    for (duplicate, first) in pairs {
        if !cx.admit(NAME, || format!("constant {}", g.value(duplicate).name())) {
            break;
        }
        g.replace_uses(duplicate, first);
        g.remove_unused_value(duplicate);
        merged += 1;
    }
    merged
}

fn nodes(g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, kiln_graph::graph::Cycle> {
    let mut seen: FxHashMap<u64, Vec<NodeId>> = FxHashMap::default();
    let mut merged = 0;
    for id in g.topo_order()? {
        let node = g.node(id);
        if node.has_subgraphs() || !ops::traits::node_is_deterministic(g, id) {
            continue;
        }
        let candidates = seen.entry(hash(node)).or_default();
        let Some(&first) = candidates.iter().find(|&&c| same(g.node(c), node)) else {
            candidates.push(id);
            continue;
        };
        if !cx.admit(NAME, || g.label(id)) {
            break;
        }
        let pairs: Vec<_> = (g.node(id).outputs().iter())
            .zip(g.node(first).outputs())
            .filter_map(|(a, b)| Some(((*a)?, (*b)?)))
            .collect();
        for (duplicate, kept) in pairs {
            g.replace_uses(duplicate, kept);
        }
        remove_dead(g, vec![id]);
        merged += 1;
    }
    Ok(merged)
}

/// Operands in an order that does not matter where the operator commutes.
fn operands(node: &Node) -> Vec<Option<ValueId>> {
    let mut inputs = node.inputs().to_vec();
    if ops::traits::is_commutative(node.op()) {
        inputs.sort_unstable();
    }
    inputs
}

fn hash(node: &Node) -> u64 {
    let mut h = FxHasher::default();
    node.op().hash(&mut h);
    operands(node).hash(&mut h);
    for (name, attr) in node.attrs().iter() {
        name.hash(&mut h);
        if let Attr::Int(v) = attr {
            v.hash(&mut h);
        }
    }
    h.finish()
}

fn same(a: &Node, b: &Node) -> bool {
    let shape = |n: &Node| n.outputs().iter().map(Option::is_some).collect::<Vec<_>>();
    a.op() == b.op()
        && operands(a) == operands(b)
        && shape(a) == shape(b)
        && a.attrs().same(b.attrs())
}
