//! Names, types, tensors and attribute values as text.

use super::elem::{Elem, push_f32, push_parts};
use super::lexer::{is_float_word, is_word};
use super::print::{PrintOptions, push_graph};
use super::tensor::{Elements, element_count, elements, fingerprint, is_external};
use super::{is_type_word, types::AttrType};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::type_proto::Value;
use crate::onnx::proto::{
    AttributeProto, SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto,
};
use std::fmt::{Display, Write};

pub(super) fn push(out: &mut String, value: impl Display) {
    let _ = write!(out, "{value}");
}

/// Writes `items` with `separator` between them.
pub(super) fn push_list<T>(
    out: &mut String,
    items: impl IntoIterator<Item = T>,
    separator: &str,
    mut item: impl FnMut(&mut String, T),
) {
    for (index, element) in items.into_iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        item(out, element);
    }
}

pub(super) fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

fn push_bytes(out: &mut String, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return push_quoted(out, text);
    }
    out.push_str("b\"");
    for &b in bytes {
        match b {
            b'"' | b'\\' => out.extend(['\\', b as char]),
            b' '..=b'~' => out.push(b as char),
            _ => {
                let _ = write!(out, "\\x{b:02x}");
            }
        }
    }
    out.push('"');
}

/// A name, quoted where a reader could take it for something else.
pub(super) fn push_name(out: &mut String, name: &str) {
    if is_word(name) && !is_type_word(name) && !is_float_word(name) {
        out.push_str(name);
    } else {
        push_quoted(out, name);
    }
}

/// A name that stands where no type or value can.
pub(super) fn push_word(out: &mut String, name: &str) {
    if is_word(name) {
        out.push_str(name);
    } else {
        push_quoted(out, name);
    }
}

/// A domain: words with dots between them, or else quoted as a whole.
pub(super) fn push_dotted(out: &mut String, domain: &str) {
    if domain.split('.').all(is_word) {
        out.push_str(domain);
    } else {
        push_quoted(out, domain);
    }
}

pub(super) fn push_entries(out: &mut String, entries: &[StringStringEntryProto]) {
    out.push('[');
    push_list(out, entries, ", ", |out, entry| {
        push_quoted(out, entry.key.as_deref().unwrap_or(""));
        out.push_str(": ");
        push_quoted(out, entry.value.as_deref().unwrap_or(""));
    });
    out.push(']');
}

fn elem_name(number: Option<i32>) -> &'static str {
    number
        .and_then(Elem::numbered)
        .map_or("undefined", |e| e.name)
}

fn push_dims(out: &mut String, dims: &[i64]) {
    if !dims.is_empty() {
        out.push('[');
        push_list(out, dims, ", ", push);
        out.push(']');
    }
}

fn push_tensor_type(out: &mut String, elem: Option<i32>, shape: Option<&TensorShapeProto>) {
    out.push_str(elem_name(elem));
    let Some(shape) = shape else {
        return out.push_str("[]");
    };
    if shape.dim.is_empty() {
        return;
    }
    out.push('[');
    push_list(out, &shape.dim, ", ", |out, dim| match &dim.value {
        Some(dimension::Value::DimValue(value)) => push(out, value),
        Some(dimension::Value::DimParam(symbol)) => push_word(out, symbol),
        None => out.push('?'),
    });
    out.push(']');
}

fn push_inner_type(out: &mut String, inner: Option<&TypeProto>) {
    match inner {
        Some(inner) if inner.value.is_some() => push_type(out, inner),
        _ => out.push_str("undefined"),
    }
}

