//! One change of the pass.

use kiln_graph::{Graph, NodeId};

use crate::core::pass::PassFailure;
use crate::core::patch::Patch;

pub(super) const NAME: &str = "simplify-masks";

/// Depths of misses: what repeats a number, and masks.
pub(super) const SPLAT: usize = 1;
pub(super) const MASK: usize = 2;

pub(super) fn apply(g: &mut Graph, root: NodeId, patch: Patch) -> Result<(), PassFailure> {
    let node = g.label(root);
    (patch.apply(g, root, NAME)).map_err(|e| PassFailure::Node {
        node,
        why: format!("the rewrite does not fit: {e}"),
    })
}
