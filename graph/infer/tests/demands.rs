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
