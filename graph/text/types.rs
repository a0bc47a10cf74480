//! Attribute types by name.

use crate::onnx::proto::AttributeProto;
use crate::onnx::proto::attribute_proto::AttributeType;

/// An attribute's type: one value, or a list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttrType {
    /// The type of one value.
    pub of: AttributeType,
    pub is_list: bool,
}

/// `(type of one value, its name, the list type, its name)`.
const TABLE: &[(AttributeType, &str, AttributeType, &str)] = &[
    (
        AttributeType::Float,
        "float",
        AttributeType::Floats,
        "floats",
    ),
    (AttributeType::Int, "int", AttributeType::Ints, "ints"),
    (
        AttributeType::String,
        "string",
        AttributeType::Strings,
        "strings",
    ),
    (
        AttributeType::Tensor,
        "tensor",
        AttributeType::Tensors,
        "tensors",
    ),
    (
        AttributeType::Graph,
        "graph",
        AttributeType::Graphs,
        "graphs",
    ),
    (
        AttributeType::SparseTensor,
        "sparse_tensor",
        AttributeType::SparseTensors,
        "sparse_tensors",
    ),
    (
        AttributeType::TypeProto,
        "type_proto",
        AttributeType::TypeProtos,
        "type_protos",
    ),
];

impl AttrType {
    pub fn one(of: AttributeType) -> AttrType {
        AttrType { of, is_list: false }
    }

    pub fn list(of: AttributeType) -> AttrType {
        AttrType { of, is_list: true }
    }

    pub fn named(name: &str) -> Option<AttrType> {
        TABLE.iter().find_map(|row| match name {
            _ if name == row.1 => Some(AttrType::one(row.0)),
            _ if name == row.3 => Some(AttrType::list(row.0)),
            _ => None,
        })
    }

    pub fn name(self) -> &'static str {
        let row = TABLE.iter().find(|row| row.0 == self.of);
        row.map_or("undefined", |row| if self.is_list { row.3 } else { row.1 })
    }

    pub fn number(self) -> i32 {
        let row = TABLE.iter().find(|row| row.0 == self.of);
        row.map_or(0, |row| if self.is_list { row.2 } else { row.0 } as i32)
    }

    /// The type an attribute says it has, or else that of the field it fills, as in files of IR version 1.
    pub fn of(a: &AttributeProto) -> Option<AttrType> {
        let numbered = |number: i32| {
            TABLE.iter().find_map(|row| match number {
                _ if number == row.0 as i32 => Some(AttrType::one(row.0)),
                _ if number == row.2 as i32 => Some(AttrType::list(row.0)),
                _ => None,
            })
        };
        if let Some(number) = a.r#type.filter(|&number| number != 0) {
            return numbered(number);
        }
        let filled = [
            (a.f.is_some(), AttributeType::Float),
            (a.i.is_some(), AttributeType::Int),
            (a.s.is_some(), AttributeType::String),
            (a.t.is_some(), AttributeType::Tensor),
            (a.g.is_some(), AttributeType::Graph),
            (a.sparse_tensor.is_some(), AttributeType::SparseTensor),
            (a.tp.is_some(), AttributeType::TypeProto),
            (!a.floats.is_empty(), AttributeType::Floats),
            (!a.ints.is_empty(), AttributeType::Ints),
            (!a.strings.is_empty(), AttributeType::Strings),
            (!a.tensors.is_empty(), AttributeType::Tensors),
            (!a.graphs.is_empty(), AttributeType::Graphs),
            (!a.sparse_tensors.is_empty(), AttributeType::SparseTensors),
            (!a.type_protos.is_empty(), AttributeType::TypeProtos),
        ];
        let field = filled.iter().find(|(is_filled, _)| *is_filled)?;
        numbered(field.1 as i32)
    }
}
