//! Element types of outputs, by the operators' schemas.

use super::call::Call;
use crate::ops::schema::{self, Schema};
use crate::{Attr, DType};

/// Attributes that name the element type of a result.
const NAMING: &[&str] = &["to", "dtype", "output_dtype", "output_datatype"];

/// The element type of output `k`.
pub(super) fn output(call: &Call<'_>, k: usize) -> Option<DType> {
    let op = call.node.op();
    match op.name() {
        "Constant" if op.domain().is_empty() => return constant(call),
        "ConstantOfShape" if op.domain().is_empty() => return filled(call),
        _ => {}
    }
    let schema = schema::schema(op, call.opset)?;
    let port = schema.output(k)?;
    let alike = |i: &usize| schema.input(*i).is_some_and(|input| input.is_like(&port));
    let operands = || (0..call.node.inputs().len()).filter(alike);
    if let Some(dtype) = port.types().sole() {
        return Some(dtype);
    }
    if operands().any(|i| call.has(i)) {
        return operands().find_map(|i| input(call, i));
    }
    if !port.types().are_tensors() {
        return None;
    }
    named(call).unwrap_or_else(|| unnamed(call, k))
}

/// The element type of input `k`.
fn input(call: &Call<'_>, k: usize) -> Option<DType> {
    call.input(k)?.dtype
}

/// The element type that an attribute names; `Some(None)` where it names an unknown one.
fn named(call: &Call<'_>) -> Option<Option<DType>> {
    NAMING.iter().find_map(|name| number(call, name))
}

/// The element type by the number in an attribute, or in the attribute's default; 0 stands for none.
fn number(call: &Call<'_>, name: &str) -> Option<Option<DType>> {
    let given = call
        .node
        .attrs()
        .get(name)
        .filter(|a| !matches!(a, Attr::Int(0)));
    match given.or_else(|| schema::default_attr(call.node.op(), name, call.opset))? {
        Attr::Int(0) => None,
        Attr::Int(number) => Some(i32::try_from(*number).ok().and_then(DType::from_onnx)),
        _ => Some(None),
    }
}

/// The type of a result that neither an operand nor an attribute determines.
fn unnamed(call: &Call<'_>, k: usize) -> Option<DType> {
    match call.node.op().name() {
        "Bernoulli" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike" => input(call, 0),
        // Of com.microsoft: caches without a past, attention's scores, pixels.
        "GroupQueryAttention" | "MultiHeadAttention" | "GridSample" => input(call, 0),
        "MatMulInteger16" => Some(DType::I32),
        "QGemm" if call.has(8) => input(call, 8),
        "QGemm" => Some(DType::F32),
        "QuantizeLinear" => Some(DType::U8),
        "DequantizeLinear" => input(call, 1),
        // Version 17 computes the mean and the deviation in a type that a number names.
        "LayerNormalization" | "SimplifiedLayerNormalization" if k > 0 => {
            number(call, "stash_type")?
        }
        _ => None,
    }
}

fn filled(call: &Call<'_>) -> Option<DType> {
    match call.node.attrs().get("value") {
        None => Some(DType::F32),
        Some(Attr::Tensor(t)) => Some(t.dtype()),
        Some(_) => None,
    }
}

fn constant(call: &Call<'_>) -> Option<DType> {
    let attrs = call.node.attrs();
    let kinds = [
        ("value_float", DType::F32),
        ("value_floats", DType::F32),
        ("value_int", DType::I64),
        ("value_ints", DType::I64),
        ("value_string", DType::String),
        ("value_strings", DType::String),
    ];
    let tensor = attrs.tensor("value").map(crate::Tensor::dtype);
    tensor.or_else(|| {
        kinds
            .iter()
            .find(|(name, _)| attrs.get(name).is_some())
            .map(|kind| kind.1)
    })
}

/// Notes operands whose types certainly differ though the operator wants one.
pub(super) fn check(call: &Call<'_>) {
    let op = call.node.op();
    if !op.domain().is_empty() {
        return;
    }
    let Some(schema) = schema::schema(op, call.opset) else {
        return;
    };
    if let Some((first, other)) = difference(call, schema) {
        call.conflict(format!("operands of types {first} and {other}"));
    }
}

fn difference(call: &Call<'_>, schema: &Schema) -> Option<(DType, DType)> {
    let count = call.node.inputs().len();
    (0..count).find_map(|i| {
        let (formal, first) = (schema.input(i)?, input(call, i)?);
        (i + 1..count).find_map(|k| {
            let alike = schema.input(k)?.is_like(&formal);
            let other = input(call, k).filter(|&other| alike && other != first)?;
            Some((first, other))
        })
    })
}
