//! Rules: pure functions from a root node to a patch, and the one loop that applies them.

use kiln_graph::{Graph, Model, NodeId};

use super::fusion::Fusion;
use super::pass::{Context, Exactness, Miss, Pass, PassFailure, in_each_graph};
use super::patch::Patch;
use super::target::Target;

/// A local rewrite. It reads the graph and gives a change; it never mutates and keeps no state.
pub trait Rule: Sync {
    fn name(&self) -> &'static str;
    fn about(&self) -> &'static str;
    fn details(&self) -> String;
    fn exactness(&self) -> Exactness;

    /// Operators of the default domain at whose nodes the rule may apply; empty for all nodes.
    fn roots(&self) -> &[&'static str];

    /// The oldest operator set in whose signatures it writes nodes; it leaves older graphs alone.
    fn since(&self) -> i64 {
        1
    }

    /// Domains beside the default one whose operators the rule makes for a target, with their versions.
    fn imports(&self, _: &Target) -> &'static [(&'static str, i64)] {
        &[]
    }

    /// The rule as data, if it is a [`Fusion`].
    fn fusion(&self) -> Option<&Fusion> {
        None
    }

    /// Whether [`Context::facts`] must be there.
    fn needs_facts(&self) -> bool {
        false
    }

    /// The change at `root`.
    ///
    /// # Errors
    /// A miss: where the rule stopped matching and why.
    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss>;
}

/// Sweeps over the graph after which rules that still apply are a defect of the rules.
const MAX_ROUNDS: usize = 64;

impl<R: Rule> Pass for R {
    fn name(&self) -> &'static str {
        Rule::name(self)
    }

    fn about(&self) -> &'static str {
        Rule::about(self)
    }

    fn details(&self) -> String {
        Rule::details(self)
    }

    fn exactness(&self) -> Exactness {
        Rule::exactness(self)
    }

    fn fusion(&self) -> Option<&Fusion> {
        Rule::fusion(self)
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        // What an earlier run of the same rule missed may have changed since.
        cx.misses.retain(|m| m.pass != Rule::name(self));
        let mut outermost = true;
        let applied = in_each_graph(model, &mut |g| {
            // The outermost graph comes first; facts of it are none of the others'.
            cx.current &= outermost || !self.needs_facts();
            cx.in_body = !outermost;
            outermost = false;
            settle(self, g, cx)
        });
        cx.in_body = false;
        let applied = applied?;
        if applied > 0 {
            import(model, self.imports(cx.target));
        }
        Ok(applied)
    }
}

/// Imports these domains where an operator of them is in use.
fn import(model: &mut Model, domains: &[(&str, i64)]) {
    for &(domain, version) in domains {
        let mut used = false;
        model.graph.for_each_graph(&mut |g| {
            used |= g.nodes().any(|(_, node)| node.op().domain() == domain);
        });
        if used && model.graph.opsets().get(domain).is_none() {
            model
                .graph
                .for_each_graph_mut(&mut |g| g.opsets_mut().set(domain, version));
        }
    }
}

/// Applies a rule at every root, sweep after sweep, until it applies nowhere.
fn settle(rule: &dyn Rule, g: &mut Graph, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
    if g.opset() < rule.since() {
        return Ok(0);
    }
    let mut applied = 0;
    let mut last = String::new();
    let missed = cx.misses.len();
    let mut inferred = cx.current;
    for _ in 0..MAX_ROUNDS {
        let before = applied;
        if rule.needs_facts() && !std::mem::take(&mut inferred) {
            cx.facts = kiln_graph::infer::infer(g);
        }
        // Only what still stands in the last sweep is a miss.
        cx.misses.truncate(missed);
        for root in g.topo_order()? {
            let interested =
                |op: kiln_graph::Op| rule.roots().is_empty() || op.is_any(rule.roots());
            // An application earlier in the sweep may have removed the node.
            if !g.get(root).is_some_and(|node| interested(node.op())) {
                continue;
            }
            match rule.rewrite(g, root, cx) {
                Err(miss) => cx.record(rule.name(), g, root, miss),
                Ok(mut patch) => {
                    if !cx.admit(rule.name(), || g.label(root)) {
                        return Ok(applied);
                    }
                    last = g.label(root);
                    cx.current = false;
                    let remarks = patch.take_remarks();
                    patch
                        .apply(g, root, rule.name())
                        .map_err(|e| PassFailure::Node {
                            node: last.clone(),
                            why: format!("the rewrite does not fit: {e}"),
                        })?;
                    cx.remarks.extend(remarks);
                    applied += 1;
                }
            }
        }
        if applied == before {
            return Ok(applied);
        }
    }
    Err(PassFailure::Unsettled {
        rounds: MAX_ROUNDS,
        node: last,
    })
}