pub(super) fn push_type(out: &mut String, proto: &TypeProto) {
    match &proto.value {
        None => {}
        Some(Value::TensorType(t)) => push_tensor_type(out, t.elem_type, t.shape.as_ref()),
        Some(Value::SparseTensorType(t)) => {
            out.push_str("sparse_tensor(");
            push_tensor_type(out, t.elem_type, t.shape.as_ref());
            out.push(')');
        }
        Some(Value::SequenceType(t)) => {
            out.push_str("seq(");
            push_inner_type(out, t.elem_type.as_deref());
            out.push(')');
        }
        Some(Value::OptionalType(t)) => {
            out.push_str("optional(");
            push_inner_type(out, t.elem_type.as_deref());
            out.push(')');
        }
        Some(Value::MapType(t)) => {
            let _ = write!(out, "map({}, ", elem_name(t.key_type));
            push_inner_type(out, t.value_type.as_deref());
            out.push(')');
        }
        Some(Value::OpaqueType(t)) => {
            let domain = t.domain.as_deref().filter(|d| !d.is_empty());
            let name = t.name.as_deref().filter(|n| !n.is_empty());
            out.push_str("opaque(");
            if let Some(domain) = domain {
                push_dotted(out, domain);
                out.push_str(", ");
            }
            match name {
                Some(name) => push_dotted(out, name),
                None if domain.is_some() => push_quoted(out, ""),
                None => {}
            }
            out.push(')');
        }
    }
}

/// `float[2] name = {1.0, 2.0}`.
pub(super) fn push_initializer(out: &mut String, tensor: &TensorProto, options: &PrintOptions) {
    out.push_str(elem_name(tensor.data_type));
    push_dims(out, &tensor.dims);
    out.push(' ');
    push_name(out, tensor.name.as_deref().unwrap_or(""));
    out.push_str(" = ");
    push_elements(out, tensor, options);
}

/// `float[2] {1.0, 2.0}`, with the tensor's name, if it has one, in the middle.
fn push_tensor(out: &mut String, tensor: &TensorProto, options: &PrintOptions) {
    out.push_str(elem_name(tensor.data_type));
    push_dims(out, &tensor.dims);
    if let Some(name) = tensor.name.as_deref().filter(|n| !n.is_empty()) {
        out.push(' ');
        push_name(out, name);
    }
    out.push_str(if is_external(tensor) { " = " } else { " " });
    push_elements(out, tensor, options);
}

fn push_elements(out: &mut String, tensor: &TensorProto, options: &PrintOptions) {
    if is_external(tensor) {
        return push_entries(out, &tensor.external_data);
    }
    let found = tensor
        .data_type
        .and_then(Elem::numbered)
        .and_then(|elem| Some((elem, elements(tensor, elem)?)));
    let Some((elem, elements)) = found else {
        return out.push_str("{... unreadable}");
    };
    let count = element_count(&tensor.dims).unwrap_or(0);
    if options.max_elements.is_some_and(|max| count > max) {
        let _ = write!(out, "{{... {:08x}}}", fingerprint(&elements));
        return;
    }
    out.push('{');
    match &elements {
        Elements::Packed(raw) => push_parts(out, elem, raw, count.saturating_mul(elem.parts)),
        Elements::Strings(strings) => push_list(out, strings, ", ", |out, s| push_bytes(out, s)),
    }
    out.push('}');
}

/// `sparse_tensor(float[3, 4]) name = {values, indices}`; without a name neither it nor the equals sign.
pub(super) fn push_sparse(
    out: &mut String,
    sparse: &SparseTensorProto,
    as_initializer: bool,
    options: &PrintOptions,
) {
    let none = TensorProto::default();
    let values = sparse.values.as_ref().unwrap_or(&none);
    let _ = write!(out, "sparse_tensor({}", elem_name(values.data_type));
    push_dims(out, &sparse.dims);
    out.push_str(") ");
    if as_initializer {
        push_name(out, values.name.as_deref().unwrap_or(""));
        out.push_str(" = ");
    }
    out.push('{');
    let named = values.name.as_deref().is_some_and(|n| !n.is_empty());
    if as_initializer && named {
        let unnamed = TensorProto {
            name: None,
            ..values.clone()
        };
        push_tensor(out, &unnamed, options);
    } else {
        push_tensor(out, values, options);
    }
    out.push_str(", ");
    push_tensor(out, sparse.indices.as_ref().unwrap_or(&none), options);
    out.push('}');
}

