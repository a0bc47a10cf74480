//! An If whose condition is constant becomes the branch that it takes.

use kiln_graph::graph::Inputs;
use kiln_graph::{Attr, Attrs, Def, Graph, Model, NodeId, Op, ValueId, infer};
use rustc_hash::FxHashMap;

use crate::core::pass::{Context, Exactness, Pass, PassFailure, in_each_graph};
use crate::core::patch::remove_dead;

#[derive(Debug)]
pub struct FoldBranches;

const NAME: &str = "fold-branches";

impl Pass for FoldBranches {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "replace an If whose condition is constant by the branch it takes"
    }

    fn details(&self) -> String {
        "What a branch captures is read directly. The other branch goes: once sizes are known it may make no sense, and \
         ONNX Runtime then refuses the whole model."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        in_each_graph(model, &mut |g| {
            let mut folded = 0;
            // A branch may hold another If.
            while let Some((id, holds)) = next(g) {
                if !cx.admit(NAME, || g.label(id)) {
                    break;
                }
                inline(g, id, holds)?;
                folded += 1;
            }
            Ok(folded)
        })
    }
}

/// An If that always takes the same branch, and whether its condition holds.
fn next(g: &Graph) -> Option<(NodeId, bool)> {
    let conditions = || {
        let ifs = g.nodes().filter(|(_, node)| node.op().is("If"));
        ifs.filter_map(|(id, node)| Some((id, node.input(0)?)))
    };
    let constant = |v| Some(g.constant(v)?.as_i64()? != 0);
    let folds = |id, holds| taken(g, id, holds).map(|_| (id, holds));
    if let Some(found) = conditions().find_map(|(id, v)| folds(id, constant(v)?)) {
        return Some(found);
    }
    // What stood in a branch may compare constants with each other. Nothing else: what files declare of sizes may be wrong.
    if !conditions().any(|(_, v)| of_constants(g, v, 0)) {
        return None;
    }
    let facts = infer::infer(g);
    let inferred = |v| Some(facts.values(v)?.first()?.as_i64()? != 0);
    let mut certain = conditions().filter(|(_, v)| of_constants(g, *v, 0));
    certain.find_map(|(id, v)| folds(id, inferred(v)?))
}

/// Nodes between a condition and the constants that it is computed from.
const MAX_DEPTH: usize = 8;

fn of_constants(g: &Graph, v: ValueId, depth: usize) -> bool {
    match g.value(v).def() {
        Def::Constant(_) => true,
        Def::Node(id, _) if depth < MAX_DEPTH => {
            let node = g.node(*id);
            let mut inputs = node.inputs().iter().flatten();
            !node.has_subgraphs() && inputs.all(|&v| of_constants(g, v, depth + 1))
        }
        _ => false,
    }
}

/// The branch that an If takes where its condition holds, or does not.
fn taken(g: &Graph, id: NodeId, holds: bool) -> Option<&Graph> {
    let node = g.node(id);
    let name = match holds {
        false => "else_branch",
        true => "then_branch",
    };
    match node.attrs().get(name)? {
        Attr::Graph(branch) if branch.outputs().len() == node.outputs().len() => Some(branch),
        _ => None,
    }
}

fn inline(g: &mut Graph, id: NodeId, holds: bool) -> Result<(), PassFailure> {
    let Some(branch) = taken(g, id, holds).cloned() else {
        return Ok(());
    };
    let order = branch.topo_order()?;
    let captures = g.node(id).captures().to_vec();
    let outputs = g.node(id).outputs().to_vec();
    let mut map: FxHashMap<ValueId, ValueId> = FxHashMap::default();
    for (v, value) in branch.values() {
        let outside = match value.def() {
            Def::Constant(tensor) => Some(g.add_constant(value.name(), tensor.clone())),
            Def::Capture(k) => captures.get(*k as usize).copied(),
            _ => None,
        };
        map.extend(outside.map(|o| (v, o)));
    }
    for inner in order {
        let node = branch.node(inner);
        let read = |v: &Option<ValueId>| v.and_then(|v| map.get(&v).copied());
        let inputs: Inputs = node.inputs().iter().map(read).collect();
        let names: Vec<Option<&str>> = (node.outputs().iter())
            .map(|v| v.map(|v| branch.value(v).name()))
            .collect();
        let attrs = node.attrs().clone();
        let made = g.add_node_named(node.op(), node.name(), inputs, &names, attrs);
        for v in node.captures() {
            if let Some(&outside) = map.get(v) {
                g.push_capture(made, outside);
            }
        }
        *g.notes_mut(made) = node.notes().clone();
        let results = g.node(made).outputs().to_vec();
        for (old, new) in node.outputs().iter().zip(results) {
            if let (Some(old), Some(new)) = (old, new) {
                g.set_type(new, branch.value(*old).ty().clone());
                map.insert(*old, new);
            }
        }
    }
    for (old, output) in outputs.iter().zip(branch.outputs()) {
        let (Some(old), Some(&new)) = (*old, map.get(&output.value)) else {
            continue;
        };
        let new = match g.value(old).is_output() {
            false => new,
            // What is an output may be an input, a constant or another output, too.
            true => {
                let name = g.value(old).name().to_string();
                let op = Op::onnx("Identity");
                let copy = g.add_node_named(op, "", [Some(new)], &[Some(&name)], Attrs::new());
                g.node(copy).output(0).unwrap_or(new)
            }
        };
        if !matches!(g.value(new).def(), Def::Constant(_)) {
            let ty = g.value(new).ty().refined_by(g.value(old).ty());
            g.set_type(new, ty);
        }
        g.replace_uses(old, new);
    }
    remove_dead(g, vec![id]);
    Ok(())
}
