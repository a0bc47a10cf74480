//! Operator sets before 7: what is simple is carried over, the rest is refused by name.

use super::cx::{Cx, MALFORMED, Outcome};
use crate::ops::resolve_axis;
use crate::{Attr, Attrs, DType, NodeId, Tensor};

/// Operators whose `consumed_inputs` (a hint for computing in place) went away in version 6.
pub(super) const CONSUMING: &[&str] = &[
    "Abs",
    "Add",
    "BatchNormalization",
    "Ceil",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "InstanceNormalization",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
];

/// Operators that broadcast as numpy does from version 7 on, and by attributes before.
pub(super) const BROADCASTING: &[&str] = &[
    "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor",
];

pub(super) fn too_old(_: &mut Cx<'_>, _: NodeId) -> Outcome {
    Err("models that old are not converted".into())
}

pub(super) fn drop_consumed_inputs(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    Ok(cx.remove_attr(id, "consumed_inputs"))
}

/// Concat-4: the axis must be said; it was 1 by default.
pub(super) fn concat(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let attrs = cx.graph.attrs_mut(id);
    let missing = attrs.get("axis").is_none();
    if missing {
        attrs.set("axis", 1);
    }
    Ok(missing)
}

/// Reshape-5: the shape is an input.
pub(super) fn reshape(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    cx.remove_attr(id, "consumed_inputs");
    match cx.ints_to_input(id, "shape", 1)? {
        true => Ok(true),
        false => Err("its shape is missing".into()),
    }
}

/// Cast-6: the dtype is a number, where it was a name.
pub(super) fn cast(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let name = cx
        .graph
        .node(id)
        .attrs()
        .str("to")
        .ok_or("its dtype is no name")?;
    let dtype = match name {
        "FLOAT" => DType::F32,
        "UINT8" => DType::U8,
        "INT8" => DType::I8,
        "UINT16" => DType::U16,
        "INT16" => DType::I16,
        "INT32" => DType::I32,
        "INT64" => DType::I64,
        "BOOL" => DType::Bool,
        "FLOAT16" => DType::F16,
        "DOUBLE" => DType::F64,
        "UINT32" => DType::U32,
        "UINT64" => DType::U64,
        other => return Err(format!("'{other}' is no dtype")),
    };
    cx.graph.attrs_mut(id).set("to", i64::from(dtype.to_onnx()));
    Ok(true)
}

/// Selu-6: other defaults.
pub(super) fn selu(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let attrs = cx.graph.attrs_mut(id);
    attrs.remove("consumed_inputs");
    for (name, default) in [("alpha", 1.6732_f32), ("gamma", 1.0507)] {
        if attrs.get(name).is_none() {
            attrs.set(name, default);
        }
    }
    Ok(true)
}

/// Version 7 of binary operators broadcasts as numpy does. Before, operands had one shape unless `broadcast` was set;
/// then the second's axes were those of the first from `axis` on, or the last ones.
pub(super) fn broadcast(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let axis = match cx.graph.node(id).attrs().get("axis") {
        None => None,
        Some(Attr::Int(axis)) => Some(*axis),
        Some(_) => return Err(MALFORMED.into()),
    };
    let dropped = cx.remove_attr(id, "axis");
    let on = cx.graph.attrs_mut(id).remove("broadcast");
    let Some(axis) = axis.filter(|_| matches!(on, Some(Attr::Int(1)))) else {
        return Ok(dropped || on.is_some());
    };
    let (a, b) = (cx.input(id, 0), cx.input(id, 1));
    let (Some(rank), Some(inner), Some(b)) = (cx.rank(a), cx.rank(b), b) else {
        return Err(
            "the ranks of its operands, which it broadcasts along an axis, are unknown".into(),
        );
    };
    let first = resolve_axis(axis, rank).ok_or("its axis is out of range")?;
    let trailing = rank
        .checked_sub(first + inner)
        .ok_or("its axis is out of range")?;
    if trailing > 0 {
        let axes = (inner..inner + trailing)
            .map(|a| a as i64)
            .collect::<Vec<_>>();
        let wide = cx.add(id, "Unsqueeze", [b], Attrs::new().with("axes", axes))?;
        cx.graph.set_input(id, 1, Some(wide));
    }
    Ok(true)
}

/// BatchNormalization-7 and Dropout-7 are in inference by themselves.
pub(super) fn is_test(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    match cx.graph.attrs_mut(id).remove("is_test") {
        Some(Attr::Int(test)) if test != 0 => Ok(true),
        None | Some(Attr::Int(_)) => Err("it is in training (is_test = 0)".into()),
        Some(_) => Err(MALFORMED.into()),
    }
}

/// Gemm-7 broadcasts its third operand by itself.
pub(super) fn gemm(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    Ok(cx.remove_attr(id, "broadcast"))
}

/// Version 7 of the recurrent operators gives what outputs are asked for.
pub(super) fn recurrent(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    Ok(cx.remove_attr(id, "output_sequence"))
}

/// PRelu-7 broadcasts as numpy does, where one slope per channel was the second axis.
pub(super) fn prelu(cx: &mut Cx<'_>, id: NodeId) -> Outcome {
    let (x, slope) = (cx.input(id, 0), cx.input(id, 1));
    let slope = slope.ok_or("its slope is missing")?;
    let dims = cx
        .dims(Some(slope))
        .ok_or("the shape of its slope is unknown")?;
    if dims.iter().all(|d| d.known() == Some(1)) || dims.len() > 1 {
        return Ok(false);
    }
    let rank = cx.rank(x).ok_or("the rank of its operand is unknown")?;
    let axes: Vec<i64> = (1..rank.saturating_sub(1)).map(|a| a as i64).collect();
    if axes.is_empty() {
        return Ok(false);
    }
    match cx.graph.constant(slope).cloned() {
        Some(tensor) => {
            let mut dims = vec![tensor.len()];
            dims.resize(axes.len() + 1, 1);
            let tensor: Tensor = tensor
                .reshaped(dims.as_slice())
                .map_err(|e| e.to_string())?;
            cx.set_constant(id, 1, "slope", tensor);
        }
        None => {
            let wide = cx.add(id, "Unsqueeze", [slope], Attrs::new().with("axes", axes))?;
            cx.graph.set_input(id, 1, Some(wide));
        }
    }
    Ok(true)
}
