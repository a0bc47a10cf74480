//! Rules of single operators.

use super::*;

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
fn schemas_say_the_types_of_results() {
    let mut b = Build::new(23);
    let half = b.input(DType::F16, &["2", "4"]);
    let scale = b.input(DType::F32, &["4"]);
    let ids = b.input(DType::I64, &["2", "4"]);
    let norm = b.op("RMSNormalization", &[half, scale], none());
    assert_eq!(b.ty(norm), "float[2,4]");
    let random = b.op("RandomNormalLike", &[ids], none().with("dtype", 10));
    assert_eq!(b.ty(random), "float16[2,4]");
    let eye = b.op("EyeLike", &[ids], none());
    assert_eq!(b.ty(eye), "int64[2,4]");
    let size = b.ints(&[8]);
    let window = b.op("HannWindow", &[size], none());
    assert_eq!(b.ty(window), "float[8]");
    assert_eq!(b.conflicts(), [""; 0]);
}

#[test]
fn operands_of_one_type_variable_may_not_differ() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["2", "4"]);
    let half = b.input(DType::F16, &["4"]);
    b.op("LayerNormalization", &[x, half], none());
    b.op("Clip", &[x, half], none());
    assert_eq!(b.conflicts(), ["operands of types float and float16"; 2]);
}
