//! Types from text.

use super::elem::Elem;
use super::is_type_word;
use super::lexer::{Parser, Result};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::type_proto::{
    Map, Opaque, Optional, Sequence, SparseTensor, Tensor, Value,
};
use crate::onnx::proto::{TensorShapeProto, TypeProto};

pub(super) fn next_is_type(p: &mut Parser) -> bool {
    is_type_word(p.peek_word())
}

fn elem_type(p: &mut Parser, what: &str) -> Result<&'static Elem> {
    let word = p.peek_word();
    let Some(elem) = Elem::named(word) else {
        return Err(p.unexpected(what));
    };
    p.word(what)?;
    Ok(elem)
}

/// Nothing (a scalar), `[]` (unknown rank) or `[dim, …]`.
fn shape(p: &mut Parser) -> Result<Option<TensorShapeProto>> {
    let mut dim = Vec::new();
    if p.eat("[") {
        if p.eat("]") {
            return Ok(None);
        }
        p.list("]", |p| {
            let value = match p.peek() {
                Some(b'?') => {
                    p.eat("?");
                    None
                }
                _ if p.next_is_name() => Some(dimension::Value::DimParam(
                    p.name("a dimension")?.into_owned(),
                )),
                _ => Some(dimension::Value::DimValue(p.integer("a dimension or `]`")?)),
            };
            p.made::<Dimension>()?;
            dim.push(Dimension {
                value,
                denotation: None,
            });
            Ok(())
        })?;
    }
    Ok(Some(TensorShapeProto { dim }))
}

pub(super) fn type_proto(p: &mut Parser) -> Result<TypeProto> {
    p.made::<TypeProto>()?;
    let value = p.nested(|p| match p.peek_word() {
        "seq" => {
            let elem_type = Some(Box::new(wrapped(p, type_proto)?));
            Ok(Value::SequenceType(Sequence { elem_type }))
        }
        "optional" => {
            let elem_type = Some(Box::new(wrapped(p, type_proto)?));
            Ok(Value::OptionalType(Optional { elem_type }))
        }
        "map" => wrapped(p, |p| {
            let key_type = Some(elem_type(p, "an element type")?.data_type as i32);
            p.expect(",", "")?;
            let value_type = Some(Box::new(type_proto(p)?));
            Ok(Value::MapType(Map {
                key_type,
                value_type,
            }))
        }),
        "sparse_tensor" => wrapped(p, |p| {
            let elem_type = Some(elem_type(p, "an element type")?.data_type as i32);
            let shape = shape(p)?;
            Ok(Value::SparseTensorType(SparseTensor { elem_type, shape }))
        }),
        "opaque" => wrapped(p, opaque),
        _ => {
            let elem_type = Some(elem_type(p, "a type")?.data_type as i32);
            let shape = shape(p)?;
            Ok(Value::TensorType(Tensor { elem_type, shape }))
        }
    })?;
    Ok(TypeProto {
        value: Some(value),
        denotation: None,
    })
}

/// `word ( inner )`
fn wrapped<T>(p: &mut Parser, inner: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
    p.word("a type")?;
    p.expect("(", "")?;
    let result = inner(p)?;
    p.expect(")", "")?;
    Ok(result)
}

/// Nothing, a name, or a domain and a name.
fn opaque(p: &mut Parser) -> Result<Value> {
    let mut opaque = Opaque::default();
    if p.peek() != Some(b')') {
        let first = dotted(p)?;
        if p.eat(",") {
            opaque.domain = Some(first);
            opaque.name = Some(dotted(p)?);
        } else {
            opaque.name = Some(first);
        }
    }
    Ok(Value::OpaqueType(opaque))
}

fn dotted(p: &mut Parser) -> Result<String> {
    let mut name = p.name("a name")?.into_owned();
    while p.eat(".") {
        name.push('.');
        name.push_str(&p.name("a name")?);
    }
    Ok(name)
}
