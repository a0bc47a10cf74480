use kiln_graph::{infer, onnx};

use super::*;

/// A graph of these inputs and nodes, with constants and an attention's scores at hand.
fn kinds(inputs: &str, constants: &str, nodes: &str) -> Kinds {
    let text = format!(
        r#"
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[batch, heads, seq, 4] q, float[batch, heads, seq, 4] v, {inputs}) => (float[a, b, c, d] y) <
  float zero = {{0.0}}, float one = {{1.0}}, float far = {{-10000.0}}, float inf = {{-inf}},
  int64[2] axes = {{1, 2}}, int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}}{constants}
>
{{
  k = Transpose <perm = [0, 1, 3, 2]> (q)
  scores = MatMul(q, k)
  {nodes}
}}"#
    );
    let mut model = onnx::read_text(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    infer::annotate(&mut model.graph);
    Kinds::of(&model.graph)
}

fn kind(inputs: &str, constants: &str, nodes: &str) -> InputKind {
    let mut all = kinds(inputs, constants, nodes).0;
    all.pop().unwrap().kind
}

const SOFTMAX: &str = "p = Softmax <axis = -1> (masked) y = MatMul(p, v)";

/// What a mask called `m`, spelled so, keeps and hides.
fn mask(ty: &str, nodes: &str) -> (f64, f64) {
    let unsqueeze = "wide = Unsqueeze(m, axes)";
    let found = kind(
        &format!("{ty}[batch, seq] m"),
        "",
        &format!("{unsqueeze} {nodes} {SOFTMAX}"),
    );
    match found {
        InputKind::Mask => (1.0, 0.0),
        InputKind::Masking(m) => (m.kept, m.hidden),
        other => panic!("{nodes}: {other:?}"),
    }
}

const KEEPS: (f64, f64) = (1.0, 0.0);
const HIDES: (f64, f64) = (0.0, 1.0);

#[test]
fn the_graph_says_which_truth_hides() {
    let bools = [
        ("masked = Where(wide, scores, inf)", KEEPS),
        ("masked = Where(wide, inf, scores)", HIDES),
        ("n = Not(wide) masked = Where(n, inf, scores)", KEEPS),
        (
            "n = Not(wide) m2 = Not(n) m3 = Not(m2) masked = Where(m3, scores, inf)",
            HIDES,
        ),
        (
            "f = Cast <to = 1> (wide) b = Mul(f, far) masked = Add(scores, b)",
            HIDES,
        ),
        ("b = Where(wide, inf, zero) masked = Add(b, scores)", HIDES),
        (
            "b = Where(wide, zero, far) h = Cast <to = 10> (b) f = Cast <to = 1> (h) masked = Add(f, scores)",
            KEEPS,
        ),
        (
            "c = Less(scores, zero) a = And(c, wide) masked = Where(a, scores, inf)",
            KEEPS,
        ),
        (
            "c = Less(scores, zero) a = Or(c, wide) masked = Where(a, inf, scores)",
            HIDES,
        ),
    ];
    for (nodes, expected) in bools {
        assert_eq!(mask("bool", nodes), expected, "{nodes}");
    }
}

