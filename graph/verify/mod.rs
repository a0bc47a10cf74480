//! The structural verifier: what must hold of a graph between any two passes.
//!
//! [`verify`] collects every violation instead of stopping at the first, in time linear in nodes and edges, and looks
//! into nested graphs. It reads only; it never panics, whatever an edit left behind.
//!
//! # Invariants
//!
//! Edges:
//! - every operand of a node is a value of the graph that something defines, and that value lists the use, once;
//! - every use that a value lists is an operand of a live node;
//! - every output of a node is a value whose definition is that node and position, and the other way round;
//! - the graph's inputs and [`Def::Input`] name each other; a default belongs to an input and fits its type;
//! - every output slot of the graph names a value that something defines and that knows it is an output, and a value that
//!   thinks it is an output stands behind a slot;
//! - edges have no cycle (checked once they are consistent).
//!
//! Nested graphs:
//! - a [`Def::Capture`] names a position that the owning node captures, and each captured position is named by at least
//!   one of the node's nested graphs; dtypes on both sides agree; the outermost graph has none;
//! - attributes that hold graphs belong to control flow (`If`, `Loop`, `Scan`, `SequenceMap`) or another domain;
//! - for every domain it uses, a nested graph imports the version that the outermost graph imports.
//!
//! Names:
//! - names of the outermost graph's inputs and outputs are not empty and unique; an output shares a name with an input
//!   only if it is that input. Names of all other values are free: they are made unique when a model is written;
//! - an operator has a name.
//!
//! Operator sets and phases:
//! - each domain in use is imported, or has local functions ([`verify_model`]); [`INTERNAL_DOMAIN`] needs no import;
//! - at [`Phase::Lowered`] no operator of [`INTERNAL_DOMAIN`] is left.
//!
//! Types, where they are known:
//! - a constant's type agrees with its tensor;
//! - operands and results of a node have the dtypes that ONNX requires of them ([`crate::ops::schema`]); a `Cast`
//!   goes to a dtype there is, and its result has it.

mod dtypes;
mod edges;

use std::fmt;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::graph::Slot;
use crate::ops::traits::is_control_flow;
use crate::{Graph, INTERNAL_DOMAIN, Model, NodeId, ValueId};

/// How far a graph is compiled. Phases go forward only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// As it was read.
    Imported,
    /// Trivial variety is gone.
    Canonical,
    /// Fused operators, internal ones among them.
    Fused,
    /// The precision of every value is written out.
    Typed,
    /// Nothing but what the target takes.
    Lowered,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Imported => "imported",
            Phase::Canonical => "canonical",
            Phase::Fused => "fused",
            Phase::Typed => "typed",
            Phase::Lowered => "lowered",
        })
    }
}

/// One violation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The node, value or list at fault; inside a nested graph, after the nodes and attributes that lead to it.
    pub at: String,
    /// The node at fault in one line, `y = Add(a, b)`.
    pub node: Option<String>,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)?;
        match &self.node {
            Some(node) => write!(f, "\n    {node}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a graph at this phase; empty if nothing is.
pub fn verify(graph: &Graph, phase: Phase) -> Vec<Finding> {
    verify_with(graph, phase, &FxHashSet::default())
}

/// Everything that is wrong with a model's graph at this phase; domains of local functions count as imported.
pub fn verify_model(model: &Model, phase: Phase) -> Vec<Finding> {
    let functions = model.functions().map(|(domain, _)| domain.to_string());
    verify_with(&model.graph, phase, &functions.collect())
}

fn verify_with(graph: &Graph, phase: Phase, local: &FxHashSet<String>) -> Vec<Finding> {
    let mut check = Check {
        phase,
        local,
        root: graph,
        path: String::new(),
        findings: Vec::new(),
    };
    check.graph(graph, None);
    check.findings
}

struct Check<'a> {
    phase: Phase,
    /// Domains of local functions.
    local: &'a FxHashSet<String>,
    root: &'a Graph,
    path: String,
    findings: Vec<Finding>,
}

/// What a nested graph may capture.
struct Owner<'a> {
    graph: &'a Graph,
    node: NodeId,
    /// Captured positions that some nested graph names.
    named: FxHashSet<u32>,
}

fn exists(graph: &Graph, v: ValueId) -> bool {
    v.index() < graph.value_bound()
}

fn value_label(graph: &Graph, v: ValueId) -> String {
    match exists(graph, v) {
        true if !graph.value(v).name().is_empty() => format!("value '{}'", graph.value(v).name()),
        _ => format!("value #{}", v.index()),
    }
}

fn slot_label(slot: Slot) -> String {
    match slot {
        Slot::Input(k) => format!("operand {k}"),
        Slot::Capture(k) => format!("capture {k}"),
    }
}

/// The node in one line.
fn node_text(graph: &Graph, id: NodeId) -> Option<String> {
    let node = graph.get(id)?;
    let name = |v: &Option<ValueId>| match v {
        Some(v) if exists(graph, *v) && !graph.value(*v).name().is_empty() => {
            graph.value(*v).name().to_string()
        }
        Some(v) => format!("#{}", v.index()),
        None => "\"\"".to_string(),
    };
    let list = |values: &[Option<ValueId>]| values.iter().map(name).collect::<Vec<_>>().join(", ");
    let (outputs, inputs) = (list(node.outputs()), list(node.inputs()));
    Some(format!("{outputs} = {}({inputs})", node.op()))
}

