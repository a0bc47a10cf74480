mod hostile;
mod literals;
mod models;
mod tensors;
mod values;

use super::*;
use crate::onnx::proto::{AttributeProto, GraphProto, TensorProto};

/// Wraps declarations and nodes in a graph `g (x) => (y)`.
fn graph(declared: &str, nodes: &str) -> GraphProto {
    let text = format!("g (x) => (y) <{declared}> {{ {nodes} }}");
    parse_graph(&text).unwrap_or_else(|e| panic!("{}", e.render(&text)))
}

/// The message for a graph that must not parse.
fn graph_error(declared: &str, nodes: &str) -> String {
    let text = format!("g (x) => (y) <{declared}> {{ {nodes} }}");
    match parse_graph(&text) {
        Ok(_) => panic!("parsed: {text}"),
        Err(e) => e.message,
    }
}

/// The tensor of one initializer.
fn tensor(declared: &str) -> TensorProto {
    graph(declared, "").initializer.remove(0)
}

/// The value of one attribute `a`, with its type if there is one: `= 1`, `: ints = []`.
fn attribute(value: &str) -> AttributeProto {
    graph("", &format!("y = Op<a{value}>(x)")).node[0]
        .attribute
        .remove(0)
}

/// Parses, prints and parses again; the second model must be the first. Returns the printed text.
fn round_trip(text: &str) -> String {
    let first = parse_model(text).unwrap_or_else(|e| panic!("{}", e.render(text)));
    let printed = print_model(&first, &PrintOptions::default());
    let second = parse_model(&printed).unwrap_or_else(|e| panic!("{}", e.render(&printed)));
    assert_eq!(first, second, "{printed}");
    printed
}
