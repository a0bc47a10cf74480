use super::*;
use crate::graph::NodeId;
use crate::ops::testing::{f32, node};
use crate::verify::{Phase, verify};
use crate::{Attr, Attrs, Tensor, Type};

fn model(opset: i64, op: &str, attrs: Attrs, constants: &[Option<Tensor>]) -> Model {
    let (mut g, n) = node(opset, op, attrs, constants);
    let y = g.node(n).output(0).unwrap();
    g.add_output("y", y);
    Model::new(g)
}

/// Operators in topological order.
fn ops(g: &Graph) -> Vec<&'static str> {
    let order = g.topo_order().unwrap();
    order.into_iter().map(|id| g.node(id).op().name()).collect()
}

fn only(g: &Graph, op: &str) -> NodeId {
    let mut found = g.nodes().filter(|(_, n)| n.op().is(op)).map(|(id, _)| id);
    let id = found.next().unwrap();
    assert!(found.next().is_none());
    id
}

fn converted(mut model: Model, to: i64) -> (Model, usize) {
    let from = model.graph.opset();
    let done = convert(&mut model, to).unwrap();
    assert_eq!((done.from, done.to, model.graph.opset()), (from, to, to));
    assert_eq!(verify(&model.graph, Phase::Imported), []);
    assert_eq!(&*model.graph.outputs()[0].name, "y");
    (model, done.nodes)
}

#[test]
fn versions_rise_and_never_fall() {
    let mut m = model(20, "Relu", Attrs::new(), &[]);
    let same = Converted {
        from: 20,
        to: 20,
        nodes: 0,
    };
    assert_eq!(convert(&mut m, 17), Ok(same));
    assert_eq!(convert(&mut m, 20), Ok(same));
    assert_eq!(
        convert(&mut m, NEWEST + 1),
        Err(OpsetError::Unknown { to: NEWEST + 1 })
    );
    assert_eq!(converted(m, 23).1, 0);
    let mut m = model(0, "Relu", Attrs::new(), &[]);
    assert_eq!(convert(&mut m, 13), Err(OpsetError::Invalid { from: 0 }));
    let mut m = Model::default();
    convert(&mut m, 13).unwrap();
    assert_eq!(m.graph.opset(), 13);
}

#[test]
fn other_domains_and_unknown_operators_stay() {
    let attrs = Attrs::new().with("axis", 1);
    let mut m = model(11, "Softmax", attrs.clone(), &[]);
    let n = only(&m.graph, "Softmax");
    m.graph.set_op(n, Op::new("com.microsoft", "Softmax"));
    m.graph.opsets_mut().set("com.microsoft", 1);
    let (m, nodes) = converted(m, 23);
    assert!(nodes == 0 && m.graph.node(n).attrs().same(&attrs));
    assert_eq!(converted(model(11, "Whatever", attrs, &[]), 23).1, 0);
}

#[test]
fn softmax_over_one_axis_keeps_its_form() {
    for axis in [-1, 2] {
        let (m, nodes) = converted(
            model(11, "Softmax", Attrs::new().with("axis", axis), &[]),
            13,
        );
        assert_eq!((nodes, ops(&m.graph)), (1, vec!["Softmax"]));
        let n = only(&m.graph, "Softmax");
        assert_eq!(m.graph.node(n).attrs().int("axis"), Some(2));
    }
}

#[test]
fn softmax_over_several_axes_is_flattened() {
    let (m, nodes) = converted(model(12, "Softmax", Attrs::new(), &[]), 13);
    assert_eq!(
        (nodes, ops(&m.graph)),
        (1, vec!["Flatten", "Softmax", "Reshape"])
    );
    let reshape = m.graph.node(only(&m.graph, "Reshape"));
    let shape = m.graph.constant(reshape.input(1).unwrap()).unwrap();
    assert_eq!(shape.to_i64s(), Some(vec![2, 3, 4]));
    let mut unknown = model(12, "Softmax", Attrs::new(), &[]);
    let x = unknown.graph.inputs()[0];
    unknown.graph.set_type(x, Type::Unknown);
    let (m, _) = converted(unknown, 13);
    assert_eq!(ops(&m.graph).len(), 4);
    assert!(m.graph.nodes().any(|(_, n)| n.op().is("Shape")));
}

