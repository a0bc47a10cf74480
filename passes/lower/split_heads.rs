//! Packed projections in the form that TensorRT moves once.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::heads::Heads;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct SplitHeads;

impl Rule for SplitHeads {
    fn name(&self) -> &'static str {
        "split-heads"
    }

    fn about(&self) -> &'static str {
        "split packed projections by heads instead of by channels, where a bias is added to them or they multiply in 8 bits"
    }

    fn details(&self) -> String {
        "`Split(Add(MatMul(x, [wq wk wv]), b))` whose parts are each reshaped to [batch, seq, heads, size] becomes one Reshape \
         to all heads, and a Split of these. The numbers stay where they are. TensorRT takes a Split of channels apart into a product \
         for each part, packs these again without their biases, and adds each bias in a kernel of its own that moves heads: \
         four kernels before attention. Split by heads they are two: the product with its bias, and one that moves all three. \
         Keys and values that are repeated for groups of queries cost as much without biases, and a product of 8-bit numbers \
         that is split by channels multiplies in 16 bits. Other products without a bias stay: attention reads them where \
         they lie. So do repeated keys behind norms, which cost bytes (measured by the builder's list of kernels, TensorRT \
         for RTX 1.7.1)."
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
        let product = Product::of(g, whole, MAX_STEPS)
            .ok_or_else(|| Miss::at(whole, 1, "it is no product with a weight"))?;
        let parts = node.outputs().iter().map(|v| Heads::of(g, (*v)?, lead));
        let parts = parts.collect::<Option<Vec<_>>>();
        let parts = parts.ok_or_else(|| Miss::because("a part is not reshaped to heads alone"))?;
        let [first, ..] = parts.as_slice() else {
            return Err(Miss::none());
        };
        if parts.iter().any(|p| p.size != first.size) {
            return Err(Miss::because("heads differ in size"));
        }
        let repeated = parts.iter().any(|p| meets(g, p, &["Expand"]));
        let norms = &["LayerNormalization", "RMSNormalization"];
        let costs_bytes = repeated && parts.iter().any(|p| meets(g, p, norms));
        if !product.quantized && (costs_bytes || !(product.biased || repeated)) {
            return Err(Miss::because("attention reads its parts where they lie"));
        }
        if !cx.target.facts.packs_products {
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

/// Whether heads that are only moved and cast meet one of these operators.
fn meets(g: &Graph, heads: &Heads, ops: &[&str]) -> bool {
    let mut at = heads.output;
    for _ in 0..MAX_STEPS {
        let mut readers = g.value(at).uses().iter().map(|usage| g.node(usage.node));
        if readers.clone().any(|node| node.op().is_any(ops)) {
            return true;
        }
        let moves = &["Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast"];
        let next = readers.find(|node| node.op().is_any(moves) && node.input(0) == Some(at));
        let Some(made) = next.and_then(|node| node.output(0)) else {
            return false;
        };
        at = made;
    }
    false
}

/// How many nodes are followed from a product to its Split, and from there to attention.
const MAX_STEPS: usize = 6;

/// What packed projections are made of.
#[derive(Clone, Copy)]
struct Product {
    /// A vector is added.
    biased: bool,
    /// It multiplies 8-bit numbers.
    quantized: bool,
}

impl Product {
    /// The product behind `v`, a sum of products where channels stand apart, with factors of columns and a bias.
    fn of(g: &Graph, v: ValueId, steps: usize) -> Option<Product> {
        let node = g.node(g.producer(v)?);
        let steps = steps.checked_sub(1)?;
        let (a, b) = (node.input(0)?, node.input(1));
        let vector = |v: ValueId| g.value(v).ty().rank().is_some_and(|rank| rank <= 1);
        if node.op().is("MatMul") {
            let quantized = g.producer_if(a, "DequantizeLinear").is_some();
            let biased = false;
            return Some(Product { biased, quantized });
        } else if node.op().is("Cast") {
            return Product::of(g, a, steps);
        } else if !node.op().is_any(&["Add", "Mul"]) {
            return None;
        }
        let (b, sum) = (b?, node.op().is("Add"));
        match (vector(a), vector(b)) {
            (true, true) => None,
            (false, false) if sum => {
                let (a, b) = (Product::of(g, a, steps)?, Product::of(g, b, steps)?);
                Some(Product {
                    biased: a.biased || b.biased,
                    quantized: a.quantized || b.quantized,
                })
            }
            (false, false) => None,
            (left, _) => {
                let inner = Product::of(g, if left { b } else { a }, steps)?;
                let biased = inner.biased || sum;
                Some(Product { biased, ..inner })
            }
        }
    }
}
