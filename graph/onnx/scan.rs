//! A walk over the wire format before anything is decoded: how much memory decoding would take, by the messages' sizes in memory.
//!
//! `prost` bounds depth but not number, and an empty message of two bytes becomes a struct of hundreds. Payloads are stepped over
//! by their lengths, so a mapped file is touched at its messages only.

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TrainingInfoProto, TypeProto, ValueInfoProto,
    tensor_shape_proto,
};
use crate::limits::{self, Counts, Crossed, within};

/// A message whose parts are walked, or something that is only counted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
    Info,
    Type,
    /// A tensor type, or one that holds another type.
    Typed,
    Map,
    Shape,
    /// Rare and deep: taken for the most that its bytes could become.
    Rare,
    /// A dimension, an entry of a map, a string: what it holds is small, or bytes that are not copied.
    Leaf,
}

impl Kind {
    /// What the field of this number is, if it is a message or one of many strings. The numbers are those of `proto.rs`.
    fn field(self, number: u64) -> Option<Kind> {
        use Kind::*;
        Some(match (self, number) {
            (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Graph, 11..=13) | (Function, 12) => Info,
            (Node, 5) | (Function, 11) => Attribute,
            (Attribute, 14 | 15) | (Info, 2) => Type,
            (Type, 1 | 4 | 8 | 9) => Typed,
            (Type, 5) => Map,
            (Map, 2) => Type,
            (Typed, 1) => Type,
            (Typed, 2) => Shape,
            (Shape, 1) => Leaf,
            (Model, 26) | (Graph, 14) | (Node, 10) => Rare,
            (Model, 8 | 14)
            | (Graph, 16)
            | (Node, 1 | 2 | 9)
            | (Attribute, 9)
            | (Info, 4)
            | (Tensor, 6 | 13 | 16)
            | (Function, 4 | 5 | 6 | 9 | 14)
            | (Training, 3 | 4) => Leaf,
            _ => return None,
        })
    }

    /// Bytes of one in memory.
    fn size(self) -> usize {
        match self {
            Kind::Model | Kind::Rare => 0,
            Kind::Graph => size_of::<GraphProto>(),
            Kind::Node => size_of::<NodeProto>(),
            Kind::Attribute => size_of::<AttributeProto>(),
            Kind::Tensor => size_of::<TensorProto>(),
            Kind::Sparse => size_of::<SparseTensorProto>(),
            Kind::Function => size_of::<FunctionProto>(),
            Kind::Training => size_of::<TrainingInfoProto>(),
            Kind::Info => size_of::<ValueInfoProto>(),
            Kind::Type | Kind::Typed | Kind::Map | Kind::Shape => size_of::<TypeProto>(),
            Kind::Leaf => {
                size_of::<StringStringEntryProto>().max(size_of::<tensor_shape_proto::Dimension>())
            }
        }
    }
}

/// Bytes in memory that a byte of a file becomes at most, in messages that are not walked.
const RARE_GROWTH: usize = 64;

/// Checks the numbers and the depth of an encoded model's messages.
///
/// # Errors
/// When a limit is crossed, naming it, or the messages are malformed.
pub(super) fn check(data: &[u8]) -> Result<(), Fault> {
    walk(data, Kind::Model, 0, &mut Counts::default())
}

/// Why a file is not decoded.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    Limit(Crossed),
    Malformed(&'static str),
}

impl From<Crossed> for Fault {
    fn from(crossed: Crossed) -> Fault {
        Fault::Limit(crossed)
    }
}

fn walk(mut data: &[u8], kind: Kind, depth: usize, counts: &mut Counts) -> Result<(), Fault> {
    let most = limits::MESSAGE_NESTING;
    within(depth, "levels of messages within each other", most)?;
    while !data.is_empty() {
        let (number, payload) = field(&mut data)?;
        let Some(inner) = kind.field(number) else {
            continue;
        };
        let payload = payload.unwrap_or_default();
        let size = match inner {
            Kind::Rare => payload.len().saturating_mul(RARE_GROWTH),
            // A list that grows has room for twice as many.
            _ => 2 * inner.size(),
        };
        let is = |kind| usize::from(inner == kind);
        counts.add(is(Kind::Node), is(Kind::Tensor), size)?;
        if !matches!(inner, Kind::Leaf | Kind::Rare) {
            walk(payload, inner, depth + 1, counts)?;
        }
    }
    Ok(())
}

