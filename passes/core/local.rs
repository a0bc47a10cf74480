//! A rule whose head is data.

use std::fmt;

use kiln_graph::{Graph, NodeId};

use super::pass::{Context, Exactness, Miss};
use super::patch::Patch;
use super::rule::Rule;
use super::target::Target;

/// A rule that looks at every node, by what inference knows of the graph ([`Context::facts`]).
pub struct Local {
    pub name: &'static str,
    pub about: &'static str,
    /// Why it holds, and what it leaves alone.
    pub why: &'static str,
    pub exactness: Exactness,
    /// The oldest operator set in whose signatures it writes nodes.
    pub since: i64,
    /// It makes operators of the target's own.
    pub native: bool,
    /// The change at a root.
    pub at: fn(&Graph, NodeId, &Context<'_>) -> Result<Patch, Miss>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.name).finish()
    }
}

impl Rule for Local {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn details(&self) -> String {
        self.why.into()
    }

    fn exactness(&self) -> Exactness {
        self.exactness
    }

    fn since(&self) -> i64 {
        self.since
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn imports(&self, target: &Target) -> &'static [(&'static str, i64)] {
        if self.native {
            target.facts.imports
        } else {
            &[]
        }
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        (self.at)(g, root, cx)
    }
}
