use super::*;
use crate::ops::testing::graph;
use crate::{Attr, Attrs, DType, Dim, Graph, Op, Tensor, Type};

fn f32() -> Type {
    Type::tensor(DType::F32, None)
}

/// x → Relu → y, x + y → z.
fn sound() -> Graph {
    let mut g = graph(21);
    let x = g.add_input("x", f32());
    let relu = g.add_node(Op::onnx("Relu"), "relu", [Some(x)], 1, Attrs::new());
    let r = g.node(relu).sole_output();
    let add = g.add_node(Op::onnx("Add"), "add", [Some(x), r], 1, Attrs::new());
    let z = g.node(add).sole_output().unwrap();
    g.add_output("z", z);
    g
}

/// An If whose branches return `captures` of the outer values.
fn branching() -> Graph {
    let mut g = graph(21);
    let cond = g.add_input("cond", Type::tensor(DType::Bool, None));
    let (a, b) = (g.add_input("a", f32()), g.add_input("b", f32()));
    let branch = |k: usize| {
        let mut body = graph(21);
        let v = body.add_capture("outer", Type::Unknown, k);
        body.add_output("out", v);
        Attr::Graph(Box::new(body))
    };
    let attrs = Attrs::new()
        .with("then_branch", branch(0))
        .with("else_branch", branch(1));
    let n = g.add_node(Op::onnx("If"), "choose", [Some(cond)], 1, attrs);
    g.push_capture(n, a);
    g.push_capture(n, b);
    let out = g.node(n).sole_output().unwrap();
    g.add_output("y", out);
    g
}

fn whats(g: &Graph) -> Vec<String> {
    verify(g, Phase::Fused)
        .into_iter()
        .map(|f| f.what)
        .collect()
}

#[test]
fn sound_graphs_have_no_findings() {
    for phase in [Phase::Imported, Phase::Lowered] {
        assert_eq!(verify(&sound(), phase), []);
        assert_eq!(verify(&branching(), phase), []);
    }
    assert_eq!(verify(&Graph::default(), Phase::Lowered), []);
    assert!(Phase::Imported < Phase::Canonical && Phase::Typed < Phase::Lowered);
}

#[test]
fn edits_keep_a_graph_sound() {
    let mut g = sound();
    let (relu, _) = g.nodes().next().unwrap();
    let (x, r) = (g.inputs()[0], g.node(relu).sole_output().unwrap());
    g.replace_uses(r, x);
    assert_eq!(verify(&g, Phase::Typed), []);
    assert!(g.remove_node(relu));
    assert_eq!(verify(&g, Phase::Typed), []);
}

#[test]
fn reading_a_removed_value() {
    let mut g = sound();
    let (relu, _) = g.nodes().next().unwrap();
    let (x, r) = (g.inputs()[0], g.node(relu).sole_output().unwrap());
    g.replace_uses(r, x);
    g.remove_node(relu);
    let (add, _) = g.nodes().next().unwrap();
    g.set_input(add, 1, Some(r));
    g.add_output("gone", r);
    let findings = verify(&g, Phase::Imported);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(
        findings[0]
            .what
            .starts_with("operand 1 is a value that nothing defines any more")
    );
    assert!(findings[0].at.starts_with("add"));
    assert!(findings[0].node.as_deref().unwrap().contains("= Add(x, "));
    assert_eq!(
        findings[1].to_string(),
        "output 'gone': gives a value that nothing defines"
    );
}

#[test]
fn cycles() {
    let mut g = sound();
    let nodes: Vec<_> = g.nodes().map(|(id, _)| id).collect();
    let z = g.node(nodes[1]).sole_output();
    g.set_input(nodes[0], 0, z);
    assert_eq!(whats(&g), ["is part of a cycle"]);
}

#[test]
fn public_names() {
    let mut g = sound();
    let z = g.outputs()[0].value;
    g.add_input("x", f32());
    g.add_input("", f32());
    g.add_output("z", z);
    g.add_output("", z);
    g.add_output("x", z);
    assert_eq!(
        whats(&g),
        [
            "bears the name of another input",
            "has no name",
            "bears the name of another output",
            "has no name",
            "bears the name of an input that it does not give",
        ]
    );
    let mut g = graph(21);
    let x = g.add_input("x", f32());
    g.add_output("x", x);
    assert_eq!(whats(&g), [""; 0]);
}

