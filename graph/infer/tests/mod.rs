mod robust;

use super::*;
use crate::graph::Opsets;
use crate::{Attr, Attrs, DType, Dim, Op, Tensor};

struct Build {
    graph: Graph,
}

impl Build {
    fn new(opset: i64) -> Build {
        let mut opsets = Opsets::default();
        opsets.set("", opset);
        opsets.set("com.microsoft", 1);
        Build {
            graph: Graph::new(opsets),
        }
    }

    fn input(&mut self, dtype: DType, dims: &[&str]) -> ValueId {
        let dims = dims.iter().map(|d| match d.parse() {
            Ok(n) => Dim::Known(n),
            Err(_) if *d == "?" => Dim::Unknown,
            Err(_) => Dim::Symbol((*d).into()),
        });
        let ty = Type::tensor(dtype, Some(dims.collect()));
        self.graph.add_input("x", ty)
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_constant("c", Tensor::vector(values))
    }

    fn int(&mut self, value: i64) -> ValueId {
        self.graph.add_constant("c", Tensor::scalar(value))
    }

    fn op(&mut self, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        self.ops(Op::onnx(name), inputs, 1, attrs)[0]
    }

    fn ops(&mut self, op: Op, inputs: &[ValueId], outputs: usize, attrs: Attrs) -> Vec<ValueId> {
        let inputs = inputs.iter().map(|v| Some(*v));
        let node = self.graph.add_node(op, "n", inputs, outputs, attrs);
        self.graph
            .node(node)
            .outputs()
            .iter()
            .flatten()
            .copied()
            .collect()
    }

    fn ty(&self, value: ValueId) -> String {
        infer(&self.graph).ty(value).to_string()
    }

    fn values(&self, value: ValueId) -> String {
        let facts = infer(&self.graph);
        facts.values(value).map_or("none".into(), call::text)
    }

    fn conflicts(&self) -> Vec<String> {
        infer(&self.graph)
            .conflicts()
            .iter()
            .map(|c| c.message.clone())
            .collect()
    }
}

fn none() -> Attrs {
    Attrs::new()
}

/// Size `k` of `x` as a vector of one, as exporters by tracing write it.
fn size_of(b: &mut Build, x: ValueId, k: i64) -> ValueId {
    let shape = b.op("Shape", &[x], none());
    let at = b.int(k);
    let size = b.op("Gather", &[shape, at], none().with("axis", 0));
    let axes = b.ints(&[0]);
    b.op("Unsqueeze", &[size, axes], none())
}

#[test]
fn traced_reshape_to_heads_and_back() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq", "64"]);
    let (batch, seq) = (size_of(&mut b, x, 0), size_of(&mut b, x, 1));
    let (heads, width) = (b.ints(&[4]), b.ints(&[16]));
    let shape = b.op(
        "Concat",
        &[batch, seq, heads, width],
        none().with("axis", 0),
    );
    let split = b.op("Reshape", &[x, shape], none());
    let heads = b.op("Transpose", &[split], none().with("perm", vec![0, 2, 1, 3]));
    let keys = b.op("Transpose", &[split], none().with("perm", vec![0, 2, 3, 1]));
    let scores = b.op("MatMul", &[heads, keys], none());
    let flat = b.ints(&[0, 0, -1]);
    let joined = b.op("Reshape", &[split, flat], none());
    assert_eq!(b.values(shape), "[batch,seq,4,16]");
    assert_eq!(b.ty(heads), "float[batch,4,seq,16]");
    assert_eq!(b.ty(scores), "float[batch,4,seq,seq]");
    assert_eq!(b.ty(joined), "float[batch,seq,64]");
    assert_eq!(b.conflicts(), [""; 0]);
}

#[test]
fn expand_through_where_equal_and_constant_of_shape() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "1", "seq"]);
    let batch = size_of(&mut b, x, 0);
    let minus = b.ints(&[-1]);
    let wanted = b.op("Concat", &[batch, minus, minus], none().with("axis", 0));
    let rank = b.ints(&[3]);
    let ones = none().with("value", Tensor::vector(&[1i64]));
    let ones = b.op("ConstantOfShape", &[rank], ones);
    let minus_all = b.ints(&[-1, -1, -1]);
    let open = b.op("Equal", &[wanted, minus_all], none());
    let shape = b.op("Where", &[open, ones, wanted], none());
    let out = b.op("Expand", &[x, shape], none());
    assert_eq!(b.values(shape), "[batch,1,1]");
    assert_eq!(b.ty(out), "float[batch,1,seq]");
}

