//! Headers, graphs, nodes and functions.

use super::*;
use crate::onnx::proto::type_proto::Value;

const MODEL: &str = r#"<
  ir_version: 10,
  opset_import: ["" : 20, "com.microsoft" : 1],
  producer_name: "a \"quoted\" name",
  producer_version: "1",
  domain: "d.e",
  model_version: -3,
  doc_string: "two
lines # and no comment",
  metadata_props: ["k": "v", "": ""]
>
main (float[batch, 4] x, float[1] d) => (float[batch, 4] y) <
  float[1] d = {1.0},
  float[4] w = {1.0, 2.0, -0.5, 1e-7},
  float[batch, 4] "/mul/out_0"
> {
  ["/mul"] "/mul/out_0" = Mul(x, w)
  a, "", b = com.microsoft.Some<axis = -1, mode = "m">("/mul/out_0", "", d)
  y = my.domain.F:v2(a)
}

<
  domain: "my.domain",
  overload: "v2",
  opset_import: ["" : 20],
  doc_string: "a function"
>
F <alpha, beta = 1.5> (a) => (b) <
  float[2] a
> {
  b = LeakyRelu<alpha: float = @beta>(a)
}
"#;

#[test]
fn model_prints_as_it_was_written() {
    assert_eq!(round_trip(MODEL), MODEL);
}

#[test]
fn model_header_fields() {
    let model = parse_model(MODEL).unwrap();
    assert_eq!(model.ir_version, Some(10));
    assert_eq!(model.model_version, Some(-3));
    assert_eq!(model.producer_name.as_deref(), Some("a \"quoted\" name"));
    assert_eq!(
        model.doc_string.as_deref(),
        Some("two\nlines # and no comment")
    );
    assert_eq!(
        model.opset_import[1].domain.as_deref(),
        Some("com.microsoft")
    );
    assert_eq!(model.opset_import[1].version, Some(1));
    assert_eq!(model.metadata_props[0].value.as_deref(), Some("v"));
    assert_eq!(model.functions.len(), 1);
}

#[test]
fn header_is_optional_and_checked() {
    let model = parse_model("g () => () {}").unwrap();
    assert_eq!(model.ir_version, None);
    assert_eq!(
        print_model(&model, &PrintOptions::default()),
        "g () => () {\n}\n"
    );
    let message = |text: &str| parse_model(text).unwrap_err().message;
    assert!(message("<ir: 1> g () => () {}").contains("`metadata_props`, found `ir`"));
    assert_eq!(
        message("<ir_version: 1, ir_version: 2> g () => () {}"),
        "`ir_version` is given twice"
    );
    assert_eq!(
        message("<ir_version 1> g () => () {}"),
        "expected `:`, found `1`"
    );
    assert_eq!(
        message("<ir_version: 1.5> g () => () {}"),
        "expected an integer, found the float `1.5`"
    );
    assert_eq!(
        message("<ir_version: 9223372036854775808> g () => () {}"),
        "`9223372036854775808` does not fit into 64 bits"
    );
    assert_eq!(
        message("<domain: x> g () => () {}"),
        "expected a string, found `x`"
    );
    assert_eq!(
        message("<opset_import: [20]> g () => () {}"),
        "expected a string, found `20`"
    );
}

#[test]
fn model_without_a_graph_still_prints() {
    let printed = print_model(&Default::default(), &PrintOptions::default());
    assert_eq!(printed, "\"\" () => () {\n}\n");
    assert!(parse_model(&printed).is_ok());
}

