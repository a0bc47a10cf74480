//! What a graph demands of the sizes of its inputs.

use super::*;

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
fn letters_of_an_equation_are_sizes() {
    let mut b = Build::new(17);
    let x = b.input(DType::F32, &["batch", "seq", "8"]);
    let w = b.input(DType::F32, &["6", "1"]);
    let rows = b.input(DType::F32, &["rows", "8"]);
    let einsum = |b: &mut Build, of: &[ValueId], equation: &str| {
        b.op("Einsum", of, none().with("equation", equation))
    };
    // A 1 is taken for any size.
    einsum(&mut b, &[x, w], "bsd, sd -> bd");
    einsum(&mut b, &[x, rows], "...d,bd->...b");
    einsum(&mut b, &[rows, x], "s...,b...->bs...");
    assert_eq!(demands(&b), ["seq = 6"]);
    einsum(&mut b, &[x, rows], "bsd,bd->bs");
    assert_eq!(demands(&b), ["seq = 6", "batch = rows"]);
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
fn a_table_ends_what_indexes_its_rows_whatever_the_operator() {
    let ends = |gather: &str| {
        let text = format!(
            r#"
<ir_version: 10, opset_import: ["" : 18]>
g (int64[b,s] ids) => (float[s,8] y)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{-1}}, float[99,8] table = {{{zeros}}}>
{{
    shape = Shape (ids)
    n = Gather <axis = 0> (shape, one)
    at = Range (zero, n, one)
    {gather}
}}
"#,
            zeros = vec!["0.0"; 99 * 8].join(", ")
        );
        let model = crate::onnx::read_text(&text).unwrap_or_else(|e| panic!("{e}"));
        let facts = infer(&model.graph);
        let ends = |d: &Demand| matches!(d, Demand::AtMost(a, b) if a.to_string() == "s" && b.as_i64() == Some(99));
        facts.demands().iter().any(ends)
    };
    assert!(ends("y = Gather <axis = 0> (table, at)"));
    assert!(ends(
        "i = Unsqueeze (at, last) y = GatherND <batch_dims = 0> (table, i)"
    ));
    // Two numbers are a place in a row.
    assert!(!ends(
        "i = Unsqueeze (at, last) two = Concat <axis = -1> (i, i) y = GatherND (table, two)"
    ));
}