#[test]
fn the_graph_says_which_number_hides() {
    let numbers = [
        (
            "int64",
            "f = Cast <to = 1> (wide) i = Sub(one, f) b = Mul(i, far) masked = Add(scores, b)",
            KEEPS,
        ),
        (
            "int32",
            "f = Cast <to = 1> (wide) b = Mul(f, far) masked = Add(scores, b)",
            HIDES,
        ),
        (
            "int64",
            "f = Cast <to = 1> (wide) i = Sub(f, one) n = Neg(far) b = Mul(i, n) masked = Add(scores, b)",
            KEEPS,
        ),
        (
            "int64",
            "e = Equal(wide, i0) masked = Where(e, inf, scores)",
            KEEPS,
        ),
        (
            "int64",
            "e = Equal(wide, i1) masked = Where(e, inf, scores)",
            HIDES,
        ),
        (
            "int64",
            "e = Greater(wide, i0) masked = Where(e, scores, inf)",
            KEEPS,
        ),
        (
            "int64",
            "e = Cast <to = 9> (wide) masked = Where(e, scores, inf)",
            KEEPS,
        ),
        (
            "float",
            "i = Sub(one, wide) b = Mul(i, far) masked = Add(scores, b)",
            KEEPS,
        ),
        (
            "int64",
            "e = Equal(wide, i2) masked = Where(e, scores, inf)",
            (2.0, 0.0),
        ),
        (
            "int32",
            "c = Cast <to = 7> (wide) e = Equal(c, i2) masked = Where(e, inf, scores)",
            (0.0, 2.0),
        ),
        ("float", "b = Mul(wide, far) masked = Add(scores, b)", HIDES),
        ("float", "b = Log(wide) masked = Add(scores, b)", KEEPS),
        ("float", "masked = Add(scores, wide)", (0.0, HIDDEN)),
        (
            "float16",
            "f = Cast <to = 1> (wide) masked = Add(f, scores)",
            (0.0, HIDDEN),
        ),
    ];
    for (ty, nodes, expected) in numbers {
        assert_eq!(mask(ty, nodes), expected, "{ty} {nodes}");
    }
}

#[test]
fn masks_inside_bodies_and_operators_are_found() {
    let inside = "t = Less(zero, one) masked = If (t) <
        then_branch = a () => (float[batch, heads, seq, seq] x) { x = Where(wide, inf, scores) },
        else_branch = b () => (float[batch, heads, seq, seq] z) { z = Where(wide, inf, scores) }
    >";
    assert_eq!(mask("bool", inside), HIDES);
    let attention = |ty: &str| {
        let node = "y = com.microsoft.MultiHeadAttention <num_heads = 1> (q, q, v, , m)";
        kind(&format!("{ty}[batch, seq] m"), "", node)
    };
    assert_eq!(attention("int32"), InputKind::Mask);
}

#[test]
fn scores_and_data_are_no_masks() {
    let data = kind(
        "float[batch, seq, 4] x",
        ", float[4, 4] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}",
        "h = MatMul(x, w) p = Softmax <axis = -1> (h) m = Mul(p, x) y = Unsqueeze(m, i1)",
    );
    assert_eq!(data, InputKind::Normal { std: 1.0 });
    let scores = kind(
        "float[batch, seq, 4] x",
        "",
        "m = Mul(x, far) y = Softmax <axis = -1> (m)",
    );
    assert_eq!(scores, InputKind::Normal { std: 1.0 });
}

#[test]
fn what_is_quantized_has_the_range_of_its_quantization() {
    let constants = ", float s = {0.01}, uint8 z = {28}, int8 n = {0}, float half = {0.5}";
    let made = |nodes: &str| kind("float[batch, seq, 4] x", constants, nodes);
    let within = |low, high| InputKind::Within { low, high };
    let y = "d = DequantizeLinear(t, s, z) y = Unsqueeze(d, i1)";
    assert_eq!(
        made(&format!("t = QuantizeLinear(x, s, z) {y}")),
        within(-0.28, 2.27)
    );
    // Behind a factor, and moved.
    let scaled = format!("h = Mul(x, half) m = Transpose(h) t = QuantizeLinear(m, s, z) {y}");
    assert_eq!(made(&scaled), within(-0.56, 4.54));
    let symmetric =
        "t = QuantizeLinear(x, s, n) d = DequantizeLinear(t, s, n) y = Unsqueeze(d, i1)";
    assert_eq!(made(symmetric), within(-1.28, 1.27));
    // What a run measures by itself says nothing.
    let dynamic =
        "t, u, w = DynamicQuantizeLinear(x) d = DequantizeLinear(t, u, w) y = Unsqueeze(d, i1)";
    assert_eq!(made(dynamic), InputKind::Normal { std: 1.0 });
}

const TABLE: &str = ", float[8, 2] table = {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5},
    int64 pad = {1}, float half = {5.5}, int64 two = {2}";

