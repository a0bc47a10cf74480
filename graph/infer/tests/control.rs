//! Branches, loops and scans.

use super::*;

#[test]
fn branches_are_merged_and_captures_carry_facts() {
    let branch = |axis: i64| {
        let mut g = Graph::new(Opsets::default());
        let outer = g.add_capture("x", Type::Unknown, 0);
        let node = g.add_node(
            Op::onnx("Concat"),
            "",
            [Some(outer), Some(outer)],
            1,
            Attrs::new().with("axis", axis),
        );
        let out = g.node(node).outputs()[0].unwrap();
        g.add_output("y", out);
        g
    };
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq", "8"]);
    let yes = b.input(DType::Bool, &[]);
    let mut attrs = none();
    attrs.set("then_branch", Attr::Graph(Box::new(branch(1))));
    attrs.set("else_branch", Attr::Graph(Box::new(branch(0))));
    let out = b.ops(Op::onnx("If"), &[yes], 1, attrs)[0];
    let node = b.graph.producer(out).unwrap();
    b.graph.push_capture(node, x);
    assert_eq!(b.ty(out), "float[?,?,8]");
    annotate(&mut b.graph);
    let then = b
        .graph
        .node(node)
        .attrs()
        .get("then_branch")
        .unwrap()
        .graphs();
    assert_eq!(
        then[0].value(then[0].outputs()[0].value).ty().to_string(),
        "float[batch,2*seq,8]"
    );
}

#[test]
fn loops_keep_type_and_rank_of_what_varies() {
    let mut body = Graph::new(Opsets::default());
    body.add_input("i", Type::Unknown);
    let go = body.add_input("go", Type::Unknown);
    let state = body.add_input("state", Type::Unknown);
    let node = body.add_node(
        Op::onnx("Concat"),
        "",
        [Some(state), Some(state)],
        1,
        none().with("axis", 0),
    );
    let next = body.node(node).outputs()[0].unwrap();
    for value in [go, next, state] {
        body.add_output("", value);
    }
    let mut b = Build::new(17);
    let (count, x) = (b.int(3), b.input(DType::F16, &["batch", "8"]));
    let go = b.input(DType::Bool, &[]);
    let mut attrs = none();
    attrs.set("body", Attr::Graph(Box::new(body)));
    let outs = b.ops(Op::onnx("Loop"), &[count, go, x], 2, attrs);
    assert_eq!(b.ty(outs[0]), "float16[?,?]");
    assert_eq!(b.ty(outs[1]), "float16[?,?,?]");
}

#[test]
fn scans_walk_one_axis() {
    let mut body = Graph::new(Opsets::default());
    let state = body.add_input("state", Type::Unknown);
    let row = body.add_input("row", Type::Unknown);
    for value in [state, row] {
        body.add_output("", value);
    }
    let mut b = Build::new(17);
    let (s, x) = (
        b.input(DType::F32, &["4"]),
        b.input(DType::F32, &["batch", "seq", "8"]),
    );
    let mut attrs = none()
        .with("num_scan_inputs", 1)
        .with("scan_input_axes", vec![1]);
    attrs.set("body", Attr::Graph(Box::new(body)));
    let outs = b.ops(Op::onnx("Scan"), &[s, x], 2, attrs);
    assert_eq!(b.ty(outs[0]), "float[?]");
    assert_eq!(b.ty(outs[1]), "float[seq,batch,8]");
}