#[test]
fn reshape_follows_zero_minus_one_and_allowzero() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq", "768"]);
    let shapes: [&[i64]; 4] = [&[-1, 768], &[0, -1, 12, 64], &[0, 0, 0], &[-1]];
    let outs: Vec<ValueId> = shapes
        .iter()
        .map(|shape| {
            let shape = b.ints(shape);
            b.op("Reshape", &[x, shape], none())
        })
        .collect();
    let types: Vec<String> = outs.iter().map(|&v| b.ty(v)).collect();
    assert_eq!(
        types,
        [
            "float[batch*seq,768]",
            "float[batch,seq,12,64]",
            "float[batch,seq,768]",
            "float[768*batch*seq]",
        ]
    );
    let empty = b.input(DType::F32, &["0", "4"]);
    let shape = b.ints(&[0, 7]);
    let kept = b.op("Reshape", &[empty, shape], none().with("allowzero", 1));
    assert_eq!(b.ty(kept), "float[0,7]");
}

#[test]
fn wrong_shapes_are_conflicts() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "64"]);
    let w = b.input(DType::F32, &["32", "8"]);
    let y = b.op("MatMul", &[x, w], none());
    let shape = b.ints(&[5, 5]);
    b.op("Reshape", &[w, shape], none());
    b.op("Add", &[x, w], none());
    let at = b.int(7);
    b.op("Gather", &[w, at], none().with("axis", 1));
    b.op("Softmax", &[w], none());
    b.op("Concat", &[w, w], none().with("axis", 5));
    let half = b.input(DType::F16, &["32", "8"]);
    b.op("Mul", &[w, half], none());
    assert_eq!(b.ty(y), "float[batch,8]");
    assert_eq!(
        b.conflicts(),
        [
            "inner dimensions 64 and 32 of [batch,64] and [32,8] differ",
            "[32,8] cannot take the shape [5,5]",
            "shapes [batch,64] and [32,8] do not broadcast",
            "axis 5 does not exist in rank 2",
            "operands of types float and float16",
        ]
    );
}

#[test]
fn declared_types_fill_gaps_and_contradict() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "8"]);
    let foreign = b.ops(Op::new("my.ops", "Thing"), &[x], 1, none())[0];
    let dims = [Dim::Symbol("batch".into()), Dim::Known(3)];
    b.graph.set_type(
        foreign,
        Type::tensor(DType::F16, Some(dims.as_slice().into())),
    );
    let twice = b.op("Relu", &[foreign], none());
    let wrong = b.op("Relu", &[x], none());
    let dims = [Dim::Known(2), Dim::Known(9)];
    b.graph.set_type(
        wrong,
        Type::tensor(DType::F16, Some(dims.as_slice().into())),
    );
    assert_eq!(b.ty(twice), "float16[batch,3]");
    assert_eq!(b.ty(wrong), "float[batch,8]");
    assert_eq!(
        b.conflicts(),
        [
            "the result is float, declared as float16",
            "the result has a dimension of 8, declared as 9",
        ]
    );
}

#[test]
fn annotated_expressions_are_understood_again() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq"]);
    let y = b.op("Concat", &[x, x], none().with("axis", 1));
    let one = b.input(DType::F32, &["batch", "1"]);
    let z = b.op("Concat", &[y, one], none().with("axis", 1));
    annotate(&mut b.graph);
    assert_eq!(b.graph.value(z).ty().to_string(), "float[batch,2*seq + 1]");
    // The computing node gone, its declared type still means twice `seq`.
    let opaque = b.ops(Op::new("my.ops", "Thing"), &[x], 1, none())[0];
    b.graph.set_type(opaque, b.graph.value(y).ty().clone());
    let sum = b.op("Add", &[opaque, y], none());
    let halves = b.ops(Op::onnx("Split"), &[sum], 2, none().with("axis", 1));
    assert_eq!(b.ty(halves[1]), "float[batch,seq]");
}

