//! Writes squares, roots and quotients in one way.

use kiln_graph::{Attrs, Graph, NodeId, Op, ValueId};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct NormalizePowers;

impl Rule for NormalizePowers {
    fn name(&self) -> &'static str {
        "normalize-powers"
    }

    fn about(&self) -> &'static str {
        "write squares, roots and reciprocals in one way, so that fusions need to know one spelling"
    }

    fn details(&self) -> String {
        "`Pow(x, 2)` becomes `Mul(x, x)`, `Pow(x, 0.5)` becomes `Sqrt(x)`, `Pow(x, -1)` and `Div(1, x)` become \
         `Reciprocal(x)`, `Pow(x, -0.5)` becomes `Reciprocal(Sqrt(x))`, and `Mul(x, Reciprocal(y))` becomes `Div(x, y)` \
         where nothing else reads the reciprocal."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &["Pow", "Div", "Mul"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let node = g.node(root);
        let (Some(a), Some(b), Some(y)) = (node.input(0), node.input(1), node.output(0)) else {
            return Err(Miss::none());
        };
        match node.op().name() {
            "Pow" => power(g, a, b, y),
            "Div" => match number(g, a, b) {
                Some(1.0) if is_float(g, b) => Ok(unary(&["Reciprocal"], b, y)),
                Some(_) => Err(Miss::at(a, 1, "the dividend is not 1")),
                None => Err(Miss::none()),
            },
            _ => quotient(g, a, b, y).or_else(|_| quotient(g, b, a, y)),
        }
    }
}

fn power(g: &Graph, x: ValueId, exponent: ValueId, y: ValueId) -> Result<Patch, Miss> {
    let value = number(g, exponent, x)
        .ok_or_else(|| Miss::at(exponent, 1, "the exponent is not one constant"))?;
    let mut patch = Patch::new();
    if value == 2.0 {
        let square = patch.node(Op::onnx("Mul"), [x.into(), x.into()], Attrs::new());
        patch.replace(y, square);
        return Ok(patch);
    }
    let chain: &[&str] = match value {
        0.5 => &["Sqrt"],
        -0.5 => &["Sqrt", "Reciprocal"],
        -1.0 => &["Reciprocal"],
        _ => {
            let why = format!("the exponent is {value}, which has no other spelling");
            return Err(Miss::at(exponent, 1, why));
        }
    };
    match is_float(g, x) {
        true => Ok(unary(chain, x, y)),
        false => Err(Miss::at(x, 1, "the base is not known to be a float")),
    }
}

/// `x · (1 / divisor)` as `x / divisor`.
fn quotient(g: &Graph, x: ValueId, inverse: ValueId, y: ValueId) -> Result<Patch, Miss> {
    let inner = g
        .producer_if(inverse, "Reciprocal")
        .ok_or_else(Miss::none)?;
    let divisor = g.node(inner).input(0).ok_or_else(Miss::none)?;
    if g.single_use(inverse).is_none() {
        let why = "the reciprocal is used elsewhere too, and multiplying is faster";
        return Err(Miss::at(inverse, 1, why));
    }
    let mut patch = Patch::new();
    let made = patch.node(Op::onnx("Div"), [x.into(), divisor.into()], Attrs::new());
    patch.replace(y, made);
    Ok(patch)
}

fn unary(chain: &[&str], x: ValueId, y: ValueId) -> Patch {
    let mut patch = Patch::new();
    let mut last: Ref = x.into();
    for op in chain {
        last = patch.node(Op::onnx(op), [last], Attrs::new());
    }
    patch.replace(y, last);
    patch
}

/// The one number of a constant that does not raise the rank of its `other` operand.
fn number(g: &Graph, v: ValueId, other: ValueId) -> Option<f64> {
    let tensor = g.constant(v).filter(|t| t.len() == 1)?;
    let fits = tensor.rank() == 0 || g.value(other).ty().rank()? >= tensor.rank();
    let number = tensor
        .as_f64()
        .or_else(|| tensor.as_i64().map(|n| n as f64));
    number.filter(|_| fits)
}

fn is_float(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty().dtype().is_some_and(|d| d.is_float())
}
