//! Operators that mean something else in a newer version.

use bytes::Bytes;

use super::cx::{Cx, MALFORMED, Outcome};
use crate::ops::{BatchNormalization, GroupNormalization, Softmax, resolve_axis};
use crate::tensor::Dims;
use crate::types::Dim;
use crate::{Attrs, NodeId, Op, Tensor, ValueId};

/// BatchNormalization-9: statistics are always per channel.
pub(super) fn batch_normalization_9(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let view = BatchNormalization::of(cx.graph, id).ok_or(MALFORMED)?;
    if !view.is_spatial() {
        return Err(
            "it normalizes each activation (spatial = 0), which no later version does".into(),
        );
    }
    Ok(cx.remove_attr(id, "spatial"))
}

/// BatchNormalization-14: an attribute says whether it trains, where the outputs did, and two outputs are gone.
pub(super) fn batch_normalization_14(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let view = BatchNormalization::of(cx.graph, id).ok_or(MALFORMED)?;
    if !view.is_training() {
        return Ok(false);
    }
    let node = cx.graph.node(id);
    let mut saved = node.outputs().iter().skip(3).flatten();
    if saved.any(|&v| !cx.graph.value(v).is_unused()) {
        return Err("its saved mean or variance is read, which no later version gives".into());
    }
    let attrs = node.attrs().clone().with("training_mode", 1);
    let (name, inputs, notes) = (
        node.name().to_string(),
        node.inputs().to_vec(),
        node.notes().clone(),
    );
    let old: Vec<Option<ValueId>> = node.outputs().iter().take(3).copied().collect();
    let names: Vec<Option<String>> = (old.iter())
        .map(|v| v.map(|v| cx.graph.value(v).name().to_string()))
        .collect();
    let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
    let op = Op::onnx("BatchNormalization");
    let new = cx.graph.add_node_named(op, &name, inputs, &names, attrs);
    *cx.graph.notes_mut(new) = notes;
    let outputs = cx.graph.node(new).outputs().to_vec();
    for (old, new) in old.into_iter().zip(outputs) {
        if let (Some(old), Some(new)) = (old, new) {
            let ty = cx.graph.value(old).ty().clone();
            cx.graph.set_type(new, ty);
            cx.graph.replace_uses(old, new);
        }
    }
    cx.graph.remove_node(id);
    Ok(true)
}

/// Scan-9 works on sequences without a batch.
pub(super) fn scan_9(_: &mut Cx<'_>, _: NodeId) -> Outcome {
    Err("Scan-8 runs once for each element of a batch, which no later version does".into())
}

/// Dropout-10: the mask is of booleans, where it had the input's dtype.
pub(super) fn dropout_10(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let node = cx.graph.node(id);
    let Some(mask) = node.output(1).filter(|&v| !cx.graph.value(v).is_unused()) else {
        return Ok(false);
    };
    let dtype = node.input(0).and_then(|x| cx.ty(x).dtype());
    let dtype = dtype.ok_or("its mask is read, and the dtype of its operand is unknown")?;
    let to = Attrs::new().with("to", i64::from(dtype.to_onnx()));
    cx.put_behind(id, mask, "Cast", &[], to)?;
    Ok(true)
}

/// Scatter-11 is deprecated for ScatterElements-11, which is the same.
pub(super) fn scatter_11(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    cx.graph.set_op(id, Op::onnx("ScatterElements"));
    Ok(true)
}

/// Softmax-13, LogSoftmax-13 and Hardmax-13 work over one axis, where they worked over all axes from it on.
pub(super) fn softmax_13(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let axis = Softmax::of(cx.graph, id).ok_or(MALFORMED)?.axis();
    let x = cx.input(id, 0).ok_or("its operand is missing")?;
    let dims = cx.dims(Some(x)).map(<[Dim]>::to_vec);
    if let Some(dims) = &dims {
        let first = resolve_axis(axis, dims.len()).ok_or("its axis is out of range")?;
        if dims.iter().skip(first + 1).all(|d| *d == Dim::Known(1)) {
            cx.graph.attrs_mut(id).set("axis", first as i64);
            return Ok(true);
        }
    } else if axis == -1 {
        return Ok(true);
    }
    let shape = match dims.as_deref().and_then(constant_shape) {
        Some(shape) => cx.constant(id, "shape", Tensor::vector(&shape)),
        None => cx.add(id, "Shape", [x], Attrs::new())?,
    };
    let flat = cx.add(id, "Flatten", [x], Attrs::new().with("axis", axis))?;
    cx.graph.set_input(id, 0, Some(flat));
    cx.graph.attrs_mut(id).set("axis", -1);
    if let Some(y) = cx.graph.node(id).output(0) {
        cx.put_behind(id, y, "Reshape", &[shape], Attrs::new())?;
    }
    Ok(true)
}

