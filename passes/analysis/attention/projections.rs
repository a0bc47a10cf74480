//! The projections in front of an attention, and which of them are of one input.

use kiln_graph::ops::InternalAttention;
use kiln_graph::{Graph, Tensor, ValueId};

use crate::core::pass::Miss;

/// `x · weight + bias`, for one operand of attention.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'g> {
    pub x: ValueId,
    pub weight: &'g Tensor,
    pub bias: Option<&'g Tensor>,
    pub output: ValueId,
}

impl Projection<'_> {
    pub fn width(&self) -> usize {
        self.weight.dims().last().copied().unwrap_or(0)
    }

    /// The bias, or zeros of the weight's type.
    pub fn offset(&self) -> Option<Tensor> {
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