#[test]
fn slices_are_clamped() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "512", "seq"]);
    let seq = size_of(&mut b, x, 2);
    let mut cut = |start: i64, end: Result<i64, ValueId>, axis: i64, step: i64| {
        let start = b.ints(&[start]);
        let end = end.map_or_else(|v| v, |n| b.ints(&[n]));
        let (axis, step) = (b.ints(&[axis]), b.ints(&[step]));
        b.op("Slice", &[x, start, end, axis, step], none())
    };
    let outs = [
        cut(0, Ok(i64::MAX), 2, 1),
        cut(1, Ok(i64::MAX), 2, 1),
        cut(0, Ok(-1), 2, 1),
        cut(0, Err(seq), 1, 1),
        cut(i64::MIN, Ok(i64::MAX), 1, 2),
        cut(-1, Ok(i64::MIN), 1, -1),
        cut(400, Ok(100), 1, 1),
        cut(0, Ok(5), 1, 0),
    ];
    let types: Vec<String> = outs.iter().map(|&v| b.ty(v)).collect();
    assert_eq!(
        types,
        [
            "float[batch,512,seq]",
            "float[batch,512,max(0, seq - 1)]"
                .replace("max(0, seq - 1)", "seq - min(1, seq)")
                .as_str(),
            "float[batch,512,max(0, seq - 1)]",
            "float[batch,min(512, seq),seq]",
            "float[batch,256,seq]",
            "float[batch,512,seq]",
            "float[batch,0,seq]",
            "float[batch,?,seq]",
        ]
    );
}

#[test]
fn slices_of_less_than_nothing_are_unknown() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["1", "4", "1"]);
    let window = none().with("kernel_shape", Attr::Ints(vec![3]));
    let pooled = b.op("MaxPool", &[x], window);
    let (start, end, axis) = (b.ints(&[0]), b.ints(&[i64::MAX]), b.ints(&[2]));
    let cut = b.op("Slice", &[pooled, start, end, axis], none());
    assert_eq!(b.ty(cut), "float[1,4,?]");
}

#[test]
fn arithmetic_on_sizes_is_exact_or_unknown() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq"]);
    let seq = size_of(&mut b, x, 1);
    let two = b.ints(&[2]);
    let half = b.op("Div", &[seq, two], none());
    let rest = b.op("Mod", &[seq, two], none());
    let less = b.op("Sub", &[seq, two], none());
    let trunc = b.op("Div", &[less, two], none());
    let float = b.op("Cast", &[seq], none().with("to", 1));
    let back = b.op("Cast", &[float], none().with("to", 7));
    let lowest = b.op("Min", &[back, two], none());
    let square = b.op("Mul", &[seq, seq], none());
    assert_eq!(b.values(half), "[seq//2]");
    assert_eq!(b.values(rest), "[seq - 2*(seq//2)]");
    // Towards zero is not the floor where `seq - 2` may be negative.
    assert!(b.values(trunc).starts_with("[?"), "{}", b.values(trunc));
    assert_eq!(b.values(lowest), "[min(2, seq)]");
    assert_eq!(b.values(square), "[seq*seq]");
}

#[test]
fn overflow_is_unknown_and_never_wrong() {
    let mut b = Build::new(17);
    let big = b.ints(&[i64::MAX]);
    let two = b.ints(&[2]);
    let minus = b.ints(&[-1]);
    let least = b.ints(&[i64::MIN]);
    for (op, x, y) in [
        ("Mul", big, two),
        ("Add", big, two),
        ("Sub", least, two),
        ("Div", least, minus),
    ] {
        let out = b.op(op, &[x, y], none());
        assert!(b.values(out).starts_with("[?"), "{op}: {}", b.values(out));
    }
    let huge = b.input(
        DType::F32,
        &["4611686018427387904", "4611686018427387904", "seq"],
    );
    let shape = b.ints(&[-1]);
    let flat = b.op("Reshape", &[huge, shape], none());
    let size = b.op("Size", &[huge], none());
    let wide = b.input(DType::F32, &["1", "3", "3000000000"]);
    let kernel = b.input(DType::F32, &["8", "3", "3"]);
    let conv = b.op("Conv", &[wide, kernel], none().with("strides", vec![2]));
    let filled = b.op("ConstantOfShape", &[big], none());
    assert_eq!(b.ty(flat), "float[?]");
    assert!(b.values(size).starts_with("[?"));
    assert_eq!(b.ty(conv), "float[1,8,1499999999]");
    assert_eq!(b.ty(filled), "float[9223372036854775807]");
    let odd = b.ints(&[(1 << 24) + 1]);
    for to in [DType::F32, DType::I8, DType::Bool] {
        let cast = b.op("Cast", &[odd], none().with("to", i64::from(to.to_onnx())));
        let back = b.op("Cast", &[cast], none().with("to", 7));
        assert_ne!(b.values(back), "[16777217]", "{to}");
    }
}