#[test]
fn inputs_may_have_defaults() {
    let graph = parse_graph("g (float[1] x = {2.0}, y) => (z) {}").unwrap();
    assert_eq!(graph.input.len(), 2);
    assert_eq!(graph.initializer[0].name.as_deref(), Some("x"));
    assert_eq!(graph.input[1].r#type, None);
}

#[test]
fn empty_operands() {
    let inputs = |list: &str| {
        graph("", &format!("y = Op({list})")).node[0]
            .input
            .join("|")
    };
    assert_eq!(graph("", "y = Op()").node[0].input.len(), 0);
    assert_eq!(graph("", "y = Op(,)").node[0].input, [""]);
    assert_eq!(inputs("x,"), "x");
    assert_eq!(inputs(", x"), "|x");
    assert_eq!(inputs(r#"x, "", z"#), "x||z");
    assert_eq!(inputs("x,,z"), "x||z");
    let nodes = graph("", "= Op(x) [n] \"\", b = Op(x)").node;
    assert_eq!(nodes[0].output.len(), 0);
    assert_eq!(nodes[1].output, ["", "b"]);
}

#[test]
fn node_names_domains_and_overloads() {
    let nodes = graph(
        "",
        r#"["/n:1"] y = Op(x) [] y = a.b.Op(x) y = "0.1"."aten::add":"0"<k = 1>(x)
           y = Op(x) <k = 2>"#,
    )
    .node;
    assert_eq!(nodes[0].name.as_deref(), Some("/n:1"));
    assert_eq!(nodes[0].domain, None);
    assert_eq!(nodes[1].name, None);
    assert_eq!(nodes[1].domain.as_deref(), Some("a.b"));
    assert_eq!(nodes[2].domain.as_deref(), Some("0.1"));
    assert_eq!(nodes[2].op_type.as_deref(), Some("aten::add"));
    assert_eq!(nodes[2].overload.as_deref(), Some("0"));
    assert_eq!(nodes[3].attribute[0].i, Some(2));
    let printed = print_node(&nodes[2], &PrintOptions::default());
    assert_eq!(printed, r#"y = "0.1"."aten::add":"0"<k = 1>(x)"#);
}

#[test]
fn node_errors() {
    assert_eq!(
        graph_error("", "y Op(x)"),
        "expected `=` or `,`, found `Op`"
    );
    assert_eq!(
        graph_error("", "y = (x)"),
        "expected an operator, found `(`"
    );
    assert_eq!(
        graph_error("", "y = Op x"),
        "expected `(` or `<`, found `x`"
    );
    assert_eq!(
        graph_error("", "y = Op(x"),
        "expected `)` or `,`, found `}`"
    );
    assert_eq!(
        graph_error("", "y = Op(1)"),
        "expected `)` or `,`, found `1`"
    );
    assert_eq!(graph_error("", "[n y = Op(x)"), "expected `]`, found `y`");
    assert_eq!(
        graph_error("", "y = Op<>(x) <"),
        "expected an attribute's name, found `}`"
    );
    let unclosed = parse_graph("g () => () { y = Op(x)").unwrap_err();
    assert_eq!(
        unclosed.message,
        "expected a node or `}`, found the end of the text"
    );
}

#[test]
fn errors_show_where() {
    let text = "g (x) => (y) {\n  y = Add(x, é)\n}";
    let error = parse_graph(text).unwrap_err();
    assert_eq!((error.line, error.column), (2, 14));
    assert_eq!(
        error.to_string(),
        "line 2, column 14: expected `)` or `,`, found `é`"
    );
    let shown = "\n  |\n2 |   y = Add(x, é)\n  |              ^";
    assert_eq!(error.render(text), format!("{error}{shown}"));
    let long = format!("g (x) => (y) {{ {} ! }}", "y = Op(x) ".repeat(100));
    let rendered = parse_graph(&long).unwrap_err().render(&long);
    assert!(rendered.lines().all(|line| line.len() < 120), "{rendered}");
    assert!(rendered.ends_with("^"));
}

#[test]
fn text_after_the_end_is_an_error() {
    assert!(parse_graph("g () => () {} # done").is_ok());
    let message = parse_graph("g () => () {} more").unwrap_err().message;
    assert_eq!(message, "expected the end of the text, found `more`");
    assert!(parse_function("F () => () {} G () => () {}").is_err());
}

#[test]
fn functions_with_and_without_header() {
    let text = r#"
        # the exact form
        Gelu (x) => (y) { d = Div(x, {1.41421356}) e = Erf(d) y = Mul(d, e) }
        <opset_import: ["": 18], domain: "com.microsoft">
        "Skip Norm" <axis: int = -1, "eps"> (float[N] x, b) => (float[N] y) <int64 t> { y = Add(x, b) }
        Empty <> () => () {}"#;
    let functions = parse_functions(text).unwrap();
    let names: Vec<_> = functions.iter().filter_map(|f| f.name.as_deref()).collect();
    assert_eq!(names, ["Gelu", "Skip Norm", "Empty"]);
    assert_eq!(functions[0].domain, None);
    assert_eq!(functions[1].attribute, ["eps"]);
    assert_eq!(functions[1].attribute_proto[0].i, Some(-1));
    assert_eq!(functions[1].input, ["x", "b"]);
    let infos: Vec<_> = functions[1]
        .value_info
        .iter()
        .filter_map(|i| i.name.as_deref())
        .collect();
    assert_eq!(infos, ["x", "y", "t"]);
    for function in &functions {
        let printed = print_function(function, &PrintOptions::default());
        assert_eq!(parse_function(&printed).as_ref(), Ok(function), "{printed}");
    }
    assert_eq!(parse_functions(" # nothing\n"), Ok(vec![]));
    let message = parse_function("<ir_version: 1> F () => () {}")
        .unwrap_err()
        .message;
    assert!(message.ends_with("`overload` or `doc_string`, found `ir_version`"));
}

#[test]
fn subgraphs_nest() {
    let text = r#"g (bool c) => (y) {
  y = If(c) <
    then_branch = then () => (float[2] t) <
      float[2] k = {1.0, 2.0}
    > {
      t = Identity(k)
    },
    else_branch = "else/1" () => (e) {
      e = Loop(c) <
        body = body (i, c2) => (c2, v) {
          v = Cast<to = 1>(i)
        },
        n = 3
      >
    }
  >
}
"#;
    let graph = parse_graph(text).unwrap();
    assert_eq!(print_graph(&graph, &PrintOptions::default()), text);
}

#[test]
fn names_that_look_like_something_else_are_quoted() {
    let graph = parse_graph(
        r#"g ("float", "seq") => ("inf") <"map", float "int64"> { "inf" = Op(float) }"#,
    )
    .unwrap();
    assert_eq!(graph.input[0].name.as_deref(), Some("float"));
    assert!(matches!(
        graph.value_info[1]
            .r#type
            .as_ref()
            .and_then(|t| t.value.as_ref()),
        Some(Value::TensorType(_))
    ));
    let printed = print_graph(&graph, &PrintOptions::default());
    assert_eq!(parse_graph(&printed), Ok(graph));
}
