//! Types and attributes.

use super::*;
use crate::onnx::proto::attribute_proto::AttributeType;

/// Checks that these types print as they are written.
#[test]
fn types_print_as_written() {
    for text in [
        "float",
        "float[]",
        "bfloat16[2, N, ?]",
        "string[\"batch*2\", \"\", -1]",
        "uint4[0]",
        "float6e3m2[1]",
        "seq(float[N])",
        "optional(seq(int64))",
        "map(string, seq(float[]))",
        "sparse_tensor(float16[3, M])",
        "sparse_tensor(float)",
        "sparse_tensor(float[])",
        "opaque()",
        "opaque(a.b)",
        "opaque(a.b, c)",
        "opaque(\"a-b\", \"\")",
    ] {
        let model = format!("g ({text} x) => ({text} y) {{\n}}\n");
        assert_eq!(round_trip(&model), model);
    }
}

#[test]
fn type_errors() {
    let error = |text: &str| graph_error(&format!("{text} v"), "");
    assert_eq!(error("floaty"), "`floaty` is no type");
    assert_eq!(error("undefined[2]"), "`undefined` is no type");
    assert_eq!(error("seq(floaty)"), "expected a type, found `floaty`");
    assert_eq!(
        error("map(seq(float), float)"),
        "expected an element type, found `seq`"
    );
    assert_eq!(error("map(int64)"), "expected `,`, found `)`");
    assert_eq!(
        error("sparse_tensor(seq(float))"),
        "expected an element type, found `seq`"
    );
    assert_eq!(
        error("float[2.5]"),
        "expected a dimension or `]`, found the float `2.5`"
    );
    assert_eq!(
        error("float[99999999999999999999]"),
        "`99999999999999999999` does not fit into 64 bits"
    );
    assert_eq!(error("float[2"), "expected `]` or `,`, found `v`");
}

#[test]
fn attributes_print_as_written() {
    for text in [
        " = 1",
        " = -9223372036854775808",
        " = 1.0",
        " = -0.0",
        " = 1e-45",
        " = -inf",
        " = nan",
        " = nan(0x7fc00001)",
        " = \"text \\\" \\\\\"",
        " = \"\"",
        " = b\"\\xff\"",
        " = [1, -2]",
        " = [1.0, inf]",
        " = [\"a\", b\"\\xff\", \"\"]",
        " = float[2] {1.0, 2.0}",
        " = float {1.0}",
        " = int64[1] name {1}",
        " = int64[1] \"a/b\" {1}",
        " = [int64 {1}, float x {2.0}]",
        " = sparse_tensor(float[8]) {float[1] v {1.0}, int64[1] {3}}",
        " = [sparse_tensor(float[8]) {float[1] {1.0}, int64[1] {3}}]",
        ": type_proto = float[N]",
        ": type_protos = [float, seq(int64[])]",
        ": ints = []",
        ": floats = []",
        ": strings = []",
        ": tensors = []",
        ": graphs = []",
        ": sparse_tensors = []",
        ": type_protos = []",
        ": int = @axis",
        ": graphs = @g",
        " = @axis",
        " = @\"an axis\"",
    ] {
        let attribute = attribute(text);
        let mut node = graph("", "y = Op(x)").node.remove(0);
        node.attribute.push(attribute);
        let printed = print_node(&node, &PrintOptions::default());
        assert_eq!(printed, format!("y = Op<a{text}>(x)"));
    }
}

#[test]
fn attribute_types_may_be_said() {
    let float = attribute(": float = 1");
    assert_eq!(
        (float.r#type, float.f),
        (Some(AttributeType::Float as i32), Some(1.0))
    );
    assert_eq!(
        attribute(": floats = [1, -0]").floats[1].to_bits(),
        (-0.0f32).to_bits()
    );
    assert_eq!(attribute(" = [1.0, 2]").floats, [1.0, 2.0]);
    assert_eq!(attribute(": tensor = float = {1.0}").t.unwrap().dims, []);
    assert!(attribute(" = float[2]").tp.is_some());
    assert_eq!(
        attribute(" = [g () => () {}, \"h\" () => () {}]")
            .graphs
            .len(),
        2
    );
    assert_eq!(
        attribute(": graph = g => () {}").g.unwrap().name.as_deref(),
        Some("g")
    );
    let quoted = graph("", "y = Op<\"a b\" = 1>(x)").node[0].attribute[0]
        .name
        .clone();
    assert_eq!(quoted.as_deref(), Some("a b"));
    let reference = attribute(": float = @alpha");
    assert_eq!(reference.ref_attr_name.as_deref(), Some("alpha"));
    assert_eq!(reference.r#type, Some(AttributeType::Float as i32));
    assert_eq!(attribute(" = @alpha").r#type, None);
}

#[test]
fn attribute_errors() {
    let error = |text: &str| graph_error("", &format!("y = Op<a{text}>(x)"));
    assert_eq!(error(""), "expected `=` or `:`, found `>`");
    assert_eq!(error(" = "), "expected a value, found `>`");
    assert_eq!(
        error(": integer = 1"),
        "expected an attribute type such as `int` or `floats`, found `integer`"
    );
    assert_eq!(
        error(": int = 1.5"),
        "expected a value of type int, found one of type float"
    );
    assert_eq!(
        error(": string = 1"),
        "expected a value of type string, found one of type int"
    );
    assert_eq!(
        error(" = [1, 2.5]"),
        "expected a value of type int, found one of type float"
    );
    assert_eq!(
        error(" = [1, \"a\"]"),
        "expected a value of type int, found one of type string"
    );
    assert_eq!(
        error(": ints = 1"),
        "expected a list of type ints, found one value"
    );
    assert_eq!(
        error(": int = [1]"),
        "expected one value of type int, found a list"
    );
    assert_eq!(
        error(" = []"),
        "an empty list needs a type, such as `: ints`"
    );
    assert_eq!(error(" = [1,]"), "expected a value, found `]`");
    assert_eq!(
        error(" = 9223372036854775808"),
        "`9223372036854775808` is no number that fits into int64"
    );
    assert_eq!(error(" = 1e39"), "`1e39` is no number that fits into float");
    assert_eq!(
        error(" = word"),
        "expected `(` of a graph after `word`, found `>`"
    );
    assert_eq!(error(" = [@a]"), "expected a value, found `@`");
    assert_eq!(error(" = {1.0}"), "expected a value, found `{`");
}

#[test]
fn attributes_of_ir_version_1_have_no_type() {
    let mut node = graph("", "y = Op<a = 1, b = [1.0], c = \"s\">(x)")
        .node
        .remove(0);
    let typed = print_node(&node, &PrintOptions::default());
    node.attribute.iter_mut().for_each(|a| a.r#type = None);
    assert_eq!(print_node(&node, &PrintOptions::default()), typed);
}