#[test]
fn rules_by_operator() {
    let mut b = Build::new(23);
    let x = b.input(DType::F16, &["batch", "seq", "64"]);
    let image = b.input(DType::F32, &["batch", "3", "224", "224"]);
    let patch = b.input(DType::F32, &["768", "3", "16", "16"]);
    let ids = b.input(DType::I64, &["batch", "seq"]);
    let (k, depth, reps) = (b.ints(&[5]), b.int(10), b.ints(&[2, 1, 3]));
    let pair = b.input(DType::F16, &["0", "1"]);
    let scale = b.input(DType::F32, &[]);
    let zero = b.input(DType::I8, &[]);
    let cases = [
        (
            b.op(
                "Conv",
                &[image, patch],
                none().with("strides", vec![16, 16]),
            ),
            "float[batch,768,14,14]",
        ),
        (
            b.op(
                "MaxPool",
                &[image],
                none()
                    .with("kernel_shape", vec![3, 3])
                    .with("strides", vec![2, 2])
                    .with("pads", vec![1, 1, 1, 1]),
            ),
            "float[batch,3,112,112]",
        ),
        (
            b.op("GlobalAveragePool", &[image], none()),
            "float[batch,3,1,1]",
        ),
        (
            b.op("Einsum", &[x, x], none().with("equation", "bsd,btd->bst")),
            "float16[batch,seq,seq]",
        ),
        (b.op("ReduceMean", &[x], none()), "float16[1,1,1]"),
        (
            b.op(
                "ReduceMax",
                &[x],
                none().with("axes", vec![-1]).with("keepdims", 0),
            ),
            "float16[batch,seq]",
        ),
        (
            b.op("ArgMax", &[x], none().with("axis", -1).with("keepdims", 0)),
            "int64[batch,seq]",
        ),
        (
            b.ops(Op::onnx("TopK"), &[x, k], 2, none())[1],
            "int64[batch,seq,5]",
        ),
        (
            b.op("OneHot", &[ids, depth, pair], none()),
            "float16[batch,seq,10]",
        ),
        (b.op("Tile", &[x, reps], none()), "float16[2*batch,seq,192]"),
        (b.op("NonZero", &[ids], none()), "int64[2,?]"),
        (
            b.op("QuantizeLinear", &[image, scale, zero], none()),
            "int8[batch,3,224,224]",
        ),
        (
            b.op("QuantizeLinear", &[image, scale], none()),
            "uint8[batch,3,224,224]",
        ),
        (b.op("Flatten", &[image], none()), "float[batch,150528]"),
        (b.op("CumSum", &[ids, depth], none()), "int64[batch,seq]"),
        (b.op("IsNaN", &[x], none()), "bool[batch,seq,64]"),
        (
            b.ops(Op::onnx("LayerNormalization"), &[x, x], 3, none())[1],
            "float[batch,seq,1]",
        ),
        (
            b.ops(Op::onnx("RMSNormalization"), &[x, x], 1, none())[0],
            "float16[batch,seq,64]",
        ),
        (
            b.op(
                "Attention",
                &[x, x, x],
                none().with("q_num_heads", 4).with("kv_num_heads", 4),
            ),
            "float16[batch,seq,64]",
        ),
        (
            b.ops(
                Op::new("com.microsoft", "SkipLayerNormalization"),
                &[x, x],
                4,
                none(),
            )[3],
            "float16[batch,seq,64]",
        ),
        (
            b.ops(
                Op::new("com.microsoft", "MatMulNBits"),
                &[x],
                1,
                none().with("N", 32),
            )[0],
            "float16[batch,seq,32]",
        ),
        (
            b.ops(
                Op::onnx("Split"),
                &[x],
                3,
                none().with("axis", 2).with("num_outputs", 3),
            )[2],
            "float16[batch,seq,20]",
        ),
    ];
    for (value, want) in cases {
        let node = b.graph.producer(value).map(|n| b.graph.node(n).op());
        assert_eq!(b.ty(value), want, "{node:?}");
    }
    assert_eq!(b.conflicts(), [""; 0]);
}

