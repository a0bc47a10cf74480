//! Results of an If whose branches differ in a size, as vectors.

use kiln_graph::{Attrs, Dim, Graph, Model, NodeId, Op, Tensor, Type, ValueId};

use crate::core::pass::{Context, Exactness, Pass, PassFailure, in_each_graph};

#[derive(Debug)]
pub struct FlattenBranches;

impl Pass for FlattenBranches {
    fn name(&self) -> &'static str {
        "flatten-branches"
    }

    fn about(&self) -> &'static str {
        "give results of an If whose branches differ in one of several sizes as vectors, and shape them behind it"
    }

    fn details(&self) -> String {
        "The decoder that runs with and without a cache as two branches gives keys of [batch, heads, past + seq, size] or \
         [batch, heads, seq, size]. TensorRT for RTX 1.7.1 builds no such If beside another dynamic size (\"i < \
         op->input_size()\"); vectors of different lengths it builds. So each branch ends in a Reshape to [-1], and a Reshape \
         behind the If writes the sizes that both have in common, which are read from what the branches read, and -1 for \
         the one that differs. Results that differ in several sizes, or whose common sizes stand nowhere, are left."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        if !cx.target.facts.flattens_branches || model.graph.opset() < 15 {
            return Ok(0);
        }
        in_each_graph(model, &mut |g| {
            let nodes = g.nodes().filter(|(_, n)| n.op().is("If"));
            let nodes: Vec<NodeId> = nodes.map(|(id, _)| id).collect();
            let mut changed = 0;
            for id in nodes {
                for k in 0..g.node(id).outputs().len() {
                    let Some((v, sizes)) = common(g, id, k) else {
                        continue;
                    };
                    if !cx.admit(self.name(), || g.label(id)) {
                        return Ok(changed);
                    }
                    flatten(g, id, k);
                    shape_behind(g, v, &sizes);
                    changed += 1;
                }
            }
            Ok(changed)
        })
    }
}

/// A size of a result behind the If.
enum Size {
    Known(i64),
    /// The size of this value along this axis.
    Of(ValueId, i64),
    /// The one that differs.
    Rest,
}

/// Result `k` and its sizes, if the branches differ in one of them and others are dynamic, too.
fn common(g: &Graph, id: NodeId, k: usize) -> Option<(ValueId, Vec<Size>)> {
    let node = g.node(id);
    let v = node.output(k)?;
    let bodies = node.attrs().iter().flat_map(|(_, a)| a.graphs());
    let shapes: Vec<&[Dim]> = bodies
        .map(|body| body.value(body.outputs().get(k)?.value).ty().shape())
        .collect::<Option<_>>()?;
    let &[a, b] = shapes.as_slice() else {
        return None;
    };
    (a.len() == b.len()).then_some(())?;
    let mut sizes = Vec::with_capacity(a.len());
    let (mut differ, mut dynamic) = (0, false);
    for (x, y) in a.iter().zip(b) {
        sizes.push(match (x, x.certainly_equals(y)) {
            (_, false) => {
                differ += 1;
                Size::Rest
            }
            (Dim::Known(n), true) => Size::Known(i64::try_from(*n).ok()?),
            (dim, true) => {
                dynamic = true;
                let (of, axis) = source(g, id, dim)?;
                Size::Of(of, axis)
            }
        });
    }
    (differ == 1 && dynamic).then_some((v, sizes))
}

/// A value that is there before the node, and the axis along which it has this size.
fn source(g: &Graph, id: NodeId, dim: &Dim) -> Option<(ValueId, i64)> {
    let before = g.node(id).captures().iter().chain(g.inputs());
    before.copied().find_map(|v| {
        let axis = g.value(v).ty().shape()?.iter().position(|d| d == dim)?;
        Some((v, i64::try_from(axis).ok()?))
    })
}

/// Makes a vector of result `k` in each branch.
fn flatten(g: &mut Graph, id: NodeId, k: usize) {
    for body in g.attrs_mut(id).values_mut().flat_map(|a| a.graphs_mut()) {
        let result = body.outputs()[k].value;
        let dtype = body.value(result).ty().dtype();
        let name = body.value(result).name().to_string();
        let all = body.add_constant("", Tensor::vector(&[-1i64]));
        let operands = [Some(result), Some(all)];
        let node = body.add_node(Op::onnx("Reshape"), "", operands, 1, Attrs::new());
        if let Some(flat) = body.node(node).output(0) {
            body.set_value_name(flat, &format!("{name}_flat"));
            if let Some(dtype) = dtype {
                body.set_type(flat, Type::tensor(dtype, Some(vec![Dim::Unknown].into())));
            }
            body.set_output_value(k, flat);
        }
    }
}

/// Puts a Reshape behind `v`, which takes its name and its type.
fn shape_behind(g: &mut Graph, v: ValueId, sizes: &[Size]) {
    let mut parts = Vec::with_capacity(sizes.len());
    let number = |n: i64| Tensor::vector(&[n]);
    for size in sizes {
        parts.push(match size {
            Size::Known(n) => Some(g.add_constant("", number(*n))),
            Size::Rest => Some(g.add_constant("", number(-1))),
            Size::Of(of, axis) => {
                let part = Attrs::new().with("start", *axis).with("end", axis + 1);
                let node = g.add_node(Op::onnx("Shape"), "", [Some(*of)], 1, part);
                g.node(node).output(0)
            }
        });
    }
    let along = Attrs::new().with("axis", 0i64);
    let shape = g.add_node(Op::onnx("Concat"), "", parts, 1, along);
    let shape = g.node(shape).output(0);
    let node = g.add_node(Op::onnx("Reshape"), "", [None, shape], 1, Attrs::new());
    let Some(shaped) = g.node(node).output(0) else {
        return;
    };
    let ty = g.value(v).ty().clone();
    let name = g.value(v).name().to_string();
    g.replace_uses(v, shaped);
    let flat = ty.dtype().map_or(Type::Unknown, |dtype| {
        Type::tensor(dtype, Some(vec![Dim::Unknown].into()))
    });
    g.set_type(shaped, ty);
    g.set_value_name(shaped, &name);
    g.set_type(v, flat);
    g.set_value_name(v, &format!("{name}_flat"));
    g.set_input(node, 0, Some(v));
}
