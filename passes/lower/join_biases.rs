//! Sums in front of norms and activations become part of them, where the target has operators for that.

use kiln_graph::ops::{self, Gelu, LayerNormalization};
use kiln_graph::{Attrs, DType, Graph, NodeId, ValueId};

use crate::core::local::Local;
use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::target::microsoft;

pub static JOIN_SKIP_NORM: Local = Local {
    name: "join-skip-norm",
    about: "a residual sum and the norm behind it become SkipLayerNormalization or SkipSimplifiedLayerNormalization",
    why: "ONNX Runtime's com.microsoft has norms that add a residual, and the bias of what is added to it, in the same kernel; they \
          give the sum for the next residual, too. Operands are [batch, seq, hidden] of one shape. On the CPU the two nodes are faster.",
    exactness: Exactness::Rounding,
    since: 17,
    native: true,
    at: skip_norm,
};

pub static JOIN_BIASED_GELU: Local = Local {
    name: "join-biased-gelu",
    about: "a bias and the Gelu behind it become BiasGelu, or FastGelu for the tanh approximation",
    why: "ONNX Runtime's com.microsoft adds the bias of a linear layer in the activation's kernel. The bias is a vector over the last \
          axis, and nothing else reads the sum.",
    exactness: Exactness::Rounding,
    since: 20,
    native: true,
    at: biased_gelu,
};

/// A sum with a constant vector over the last axis that only one node reads: what it is added to, and the vector.
fn with_bias(g: &Graph, sum: ValueId) -> Option<(ValueId, ValueId)> {
    g.single_use(sum)?;
    let add = g.node(g.producer_if(sum, "Add")?);
    let &[Some(a), Some(b)] = add.inputs() else {
        return None;
    };
    let width = g.value(sum).ty().shape()?.last()?.known()?;
    let vector = |v: ValueId| g.constant(v).is_some_and(|t| t.dims() == [width]);
    match (vector(a), vector(b)) {
        (false, true) => Some((a, b)),
        (true, false) => Some((b, a)),
        _ => None,
    }
}

fn one_of(g: &Graph, v: ValueId, types: &[DType]) -> bool {
    let dtype = g.value(v).ty().dtype();
    dtype.is_some_and(|d| types.contains(&d))
}

fn skip_norm(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let node = g.node(root);
    let types = cx.target.facts.skip_norms;
    let rms = node.op().is("SimplifiedLayerNormalization");
    let shift = LayerNormalization::of(g, root).and_then(|norm| norm.bias());
    if types.is_empty() || !rms && !node.op().is("LayerNormalization") {
        return Err(Miss::none());
    }
    let (Some(x), Some(scale), Some(y)) = (node.input(0), node.input(1), node.output(0)) else {
        return Err(Miss::none());
    };
    let axis = node.attrs().int("axis").unwrap_or(-1);
    let alone = node
        .outputs()
        .iter()
        .skip(1)
        .all(|o| o.is_none_or(|o| g.value(o).is_unused()));
    let dims = cx.facts.dims(x).ok_or_else(Miss::none)?;
    let last = ops::resolve_axis(axis, dims.len()) == dims.len().checked_sub(1);
    if dims.len() != 3 || !last || !alone || !one_of(g, x, types) || !one_of(g, scale, types) {
        return Err(Miss::at(
            x,
            1,
            "it is no norm over the last axis of [batch, seq, hidden]",
        ));
    }
    let sum = g
        .producer_if(x, "Add")
        .ok_or_else(|| Miss::at(x, 1, "it is no sum"))?;
    let &[Some(a), Some(b)] = g.node(sum).inputs() else {
        return Err(Miss::none());
    };
    let whole = |v: ValueId| g.constant(v).is_none() && cx.facts.dims(v) == Some(dims);
    if !whole(a) || !whole(b) {
        return Err(Miss::at(x, 2, "its operands are not of one shape"));
    }
    // The operator adds a bias to both; it belongs to the layer's result.
    let biased = [(b, a), (a, b)].into_iter().find_map(|(part, other)| {
        let (inner, bias) = with_bias(g, part)?;
        (cx.facts.dims(inner) == Some(dims)).then_some((other, inner, bias))
    });
    let (skip, input, bias) = match biased {
        Some((skip, input, bias)) => (skip, input, Some(Ref::Old(bias))),
        None => (a, b, None),
    };
    let epsilon = node.attrs().float("epsilon").unwrap_or(1e-5);
    let mut inputs = vec![Some(input.into()), Some(skip.into()), Some(scale.into())];
    if !rms {
        inputs.push(shift.map(Ref::Old));
    }
    inputs.extend(bias.map(Some));
    while inputs.last().is_some_and(Option::is_none) {
        inputs.pop();
    }
    let name = match rms {
        true => "SkipSimplifiedLayerNormalization",
        false => "SkipLayerNormalization",
    };
    let attrs = Attrs::new().with("epsilon", epsilon);
    let read_on = g.single_use(x).is_none();
    let places: &[usize] = if read_on { &[0, 3] } else { &[0] };
    let mut patch = Patch::new();
    let made = patch.node_giving(microsoft(name), inputs, places, attrs);
    patch.replace(y, made[0]);
    if read_on {
        patch.replace(x, made[1]);
    }
    Ok(patch)
}

fn biased_gelu(g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
    let gelu = Gelu::of(g, root).ok_or_else(Miss::none)?;
    let (Some(x), Some(y)) = (gelu.input(0), gelu.output(0)) else {
        return Err(Miss::none());
    };
    if !one_of(g, x, cx.target.facts.biased_gelu) {
        return Err(Miss::none());
    }
    let (inner, bias) = with_bias(g, x).ok_or_else(|| Miss::at(x, 1, "no bias is added to it"))?;
    let same = cx.facts.dims(inner).is_some() && cx.facts.dims(inner) == cx.facts.dims(x);
    if !same {
        return Err(Miss::at(x, 2, "the bias makes it larger"));
    }
    let name = if gelu.is_tanh() {
        "FastGelu"
    } else {
        "BiasGelu"
    };
    let mut patch = Patch::new();
    let made = patch.node(microsoft(name), [inner.into(), bias.into()], Attrs::new());
    patch.replace(y, made);
    Ok(patch)
}
