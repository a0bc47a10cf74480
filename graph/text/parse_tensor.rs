//! Tensors from text: initializers, tensors in attributes, and literals among a node's inputs.

use super::elem::{Elem, Kind, Packer};
use super::lexer::{Parser, Result};
use super::parse::entries;
use super::parse_type::{next_is_type, type_proto};
use super::tensor::element_count;
use super::types::AttrType;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::type_proto::Value;
use crate::onnx::proto::{
    AttributeProto, NodeProto, SparseTensorProto, TensorProto, TensorShapeProto, TypeProto,
};
use bytes::Bytes;

/// The element type and the dimensions of a tensor that is to be given elements.
fn concrete(
    p: &Parser,
    elem_type: Option<i32>,
    shape: Option<&TensorShapeProto>,
    offset: usize,
) -> Result<(&'static Elem, Vec<i64>)> {
    let Some(elem) = elem_type.and_then(Elem::numbered) else {
        return Err(p.fail_at(offset, "this type cannot have elements"));
    };
    let Some(shape) = shape else {
        return Err(p.fail_at(
            offset,
            "a tensor with elements needs a shape of known rank, not `[]`",
        ));
    };
    let mut dims = Vec::with_capacity(shape.dim.len());
    for dim in &shape.dim {
        match dim.value {
            Some(dimension::Value::DimValue(value)) if value >= 0 => dims.push(value),
            _ => {
                let message = "a tensor with elements needs numbers for dimensions";
                return Err(p.fail_at(offset, message));
            }
        }
    }
    Ok((elem, dims))
}

/// A tensor's elements after its type, `{…}`, or where another file holds them, `["location": …]`. `offset` is where the
/// type stood.
pub(super) fn initializer(p: &mut Parser, proto: &TypeProto, offset: usize) -> Result<TensorProto> {
    let Some(Value::TensorType(tensor)) = &proto.value else {
        return Err(p.fail_at(offset, "only a tensor type can have elements"));
    };
    let (elem, dims) = concrete(p, tensor.elem_type, tensor.shape.as_ref(), offset)?;
    if p.peek() == Some(b'[') {
        p.made_tensor()?;
        return Ok(TensorProto {
            dims,
            data_type: Some(elem.data_type as i32),
            data_location: Some(DataLocation::External as i32),
            external_data: entries(p)?,
            ..TensorProto::default()
        });
    }
    let start = p.offset();
    refuse_elided(p)?;
    p.expect("{", "`[`")?;
    let (mut tensor, count) = elements(p, elem)?;
    if element_count(&dims) != Some(count) {
        let shape: Vec<String> = dims.iter().map(i64::to_string).collect();
        let message = match element_count(&dims) {
            Some(wanted) => format!(
                "the shape [{}] asks for {wanted} elements, found {count}",
                shape.join(", ")
            ),
            None => format!("the shape [{}] is too large", shape.join(", ")),
        };
        return Err(p.fail_at(start, message));
    }
    tensor.dims = dims;
    Ok(tensor)
}

/// Fails where a printer put an ellipsis for the elements; the reference printer puts it without braces.
fn refuse_elided(p: &mut Parser) -> Result<()> {
    let start = p.offset();
    if !p.eat("...") {
        return Ok(());
    }
    let message = "the elements of this tensor were left out when the text was printed; \
                   only text printed in full (`max_elements: None`) can be read back";
    Err(p.fail_at(start, message))
}

/// The elements up to `}`, and how many there are.
fn elements(p: &mut Parser, elem: &'static Elem) -> Result<(TensorProto, usize)> {
    let start = p.offset();
    refuse_elided(p)?;
    p.made_tensor()?;
    let mut tensor = TensorProto {
        data_type: Some(elem.data_type as i32),
        ..TensorProto::default()
    };
    if elem.kind == Kind::String {
        p.list("}", |p| {
            p.made::<Bytes>()?;
            tensor.string_data.push(Bytes::from(p.bytes()?));
            Ok(())
        })?;
        let count = tensor.string_data.len();
        return Ok((tensor, count));
    }
    let mut packer = Packer::default();
    let mut parts = 0usize;
    p.list("}", |p| {
        let number = p.number("a number")?;
        match elem.encode(number) {
            Ok(bits) => packer.push(bits, elem.bits),
            Err(message) => return Err(p.fail_at(number.offset, message)),
        }
        parts += 1;
        Ok(())
    })?;
    if !parts.is_multiple_of(elem.parts) {
        let message = format!(
            "an element of {} is two numbers, found {parts} in all",
            elem.name
        );
        return Err(p.fail_at(start, message));
    }
    tensor.raw_data = Some(Bytes::from(packer.finish()));
    Ok((tensor, parts / elem.parts))
}

