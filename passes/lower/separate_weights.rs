//! One copy of a 4-bit weight for each product.

use kiln_graph::{Attrs, DType, Graph, Model, NodeId, Op, Tensor, ValueId, ops};

use crate::analysis::depends::depends;
use crate::core::pass::{Context, Exactness, Pass, PassFailure, in_each_graph};

#[derive(Debug)]
pub struct SeparateWeights;

const NAME: &str = "separate-weights";

/// TensorRT takes 8 dimensions, of which a matrix has two.
const MOST: usize = 6;

impl Pass for SeparateWeights {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "give products that read one INT4 weight constants of their own"
    }

    fn details(&self) -> String {
        "TensorRT's builder crashes over two products with one INT4 weight of which none follows from the other, also where \
         the weights are two equal constants (TensorRT for RTX 1.7.1). The second product gets the weight as [1, K, N] \
         behind a DequantizeLinear and a Squeeze of its own, the third as [1, 1, K, N]: the same numbers, which the engine \
         holds once. Of products that follow from one another, as in models whose layers share weights, each has a copy: what several read is \
         dequantized by a kernel of its own, and multiplied in floats."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        if !cx.target.facts.confuses_shared_weights || model.graph.opset() < 21 {
            return Ok(0);
        }
        in_each_graph(model, &mut |g| {
            let mut changed = 0;
            for (dequantize, rows) in shared(g)? {
                for (k, readers) in rows.into_iter().enumerate().take(MOST + 1) {
                    // The first of all reads what is there.
                    for id in readers.into_iter().skip(usize::from(k == 0)) {
                        if !cx.admit(NAME, || g.label(id)) {
                            return Ok(changed);
                        }
                        let Some(copy) = copied(g, dequantize, k) else {
                            break;
                        };
                        read_instead(g, id, copy, k);
                        changed += 1;
                    }
                }
            }
            Ok(changed)
        })
    }
}

/// Makes a product read another copy of its weight, through the same views.
fn read_instead(g: &mut Graph, id: NodeId, copy: ValueId, k: usize) {
    let weight = g.node(id).input(1);
    let views = weight.map_or_else(Vec::new, |w| views(g, w));
    let mut made = Some(copy);
    for view in views.into_iter().rev() {
        made = made.and_then(|v| again(g, view, v, k));
    }
    if let Some(made) = made {
        g.set_input(id, 1, Some(made));
    }
}

/// Products, each row in the order in which they follow from one another.
type Rows = Vec<Vec<NodeId>>;

/// Each DequantizeLinear of an INT4 constant that several products read, with these in rows that follow from one another.
fn shared(g: &Graph) -> Result<Vec<(NodeId, Rows)>, PassFailure> {
    let mut found: Vec<(NodeId, Rows)> = Vec::new();
    for id in g.topo_order()? {
        let node = g.node(id);
        if !node.op().is_any(&["MatMul", "Gemm"]) {
            continue;
        }
        let weight = node.input(1).and_then(|w| four_bits(g, w));
        let Some(weight) = weight else { continue };
        let Some((_, rows)) = found.iter_mut().find(|(w, _)| *w == weight) else {
            found.push((weight, vec![vec![id]]));
            continue;
        };
        let read = || node.inputs().iter().flatten().copied();
        let follows =
            |row: &&mut Vec<NodeId>| row.last().is_some_and(|&last| depends(g, read(), &[last]));
        match rows.iter_mut().find(follows) {
            Some(row) => row.push(id),
            None => rows.push(vec![id]),
        }
    }
    found.retain(|(_, rows)| rows.iter().map(Vec::len).sum::<usize>() > 1);
    Ok(found)
}

/// Nodes between a weight and the product, the one nearest to the product first.
fn views(g: &Graph, mut w: ValueId) -> Vec<NodeId> {
    let mut found = Vec::new();
    while let Some(id) = g.producer(w).filter(|&id| g.node(id).op().is_any(VIEWS)) {
        let Some(x) = g.node(id).input(0) else { break };
        found.push(id);
        w = x;
    }
    found
}

const VIEWS: &[&str] = &["Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// A node on another first operand.
fn again(g: &mut Graph, id: NodeId, x: ValueId, k: usize) -> Option<ValueId> {
    let node = g.node(id);
    let y = node.sole_output()?;
    let (ty, name) = (
        g.value(y).ty().clone(),
        format!("{}_{k}", g.value(y).name()),
    );
    let mut inputs = node.inputs().to_vec();
    *inputs.first_mut()? = Some(x);
    let (op, attrs) = (node.op(), node.attrs().clone());
    let made = g.add_node_named(op, "", inputs, &[Some(&name)], attrs);
    g.notes_mut(made).set("kiln.pass", NAME.into());
    let made = g.node(made).output(0)?;
    g.set_type(made, ty);
    Some(made)
}

/// What dequantizes the INT4 constant that a weight is.
pub(super) fn four_bits(g: &Graph, w: ValueId) -> Option<NodeId> {
    let last = views(g, w).last().copied();
    let w = last.map_or(Some(w), |id| g.node(id).input(0))?;
    let id = g.producer_if(w, "DequantizeLinear")?;
    let q = ops::DequantizeLinear::of(g, id)?.constant(0)?.dtype();
    (q == DType::I4).then_some(id)
}

/// The weight again, from constants with so many dimensions of 1 in front.
fn copied(g: &mut Graph, id: NodeId, more: usize) -> Option<ValueId> {
    let dequantize = ops::DequantizeLinear::of(g, id)?;
    let q = dequantize.constant(0)?;
    let axis = ops::resolve_axis(dequantize.axis(), q.rank())? + more;
    let rank = q.rank();
    let lifted = |t: &Tensor| match t.rank() == rank {
        true => t.reshaped([&vec![1; more][..], t.dims()].concat()).ok(),
        false => Some(t.clone()),
    };
    let mut constants = vec![lifted(q)?, lifted(dequantize.constant(1)?)?];
    if dequantize.zero_point().is_some() {
        constants.push(lifted(dequantize.constant(2)?)?);
    }
    let attrs = dequantize.node().attrs().clone().with("axis", axis as i64);
    let real = dequantize.output(0)?;
    let (ty, name) = (g.value(real).ty().clone(), g.value(real).name().to_string());
    let names = ["weight", "scale", "zero_point"];
    let constants = constants.into_iter().zip(names);
    let inputs: Vec<Option<ValueId>> = constants
        .map(|(t, part)| Some(g.add_constant(&format!("{name}_{part}_{more}"), t)))
        .collect();
    let made = add(
        g,
        "DequantizeLinear",
        inputs,
        &format!("{name}_lifted_{more}"),
        attrs,
    )?;
    if more == 0 {
        g.set_type(made, ty);
        return Some(made);
    }
    let axes: Vec<i64> = (0..more as i64).collect();
    let axes = g.add_constant(&format!("{name}_axes_{more}"), Tensor::vector(&axes));
    let inputs = vec![Some(made), Some(axes)];
    let flat = add(
        g,
        "Squeeze",
        inputs,
        &format!("{name}_{more}"),
        Attrs::new(),
    )?;
    g.set_type(flat, ty);
    Some(flat)
}

fn add(
    g: &mut Graph,
    op: &str,
    inputs: Vec<Option<ValueId>>,
    name: &str,
    attrs: Attrs,
) -> Option<ValueId> {
    let id = g.add_node_named(Op::onnx(op), "", inputs, &[Some(name)], attrs);
    g.notes_mut(id).set("kiln.pass", NAME.into());
    g.node(id).output(0)
}
