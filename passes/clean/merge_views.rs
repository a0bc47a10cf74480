//! Chains that only rearrange elements become the shortest that does.

use kiln_graph::{Graph, NodeId};

use crate::analysis::view::View;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct MergeViews;

impl Rule for MergeViews {
    fn name(&self) -> &'static str {
        "merge-views"
    }

    fn about(&self) -> &'static str {
        "rewrite chains of Reshape, Transpose, Squeeze, Unsqueeze, Flatten and picking one index as the shortest chain"
    }

    fn details(&self) -> String {
        "A chain that only rearranges elements is composed into one rearrangement, with sizes kept symbolic, and written \
         again as at most Split, Reshape, Transpose, Reshape. So the many spellings of splitting heads become one: \
         `Reshape(x, {-1, s, 16})`, `Transpose`, `Reshape(…, {b, 4, 16, s})` of a value of shape [b, 4, s, 16] is one \
         Transpose. Picking one of several packed parts becomes an output of Split. Applied where fewer nodes are left, \
         or as many but none with a computed shape; where parts are picked out of one rearrangement that nothing else \
         reads, all of them, so that they are split before they are moved."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &[
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Gather",
        ]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let output = g.node(root).output(0).ok_or_else(Miss::none)?;
        let view = View::of(g, &cx.facts, output).ok_or_else(Miss::none)?;
        if view.nodes.is_empty() {
            return Err(Miss::none());
        }
        let depth = view.nodes.len();
        let mut patch = Patch::new();
        let (made, count) = view.emit(g, &mut patch).ok_or_else(|| {
            Miss::at(
                view.source,
                depth,
                "two dimensions of its shape would have to be computed",
            )
        })?;
        let dying = view.dying(g);
        let odd = view.nodes[..dying].iter().any(|&n| {
            let shape = g.node(n).input(1);
            let computed = shape.is_some_and(|v| g.constant(v).is_none());
            g.node(n).op().is("Reshape") && computed || g.node(n).op().is("Gather")
        });
        let unpacked = view.is_unpacked(g) && count <= depth;
        if count < dying || (count == dying && odd) || unpacked {
            patch.replace(output, made);
            return Ok(patch);
        }
        Err(Miss::at(view.source, depth, "it is as short as can be"))
    }
}