/// `name = value`, with the type where the value does not show it.
pub(super) fn push_attribute(
    out: &mut String,
    attribute: &AttributeProto,
    indent: usize,
    options: &PrintOptions,
) {
    push_word(out, attribute.name.as_deref().unwrap_or(""));
    let kind = AttrType::of(attribute);
    let reference = attribute.ref_attr_name.as_deref().filter(|r| !r.is_empty());
    let (is_empty, show_type) = match kind {
        None => (true, false),
        Some(kind) => {
            let is_empty = kind.is_list && list_len(attribute, kind) == 0;
            let unclear = is_empty || kind.of == AttributeType::TypeProto;
            (is_empty, unclear || reference.is_some())
        }
    };
    if let (Some(kind), true) = (kind, show_type) {
        let _ = write!(out, ": {}", kind.name());
    }
    out.push_str(" = ");
    match (reference, kind) {
        (Some(reference), _) => {
            out.push('@');
            push_word(out, reference);
        }
        (None, None) => out.push_str("undefined"),
        (None, Some(kind)) if kind.is_list => {
            out.push('[');
            if !is_empty {
                push_values(out, attribute, kind.of, indent, options);
            }
            out.push(']');
        }
        (None, Some(kind)) => push_single(out, attribute, kind.of, indent, options),
    }
}

fn list_len(a: &AttributeProto, kind: AttrType) -> usize {
    match kind.of {
        AttributeType::Float => a.floats.len(),
        AttributeType::Int => a.ints.len(),
        AttributeType::String => a.strings.len(),
        AttributeType::Tensor => a.tensors.len(),
        AttributeType::Graph => a.graphs.len(),
        AttributeType::SparseTensor => a.sparse_tensors.len(),
        _ => a.type_protos.len(),
    }
}

fn push_values(
    out: &mut String,
    a: &AttributeProto,
    of: AttributeType,
    indent: usize,
    options: &PrintOptions,
) {
    let sep = ", ";
    match of {
        AttributeType::Float => push_list(out, &a.floats, sep, |out, &f| push_f32(out, f)),
        AttributeType::Int => push_list(out, &a.ints, sep, push),
        AttributeType::String => push_list(out, &a.strings, sep, |out, s| push_bytes(out, s)),
        AttributeType::Tensor => {
            push_list(out, &a.tensors, sep, |out, t| push_tensor(out, t, options));
        }
        AttributeType::Graph => push_list(out, &a.graphs, sep, |out, g| {
            push_graph(out, g, indent, options);
        }),
        AttributeType::SparseTensor => push_list(out, &a.sparse_tensors, sep, |out, s| {
            push_sparse(out, s, false, options);
        }),
        _ => push_list(out, &a.type_protos, sep, push_inner_type_of),
    }
}

fn push_inner_type_of(out: &mut String, proto: &TypeProto) {
    push_inner_type(out, Some(proto));
}

fn push_single(
    out: &mut String,
    a: &AttributeProto,
    of: AttributeType,
    indent: usize,
    options: &PrintOptions,
) {
    match of {
        AttributeType::Float => push_f32(out, a.f.unwrap_or(0.0)),
        AttributeType::Int => push(out, a.i.unwrap_or(0)),
        AttributeType::String => push_bytes(out, a.s.as_deref().unwrap_or(b"")),
        AttributeType::Tensor => {
            push_tensor(
                out,
                a.t.as_deref().unwrap_or(&TensorProto::default()),
                options,
            );
        }
        AttributeType::Graph => match a.g.as_deref() {
            Some(graph) => push_graph(out, graph, indent, options),
            None => out.push_str("undefined"),
        },
        AttributeType::SparseTensor => match a.sparse_tensor.as_deref() {
            Some(sparse) => push_sparse(out, sparse, false, options),
            None => out.push_str("undefined"),
        },
        _ => push_inner_type(out, a.tp.as_deref()),
    }
}
