//! Packed projections with a bias in the form that TensorRT moves once.

use kiln_graph::{Attrs, Dim, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::pass::{Context, Exactness, Miss};
use crate::patch::Patch;
use crate::rule::Rule;

#[derive(Debug)]
pub struct SplitHeads;

impl Rule for SplitHeads {
    fn name(&self) -> &'static str {
        "split-heads"
    }

    fn about(&self) -> &'static str {
        "split packed projections by heads instead of by channels, where a bias is added to them"
    }

    fn details(&self) -> String {
        "`Split(Add(MatMul(x, [wq wk wv]), b))` whose parts are each reshaped to [batch, seq, heads, size] becomes one Reshape \
         to all heads, and a Split of these. The numbers stay where they are. TensorRT takes a Split of channels apart into a product \
         for each part, packs these again without their biases, and adds each bias in a kernel of its own that moves heads: \
         four kernels before attention. Split by heads they are two: the product with its bias, and one that moves all three \
         (measured by the builder's list of kernels, TensorRT for RTX 1.7.1). Without a bias it needs no kernel to move \
         heads as it is."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Split"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let split = ops::Split::of(g, root).ok_or_else(Miss::none)?;
        let node = g.node(root);
        let whole = node.input(0).ok_or_else(Miss::none)?;
        let lead = g.value(whole).ty().shape().and_then(|s| s.split_last());
        let (_, lead) = lead.ok_or_else(|| Miss::at(whole, 1, "its rank is unknown"))?;
        if ops::resolve_axis(split.axis(), lead.len() + 1) != Some(lead.len()) {
            return Err(Miss::because("it does not split channels"));
        }
        if !is_biased(g, whole) {
            return Err(Miss::at(whole, 1, "it is no product with a bias"));
        }
        let parts = node.outputs().iter().map(|v| Heads::of(g, (*v)?, lead));
        let parts = parts.collect::<Option<Vec<_>>>();
        let parts = parts.ok_or_else(|| Miss::because("a part is not reshaped to heads alone"))?;
        let [first, ..] = parts.as_slice() else {
            return Err(Miss::none());
        };
        if parts.iter().any(|p| p.size != first.size) {
            return Err(Miss::because("heads differ in size"));
        }
        if !cx.target.packs_products() {
            return Err(Miss::because(
                "the target computes products as they are written",
            ));
        }
        let counts: Vec<i64> = parts.iter().map(|p| p.count).collect();
        let mut shape = vec![0; lead.len()];
        shape.extend([counts.iter().sum(), first.size]);
        let mut patch = Patch::new();
        let shape = patch.constant(Tensor::vector(&shape));
        let heads = patch.node(Op::onnx("Reshape"), [whole.into(), shape], Attrs::new());
        let counts = patch.constant(Tensor::vector(&counts));
        let axis = lead.len() as i64;
        let made = patch.node_with(
            Op::onnx("Split"),
            [Some(heads), Some(counts)],
            parts.len(),
            Attrs::new().with("axis", axis),
        );
        for (part, made) in parts.iter().zip(made) {
            patch.replace(part.output, made);
        }
        Ok(patch)
    }
}

/// A part of packed projections as [.., count, size].
struct Heads {
    count: i64,
    size: i64,
    output: ValueId,
}

impl Heads {
    /// The one Reshape that reads `part`, if it takes the channels apart and leaves the leading axes alone.
    fn of(g: &Graph, part: ValueId, lead: &[Dim]) -> Option<Heads> {
        let value = g.value(part);
        let [usage] = value.uses() else { return None };
        let reshape = g.node(usage.node);
        (reshape.op().is("Reshape") && reshape.input(0) == Some(part) && !value.is_output())
            .then_some(())?;
        let output = reshape.output(0)?;
        let [front @ .., count, size] = g.value(output).ty().shape()? else {
            return None;
        };
        let same = |a: &Dim, b: &Dim| a == b && !a.is_anonymous();
        let alike = front.len() == lead.len() && front.iter().zip(lead).all(|(a, b)| same(a, b));
        let number = |d: &Dim| i64::try_from(d.known()?).ok();
        alike.then_some(Heads {
            count: number(count)?,
            size: number(size)?,
            output,
        })
    }
}

/// Whether a value is the sum of a product with a weight and a vector.
fn is_biased(g: &Graph, v: ValueId) -> bool {
    let Some(add) = g.producer_if(v, "Add") else {
        return false;
    };
    let inputs = g.node(add).inputs().iter().flatten();
    let vector = |&&v: &&ValueId| g.value(v).ty().rank() == Some(1);
    let product = |&&v: &&ValueId| g.producer_if(v, "MatMul").is_some();
    inputs.clone().any(|v| vector(&v)) && inputs.clone().any(|v| product(&v))
}
