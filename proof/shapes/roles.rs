//! What an axis counts, read off what the graph does along it, and the sizes that such an axis has by default.

use std::collections::{BTreeMap, BTreeSet};

use kiln_graph::infer::{Expr, Facts};
use kiln_graph::{Def, Dim, Graph, NodeId, ValueId};

use super::{Input, Range};

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Batch,
    /// Tokens, frames, whatever has no other role.
    Length,
    /// What a cache holds already: a new part is joined to it.
    Past,
    /// What is joined to a past.
    New,
    /// Height or width of a picture.
    Image,
    /// Width of a picture whose height is fixed, such as a line of text.
    Line,
    /// Samples of a sound.
    Samples,
}

impl Role {
    /// Sizes by default. A batch of eight and 512 tokens is what sentence encoders and translators are served with, one
    /// token after the other what decoders are, 224 to 640 pixels what classifiers and detectors take, a second to ten
    /// at 16 kHz what speech is cut into.
    pub fn range(self) -> Range {
        let (min, opt, max) = match self {
            Role::Batch => (1, 1, 8),
            Role::Length => (1, 128, 512),
            Role::Past => (0, 128, 512),
            Role::New => (1, 1, 512),
            Role::Image => (224, 224, 640),
            Role::Line => (32, 320, 640),
            Role::Samples => (1600, 16_000, 160_000),
        };
        Range { min, opt, max }
    }
}

/// The roles of stand-ins by what the graph does, with those below each node.
pub(super) fn by_use(graph: &Graph, facts: &Facts) -> BTreeMap<String, Role> {
    let mut roles = BTreeMap::new();
    let tokens = tokens(graph, facts);
    walk(graph, facts, &mut |g, facts, id| {
        let windows = windows(g, facts, id).into_iter();
        for (name, role) in windows.filter(|(name, _)| !tokens.contains(name)) {
            let known = roles.entry(name).or_insert(role);
            if role == Role::Samples {
                *known = role;
            }
        }
    });
    for name in lists(graph, facts) {
        roles.entry(name).or_insert(Role::Length);
    }
    for (past, new) in joins(graph, facts) {
        roles.insert(past, Role::Past);
        for name in new {
            let role = roles.entry(name).or_insert(Role::New);
            if *role == Role::Length {
                *role = Role::New;
            }
        }
    }
    roles
}

/// What inputs that index tables count: a window over what their rows become slides over tokens, not over a picture or a sound.
fn tokens(graph: &Graph, facts: &Facts) -> BTreeSet<String> {
    let rows = graph.nodes().filter_map(|(_, node)| {
        let table = node.op().is("Gather") && graph.constant(node.input(0)?).is_some();
        let source = given_indices(graph, node.input(1).filter(|_| table)?)?;
        Some(facts.dims(source)?.iter().filter_map(Expr::lone_symbol))
    });
    rows.flatten().map(str::to_string).collect()
}

/// Lists whose items refer to each other, such as nodes and edges of a graph: what indices that are given point into, and
/// the lists of those. Not the list that the outputs are for, if there are others: that is a batch.
fn lists(graph: &Graph, facts: &Facts) -> BTreeSet<String> {
    let lone = |v: ValueId, axis: usize| Some(facts.dims(v)?.get(axis)?.lone_symbol()?.to_string());
    let pairs = graph.nodes().filter_map(|(_, node)| {
        let axis = match node.op().name() {
            "Gather" | "ScatterElements" | "GatherElements" => {
                node.attrs().int("axis").unwrap_or(0)
            }
            "GatherND" | "ScatterND" => 0,
            _ => return None,
        };
        let (of, by) = (node.input(0)?, node.input(1)?);
        let rank = facts.dims(of)?.len() as i64;
        if node.op().domain() != "" || (axis != 0 && axis + rank != 0) {
            return None;
        }
        let source = given_indices(graph, by)?;
        let along = facts.dims(source)?.iter().filter_map(|e| e.lone_symbol());
        let along: Vec<String> = along.map(str::to_string).collect();
        let of = lone(of, 0)?;
        // What is indexed by as many as it has is put into another order.
        (!along.is_empty() && !along.contains(&of)).then_some((of, along))
    });
    let pairs: Vec<(String, Vec<String>)> = pairs.collect();
    let fronts = graph.outputs().iter().filter_map(|o| lone(o.value, 0));
    let fronts: BTreeSet<String> = fronts.collect();
    let indexed: BTreeSet<String> = pairs.iter().map(|(of, _)| of.clone()).collect();
    let inner = indexed.iter().any(|of| !fronts.contains(of));
    let all = pairs
        .into_iter()
        .flat_map(|(of, along)| along.into_iter().chain([of]));
    all.filter(|name| !inner || !fronts.contains(name))
        .collect()
}

/// The input whose whole numbers these are, as they are or in another shape.
fn given_indices(graph: &Graph, v: ValueId) -> Option<ValueId> {
    match graph.value(v).def() {
        Def::Input(_) => {
            let whole = graph.value(v).ty().dtype().is_some_and(|d| !d.is_float());
            whole.then_some(v)
        }
        Def::Node(node, _) => {
            let node = graph.node(*node);
            let view = node.op().is_any(&[
                "Identity",
                "Cast",
                "Transpose",
                "Unsqueeze",
                "Squeeze",
                "Reshape",
                "Expand",
                "Gather",
                "Slice",
                "Split",
            ]);
            given_indices(graph, node.input(0).filter(|_| view)?)
        }
        _ => None,
    }
}