#[test]
fn constants_and_defaults() {
    let mut g = sound();
    let c = g.add_constant("c", Tensor::vector(&[1f32, 2.0]));
    g.set_type(
        c,
        Type::tensor(DType::F32, Some([Dim::Known(3)].into_iter().collect())),
    );
    let x = g.inputs()[0];
    g.set_default(x, Tensor::scalar(1i64));
    g.set_default(c, Tensor::scalar(1f32));
    assert_eq!(
        whats(&g),
        [
            "is a constant float[2], but its type says float[3]",
            "has a default value of type int64",
            "has a default value, but is no input",
        ]
    );
}

#[test]
fn captures() {
    let mut g = sound();
    let v = g.add_capture("outer", Type::Unknown, 0);
    g.add_output("v", v);
    assert_eq!(
        whats(&g),
        ["captures an outer value in the outermost graph"]
    );

    let mut g = branching();
    let (n, _) = g.nodes().next().unwrap();
    let a = g.inputs()[1];
    g.push_capture(n, a);
    assert_eq!(
        whats(&g),
        ["captures a value at position 2 that none of its nested graphs reads"]
    );
    for attr in g.attrs_mut(n).values_mut() {
        for body in attr.graphs_mut() {
            let t = Type::tensor(DType::I64, None);
            let v = body.add_capture("far", t.clone(), 7);
            body.add_output("more", v);
            let v = body.add_capture("other", t, 2);
            body.add_output("most", v);
        }
    }
    let findings = verify(&g, Phase::Imported);
    assert_eq!(findings.len(), 4, "{findings:?}");
    assert_eq!(findings[0].at, "choose in else_branch, value 'far'");
    assert_eq!(
        findings[0].what,
        "is capture 7, but the owning node captures 3 values"
    );
    assert_eq!(findings[1].what, "is int64 here but float outside");

    let mut g = sound();
    let (relu, _) = g.nodes().next().unwrap();
    let x = g.inputs()[0];
    g.push_capture(relu, x);
    assert_eq!(
        whats(&g),
        ["captures a value at position 0 that it has no nested graph to read"]
    );
}

#[test]
fn graphs_belong_to_control_flow_or_other_domains() {
    let mut g = sound();
    let (relu, _) = g.nodes().next().unwrap();
    g.attrs_mut(relu)
        .set("body", Attr::Graph(Box::new(graph(21))));
    assert_eq!(
        whats(&g),
        ["attribute 'body' holds a graph, which Relu does not take"]
    );
    g.set_op(relu, Op::new("custom", "Relu"));
    g.opsets_mut().set("custom", 1);
    assert_eq!(whats(&g), [""; 0]);
}

#[test]
fn operators_domains_and_phases() {
    let mut g = sound();
    let nodes: Vec<_> = g.nodes().map(|(id, _)| id).collect();
    g.set_op(nodes[0], Op::new("com.microsoft", "FastGelu"));
    g.set_op(nodes[1], Op::new(INTERNAL_DOMAIN, ""));
    assert_eq!(
        whats(&g),
        [
            "is of domain 'com.microsoft', which is not imported",
            "has no operator"
        ]
    );
    let local: FxHashSet<String> = ["com.microsoft".to_string()].into_iter().collect();
    g.set_op(nodes[1], Op::new(INTERNAL_DOMAIN, "Attention"));
    assert_eq!(verify_with(&g, Phase::Typed, &local), []);
    let findings = verify_with(&g, Phase::Lowered, &local);
    assert_eq!(findings.len(), 1);
    assert_eq!(
        findings[0].what,
        "is internal to the compiler, but the graph is lowered"
    );

    let mut g = Graph::default();
    g.add_node(Op::onnx("RandomNormal"), "", [], 1, Attrs::new());
    assert_eq!(whats(&g), ["is of domain 'ai.onnx', which is not imported"]);

    let mut g = branching();
    let (n, _) = g.nodes().next().unwrap();
    for body in g.attrs_mut(n).values_mut().flat_map(|a| a.graphs_mut()) {
        body.opsets_mut().set("", 13);
        body.add_node(Op::onnx("RandomNormal"), "", [], 1, Attrs::new());
    }
    assert_eq!(whats(&g).len(), 2);
    assert!(whats(&g)[0].ends_with("the outermost graph imports 21"));
}

#[test]
fn model_verification_counts_functions_as_imports() {
    let model = crate::Model::new(sound());
    assert_eq!(verify_model(&model, Phase::Lowered), []);
}
