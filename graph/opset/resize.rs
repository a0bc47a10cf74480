//! Upsample and Resize.

use super::cx::{Cx, MALFORMED, Outcome};
use crate::ops::Resize;
use crate::{Attr, DType, NodeId, Op, Tensor};

/// Upsample-9: scales are an input.
pub(super) fn upsample_9(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let scales = match cx.graph.attrs_mut(id).remove("scales") {
        Some(Attr::Floats(scales)) => Tensor::vector(&scales),
        Some(_) => return Err(MALFORMED.into()),
        None => return Err("its scales are missing".into()),
    };
    cx.set_constant(id, 1, "scales", scales);
    Ok(true)
}

/// Upsample-10 is deprecated for Resize-10. On the way further up, [`resize_11`] takes it: that an Upsample does not
/// shrink is lost once it is a Resize.
pub(super) fn upsample_10(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    if cx.to > 10 {
        return Ok(false);
    }
    cx.graph.set_op(id, Op::onnx("Resize"));
    Ok(true)
}

/// Resize-11: regions of interest come before the scales, and coordinates are those of pixels' centres by default, where
/// they were those of their corners. Resize-10 did not say how it rounds to the nearest pixel; ONNX Runtime goes down
/// where it enlarges and up where it shrinks.
pub(super) fn resize_11(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let node = cx.graph.node(id);
    let enlarges = node.op().is("Upsample");
    let scales = node.input(1).ok_or("its scales are missing")?;
    let mode = match node.attrs().get("mode") {
        None => "nearest",
        Some(_) => node.attrs().str("mode").ok_or(MALFORMED)?,
    };
    let is_nearest = mode == "nearest";
    let attrs = node.attrs().clone();
    let mut attrs = attrs.with("coordinate_transformation_mode", "asymmetric");
    if is_nearest {
        let scales = cx.graph.constant(scales).and_then(Tensor::to_f64s);
        let rounding = match scales {
            _ if enlarges => "floor",
            Some(s) if s.iter().all(|&s| s >= 1.0) => "floor",
            Some(s) if s.iter().all(|&s| s <= 1.0) => "ceil",
            Some(_) => {
                return Err("it enlarges one axis and shrinks another, rounding both ways".into());
            }
            None => {
                return Err(
                    "whether it enlarges or shrinks, which decides how it rounds, is not constant"
                        .into(),
                );
            }
        };
        attrs.set("nearest_mode", rounding);
    }
    cx.graph.set_op(id, Op::onnx("Resize"));
    *cx.graph.attrs_mut(id) = attrs;
    cx.graph.set_input(id, 2, Some(scales));
    // An empty tensor: the operand is not optional before Resize-13.
    let none = Tensor::from_raw(DType::F32, [0usize].as_slice(), bytes::Bytes::new());
    cx.set_constant(id, 1, "roi", none.map_err(|e| e.to_string())?);
    Ok(true)
}

/// Resize-13 has no `tf_half_pixel_for_nn`, which is half a pixel behind `half_pixel`: rounding it down is rounding the
/// other to the nearest, halves up.
pub(super) fn resize_13(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let view = Resize::of(cx.graph, id).ok_or(MALFORMED)?;
    if view.coordinates() != "tf_half_pixel_for_nn" {
        return Ok(false);
    }
    let rounding = match (view.mode(), view.nearest_mode()) {
        ("nearest", "floor") => "round_prefer_ceil",
        ("nearest", "round_prefer_floor") => "ceil",
        _ => return Err("tf_half_pixel_for_nn with this rounding is in no later version".into()),
    };
    let attrs = cx.graph.attrs_mut(id);
    attrs.set("coordinate_transformation_mode", "half_pixel");
    attrs.set("nearest_mode", rounding);
    Ok(true)
}
