//! Tiny ONNX models for tests, written byte by byte so that these tests need no other part of kiln.

use kiln_graph::DType;

use super::Runtime;

/// The runtime, or `None` after saying that the test is skipped.
pub fn runtime() -> Option<&'static Runtime> {
    match Runtime::load(None) {
        Ok(runtime) => Some(runtime),
        Err(err) if err.is_missing_runtime() => {
            println!("skipped: ONNX Runtime not found");
            None
        }
        Err(err) => panic!("{err}"),
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn int(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3, &mut out);
    varint(value, &mut out);
    out
}

fn block(field: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(field << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// A node: op, inputs, outputs, integer attributes.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], ints: &[(&str, i64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in inputs {
        out.extend(block(1, name.as_bytes()));
    }
    for name in outputs {
        out.extend(block(2, name.as_bytes()));
    }
    out.extend(block(3, format!("the_{op}").as_bytes()));
    out.extend(block(4, op.as_bytes()));
    for (name, value) in ints {
        let attribute = [block(1, name.as_bytes()), int(3, *value as u64), int(20, 2)];
        out.extend(block(5, &attribute.concat()));
    }
    out
}

/// An initializer of FP32 numbers.
pub fn initializer(name: &str, dims: &[u64], values: &[f32]) -> Vec<u8> {
    let mut out: Vec<u8> = dims.iter().flat_map(|&d| int(1, d)).collect();
    out.extend(int(2, 1));
    out.extend(block(8, name.as_bytes()));
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    out.extend(block(9, &raw));
    out
}

/// A graph input or output; a dimension is a number or a name.
pub fn port(name: &str, dtype: DType, dims: &[&str]) -> Vec<u8> {
    let dims: Vec<u8> = dims
        .iter()
        .flat_map(|d| {
            let dim = match d.parse() {
                Ok(size) => int(1, size),
                Err(_) => block(2, d.as_bytes()),
            };
            block(1, &dim)
        })
        .collect();
    let tensor = [int(1, dtype.to_onnx() as u64), block(2, &dims)].concat();
    [block(1, name.as_bytes()), block(2, &block(1, &tensor))].concat()
}

/// A model of opset 21.
pub fn model(
    nodes: &[Vec<u8>],
    initializers: &[Vec<u8>],
    inputs: &[Vec<u8>],
    outputs: &[Vec<u8>],
) -> Vec<u8> {
    let mut graph = Vec::new();
    nodes.iter().for_each(|n| graph.extend(block(1, n)));
    graph.extend(block(2, b"test"));
    initializers.iter().for_each(|i| graph.extend(block(5, i)));
    inputs.iter().for_each(|i| graph.extend(block(11, i)));
    outputs.iter().for_each(|o| graph.extend(block(12, o)));
    let opset = [block(1, b""), int(2, 21)].concat();
    [int(1, 10), block(7, &graph), block(8, &opset)].concat()
}

/// `y = x · [[1, 2], [3, 4]] + [1, 1]` for FP32 `x[batch, 2]`.
pub fn matmul_add() -> Vec<u8> {
    scaled_matmul_add(1.)
}

/// [`matmul_add`] with its matrix scaled.
pub fn scaled_matmul_add(scale: f32) -> Vec<u8> {
    model(
        &[
            node("MatMul", &["x", "w"], &["xw"], &[]),
            node("Add", &["xw", "b"], &["y"], &[]),
        ],
        &[
            initializer("w", &[2, 2], &[1., 2., 3., 4.].map(|v| v * scale)),
            initializer("b", &[2], &[1., 1.]),
        ],
        &[port("x", DType::F32, &["batch", "2"])],
        &[port("y", DType::F32, &["batch", "2"])],
    )
}

/// `y = Identity(x)` for any dtype and one dimension of any size.
pub fn identity(dtype: DType) -> Vec<u8> {
    model(
        &[node("Identity", &["x"], &["y"], &[])],
        &[],
        &[port("x", dtype, &["n"])],
        &[port("y", dtype, &["n"])],
    )
}
