//! Just enough of a protobuf writer to make small ONNX models by hand.

#![allow(dead_code)]

pub const FLOAT: i64 = 1;
pub const FLOAT16: i64 = 10;

/// A message as its bytes.
#[derive(Default, Clone)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value.cast_unsigned());
        self
    }

    pub fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn each<T>(self, items: &[T], add: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().fold(self, add)
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn message() -> Message {
    Message::default()
}

/// A node named like its op and first output, such as `MatMul_y`.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Message {
    message()
        .each(inputs, |m, i| m.bytes(1, i))
        .each(outputs, |m, o| m.bytes(2, o))
        .bytes(3, format!("{op}_{}", outputs[0]))
        .bytes(4, op)
        .each(attributes, |m, a| m.bytes(5, a))
}

pub fn int_attribute(name: &str, value: i64) -> Message {
    message().bytes(1, name).int(3, value).int(20, 2)
}

/// A dimension below 0 is dynamic, and named by its number.
pub fn value(name: &str, dtype: i64, shape: &[i64]) -> Message {
    let shape = message().each(shape, |m, &d| {
        let dim = if d < 0 {
            message().bytes(2, format!("d{}", -d))
        } else {
            message().int(1, d)
        };
        m.bytes(1, dim)
    });
    let tensor = message().int(1, dtype).bytes(2, shape);
    message()
        .bytes(1, name)
        .bytes(2, message().bytes(1, tensor))
}

pub fn initializer(name: &str, dtype: i64, shape: &[i64], raw: &[u8]) -> Message {
    message()
        .each(shape, |m, &d| m.int(1, d))
        .int(2, dtype)
        .bytes(8, name)
        .bytes(9, raw)
}

/// An initializer whose bytes fill the file `location`.
pub fn external(name: &str, dtype: i64, shape: &[i64], location: &str) -> Message {
    message()
        .each(shape, |m, &d| m.int(1, d))
        .int(2, dtype)
        .bytes(8, name)
        .bytes(13, message().bytes(1, "location").bytes(2, location))
        .int(14, 1)
}

#[derive(Default)]
pub struct Graph<'a> {
    pub nodes: &'a [Message],
    pub inputs: &'a [Message],
    pub outputs: &'a [Message],
    pub initializers: &'a [Message],
}

impl Graph<'_> {
    /// The serialized model.
    pub fn model(&self, opset: i64) -> Vec<u8> {
        let graph = message()
            .each(self.nodes, |m, n| m.bytes(1, n))
            .bytes(2, "graph")
            .each(self.initializers, |m, i| m.bytes(5, i))
            .each(self.inputs, |m, i| m.bytes(11, i))
            .each(self.outputs, |m, o| m.bytes(12, o));
        let opset = message().bytes(1, "").int(2, opset);
        message().int(1, 8).bytes(7, graph).bytes(8, opset).0
    }
}