fn ids(nodes: &str) -> Ids {
    let nodes = format!("e = Gather(table, ids) y = Identity(e) {nodes}");
    match kind("int64[batch, seq] ids", TABLE, &nodes) {
        InputKind::Ids(ids) => ids,
        other => panic!("{nodes}: {other:?}"),
    }
}

#[test]
fn ids_that_the_graph_decides_on_are_among_the_made_ones() {
    let plain = ids("");
    assert_eq!((plain.upper, plain.padding), (8, None));
    assert!(plain.marks.is_empty());
    let bound = ids("f = Cast <to = 1> (ids) g = Greater(f, half) x = Cast <to = 1> (g)");
    assert_eq!(bound.marks, [4, 5, 6, 7]);
    let differs = ids("f = Cast <to = 1> (ids) d = Sub(f, half) a = Abs(d) x = Neg(a)");
    assert_eq!(differs.marks, [4, 5, 6, 7]);
    // What was not moved turns at zero, as everything does.
    let plain = ids("f = Cast <to = 1> (ids) a = Relu(f) x = Neg(a)");
    assert!(plain.marks.is_empty());
    // The id of the input, not the number that is compared.
    let moved = ids("m = Add(ids, two) g = Equal(m, two) x = Cast <to = 1> (g)");
    assert_eq!(moved.marks, [0, 1]);
    let padded = ids(
        "h = Equal(ids, pad) w = Unsqueeze(h, axes) b = Where(w, inf, scores) p = Softmax <axis = -1> (b)",
    );
    assert_eq!(padded.padding, Some(1));
    let shifted = "m = Add(ids, two) e = Gather(table, m) y = Identity(e)";
    match kind("int64[batch, seq] ids", TABLE, shifted) {
        InputKind::Ids(ids) => assert_eq!(ids.upper, 6),
        other => panic!("{other:?}"),
    }
}

/// What an argument is made, and what else it may be.
fn argument(ty: &str, nodes: &str) -> Vec<InputKind> {
    let mut all = kinds(
        &format!("{ty} c"),
        ", int64 rate = {16000}, int64[1] s0 = {0}, float much = {6.25e-5}",
        nodes,
    )
    .0;
    let wanted = all.pop().unwrap();
    [vec![wanted.kind], wanted.others].concat()
}

#[test]
fn what_selects_is_drawn_from_what_it_is_compared_with() {
    let one = |all: &[f64]| -> Vec<InputKind> { all.iter().map(|x| values(&[*x])).collect() };
    let chosen = "t = Equal(c, rate) y = If (t) <
        then_branch = a () => (float[batch, heads, seq, 4] x) { x = Relu(q) },
        else_branch = b () => (float[batch, heads, seq, 4] z) { z = Tanh(q) }
    >";
    assert_eq!(argument("int64", chosen), one(&[16000.0, 16001.0]));
    let flag = "y = Where(c, q, v)";
    assert_eq!(argument("bool[1]", flag), one(&[1.0, 0.0]));
    let cases = [
        ("int64[1]", "y, i = TopK(q, c)", one(&[4.0, 1.0])),
        (
            "int64[4]",
            "y = Reshape(q, c)",
            vec![values(&[0.0, 0.0, 0.0, -1.0])],
        ),
        ("int64[4]", "y = Expand(q, c)", one(&[1.0])),
        ("int64[2]", "y, z = Split <axis = -1> (q, c)", one(&[2.0])),
        ("int64[1]", "y = Slice(q, s0, c)", one(&[4.0, 1.0])),
        (
            "float[4]",
            "y = Resize <mode = \"nearest\"> (q, , c)",
            vec![values(&[1.0, 1.0, 2.0, 2.0])],
        ),
        ("float", "d = Div(q, c) y = Relu(d)", one(&[0.75, 1.5])),
        // What is scaled down is large, beyond FP16.
        (
            "int64[1]",
            "f = Cast <to = 1> (c) s = Mul(f, much) y = Add(q, s)",
            one(&[160_000.0, 1.0]),
        ),
    ];
    for (ty, nodes, expected) in cases {
        assert_eq!(argument(ty, nodes), expected, "{nodes}");
    }
}