#[test]
fn ranges_have_the_right_length() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq"]);
    let seq = size_of(&mut b, x, 1);
    let seq = b.op("Squeeze", &[seq], none());
    let (zero, one, minus, three) = (b.int(0), b.int(1), b.int(-1), b.int(3));
    let up = b.op("Range", &[zero, seq, one], none());
    let by_three = b.op("Range", &[zero, seq, three], none());
    let ten = b.int(10);
    let down = b.op("Range", &[ten, three, minus], none());
    let never = b.op("Range", &[three, ten, minus], none());
    let stuck = b.op("Range", &[three, ten, zero], none());
    assert_eq!(b.ty(up), "int64[seq]");
    assert_eq!(b.ty(by_three), "int64[(seq + 2)//3]");
    assert_eq!(b.values(down), "[10,9,8,7,6,5,4]");
    assert_eq!(b.ty(never), "int64[0]");
    assert_eq!(b.ty(stuck), "int64[?]");
}

#[test]
fn older_operator_sets_name_axes_by_attribute() {
    let mut b = Build::new(9);
    let x = b.input(DType::F32, &["batch", "1", "64"]);
    let squeezed = b.op("Squeeze", &[x], none().with("axes", vec![1]));
    let wider = b.op("Unsqueeze", &[x], none().with("axes", vec![0, -1]));
    let cut = none()
        .with("starts", vec![0])
        .with("ends", vec![i64::MAX])
        .with("axes", vec![2]);
    let cut = b.op("Slice", &[x], cut);
    let padded = b.op("Pad", &[x], none().with("pads", vec![0, 0, 1, 0, 0, 2]));
    assert_eq!(b.ty(squeezed), "float[batch,64]");
    assert_eq!(b.ty(wider), "float[1,batch,1,64,1]");
    assert_eq!(b.ty(cut), "float[batch,1,64]");
    assert_eq!(b.ty(padded), "float[batch,1,67]");
}

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

#[test]
fn other_input_shapes_show_what_is_baked_in() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["seq", "batch", "64"]);
    let shape = b.ints(&[16, 2, 4, 16]);
    let y = b.op("Reshape", &[x, shape], none());
    annotate(&mut b.graph);
    assert_eq!(b.conflicts(), [""; 0]);
    let sized = |seq, batch| {
        [(
            x,
            [Dim::Known(seq), Dim::Known(batch), Dim::Known(64)]
                .as_slice()
                .into(),
        )]
    };
    assert_eq!(with_inputs(&b.graph, &sized(16, 2)).conflicts(), []);
    let facts = with_inputs(&b.graph, &sized(7, 2));
    assert_eq!(facts.conflicts().len(), 1);
    assert!(
        facts.conflicts()[0]
            .describe(&b.graph)
            .contains("[7,2,64] cannot take")
    );
    assert_eq!(facts.ty(y).to_string(), "float[16,2,4,16]");
    // A wrong name on an output says nothing of the sizes tried.
    let dims = [Dim::Symbol("batch".into()), Dim::Known(2), Dim::Known(64)];
    let same = b.op("Relu", &[x], none());
    b.graph
        .set_type(same, Type::tensor(DType::F32, Some(dims.as_slice().into())));
    assert_eq!(with_inputs(&b.graph, &sized(16, 2)).conflicts(), []);
    let flat = [(x, [Dim::Known(4)].as_slice().into())];
    assert!(
        with_inputs(&b.graph, &flat).conflicts()[0]
            .message
            .contains("rank 3 and not 1")
    );
}

fn demands(b: &Build) -> Vec<String> {
    let facts = infer(&b.graph);
    let text = facts.demands().iter().map(|d| match d {
        Demand::Equal(x, y) => format!("{x} = {y}"),
        Demand::Broadcast(x, y) => format!("{x} = {y} or 1"),
        Demand::AtMost(x, y) => format!("{x} <= {y}"),
    });
    text.collect()
}

