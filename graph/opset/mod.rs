//! Raising the version of the default ONNX operator set.
//!
//! [`convert`] rewrites a graph, and the graphs nested in it, from the version the model imports to a newer one. Each
//! operator that changed its meaning or its signature on the way has one adapter per changing version, all of them in
//! one table (`steps`); a version that only admits more types, more shapes or new optional attributes and inputs needs
//! none. The graph goes up one version at a time, so an adapter sees the form just below its version and leaves the form
//! of its version.
//!
//! - Versions are raised, never lowered: a model at or above the wanted version stays as it is.
//! - A node that cannot be carried over is an error that names it and the version in the way; the model is then left as
//!   it was.
//! - Operators of other domains stay, and so do operators that this table has never heard of.
//! - Bodies of local functions ([`Model::functions`]) are not touched: each carries the operator sets it was written for.
//!   But runtimes inline them under the model's, so a body with an operator that changes on the way is an error.
//!
//! Facts are those of ONNX's `docs/Changelog.md`. Where an old version left something open (the rounding of `Resize-10`),
//! ONNX Runtime's reading is taken. Two differences are accepted: `OneHot-11` gives meaning to negative indices, which
//! `OneHot-9` mapped to all off; and the mask of a dropout in inference is all ones from `Dropout-12` on, where nothing
//! said what it held before.

mod below7;
mod cx;
mod error;
mod functions;
mod inputs;
mod meaning;
mod resize;
mod steps;
#[cfg(test)]
mod tests;

use rustc_hash::FxHashSet;

use self::cx::Cx;
use self::steps::{Adapter, Steps};
use crate::infer::{self, Facts};
use crate::{Graph, Model, Op};

pub use self::error::{NEWEST, OpsetError};

/// What a conversion did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Converted {
    pub from: i64,
    /// The version that the model imports now: the wanted one, or a higher one that it already had.
    pub to: i64,
    /// How many nodes were rewritten, nested graphs included.
    pub nodes: usize,
}

/// Raises the default operator set of a model to version `to`; does nothing if it is there or above.
///
/// # Errors
/// When `to` is newer than [`NEWEST`], or when a node cannot be carried over; the model is then unchanged.
pub fn convert(model: &mut Model, to: i64) -> Result<Converted, OpsetError> {
    if to > NEWEST {
        return Err(OpsetError::Unknown { to });
    }
    let Some(from) = model.graph.opsets().get("") else {
        // Nothing can be of the default domain yet; whatever is added from now on is of this version.
        set_version(&mut model.graph, to);
        let from = to;
        return Ok(Converted { from, to, nodes: 0 });
    };
    if from < 1 {
        return Err(OpsetError::Invalid { from });
    }
    if from >= to {
        let to = from;
        return Ok(Converted { from, to, nodes: 0 });
    }
    let mut steps = steps::by_operator();
    // A local function hides the operator of its name.
    for (_, name) in model
        .functions()
        .filter(|(domain, _)| functions::is_default(domain))
    {
        steps.remove(name);
    }
    functions::check(model, &steps, from, to)?;
    let conversion = Conversion { from, to, steps };
    let mut nodes = 0;
    if conversion.is_work(&model.graph) {
        // Tensors are shared, so this copies no weights.
        let mut graph = model.graph.clone();
        let facts = infer::infer(&graph);
        nodes = conversion.graph(&mut graph, &facts)?;
        model.graph = graph;
    }
    set_version(&mut model.graph, to);
    Ok(Converted { from, to, nodes })
}

fn set_version(graph: &mut Graph, to: i64) {
    graph.for_each_graph_mut(&mut |g| g.opsets_mut().set("", to));
}

struct Conversion {
    from: i64,
    to: i64,
    steps: Steps,
}

impl Conversion {
    fn adapter(&self, op: Op, version: i64) -> Option<Adapter> {
        let steps = self
            .steps
            .get(op.name())
            .filter(|_| op.domain().is_empty())?;
        let step = steps.iter().find(|(v, _)| *v == version);
        step.map(|(_, adapter)| *adapter)
    }

    /// Whether any node has an adapter on the way.
    fn is_work(&self, graph: &Graph) -> bool {
        let mut found = false;
        graph.for_each_graph(&mut |g| {
            found = found
                || g.nodes().any(|(_, node)| {
                    (self.from + 1..=self.to).any(|v| self.adapter(node.op(), v).is_some())
                });
        });
        found
    }

    /// Converts a graph and the graphs nested in it; gives the number of nodes rewritten.
    fn graph(&self, graph: &mut Graph, facts: &Facts) -> Result<usize, OpsetError> {
        let ids: Vec<_> = graph.nodes().map(|(id, _)| id).collect();
        let mut nodes = 0;
        for &id in &ids {
            let inner = graph.attrs_mut(id).values_mut();
            let none = Facts::default();
            for (k, inner) in inner.flat_map(|a| a.graphs_mut()).enumerate() {
                let facts = facts.nested(id).get(k).unwrap_or(&none);
                nodes += self.graph(inner, facts)?;
            }
        }
        let mut rewritten = FxHashSet::default();
        for version in self.from + 1..=self.to {
            let ids: Vec<_> = graph.nodes().map(|(id, _)| id).collect();
            let mut cx = Cx::new(graph, facts, self.to);
            for id in ids {
                let Some(op) = cx.graph.get(id).map(|n| n.op()) else {
                    continue;
                };
                let Some(adapter) = self.adapter(op, version) else {
                    continue;
                };
                let changed = adapter(&mut cx, id).map_err(|why| OpsetError::Node {
                    node: cx.graph.label(id),
                    op,
                    version,
                    from: self.from,
                    to: self.to,
                    why,
                })?;
                if changed {
                    rewritten.insert(id);
                }
            }
            graph.opsets_mut().set("", version);
        }
        let existed = |id: &&crate::NodeId| ids.binary_search(id).is_ok();
        Ok(nodes + rewritten.iter().filter(existed).count())
    }
}
