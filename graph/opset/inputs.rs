//! Attributes that became inputs.

use super::cx::{Cx, MALFORMED, Outcome};
use crate::ops::{Clip, Pad};
use crate::{NodeId, Tensor};

/// Slice-10: starts, ends and axes are inputs.
pub(super) fn slice_10(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    if !(cx.ints_to_input(id, "starts", 1)? && cx.ints_to_input(id, "ends", 2)?) {
        return Err("its starts or ends are missing".into());
    }
    cx.ints_to_input(id, "axes", 3)?;
    Ok(true)
}

/// TopK-10: k is an input.
pub(super) fn top_k_10(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let k = cx.graph.node(id).attrs().int("k");
    let k = k.ok_or("its k is missing")?;
    cx.remove_attr(id, "k");
    cx.set_constant(id, 1, "k", Tensor::vector(&[k]));
    Ok(true)
}

/// Clip-11: min and max are inputs.
pub(super) fn clip_11(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    Clip::of(cx.graph, id).ok_or(MALFORMED)?;
    let x = cx.input(id, 0);
    let mut changed = false;
    for (k, name) in [(1, "min"), (2, "max")] {
        if let Some(bound) = cx.graph.node(id).attrs().float(name) {
            let bound = cx.scalar_like(id, name, bound, x)?;
            cx.graph.set_input(id, k, Some(bound));
            changed = cx.remove_attr(id, name);
        }
    }
    Ok(changed)
}

/// Pad-11: pads and value are inputs.
pub(super) fn pad_11(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let value = Pad::of(cx.graph, id).ok_or(MALFORMED)?;
    let value = value.value().flatten().and_then(|t| t.as_f64());
    let value = value.map_or(0.0, |v| v as f32);
    if !cx.ints_to_input(id, "pads", 1)? {
        return Err("its pads are missing".into());
    }
    cx.remove_attr(id, "value");
    if value != 0.0 {
        let x = cx.input(id, 0);
        let value = cx.scalar_like(id, "value", value, x)?;
        cx.graph.set_input(id, 2, Some(value));
    }
    Ok(true)
}

/// Dropout-12: ratio is an input, and training has to be asked for.
pub(super) fn dropout_12(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let Some(ratio) = cx.graph.attrs_mut(id).remove("ratio") else {
        return Ok(false);
    };
    let crate::Attr::Float(ratio) = ratio else {
        return Err(MALFORMED.into());
    };
    cx.set_constant(id, 1, "ratio", Tensor::scalar(ratio));
    Ok(true)
}

/// ReduceSum-13 and the other reductions' version 18: axes are an input. An empty list has always meant all axes.
pub(super) fn reduce_axes(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    drop_empty(cx, id, "axes");
    cx.ints_to_input(id, "axes", 1)
}

/// Squeeze-13: axes are an input.
pub(super) fn squeeze_13(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    drop_empty(cx, id, "axes");
    cx.ints_to_input(id, "axes", 1)
}

/// Unsqueeze-13: axes are an input.
pub(super) fn unsqueeze_13(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    match cx.ints_to_input(id, "axes", 1)? {
        true => Ok(true),
        false => Err("its axes are missing".into()),
    }
}

/// Split-13: the sizes are an input.
pub(super) fn split_13(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    drop_empty(cx, id, "split");
    cx.ints_to_input(id, "split", 1)
}

/// Split-18: without sizes, the number of outputs must be said.
pub(super) fn split_18(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let node = cx.graph.node(id);
    if node.input(1).is_some() {
        return Ok(false);
    }
    let outputs = node.outputs().len() as i64;
    cx.graph.attrs_mut(id).set("num_outputs", outputs);
    Ok(true)
}

/// DFT-20: axis is an input, and its default changed from 1 to -2.
pub(super) fn dft_20(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let axis = match cx.graph.node(id).attrs().get("axis") {
        None => 1,
        Some(crate::Attr::Int(axis)) => *axis,
        Some(_) => return Err(MALFORMED.into()),
    };
    cx.remove_attr(id, "axis");
    cx.set_constant(id, 2, "axis", Tensor::scalar(axis));
    Ok(true)
}

fn drop_empty(cx: &mut Cx<'_>, id: NodeId, name: &str) {
    if cx
        .graph
        .node(id)
        .attrs()
        .ints(name)
        .is_some_and(<[i64]>::is_empty)
    {
        cx.remove_attr(id, name);
    }
}
