//! Projections of one input for one attention become one product.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::Patch;
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct FuseQkv;

impl Rule for FuseQkv {
    fn name(&self) -> &'static str {
        "fuse-qkv"
    }

    fn about(&self) -> &'static str {
        "the query, key and value projections of one input become one MatMul with packed weights, and a Split"
    }

    fn details(&self) -> String {
        "`MatMul(x, wq)`, `MatMul(x, wk)` and `MatMul(x, wv)` of one attention become `Split(MatMul(x, [wq wk wv]))`, with \
         one Add for all biases; of cross-attention, keys and values. Sizes may differ, as they do with grouped queries. \
         Projections are found behind rearrangements, factors, norms and rotary embeddings. One large product keeps a GPU \
         busier than three small ones; on ONNX Runtime's CPU provider the Split costs what it saves (measured: 0.99 to \
         1.02 of the latency), so that target leaves them apart."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let attention = InternalAttention::of(g, root).ok_or_else(Miss::none)?;
        let parts = separate(g, &attention)?;
        if !cx.target.facts.packs_projections {
            return Err(Miss::because("packing does not pay on this target"));
        }
        let weights: Vec<&Tensor> = parts.iter().map(|p| p.weight).collect();
        let packed = Tensor::joined(&weights)
            .ok_or_else(|| Miss::because("the weights differ in rows or type"))?;
        let [first, ..] = parts.as_slice() else {
            return Err(Miss::none());
        };
        let mut patch = Patch::new();
        let weight = patch.constant(packed);
        let mut y = patch.node(Op::onnx("MatMul"), [first.x.into(), weight], Attrs::new());
        if parts.iter().any(|p| p.bias.is_some()) {
            let biases: Vec<Tensor> = parts
                .iter()
                .map(Projection::offset)
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    Miss::because(
                        "a projection without a bias is of no type that zeros are known of",
                    )
                })?;
            let bias = Tensor::joined(&biases.iter().collect::<Vec<_>>())
                .ok_or_else(|| Miss::because("the biases differ in type"))?;
            let bias = patch.constant(bias);
            y = patch.node(Op::onnx("Add"), [y, bias], Attrs::new());
        }
        let widths: Vec<i64> = parts.iter().map(|p| p.width() as i64).collect();
        let widths = patch.constant(Tensor::vector(&widths));
        let split = patch.node_with(
            Op::onnx("Split"),
            [Some(y), Some(widths)],
            parts.len(),
            Attrs::new().with("axis", -1i64),
        );
        for (part, made) in parts.iter().zip(split) {
            patch.replace(part.output, made);
        }
        Ok(patch)
    }
}

/// `x · weight + bias`, for one operand of attention.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'g> {
    pub x: ValueId,
    pub weight: &'g Tensor,
    pub bias: Option<&'g Tensor>,
    pub output: ValueId,
}

impl Projection<'_> {
    fn width(&self) -> usize {
        self.weight.dims().last().copied().unwrap_or(0)
    }

    fn offset(&self) -> Option<Tensor> {
        let zeros = Tensor::vector(&vec![0f32; self.width()]);
        match self.bias {
            Some(bias) => Some(bias.clone()),
            None if self.weight.dtype() == zeros.dtype() => Some(zeros),
            None => zeros.narrowed(self.weight.dtype()),
        }
    }
}

/// How far a projection may be from its attention, in nodes.
const MAX_STEPS: usize = 16;

/// The projection behind an operand of attention.
pub fn projection(g: &Graph, operand: ValueId) -> Option<Projection<'_>> {
    let mut at = operand;
    for _ in 0..MAX_STEPS {
        let node = g.node(g.producer(at)?);
        let (a, b) = (node.input(0)?, node.input(1));
        let vector = |v: Option<ValueId>| v.and_then(|v| g.constant(v)).filter(|t| t.rank() == 1);
        let passes = &[
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Cast",
            "LayerNormalization",
            "RMSNormalization",
        ];
        if node.op().is("MatMul") {
            let weight = g.constant(b?).filter(|t| t.rank() == 2)?;
            return Some(Projection {
                x: a,
                weight,
                bias: None,
                output: at,
            });
        } else if node.op().is("Add") {
            let (inner, bias) = match (vector(Some(a)), vector(b)) {
                (Some(t), None) => (b?, t),
                (None, Some(t)) => (a, t),
                _ => return None,
            };
            let product = g.node(g.producer_if(inner, "MatMul")?);
            let weight = g.constant(product.input(1)?).filter(|t| t.rank() == 2)?;
            let sole = g.value(inner).uses().len() == 1 && !g.value(inner).is_output();
            let fits = sole && Some(&bias.len()) == weight.dims().last();
            return fits.then_some(Projection {
                x: product.input(0)?,
                weight,
                bias: Some(bias),
                output: at,
            });
        } else if node.op().is_any(&["Mul", "Div"]) {
            let scalar =
                |v: Option<ValueId>| v.and_then(|v| g.constant(v)).is_some_and(|t| t.len() == 1);
            at = match (scalar(Some(a)), scalar(b)) {
                (false, true) => a,
                (true, false) if node.op().is("Mul") => b?,
                _ => return None,
            };
        } else if node.op().is_any(passes) || node.op().domain() == kiln_graph::INTERNAL_DOMAIN {
            at = a;
        } else {
            return None;
        }
    }
    None
}

/// The projections of an attention that could be one: at least two of the same input.
///
/// # Errors
/// Why there are none.
pub fn separate<'g>(
    g: &'g Graph,
    attention: &InternalAttention<'g>,
) -> Result<Vec<Projection<'g>>, Miss> {
    let operands = (0..3).filter_map(|k| attention.input(k));
    let found: Vec<Projection<'g>> = operands.filter_map(|v| projection(g, v)).collect();
    let shares = |p: &&Projection<'_>| {
        let alike = |q: &&Projection<'_>| q.x == p.x && q.output != p.output;
        found.iter().filter(alike).count() > 0
    };
    let mut parts: Vec<Projection<'g>> = Vec::new();
    for part in found.iter().filter(shares) {
        if !parts.iter().any(|p| p.output == part.output) {
            parts.push(*part);
        }
    }
    match parts.as_slice() {
        [_, _, ..] if parts.iter().all(|p| p.x == parts[0].x) => Ok(parts),
        _ if found.is_empty() => Err(Miss::because(
            "its operands come from no product with a weight",
        )),
        _ => Err(Miss::because(
            "no two of its operands are separate projections of one input",
        )),
    }
}