#[test]
fn attributes_become_inputs() {
    let axes = || Attrs::new().with("axes", vec![1]);
    let slice = axes().with("starts", vec![0]).with("ends", vec![1]);
    for (from, to, op, attrs, inputs) in [
        (11, 13, "ReduceSum", axes(), 2),
        (11, 18, "ReduceMean", axes(), 2),
        (11, 13, "Squeeze", axes(), 2),
        (11, 13, "Unsqueeze", axes(), 2),
        (11, 13, "Split", Attrs::new().with("split", vec![2]), 2),
        (9, 10, "Slice", slice, 4),
        (9, 11, "TopK", Attrs::new().with("k", 1), 2),
        (
            10,
            11,
            "Pad",
            Attrs::new().with("pads", vec![0; 6]).with("value", 1f32),
            3,
        ),
        (10, 11, "Clip", Attrs::new().with("max", 1f32), 3),
        (10, 12, "Dropout", Attrs::new().with("ratio", 0.1f32), 2),
        (17, 20, "DFT", Attrs::new(), 3),
    ] {
        let (m, nodes) = converted(model(from, op, attrs, &[]), to);
        let node = m.graph.node(only(&m.graph, op));
        assert_eq!((nodes, node.inputs().len()), (1, inputs), "{op}");
        assert!(node.attrs().is_empty(), "{op}");
    }
    let (m, nodes) = converted(model(11, "ReduceMean", axes(), &[]), 17);
    assert!(
        nodes == 0
            && !m
                .graph
                .node(only(&m.graph, "ReduceMean"))
                .attrs()
                .is_empty()
    );
    let (m, _) = converted(model(11, "Split", Attrs::new(), &[]), 18);
    assert_eq!(
        m.graph
            .node(only(&m.graph, "Split"))
            .attrs()
            .int("num_outputs"),
        Some(1)
    );
}

#[test]
fn bounds_take_the_dtype_of_the_operand() {
    let mut m = model(10, "Clip", Attrs::new().with("min", 0f32), &[]);
    let x = m.graph.inputs()[0];
    m.graph.set_type(x, Type::tensor(crate::DType::F16, None));
    let (m, _) = converted(m, 13);
    let clip = m.graph.node(only(&m.graph, "Clip"));
    let min = m.graph.constant(clip.input(1).unwrap()).unwrap();
    assert_eq!(min.dtype(), crate::DType::F16);

    let unknown = || {
        let mut m = model(10, "Clip", Attrs::new().with("min", 0f32), &[]);
        let x = m.graph.inputs()[0];
        m.graph.set_type(x, Type::Unknown);
        m
    };
    let (m, _) = converted(unknown(), 17);
    assert_eq!(ops(&m.graph), ["CastLike", "Clip"]);
    assert!(convert(&mut unknown(), 13).is_err());
}

#[test]
fn refusals_name_the_node_and_leave_the_model() {
    for (from, op, attrs, why) in [
        (
            8,
            "Scan",
            Attrs::new(),
            "Scan-8 runs once for each element of a batch",
        ),
        (
            7,
            "BatchNormalization",
            Attrs::new().with("spatial", 0),
            "spatial = 0",
        ),
        (10, "Clip", Attrs::new().with("min", "low"), "malformed"),
        (11, "Unsqueeze", Attrs::new(), "its axes are missing"),
        (11, "Softmax", Attrs::new().with("axis", 9), "out of range"),
        (10, "Resize", Attrs::new(), "its scales are missing"),
        (5, "Tile", Attrs::new(), "that old"),
    ] {
        let mut m = model(from, op, attrs.clone(), &[]);
        let error = convert(&mut m, 17).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!(
            "n ({op}): {op} cannot be converted from operator set {from} to 17"
        )));
        assert!(text.contains(why), "{text}");
        assert!(matches!(error, OpsetError::Node { from: f, to: 17, .. } if f == from));
        assert_eq!(m.graph.opset(), from);
        assert!(m.graph.node(only(&m.graph, op)).attrs().same(&attrs));
    }
}