/// The shape as an operand of Reshape, if at most one size is unknown and none is zero.
fn constant_shape(dims: &[Dim]) -> Option<Vec<i64>> {
    let open = dims.iter().filter(|d| d.known().is_none()).count();
    if open > 1 || dims.contains(&Dim::Known(0)) {
        return None;
    }
    let size = |d: &Dim| d.known().map_or(Some(-1), |n| i64::try_from(n).ok());
    dims.iter().map(size).collect()
}

/// RoiAlign-16: the default shifts coordinates by half a pixel, which it did not do before.
pub(super) fn roi_align_16(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let attrs = cx.graph.attrs_mut(id);
    attrs.set("coordinate_transformation_mode", "output_half_pixel");
    Ok(true)
}

/// GridSample-20: two modes have other names.
pub(super) fn grid_sample_20(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let attrs = cx.graph.attrs_mut(id);
    let mode = match (attrs.get("mode"), attrs.str("mode")) {
        (None, _) => return Ok(false),
        (_, Some("bilinear")) => "linear",
        (_, Some("bicubic")) => "cubic",
        (_, Some(_)) => return Ok(false),
        (Some(_), None) => return Err(MALFORMED.into()),
    };
    attrs.set("mode", mode);
    Ok(true)
}

/// GroupNormalization-21: scale and bias are per channel, where they were per group.
pub(super) fn group_normalization_21(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let view = GroupNormalization::of(cx.graph, id).ok_or(MALFORMED)?;
    let groups = view.num_groups().ok_or("its number of groups is missing")?;
    let x = cx.input(id, 0).ok_or("its operand is missing")?;
    let channels = cx.dims(Some(x)).and_then(|d| d.get(1)?.known());
    let each = channels.and_then(|c| Some(c / usize::try_from(groups).ok()?));
    let mut shape = None;
    for (k, name) in [(1, "scale"), (2, "bias")] {
        let v = cx.input(id, k).ok_or("its scale or bias is missing")?;
        let spread = each.and_then(|each| repeat_each(cx.graph.constant(v)?, each));
        if let Some(tensor) = spread {
            cx.set_constant(id, k, name, tensor);
            continue;
        }
        let shape = match shape {
            Some(shape) => shape,
            None => *shape.insert(group_shape(cx, id, x, groups)?),
        };
        let column = cx.constant(id, "column", Tensor::vector(&[-1i64, 1]));
        let column = cx.add(id, "Reshape", [v, column], Attrs::new())?;
        let spread = cx.add(id, "Expand", [column, shape], Attrs::new())?;
        let flat = cx.constant(id, "flat", Tensor::vector(&[-1i64]));
        let spread = cx.add(id, "Reshape", [spread, flat], Attrs::new())?;
        cx.graph.set_input(id, k, Some(spread));
    }
    Ok(true)
}

/// `[groups, channels / groups]`, computed.
fn group_shape(cx: &mut Cx<'_>, id: NodeId, x: ValueId, groups: i64) -> Result<ValueId, String> {
    let channels = Attrs::new().with("start", 1).with("end", 2);
    let channels = cx.add(id, "Shape", [x], channels)?;
    let groups = cx.constant(id, "groups", Tensor::vector(&[groups]));
    let each = cx.add(id, "Div", [channels, groups], Attrs::new())?;
    cx.add(id, "Concat", [groups, each], Attrs::new().with("axis", 0))
}

/// More channels than any model has; a shape may say anything.
const MOST_CHANNELS: usize = 1 << 24;

/// A 1-D tensor with each element `times` times in a row.
fn repeat_each(tensor: &Tensor, times: usize) -> Option<Tensor> {
    let width = tensor.dtype().bits() as usize / 8;
    let count = tensor.len().checked_mul(times)?;
    if tensor.rank() != 1 || width == 0 || count > MOST_CHANNELS {
        return None;
    }
    let bytes = tensor.bytes();
    let elements = bytes.chunks_exact(width);
    let repeated: Vec<u8> = elements.flat_map(|e| e.repeat(times)).collect();
    Tensor::from_raw(
        tensor.dtype(),
        Dims::from_slice(&[count]),
        Bytes::from(repeated),
    )
    .ok()
}
