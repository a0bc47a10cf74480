//! Rules: pure functions from a root node to a patch, and the one loop that applies them.

use kiln_graph::{Graph, Model, NodeId};

use crate::pass::{Context, Exactness, Miss, Pass, PassFailure};
use crate::patch::Patch;
use crate::target::Target;

/// A local rewrite. It reads the graph and gives a change; it never mutates and keeps no state.
pub trait Rule: Sync {
    fn name(&self) -> &'static str;
    fn about(&self) -> &'static str;
    fn details(&self) -> String;
    fn exactness(&self) -> Exactness;

    /// Operators of the default domain at whose nodes the rule may apply; empty for all nodes.
    fn roots(&self) -> &[&'static str];

    /// Domains beside the default one whose operators the rule makes for a target, with their versions.
    fn imports(&self, _: &Target) -> &'static [(&'static str, i64)] {
        &[]
    }

    /// Whether the model is unusable without it, so that a limit of applications does not stop it.
    fn is_required(&self) -> bool {
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

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let mut applied = 0;
        let mut failure = None;
        model.graph.for_each_graph_mut(&mut |g| {
            if failure.is_none() {
                match settle(self, g, cx) {
                    Ok(n) => applied += n,
                    Err(e) => failure = Some(e),
                }
            }
        });
        match failure {
            Some(e) => Err(e),
            None => {
                if applied > 0 {
                    import(model, self.imports(cx.target));
                }
                Ok(applied)
            }
        }
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
    let mut applied = 0;
    let mut last = String::new();
    for round in 0..MAX_ROUNDS {
        let before = applied;
        for root in g.topo_order()? {
            let interested =
                |op: kiln_graph::Op| rule.roots().is_empty() || op.is_any(rule.roots());
            // An application earlier in the sweep may have removed the node.
            if !g.get(root).is_some_and(|node| interested(node.op())) {
                continue;
            }
            match rule.rewrite(g, root, cx) {
                Err(miss) if round == 0 || applied > 0 => cx.record(rule.name(), g, root, miss),
                Err(_) => {}
                Ok(patch) => {
                    if !rule.is_required() && !cx.admit() {
                        return Ok(applied);
                    }
                    last = g.label(root);
                    patch
                        .apply(g, root, rule.name())
                        .map_err(|e| PassFailure::Node {
                            node: last.clone(),
                            why: format!("the rewrite does not fit: {e}"),
                        })?;
                    applied += 1;
                }
            }
        }
        if applied == before {
            return Ok(applied);
        }
        if cx.explain {
            // Only what still stands after the last sweep is a miss.
            cx.misses.retain(|m| m.pass != rule.name());
        }
    }
    Err(PassFailure::Unsettled {
        rounds: MAX_ROUNDS,
        node: last,
    })
}
