//! Attributes from text.

use super::elem::parse_f32;
use super::lexer::{Parser, Result};
use super::parse::graph_named;
use super::parse_tensor::{named_tensor, sparse_values};
use super::parse_type::{next_is_type, type_proto};
use super::types::AttrType;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::type_proto::Value;
use crate::onnx::proto::{AttributeProto, GraphProto, SparseTensorProto, TensorProto, TypeProto};
use bytes::Bytes;

enum Single {
    Float(f32),
    Int(i64),
    String(Vec<u8>),
    Tensor(Box<TensorProto>),
    Graph(Box<GraphProto>),
    Sparse(Box<SparseTensorProto>),
    Type(TypeProto),
}

impl Single {
    fn kind(&self) -> AttributeType {
        match self {
            Single::Float(_) => AttributeType::Float,
            Single::Int(_) => AttributeType::Int,
            Single::String(_) => AttributeType::String,
            Single::Tensor(_) => AttributeType::Tensor,
            Single::Graph(_) => AttributeType::Graph,
            Single::Sparse(_) => AttributeType::SparseTensor,
            Single::Type(_) => AttributeType::TypeProto,
        }
    }
}

/// The attribute after its name: `= value`, `: type = value`, `= @other`.
pub(super) fn attribute(p: &mut Parser, name: String) -> Result<AttributeProto> {
    p.made::<AttributeProto>()?;
    let mut attribute = AttributeProto {
        name: Some(name),
        ..AttributeProto::default()
    };
    let mut declared = None;
    if p.eat(":") {
        let offset = p.offset();
        let word = p.word("an attribute type")?;
        let Some(kind) = AttrType::named(word) else {
            let message =
                format!("expected an attribute type such as `int` or `floats`, found `{word}`");
            return Err(p.fail_at(offset, message));
        };
        declared = Some(kind);
    }
    p.expect("=", if declared.is_none() { "`:`" } else { "" })?;
    let offset = p.offset();
    if p.eat("@") {
        attribute.ref_attr_name = Some(p.name("an attribute's name")?.into_owned());
        attribute.r#type = declared.map(AttrType::number);
        return Ok(attribute);
    }
    let is_list = p.eat("[");
    if let Some(kind) = declared.filter(|kind| kind.is_list != is_list) {
        let (found, wanted) = if is_list {
            ("a list", "one value")
        } else {
            ("one value", "a list")
        };
        let message = format!("expected {wanted} of type {}, found {found}", kind.name());
        return Err(p.fail_at(offset, message));
    }
    let mut of = declared.map(|kind| kind.of);
    if is_list {
        p.list("]", |p| {
            p.made::<Bytes>()?;
            let value = single(p, of)?;
            of = Some(value.kind());
            push_value(&mut attribute, value);
            Ok(())
        })?;
        let Some(of) = of else {
            let message = "an empty list needs a type, such as `: ints`";
            return Err(p.fail_at(offset, message));
        };
        attribute.r#type = Some(AttrType::list(of).number());
    } else {
        let value = single(p, of)?;
        attribute.r#type = Some(AttrType::one(value.kind()).number());
        set_value(&mut attribute, value);
    }
    Ok(attribute)
}

fn set_value(attribute: &mut AttributeProto, value: Single) {
    match value {
        Single::Float(v) => attribute.f = Some(v),
        Single::Int(v) => attribute.i = Some(v),
        Single::String(v) => attribute.s = Some(Bytes::from(v)),
        Single::Tensor(v) => attribute.t = Some(v),
        Single::Graph(v) => attribute.g = Some(v),
        Single::Sparse(v) => attribute.sparse_tensor = Some(v),
        Single::Type(v) => attribute.tp = Some(Box::new(v)),
    }
}

fn push_value(attribute: &mut AttributeProto, value: Single) {
    match value {
        Single::Float(v) => attribute.floats.push(v),
        Single::Int(v) => attribute.ints.push(v),
        Single::String(v) => attribute.strings.push(Bytes::from(v)),
        Single::Tensor(v) => attribute.tensors.push(*v),
        Single::Graph(v) => attribute.graphs.push(*v),
        Single::Sparse(v) => attribute.sparse_tensors.push(*v),
        Single::Type(v) => attribute.type_protos.push(v),
    }
}

/// One value, of the expected type if there is one.
fn single(p: &mut Parser, expected: Option<AttributeType>) -> Result<Single> {
    let offset = p.offset();
    let value = single_of_any_type(p, expected)?;
    match expected {
        Some(wanted) if wanted != value.kind() => {
            let wanted = AttrType::one(wanted).name();
            let found = AttrType::one(value.kind()).name();
            Err(p.fail_at(
                offset,
                format!("expected a value of type {wanted}, found one of type {found}"),
            ))
        }
        _ => Ok(value),
    }
}

fn single_of_any_type(p: &mut Parser, expected: Option<AttributeType>) -> Result<Single> {
    if p.next_is_bytes() {
        return Ok(Single::String(p.bytes()?));
    }
    if p.peek() == Some(b'"') {
        let text = p.string("a value")?.into_owned();
        // No value but a graph goes on after a string.
        return match p.peek() {
            Some(b'(') => Ok(Single::Graph(Box::new(graph_named(p, text)?))),
            _ => Ok(Single::String(text.into_bytes())),
        };
    }
    if next_is_type(p) {
        return typed(p);
    }
    if !p.peek_word().is_empty() && !p.next_is_float_word() {
        let name = p.name("a value")?.into_owned();
        return match p.peek() {
            Some(b'(' | b'=') => Ok(Single::Graph(Box::new(graph_named(p, name)?))),
            _ => Err(p.unexpected(&format!("`(` of a graph after `{name}`"))),
        };
    }
    let number = p.number("a value")?;
    let misfit = |kind: &str| {
        let message = format!("`{}` is no number that fits into {kind}", number.text);
        p.fail_at(number.offset, message)
    };
    if number.is_float || expected == Some(AttributeType::Float) {
        let value = parse_f32(number.text).ok_or_else(|| misfit("float"))?;
        return Ok(Single::Float(value));
    }
    let value = number.text.parse().map_err(|_| misfit("int64"))?;
    Ok(Single::Int(value))
}

/// A tensor, a sparse tensor, or the type itself.
fn typed(p: &mut Parser) -> Result<Single> {
    let offset = p.offset();
    let proto = type_proto(p)?;
    let is_sparse = matches!(proto.value, Some(Value::SparseTensorType(_)));
    if is_sparse && p.peek() == Some(b'{') {
        let sparse = sparse_values(p, &proto, offset)?;
        return Ok(Single::Sparse(Box::new(sparse)));
    }
    if matches!(p.peek(), Some(b'{' | b'=' | b'[')) || p.next_is_name() {
        let tensor = named_tensor(p, &proto, offset)?;
        return Ok(Single::Tensor(Box::new(tensor)));
    }
    Ok(Single::Type(proto))
}
