//! Internal activations become what the target has for them.

use kiln_graph::{Attrs, Graph, NodeId, ops};

use crate::core::expand::expand;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;
use crate::core::target::Target;
use crate::fuse::fuse_swish;

#[derive(Debug)]
pub struct LowerActivations;

impl Rule for LowerActivations {
    fn name(&self) -> &'static str {
        "lower-activations"
    }

    fn about(&self) -> &'static str {
        "internal.Swish becomes QuickGelu for ONNX Runtime, Sigmoid and Mul elsewhere"
    }

    fn details(&self) -> String {
        "ONNX Runtime's com.microsoft.QuickGelu computes x · σ(alpha · x) in one pass over the data. TensorRT fuses \
         pointwise operators by itself, and standard ONNX has Swish from operator set 24 on only: both get the body \
         that fuse-swish reads."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn imports(&self, target: &Target) -> &'static [(&'static str, i64)] {
        target.facts.imports
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let swish = ops::internal::Swish::of(g, root).ok_or_else(Miss::none)?;
        let (Some(x), Some(y)) = (swish.input(0), swish.output(0)) else {
            return Err(Miss::none());
        };
        let native = cx.target.facts.swish.as_ref();
        if let Some(native) = native.and_then(|n| n.over(g, x)) {
            let attrs = Attrs::new().with("alpha", swish.alpha());
            let mut patch = Patch::new();
            let made = patch.node(native, [x.into()], attrs);
            patch.replace(y, made);
            return Ok(patch);
        }
        expand(g, root, &fuse_swish::body)
    }
}