#[test]
fn nested_graphs_rise_with_the_outermost() {
    let (mut g, n) = node(11, "If", Attrs::new(), &[]);
    for name in ["then_branch", "else_branch"] {
        let body = model(11, "ReduceSum", Attrs::new().with("axes", vec![0]), &[]).graph;
        g.attrs_mut(n).set(name, Attr::Graph(Box::new(body)));
    }
    let y = g.node(n).sole_output().unwrap();
    g.add_output("y", y);
    let mut m = Model::new(g);
    assert_eq!(convert(&mut m, 13).unwrap().nodes, 2);
    m.graph.for_each_graph(&mut |g| assert_eq!(g.opset(), 13));
}

#[test]
fn upsample_and_resize() {
    let scales = Attrs::new();
    let mut m = model(7, "Upsample", scales, &[]);
    let n = only(&m.graph, "Upsample");
    m.graph
        .attrs_mut(n)
        .set("scales", Attr::Floats(vec![1.0, 2.0, 2.0]));
    let (m10, _) = converted(m.clone(), 10);
    assert_eq!(m10.graph.node(n).inputs().len(), 2);
    let (m, nodes) = converted(m, 19);
    let node = m.graph.node(only(&m.graph, "Resize"));
    assert_eq!((nodes, node.inputs().len()), (1, 3));
    assert_eq!(node.attrs().str("nearest_mode"), Some("floor"));
    assert_eq!(
        node.attrs().str("coordinate_transformation_mode"),
        Some("asymmetric")
    );
}

#[test]
fn group_normalization_scales_each_channel() {
    let scale = Some(Tensor::vector(&[1f32, 2.0]));
    let attrs = Attrs::new().with("num_groups", 2);
    let mut m = model(18, "GroupNormalization", attrs, &[scale.clone(), scale]);
    let x = m.graph.inputs()[0];
    m.graph.set_type(x, f32(&[1, 6, 4]));
    let (known, _) = converted(m.clone(), 21);
    let node = known.graph.node(only(&known.graph, "GroupNormalization"));
    let scale = known.graph.constant(node.input(1).unwrap()).unwrap();
    assert_eq!(scale.to_f64s(), Some(vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0]));
    m.graph.set_type(x, Type::Unknown);
    let (computed, nodes) = converted(m, 21);
    assert!(nodes == 1 && ops(&computed.graph).contains(&"Expand"));
}

#[test]
fn batch_normalization_in_training_says_so() {
    let mut m = model(9, "BatchNormalization", Attrs::new(), &[]);
    let n = only(&m.graph, "BatchNormalization");
    for name in ["mean", "var", "saved_mean", "saved_var"] {
        m.graph.push_output(n, name);
    }
    let saved = m.graph.node(n).output(3).unwrap();
    let (trained, nodes) = converted(m.clone(), 15);
    let node = trained
        .graph
        .node(only(&trained.graph, "BatchNormalization"));
    assert_eq!((nodes, node.outputs().len()), (1, 3));
    assert_eq!(node.attrs().int("training_mode"), Some(1));
    m.graph.add_output("saved", saved);
    assert!(
        convert(&mut m, 15)
            .unwrap_err()
            .to_string()
            .contains("saved mean or variance is read")
    );
}

#[test]
fn functions_that_would_change_are_refused() {
    use crate::onnx::proto::{FunctionProto, NodeProto, OperatorSetIdProto};
    let with = |op: &str, version: i64| {
        let mut m = model(11, "Relu", Attrs::new(), &[]);
        m.header.functions.push(FunctionProto {
            name: Some("Soft".into()),
            domain: Some("my".into()),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(version),
            }],
            node: vec![NodeProto {
                op_type: Some(op.into()),
                ..NodeProto::default()
            }],
            ..FunctionProto::default()
        });
        m
    };
    let error = convert(&mut with("Softmax", 12), 17).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the local function Soft calls Softmax, which Softmax-13 changed")
    );
    assert!(convert(&mut with("Softmax", 12), 12).is_ok());
    assert!(convert(&mut with("Softmax", 13), 17).is_ok());
    assert!(convert(&mut with("Relu", 7), 24).is_ok());
}