/// Stand-ins of lengths that a cache has before a run.
pub(super) fn pasts(graph: &Graph, facts: &Facts) -> BTreeSet<String> {
    joins(graph, facts)
        .into_iter()
        .map(|(past, _)| past)
        .collect()
}

fn walk(graph: &Graph, facts: &Facts, visit: &mut dyn FnMut(&Graph, &Facts, NodeId)) {
    for (id, node) in graph.nodes() {
        visit(graph, facts, id);
        let graphs = node.attrs().iter().flat_map(|(_, a)| a.graphs());
        for (inner, facts) in graphs.zip(facts.nested(id)) {
            walk(inner, facts, visit);
        }
    }
}

/// Names along axes that a window slides over.
fn windows(g: &Graph, facts: &Facts, id: NodeId) -> Vec<(String, Role)> {
    let node = g.node(id);
    let dims = |k: usize| facts.dims(node.input(k)?);
    let role_of = |axes: &[Expr], channels: Option<i64>| match axes {
        [_] if channels == Some(1) => Some(Role::Samples),
        [a, b] if a.as_i64().is_some() != b.as_i64().is_some() => Some(Role::Line),
        [_, _] => Some(Role::Image),
        _ => None,
    };
    let names = |axes: &[Expr], role: Role| {
        let names = axes.iter().flat_map(Expr::names);
        names.map(|n| (n, role)).collect::<Vec<_>>()
    };
    let op = node.op();
    if op.is_any(&["Conv", "ConvInteger", "MaxPool", "AveragePool"]) {
        let (Some([_, channels, axes @ ..]), group) = (dims(0), node.attrs().int("group")) else {
            return Vec::new();
        };
        let channels = channels.as_i64().filter(|_| group.unwrap_or(1) == 1);
        return role_of(axes, channels).map_or_else(Vec::new, |role| names(axes, role));
    }
    if op.is("STFT") {
        let samples = dims(0).and_then(|d| d.get(1));
        return samples.map_or_else(Vec::new, |s| names(std::slice::from_ref(s), Role::Samples));
    }
    Vec::new()
}

/// Where an input is joined with what a run computes: the name of its length, and those of the rest.
fn joins(graph: &Graph, facts: &Facts) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    walk(graph, facts, &mut |g, facts, id| {
        found.extend(join(g, facts, id))
    });
    found
}

fn join(g: &Graph, facts: &Facts, id: NodeId) -> Option<(String, BTreeSet<String>)> {
    let node = g.node(id);
    let size = |v: ValueId, axis: i64| {
        let dims = facts.dims(v)?;
        let axis = if axis < 0 {
            axis + dims.len() as i64
        } else {
            axis
        };
        dims.get(usize::try_from(axis).ok()?)
    };
    // Of three axes, only what comes out again is a cache: texts are joined to pictures in the same way.
    let given_back = node
        .outputs()
        .iter()
        .flatten()
        .any(|&v| g.value(v).is_output());
    let past = |v: ValueId, axis: i64, new: &Expr| {
        let name = size(v, axis)?.lone_symbol()?.to_string();
        let float = g
            .value(v)
            .ty()
            .dtype()
            .is_none_or(kiln_graph::DType::is_float);
        let rank = facts.dims(v)?.len();
        (float && (rank > 3 || rank == 3 && given_back) && !new.names().contains(&name))
            .then(|| (name, new.names()))
    };
    match (node.op().domain(), node.op().name()) {
        ("", "Concat") => {
            let axis = node.attrs().int("axis")?;
            let [Some(first), Some(second)] = node.inputs() else {
                return None;
            };
            let held = |v: ValueId| from_input(g, v);
            match (held(*first), held(*second)) {
                (true, false) => past(*first, axis, size(*second, axis)?),
                _ => None,
            }
        }
        ("", "Attention") => past(node.input(4)?, 2, size(node.input(1)?, -2)?),
        ("com.microsoft", "MultiHeadAttention") => {
            past(node.input(6)?, 2, size(node.input(1)?, 1)?)
        }
        _ => None,
    }
}

/// Whether a value is an input of the model, or only a view of one.
fn from_input(g: &Graph, v: ValueId) -> bool {
    match g.value(v).def() {
        Def::Input(_) | Def::Capture(_) => true,
        Def::Node(node, _) => {
            let node = g.node(*node);
            let view = node
                .op()
                .is_any(&["Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze"])
                || node.op().is_any(&["Gather", "Split", "Slice"]) && node.op().domain().is_empty();
            view && node.input(0).is_some_and(|v| from_input(g, v))
        }
        _ => false,
    }
}

/// Whether a dimension of this name counts the items served at once.
pub fn is_batch(symbol: &str) -> bool {
    let lower = symbol.to_ascii_lowercase();
    lower.contains("batch") || lower == "n" || lower == "b"
}

/// Roles of symbols by name and place: a batch is what is called so and stands in front, or what stands in front where
/// nothing is called so. Where it says "batch" in full, the place is no matter.
pub(super) fn by_place(inputs: &[Input]) -> BTreeMap<String, Role> {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for input in inputs {
        for (k, dim) in input.dims.iter().enumerate() {
            if let Dim::Symbol(s) = dim {
                places.entry(s).or_default().push(k);
            }
        }
    }
    let in_front = |s: &str| places[s].iter().all(|&k| k == 0);
    let called = |s: &&&str| {
        let long = s.to_ascii_lowercase().contains("batch");
        is_batch(s) && (long || in_front(s))
    };
    let named = places.keys().any(|s| called(&s));
    (places.keys())
        .map(|s| {
            let batch = called(&s) || !named && places[s].contains(&0);
            let role = if batch { Role::Batch } else { Role::Length };
            (s.to_string(), role)
        })
        .collect()
}
