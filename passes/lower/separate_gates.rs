//! The two products of a gated layer in the form in which TensorRT makes the gate part of one of them.

use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct SeparateGates;

/// The most nodes of an activation.
const MAX_NODES: usize = 24;

impl Rule for SeparateGates {
    fn name(&self) -> &'static str {
        "separate-gates"
    }

    fn about(&self) -> &'static str {
        "keep the two products of a gated layer apart, where the target packs them and gates in a kernel of its own"
    }

    fn details(&self) -> String {
        "`Mul(f(MatMul(x, wg)), MatMul(x, wu))` (SwiGLU, GeGLU, GLU) becomes `Mul(f(MatMul(x, wg)), \
         Squeeze(MatMul(Unsqueeze(x), wu)))` with a row of its own for each token; one product with packed weights and a Split becomes \
         the two first. TensorRT packs products of one input, writes both halves, and reads them again in a kernel for the gate. Of products over different \
         shapes it makes the gate part of the second: as many kernels, and for a width of 4 hidden sizes a quarter fewer bytes \
         moved (measured by the builder's list of kernels, TensorRT for RTX 1.7.1)."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Mul"]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let &[Some(a), Some(b)] = g.node(root).inputs() else {
            return Err(Miss::none());
        };
        let (up, gate) = match (products(g, a, b), products(g, b, a)) {
            (Ok(found), _) | (_, Ok(found)) => found,
            (Err(miss), Err(other)) => {
                return Err(if miss.depth > other.depth {
                    miss
                } else {
                    other
                });
            }
        };
        if !cx.target.facts.packs_products {
            return Err(Miss::because(
                "the target computes products as they are written",
            ));
        }
        let mut patch = Patch::new();
        for (part, alone) in [(&up, true), (&gate, false)] {
            let made = part.write(g, &mut patch, alone);
            let made = made.ok_or_else(|| Miss::because("its weight cannot be cut"))?;
            if let Some(made) = made {
                patch.replace(part.output, made);
            }
        }
        Ok(patch)
    }
}

/// `x · weight`, or some columns of it with their bias.
struct Product {
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    /// First and number of columns, of packed weights.
    columns: Option<(usize, usize)>,
    output: ValueId,
}

/// The two products of a gated layer: the one that is as it is, and the one behind the activation.
fn products(g: &Graph, plain: ValueId, active: ValueId) -> Result<(Product, Product), Miss> {
    let up = Product::of(g, behind_bias(g, plain)).ok_or_else(Miss::none)?;
    let gate = source(g, active).and_then(|v| Product::of(g, v));
    let gate = gate.ok_or_else(|| {
        Miss::at(
            active,
            1,
            "it is no activation of one product with a weight",
        )
    })?;
    let one_weight = up.weight == gate.weight;
    let packed = up.columns.is_some() && gate.columns.is_some() && one_weight;
    let apart = up.columns.is_none() && gate.columns.is_none() && !one_weight;
    if up.x != gate.x || up.output == gate.output || !(packed || apart) {
        return Err(Miss::at(active, 2, "it is of another input"));
    }
    // TensorRT makes a gate part of no product that others read, too.
    match g.value(up.output).uses().len() == 1 && !g.value(up.output).is_output() {
        true => Ok((up, gate)),
        false => Err(Miss::at(up.output, 3, "something else reads it")),
    }
}

impl Product {
    fn of(g: &Graph, v: ValueId) -> Option<Product> {
        let id = g.producer(v)?;
        let node = g.node(id);
        if node.op().is("MatMul") {
            let (x, weight) = (node.input(0)?, node.input(1)?);
            matrix(g, weight)?;
            return Some(Product {
                x,
                weight,
                bias: None,
                columns: None,
                output: v,
            });
        }
        let half = Half::of(g, v)?;
        let whole = half.of;
        let product = behind_bias(g, whole);
        (product == whole || is_sole(g, product)).then_some(())?;
        let bias = match product == whole {
            true => None,
            false => g
                .node(g.producer(whole)?)
                .inputs()
                .iter()
                .flatten()
                .copied()
                .find(|&v| vector(g, v).is_some()),
        };
        let node = g.node(g.producer_if(product, "MatMul")?);
        let (x, weight) = (node.input(0)?, node.input(1)?);
        let [_, all] = matrix(g, weight)?.dims() else {
            return None;
        };
        (half.all == *all).then_some(())?;
        let columns = (half.start, half.width);
        Some(Product {
            x,
            weight,
            bias,
            columns: Some(columns),
            output: v,
        })
    }