#[test]
fn whole_numbers_that_are_compared_come_from_around_the_bounds() {
    let of = |ty: &str, nodes: &str| {
        let constants = ", int64 edge = {50256}, float[3] edges = {5.5, 20.5, 2050.5}";
        kind(&format!("{ty}[batch, seq] n"), constants, nodes)
    };
    let marks = |all: &[f64]| InputKind::OneOf(all.to_vec());
    assert_eq!(
        of("int64", "d = Sub(n, edge) y = Sign(d)"),
        marks(&[0.0, 1.0, 2.0, 50255.0, 50256.0, 50257.0])
    );
    let table = "f = Cast <to = 1> (n) u = Unsqueeze(f, axes) y = Greater(u, edges)";
    let near = [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 19.0, 20.0, 21.0, 22.0];
    assert_eq!(of("uint8", table), marks(&near));
    assert_eq!(
        of("float", "y = Greater(n, edges)"),
        InputKind::Within {
            low: 5.5 - 511.25,
            high: 2050.5 + 511.25
        }
    );
    let counts = "f = Cast <to = 1> (n) c = CumSum(f, i1) m = Mul(c, f) y = Sin(m)";
    assert_eq!(of("int64", counts), InputKind::Mask);
}

#[test]
fn lengths_end_where_the_axis_does() {
    let range = "n = Shape <start = 2, end = 3> (scores) s = Squeeze(n) r = Range(i0, s, i1) w = Unsqueeze(strides, c1)
        keep = Less(r, w) k4 = Unsqueeze(keep, axes) masked = Where(k4, scores, inf)";
    let of = |ty: &str, nodes: &str| {
        let inputs = format!("{ty} lens");
        let all = kinds(
            &inputs,
            ", int64 four = {4}, int64[1] c1 = {1}",
            &format!("{nodes} {range} {SOFTMAX}"),
        );
        all.0.last().cloned().unwrap()
    };
    // torch's floor division asks for the sign.
    let floor = "sum = Add(lens, four) below = Less(sum, i0) rest = Mod(sum, four) even = Equal(rest, i0) odd = Not(even)
        both = And(below, odd) whole = Div(sum, four) less = Sub(whole, i1) strides = Where(both, less, whole)";
    let floored = of("int64[batch]", floor).kind;
    assert_eq!(floored, InputKind::Lengths { most: 1 });
    let plain = of("int64[batch]", "strides = Identity(lens)");
    assert_eq!(plain.kind, InputKind::Lengths { most: 1 });
    assert_eq!(
        plain.most.map(|(e, each)| (e.to_string(), each)),
        Some(("seq".into(), 1.0))
    );
    let wide = of("int64[1]", "strides = Div(lens, four)");
    assert_eq!(wide.most.map(|(_, each)| each), Some(4.0));
}

#[test]
fn positions_and_pictures_and_sound() {
    let far = |inputs: &str, constants: &str, nodes: &str| kind(inputs, constants, nodes);
    assert_eq!(
        far(
            "int64[batch, seq] position_ids",
            TABLE,
            "e = Gather(table, position_ids) y = Identity(e)"
        ),
        InputKind::FarPositions { upper: 8 }
    );
    let rotary = "f = Cast <to = 1> (steps) w = Unsqueeze(f, axes) m = Mul(w, half) y = Cos(m)";
    assert_eq!(
        far("int64[batch, seq] steps", TABLE, rotary),
        InputKind::FarPositions { upper: FAR }
    );
    let image = "f = Cast <to = 1> (img) y = Conv(f, w)";
    let weights =
        ", float[1, 1, 1, 1] w = {1.0}, float[1, 1, 2] window = {1.0, 2.0}, int64[1] first = {1}";
    assert_eq!(
        far("uint8[batch, 1, 8, 8] img", weights, image),
        InputKind::Levels(0, 255)
    );
    let sound = "u = Unsqueeze(wave, first) y = Conv(u, window)";
    assert_eq!(
        far("float[batch, time] wave", weights, sound),
        InputKind::Normal { std: LOUDNESS }
    );
}