impl<'a> Check<'a> {
    fn say(&mut self, at: &str, what: String) {
        self.findings.push(Finding {
            at: format!("{}{at}", self.path),
            node: None,
            what,
        });
    }

    fn say_node(&mut self, graph: &Graph, id: NodeId, what: String) {
        let sound = graph.get(id).is_some_and(|n| {
            let mut outputs = n.outputs().iter().flatten();
            outputs.all(|v| exists(graph, *v))
        });
        let label = match sound {
            true => graph.label(id),
            false => format!("node #{}", id.index()),
        };
        self.findings.push(Finding {
            at: format!("{}{label}", self.path),
            node: node_text(graph, id),
            what,
        });
    }

    fn graph(&mut self, graph: &'a Graph, mut owner: Option<&mut Owner<'a>>) {
        let before = self.findings.len();
        self.definitions(graph, &mut owner);
        self.uses(graph);
        self.outputs(graph);
        if self.findings.len() == before
            && let Err(cycle) = graph.topo_order()
        {
            self.say_node(graph, cycle.id, "is part of a cycle".into());
        }
        if owner.is_none() {
            self.public_names(graph);
        }
        for (id, _) in graph.nodes() {
            self.node(graph, id);
        }
    }

    fn public_names(&mut self, graph: &Graph) {
        let mut inputs: FxHashMap<&str, ValueId> = FxHashMap::default();
        for (k, &v) in graph.inputs().iter().enumerate() {
            if !exists(graph, v) {
                continue;
            }
            let name = graph.value(v).name();
            if name.is_empty() {
                self.say(&format!("input {k}"), "has no name".into());
            } else if inputs.insert(name, v).is_some() {
                self.say(
                    &format!("input '{name}'"),
                    "bears the name of another input".into(),
                );
            }
        }
        let mut outputs = FxHashSet::default();
        for (k, output) in graph.outputs().iter().enumerate() {
            let at = format!("output '{}'", output.name);
            if output.name.is_empty() {
                self.say(&format!("output {k}"), "has no name".into());
            } else if !outputs.insert(&*output.name) {
                self.say(&at, "bears the name of another output".into());
            } else if inputs
                .get(&*output.name)
                .is_some_and(|&v| v != output.value)
            {
                self.say(
                    &at,
                    "bears the name of an input that it does not give".into(),
                );
            }
        }
    }

    fn node(&mut self, graph: &'a Graph, id: NodeId) {
        let Some(node) = graph.get(id) else { return };
        let op = node.op();
        if op.name().is_empty() {
            self.say_node(graph, id, "has no operator".into());
        }
        self.domain(graph, id);
        for what in dtypes::check(graph, id) {
            self.say_node(graph, id, what);
        }
        let mut owner = Owner {
            graph,
            node: id,
            named: FxHashSet::default(),
        };
        let mut nested = false;
        for (name, attr) in node.attrs().iter() {
            for (k, inner) in attr.graphs().iter().enumerate() {
                if op.domain().is_empty() && !is_control_flow(op) {
                    let what =
                        format!("attribute '{name}' holds a graph, which {op} does not take");
                    self.say_node(graph, id, what);
                }
                nested = true;
                let at = match attr.graphs().len() {
                    1 => format!("{} in {name}, ", graph_label(graph, id)),
                    _ => format!("{} in {name}[{k}], ", graph_label(graph, id)),
                };
                let outer = std::mem::take(&mut self.path);
                self.path = format!("{outer}{at}");
                self.graph(inner, Some(&mut owner));
                self.path = outer;
            }
        }
        for k in 0..node.captures().len() {
            if !owner.named.contains(&(k as u32)) {
                let why = if nested {
                    "none of its nested graphs reads"
                } else {
                    "it has no nested graph to read"
                };
                self.say_node(
                    graph,
                    id,
                    format!("captures a value at position {k} that {why}"),
                );
            }
        }
    }

    fn domain(&mut self, graph: &Graph, id: NodeId) {
        let Some(op) = graph.get(id).map(|n| n.op()) else {
            return;
        };
        let domain = op.domain();
        if domain == INTERNAL_DOMAIN {
            if self.phase >= Phase::Lowered {
                let what = format!(
                    "is internal to the compiler, but the graph is {}",
                    self.phase
                );
                self.say_node(graph, id, what);
            }
            return;
        }
        let outermost = self.root.opsets().get(domain);
        let here = graph.opsets().get(domain);
        if here != outermost {
            let say = |v: Option<i64>| v.map_or("none".to_string(), |v| v.to_string());
            let (here, outermost) = (say(here), say(outermost));
            let what =
                format!("is read by operator set {here}, the outermost graph imports {outermost}");
            self.say_node(graph, id, what);
        } else if here.is_none() && !self.local.contains(domain) {
            let name = if domain.is_empty() { "ai.onnx" } else { domain };
            self.say_node(
                graph,
                id,
                format!("is of domain '{name}', which is not imported"),
            );
        }
    }
}

fn graph_label(graph: &Graph, id: NodeId) -> String {
    match graph.get(id) {
        Some(node) if !node.name().is_empty() => node.name().to_string(),
        Some(node) => format!("{} #{}", node.op(), id.index()),
        None => format!("node #{}", id.index()),
    }
}

#[cfg(test)]
mod tests;
