//! Shapes through arithmetic on sizes.

use super::*;

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