    /// The product anew; `None` inside where it stays as it is, outside where its weight cannot be cut.
    fn write(&self, g: &Graph, patch: &mut Patch, alone: bool) -> Option<Option<Ref>> {
        let cut = |v: ValueId, patch: &mut Patch| match self.columns {
            Some((start, width)) => Some(patch.constant(g.constant(v)?.columns(start, width)?)),
            None => Some(v.into()),
        };
        if self.columns.is_none() && !alone {
            return Some(None);
        }
        let weight = cut(self.weight, patch)?;
        let axis = patch.constant(Tensor::vector(&[-2i64]));
        let mut x = Ref::from(self.x);
        if alone {
            x = patch.node(Op::onnx("Unsqueeze"), [x, axis], Attrs::new());
        }
        let mut made = patch.node(Op::onnx("MatMul"), [x, weight], Attrs::new());
        if alone {
            made = patch.node(Op::onnx("Squeeze"), [made, axis], Attrs::new());
        }
        if let Some(bias) = self.bias {
            let bias = cut(bias, patch)?;
            made = patch.node(Op::onnx("Add"), [made, bias], Attrs::new());
        }
        Some(Some(made))
    }
}

/// One of the two parts of a value's last axis, where nothing else reads the value.
struct Half {
    of: ValueId,
    start: usize,
    width: usize,
    /// Of both together.
    all: usize,
}

impl Half {
    fn of(g: &Graph, v: ValueId) -> Option<Half> {
        let id = g.producer(v)?;
        let of = g.node(id).input(0)?;
        let all = g.value(of).ty().shape()?.last()?.known()?;
        let uses = g.value(of).uses();
        (!g.value(of).is_output()).then_some(())?;
        let split = ops::Split::of(g, id)?;
        let rank = g.value(of).ty().rank()?;
        (ops::resolve_axis(split.axis(), rank) == Some(rank - 1) && uses.len() == 1)
            .then_some(())?;
        let &[Some(first), Some(second)] = g.node(id).outputs() else {
            return None;
        };
        let width = |v: ValueId| g.value(v).ty().shape()?.last()?.known();
        let [left, right] = [width(first)?, width(second)?];
        let (start, width) = if first == v { (0, left) } else { (left, right) };
        (left + right == all).then_some(Half {
            of,
            start,
            width,
            all,
        })
    }
}

fn is_sole(g: &Graph, v: ValueId) -> bool {
    g.value(v).uses().len() == 1 && !g.value(v).is_output()
}

fn matrix(g: &Graph, v: ValueId) -> Option<&Tensor> {
    g.constant(v).filter(|t| t.rank() == 2)
}

fn vector(g: &Graph, v: ValueId) -> Option<&Tensor> {
    g.constant(v).filter(|t| t.rank() == 1)
}

/// What a bias is added to; the value itself where none is.
fn behind_bias(g: &Graph, v: ValueId) -> ValueId {
    let Some(add) = g.producer_if(v, "Add") else {
        return v;
    };
    match *g.node(add).inputs() {
        [Some(a), Some(b)] if vector(g, b).is_some() => a,
        [Some(a), Some(b)] if vector(g, a).is_some() => b,
        _ => v,
    }
}

/// The one value that an activation is of.
fn source(g: &Graph, active: ValueId) -> Option<ValueId> {
    let (mut open, mut seen, mut found) = (vec![active], Vec::new(), None);
    while let Some(v) = open.pop() {
        if g.constant(v).is_some() || seen.contains(&v) {
            continue;
        }
        let node = g.node(g.producer(v)?);
        if ops::traits::is_elementwise(node.op()) && seen.len() < MAX_NODES {
            seen.push(v);
            open.extend(node.inputs().iter().flatten());
        } else if found.is_none_or(|f| f == v) {
            found = Some(v);
        } else {
            return None;
        }
    }
    found
}