/// `{values, indices}` after a sparse tensor's type.
pub(super) fn sparse_values(
    p: &mut Parser,
    proto: &TypeProto,
    offset: usize,
) -> Result<SparseTensorProto> {
    let Some(Value::SparseTensorType(sparse)) = &proto.value else {
        return Err(p.fail_at(offset, "expected a sparse tensor's type"));
    };
    let (elem, dims) = concrete(p, sparse.elem_type, sparse.shape.as_ref(), offset)?;
    p.expect("{", "")?;
    let start = p.offset();
    let values = tensor(p)?;
    if values.data_type != Some(elem.data_type as i32) {
        let message = format!(
            "the values of this sparse tensor must be of type {}",
            elem.name
        );
        return Err(p.fail_at(start, message));
    }
    p.expect(",", "")?;
    let indices = tensor(p)?;
    p.expect("}", "")?;
    Ok(SparseTensorProto {
        values: Some(values),
        indices: Some(indices),
        dims,
    })
}

/// `type name = {…}`, in which the name and the equals sign may be missing.
fn tensor(p: &mut Parser) -> Result<TensorProto> {
    let offset = p.offset();
    let proto = type_proto(p)?;
    named_tensor(p, &proto, offset)
}

pub(super) fn named_tensor(
    p: &mut Parser,
    proto: &TypeProto,
    offset: usize,
) -> Result<TensorProto> {
    let name = match p.next_is_name() {
        true => Some(p.name("a tensor's name")?.into_owned()),
        false => None,
    };
    p.eat("=");
    let mut tensor = initializer(p, proto, offset)?;
    tensor.name = name;
    Ok(tensor)
}

/// Whether a literal comes next where a node's input may stand: `{…}` or `type {…}`.
pub(super) fn literal_ahead(p: &mut Parser) -> bool {
    if p.peek() == Some(b'{') {
        return true;
    }
    if !next_is_type(p) {
        return false;
    }
    let start = p.offset();
    let found = p.word("a type").is_ok() && matches!(p.peek(), Some(b'{' | b'['));
    p.rewind(start);
    found
}

/// The Constant node that a literal input stands for.
pub(super) fn literal_node(p: &mut Parser) -> Result<NodeProto> {
    p.made_node()?;
    p.made::<AttributeProto>()?;
    let attribute = if next_is_type(p) {
        tensor_attribute(tensor(p)?)
    } else {
        p.expect("{", "a literal")?;
        match reference(p)? {
            Some(reference) => reference,
            None => tensor_attribute(untyped_tensor(p)?),
        }
    };
    Ok(NodeProto {
        output: vec![p.fresh_name()],
        op_type: Some("Constant".into()),
        attribute: vec![attribute],
        ..NodeProto::default()
    })
}

fn tensor_attribute(tensor: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some("value".into()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(Box::new(tensor)),
        ..AttributeProto::default()
    }
}

/// `@name}` or `type @name}`: the value of an attribute of the function.
fn reference(p: &mut Parser) -> Result<Option<AttributeProto>> {
    let word = p.peek_word();
    if word.is_empty() && p.peek() != Some(b'@') || p.next_is_float_word() || p.next_is_bytes() {
        return Ok(None);
    }
    let mut kind = AttrType::one(AttributeType::Float);
    if !word.is_empty() {
        let supported = AttrType::named(word).filter(|kind| {
            let of_constant = [
                AttributeType::Float,
                AttributeType::Int,
                AttributeType::String,
            ];
            of_constant.contains(&kind.of) || *kind == AttrType::one(AttributeType::Tensor)
        });
        let Some(named) = supported else {
            return Err(p.unexpected("a literal, or the type of an attribute and `@`"));
        };
        kind = named;
        p.word("a type")?;
    }
    p.expect("@", "")?;
    let name = p.name("an attribute's name")?.into_owned();
    p.expect("}", "")?;
    let field = match kind.of {
        AttributeType::Tensor => "value".to_string(),
        _ => format!("value_{}", kind.name()),
    };
    Ok(Some(AttributeProto {
        name: Some(field),
        r#type: Some(kind.number()),
        ref_attr_name: Some(name),
        ..AttributeProto::default()
    }))
}

/// The elements of a literal without a type: floats, int64 or strings, by the first; one element is a scalar.
fn untyped_tensor(p: &mut Parser) -> Result<TensorProto> {
    let start = p.offset();
    let name = match p.peek() {
        Some(b'}') => {
            let message = "an empty literal needs a type, such as `int64[0] {}`";
            return Err(p.fail_at(start, message));
        }
        Some(b'"' | b'b') => "string",
        Some(b'.') => "float",
        _ => match p.number("a literal")?.is_float {
            true => "float",
            false => "int64",
        },
    };
    p.rewind(start);
    let Some(elem) = Elem::named(name) else {
        return Err(p.unexpected("a literal"));
    };
    let (mut tensor, count) = elements(p, elem)?;
    if count != 1 {
        tensor.dims = vec![count as i64];
    }
    Ok(tensor)
}
