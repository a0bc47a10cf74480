//! Literals among a node's inputs.

use super::*;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::proto::{FunctionProto, NodeProto};

fn body(nodes: &str) -> FunctionProto {
    let text = format!("F <epsilon, axis> (x) => (y) {{ {nodes} }}");
    parse_function(&text).unwrap_or_else(|e| panic!("{}", e.render(&text)))
}

/// The Constant node in front of `y = Op(literal)`.
fn constant(literal: &str) -> NodeProto {
    let mut nodes = body(&format!("y = Op({literal})")).node;
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].op_type.as_deref(), Some("Constant"));
    assert_eq!(nodes[0].output, nodes[1].input);
    nodes.remove(0)
}

fn tensor_of(literal: &str) -> TensorProto {
    let attribute = constant(literal).attribute.remove(0);
    assert_eq!(attribute.name.as_deref(), Some("value"));
    *attribute.t.unwrap()
}

#[test]
fn literals_become_constants() {
    let function = body("d = Div(x, {1.41421356}) y = Sum({1.0}, d, {2})");
    let ops: Vec<_> = function
        .node
        .iter()
        .filter_map(|n| n.op_type.as_deref())
        .collect();
    assert_eq!(ops, ["Constant", "Div", "Constant", "Constant", "Sum"]);
    assert_eq!(function.node[4].input, ["_lit1", "d", "_lit2"]);
    let printed = print_function(&function, &PrintOptions::default());
    assert!(
        printed.contains("_lit0 = Constant<value = float {1.4142135}>()"),
        "{printed}"
    );
    assert_eq!(parse_function(&printed), Ok(function));
}

#[test]
fn literal_types() {
    let scalar = tensor_of("{0.5}");
    assert_eq!(scalar.data_type, Some(DataType::Float as i32));
    assert_eq!(scalar.dims, []);
    assert_eq!(scalar.raw_data.unwrap()[..], 0.5f32.to_le_bytes());
    let ints = tensor_of("{1, -2}");
    assert_eq!(ints.data_type, Some(DataType::Int64 as i32));
    assert_eq!(ints.dims, [2]);
    assert_eq!(
        tensor_of("{1.0, 2}").data_type,
        Some(DataType::Float as i32)
    );
    assert_eq!(
        tensor_of("{-inf}").raw_data.unwrap()[..],
        f32::NEG_INFINITY.to_le_bytes()
    );
    assert_eq!(tensor_of("{\"a\", b\"\\xff\"}").string_data.len(), 2);
    assert_eq!(
        tensor_of("float {2}").raw_data.unwrap()[..],
        2f32.to_le_bytes()
    );
    assert_eq!(tensor_of("int64[1] {-1}").dims, [1]);
    assert_eq!(tensor_of("int64[0] {}").dims, [0]);
    assert_eq!(tensor_of("float16[1, 2] {1.0, -inf}").dims, [1, 2]);
}

#[test]
fn attribute_references() {
    let reference = |literal: &str| {
        let mut node = constant(literal);
        let printed = print_node(&node, &PrintOptions::default());
        assert_eq!(node.attribute.remove(0).t, None);
        printed
    };
    assert_eq!(
        reference("{@epsilon}"),
        "_lit0 = Constant<value_float: float = @epsilon>()"
    );
    assert_eq!(
        reference("{int @axis}"),
        "_lit0 = Constant<value_int: int = @axis>()"
    );
    assert_eq!(
        reference("{ints @axis}"),
        "_lit0 = Constant<value_ints: ints = @axis>()"
    );
    assert_eq!(
        reference("{floats @\"a b\"}"),
        "_lit0 = Constant<value_floats: floats = @\"a b\">()"
    );
    assert_eq!(
        reference("{tensor @axis}"),
        "_lit0 = Constant<value: tensor = @axis>()"
    );
}

#[test]
fn fresh_names_meet_no_other() {
    let names = |nodes: &str| body(nodes).node[0].output[0].clone();
    assert_eq!(names("y = Op({1})"), "_lit0");
    assert_eq!(names("y = Op({1}) _lit0 = Op(x)"), "_lit_0");
    assert_eq!(names("y = Op({1}) a_lit__1 = Op(_lit0)"), "_lit___0");
    assert_eq!(names(r#"y = Op({1}) "_l\it0" = Op(x)"#), "_lit_0");
    let functions =
        parse_functions("F () => (y) { y = Op({1}) } G () => (y) { y = Op({1}) }").unwrap();
    assert_eq!(functions[1].node[0].output, ["_lit0"]);
}

#[test]
fn subgraphs_hold_their_own_literals() {
    let graph = graph(
        "",
        "y = If({1}) <then_branch = t () => (o) { o = Op({2}) }>",
    );
    assert_eq!(graph.node[0].output, ["_lit0"]);
    let inner = graph.node[1].attribute[0].g.as_ref().unwrap();
    assert_eq!(inner.node[0].output, ["_lit1"]);
    assert_eq!(inner.node[1].input, ["_lit1"]);
}

#[test]
fn values_may_be_named_like_types() {
    let node = body("y = Add(float, int64)").node.remove(0);
    assert_eq!(node.input, ["float", "int64"]);
}

#[test]
fn literal_errors() {
    let error = |literal: &str| graph_error("", &format!("y = Op({literal})"));
    assert_eq!(
        error("{}"),
        "an empty literal needs a type, such as `int64[0] {}`"
    );
    assert_eq!(
        error("{1, 2.5}"),
        "expected an integer for int64, found `2.5`"
    );
    assert_eq!(error("{1.0, \"a\"}"), "expected a number, found a string");
    assert_eq!(
        error("{axis}"),
        "expected a literal, or the type of an attribute and `@`, found `axis`"
    );
    assert_eq!(
        error("{graph @g}"),
        "expected a literal, or the type of an attribute and `@`, found `graph`"
    );
    assert_eq!(error("{int axis}"), "expected `@`, found `axis`");
    assert_eq!(error("{@}"), "expected an attribute's name, found `}`");
    assert_eq!(error("{1"), "expected `}` or `,`, found `)`");
    assert_eq!(
        error("float[2] {1}"),
        "the shape [2] asks for 2 elements, found 1"
    );
    assert_eq!(
        error("float[N] {1.0}"),
        "a tensor with elements needs numbers for dimensions"
    );
    assert!(error("{... 0011aabb}").contains("were left out"));
    assert!(parse_graph("g () => () { {1} = Op() }").is_err());
}
