//! Edges: what defines values, what reads them, and what the graph gives.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Check, Owner, exists, slot_label, value_label};
use crate::graph::Slot;
use crate::{Def, Graph, Type, Use, ValueId};

impl<'a> Check<'a> {
    /// Values against what they say defines them.
    pub(super) fn definitions(&mut self, graph: &Graph, owner: &mut Option<&mut Owner<'a>>) {
        for (v, value) in graph.values() {
            let wrong = match value.def() {
                Def::Input(k) => match graph.inputs().get(*k as usize) {
                    Some(&input) if input == v => None,
                    _ => Some(format!(
                        "says it is input {k} of the graph, which it is not"
                    )),
                },
                Def::Constant(tensor) => {
                    let dims = tensor.dims().iter().map(|&d| crate::Dim::Known(d));
                    let ty = Type::tensor(tensor.dtype(), Some(dims.collect()));
                    let conflict = value.ty().conflicts(&ty);
                    conflict
                        .then(|| format!("is a constant {ty}, but its type says {}", value.ty()))
                }
                Def::Node(id, k) => match graph.get(*id).map(|n| n.output(*k as usize)) {
                    Some(Some(output)) if output == v => None,
                    Some(_) => Some(format!("says it is output {k} of a node where it is not")),
                    None => Some("is defined by a node that was removed".into()),
                },
                Def::Capture(k) => self.capture(value.ty(), *k, owner),
                Def::Removed => None,
            };
            if let Some(what) = wrong {
                self.say(&value_label(graph, v), what);
            }
        }
        for (k, &v) in graph.inputs().iter().enumerate() {
            let right = exists(graph, v)
                && matches!(graph.value(v).def(), Def::Input(j) if *j as usize == k);
            if !right {
                let what = format!("is listed as input {k}, but is defined otherwise");
                self.say(&value_label(graph, v), what);
            }
        }
        for (v, tensor) in graph.defaults() {
            if !graph.inputs().contains(v) {
                let what = "has a default value, but is no input".into();
                self.say(&value_label(graph, *v), what);
            } else if exists(graph, *v) {
                let declared = graph.value(*v).ty().dtype();
                if declared.is_some_and(|d| d != tensor.dtype()) {
                    let what = format!("has a default value of type {}", tensor.dtype());
                    self.say(&value_label(graph, *v), what);
                }
            }
        }
    }

    fn capture(&self, ty: &Type, k: u32, owner: &mut Option<&mut Owner<'a>>) -> Option<String> {
        let Some(owner) = owner else {
            return Some("captures an outer value in the outermost graph".into());
        };
        let captures = owner.graph.get(owner.node)?.captures();
        owner.named.insert(k);
        let Some(&outer) = captures.get(k as usize) else {
            let n = captures.len();
            return Some(format!(
                "is capture {k}, but the owning node captures {n} values"
            ));
        };
        if !exists(owner.graph, outer) {
            return None;
        }
        let outer = owner.graph.value(outer).ty().dtype();
        match (ty.dtype(), outer) {
            (Some(a), Some(b)) if a != b => Some(format!("is {a} here but {b} outside")),
            _ => None,
        }
    }

    /// Operands against the uses that values list.
    pub(super) fn uses(&mut self, graph: &Graph) {
        let mut listed: FxHashMap<Use, ValueId> = FxHashMap::default();
        for (v, value) in graph.values() {
            for u in value.uses() {
                if listed.insert(*u, v).is_some() {
                    let slot = slot_label(u.slot);
                    self.say_node(
                        graph,
                        u.node,
                        format!("has its {slot} listed as a use twice"),
                    );
                }
            }
        }
        for (id, node) in graph.nodes() {
            let inputs = node.inputs().iter().enumerate();
            let inputs = inputs.filter_map(|(k, v)| Some((Slot::Input(k as u32), (*v)?)));
            let captures = node.captures().iter().enumerate();
            let captures = captures.map(|(k, v)| (Slot::Capture(k as u32), *v));
            for (slot, v) in inputs.chain(captures) {
                let what = if !exists(graph, v) {
                    "a value of another graph"
                } else if matches!(graph.value(v).def(), Def::Removed) {
                    "a value that nothing defines any more"
                } else if listed.remove(&Use { node: id, slot }) != Some(v) {
                    "a value that does not list the use"
                } else {
                    continue;
                };
                let what = format!("{} is {what} ({})", slot_label(slot), value_label(graph, v));
                self.say_node(graph, id, what);
            }
            for (k, v) in node.outputs().iter().enumerate() {
                let Some(v) = *v else { continue };
                let right = exists(graph, v)
                    && matches!(graph.value(v).def(), Def::Node(n, j) if *n == id && *j as usize == k);
                if !right {
                    self.say_node(graph, id, format!("output {k} is not defined by it"));
                }
            }
        }
        let mut stale: Vec<_> = listed.into_iter().collect();
        stale.sort_unstable();
        for (u, v) in stale {
            let what = format!(
                "lists {} of node #{} as a use",
                slot_label(u.slot),
                u.node.index()
            );
            self.say(
                &value_label(graph, v),
                format!("{what}, which reads something else"),
            );
        }
    }

    pub(super) fn outputs(&mut self, graph: &Graph) {
        let mut behind = FxHashSet::default();
        for output in graph.outputs() {
            let v = output.value;
            behind.insert(v);
            let what = if !exists(graph, v) {
                "gives a value of another graph"
            } else if matches!(graph.value(v).def(), Def::Removed) {
                "gives a value that nothing defines"
            } else if !graph.value(v).is_output() {
                "gives a value that does not count it"
            } else {
                continue;
            };
            self.say(&format!("output '{}'", output.name), what.into());
        }
        for (v, value) in graph.values() {
            if value.is_output() && !behind.contains(&v) {
                let what = "counts as an output, but stands behind none".into();
                self.say(&value_label(graph, v), what);
            }
        }
    }
}