/// The next field's number, and its bytes if it has a length.
fn field<'a>(data: &mut &'a [u8]) -> Result<(u64, Option<&'a [u8]>), Fault> {
    let key = varint(data)?;
    let number = key >> 3;
    match key & 7 {
        0 => varint(data).map(|_| None),
        1 => take(data, 8).map(|_| None),
        2 => {
            let length = usize::try_from(varint(data)?).unwrap_or(usize::MAX);
            take(data, length).map(Some)
        }
        3 => group(data, number).map(|()| None),
        5 => take(data, 4).map(|_| None),
        _ => Err(Fault::Malformed("a field has an unknown wire type")),
    }
    .map(|payload| (number, payload))
}

/// Steps over a group, which ONNX has none of but a decoder must ignore.
fn group(data: &mut &[u8], number: u64) -> Result<(), Fault> {
    let mut open = vec![number];
    while let Some(&innermost) = open.last() {
        let key = *data;
        let (number, kind) = {
            let mut ahead = key;
            let key = varint(&mut ahead)?;
            (key >> 3, key & 7)
        };
        match kind {
            3 | 4 => {
                varint(data)?;
                match kind {
                    3 => open.push(number),
                    _ if number == innermost => drop(open.pop()),
                    _ => return Err(Fault::Malformed("a group ends that did not begin")),
                }
            }
            _ => drop(field(data)?),
        }
        if open.len() > limits::MESSAGE_NESTING {
            return Err(Fault::Malformed("groups are nested too deep"));
        }
    }
    Ok(())
}

fn take<'a>(data: &mut &'a [u8], length: usize) -> Result<&'a [u8], Fault> {
    let split = data.split_at_checked(length);
    let (head, rest) = split.ok_or(Fault::Malformed("a field is longer than what is left"))?;
    *data = rest;
    Ok(head)
}

fn varint(data: &mut &[u8]) -> Result<u64, Fault> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = data.split_first() else {
            return Err(Fault::Malformed("a number is cut off"));
        };
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Fault::Malformed("a number is longer than 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with a length.
    fn bytes(number: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |mut v: u64| {
            while v >= 0x80 {
                out.push(v as u8 | 0x80);
                v >>= 7;
            }
            out.push(v as u8);
        };
        put(number << 3 | 2);
        put(payload.len() as u64);
        out.extend_from_slice(payload);
        out
    }

    fn what(data: &[u8]) -> &'static str {
        match check(data) {
            Ok(()) => "nothing",
            Err(Fault::Limit(crossed)) => crossed.what,
            Err(Fault::Malformed(_)) => "malformed",
        }
    }

    #[test]
    fn numbers_and_depth_are_bounded() {
        let nodes = |n: usize| bytes(7, &[0x0a, 0].repeat(n));
        assert_eq!(what(&nodes(limits::NODES)), "nothing");
        assert_eq!(what(&nodes(limits::NODES + 1)), "nodes");
        let tensors = bytes(7, &[0x2a, 0].repeat(limits::TENSORS + 1));
        assert_eq!(what(&tensors), "tensors");
        let entries = [0x72, 0].repeat(limits::DECODED / size_of::<StringStringEntryProto>());
        assert_eq!(what(&entries), "bytes of decoded messages");
        let mut deep = Vec::new();
        for _ in 0..60 {
            deep = bytes(1, &bytes(5, &bytes(6, &deep)));
        }
        assert_eq!(
            what(&bytes(7, &deep)),
            "levels of messages within each other"
        );
    }

    #[test]
    fn groups_hide_nothing() {
        let mut hidden = vec![0xfb, 0x01, 0x0b, 0x0c, 0x00, 0x01, 0xfc, 0x01];
        hidden.extend(bytes(7, &[0x0a, 0].repeat(limits::NODES + 1)));
        assert_eq!(what(&hidden), "nodes");
        assert_eq!(what(&[0xfb, 0x01]), "malformed");
        assert_eq!(what(&[0xfc, 0x01]), "malformed");
        assert_eq!(what(&[0x0a, 5, 0]), "malformed");
    }
}