#[test]
fn a_mask_is_demanded_as_long_as_past_and_new_keys() {
    let mut b = Build::new(17);
    let past = b.input(DType::F32, &["batch", "4", "past", "8"]);
    let new = b.input(DType::F32, &["batch", "4", "seq", "8"]);
    let mask = b.input(DType::F32, &["rows", "1", "1", "total"]);
    let keys = b.op("Concat", &[past, new], none().with("axis", 2));
    let turned = b.op("Transpose", &[keys], none().with("perm", vec![0, 1, 3, 2]));
    let scores = b.op("MatMul", &[new, turned], none());
    b.op("Add", &[scores, mask], none());
    assert_eq!(
        demands(&b),
        ["batch = rows or 1", "past + seq = total or 1"]
    );
}

#[test]
fn a_cache_of_grouped_queries_grows_unless_it_is_a_buffer() {
    let model = |past: &str| {
        let text = format!(
            r#"
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[b,s,32] q, float[b,s,16] k, float[b,s,16] v, float[b,1,{past},16] pk, float[b,1,{past},16] pv, int64[b,t] mask, int32[b] last)
=> (float[b,s,32] y, float[b,1,n,16] nk, float[b,1,n,16] nv)
<int64 one = {{1}}, float[99,8] cos = {{{zeros}}}>
{{
    shape = Shape (mask)
    long = Gather <axis = 0> (shape, one)
    total = Cast <to = 6> (long)
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1, do_rotary = 1> (q, k, v, pk, pv, last, total, cos, cos)
}}
"#,
            zeros = vec!["0.0"; 99 * 8].join(", ")
        );
        let model = crate::onnx::read_text(&text).unwrap_or_else(|e| panic!("{e}"));
        let facts = infer(&model.graph);
        facts.demands().to_vec()
    };
    let sum = |d: &Demand| matches!(d, Demand::Equal(a, b) if [a, b].iter().any(|e| e.to_string() == "p + s"));
    assert!(model("p").iter().any(sum), "{:?}", model("p"));
    assert!(
        !model("64")
            .iter()
            .any(|d| matches!(d, Demand::Equal(a, _) if a.to_string() == "t"))
    );
    let ends = |d: &Demand| matches!(d, Demand::AtMost(a, b) if a.to_string() == "t" && b.as_i64() == Some(99));
    assert!(model("64").iter().any(ends));
}

#[test]
fn tables_end_what_indexes_them() {
    let mut b = Build::new(17);
    let ids = b.input(DType::I64, &["batch", "seq"]);
    let length = size_of(&mut b, ids, 1);
    let (axis, zero, one, two) = (b.ints(&[0]), b.int(0), b.int(1), b.int(2));
    let length = b.op("Squeeze", &[length, axis], none());
    let range = b.op("Range", &[zero, length, one], none());
    let shifted = b.op("Add", &[range, two], none());
    let table = b.input(DType::F32, &["514", "8"]);
    b.op("Gather", &[table, shifted], none());
    assert_eq!(demands(&b), ["seq + 2 <= 514"]);
    // A constant that is cut to the length of what it is added to.
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq"]);
    let length = size_of(&mut b, x, 1);
    let places = b.input(DType::F32, &["1", "77"]);
    let (start, axis) = (b.ints(&[0]), b.ints(&[1]));
    let cut = b.op("Slice", &[places, start, length, axis], none());
    b.op("Add", &[x, cut], none());
    assert_eq!(demands(&b), ["seq <= 77"]);
}

#[test]
fn what_two_sizes_are_is_solved_where_it_adds_up() {
    let zero = Expr::parse("past + seq - total");
    assert_eq!(zero.solve("total").unwrap().to_string(), "past + seq");
    assert!(zero.solve("total").unwrap().grows());
    assert!(!zero.solve("past").unwrap().grows());
    assert_eq!(Expr::parse("2*a - b").solve("a"), None);
    assert_eq!(Expr::parse("a*b - a").solve("a"), None);
}

#[test]
fn a_window_longer_than_what_it_slides_over_contradicts() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["1", "1", "5"]);
    let w = b.input(DType::F32, &["1", "1", "10"]);
    b.op("Conv", &[x, w], none());
    assert_eq!(b.conflicts(), ["a window of 10 slides over 5"]);
}
