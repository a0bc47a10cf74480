use kiln_graph::caches::caches;
use kiln_graph::onnx;

use super::*;

/// One head of attention over a cache that grows, with what `more` computes on scores.
fn model(inputs: &str, more: &str) -> Model {
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 20]>\ng (float[b, 2, s, 4] q, float[b, 2, s, 4] k, float[b, 2, s, 4] v, \
         float[b, 2, p, 4] keys, float[b, 2, p, 4] values{inputs}) => (float[b, 2, s, 4] y, float[b, 2, t, 4] k2, \
         float[b, 2, t, 4] v2)\n<int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] first = {{0}}, \
         int64[1] last = {{-1}}, int64[1] end = {{9223372036854775807}}, int64[1] at1 = {{1}}, float none = {{0}}, float hidden = {{-inf}}>\n{{
           k2 = Concat<axis = 2>(keys, k)
           v2 = Concat<axis = 2>(values, v)
           turned = Transpose<perm = [0, 1, 3, 2]>(k2)
           scores = MatMul(q, turned)
           {more}
           weights = Softmax<axis = -1>(masked)
           y = MatMul(weights, v2)
         }}"
    );
    let model = onnx::read_text(&text);
    model.unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const PAST: &str = "sizes = Shape(keys) past = Gather<axis = 0>(sizes, two) here = Shape(q) new = Gather<axis = 0>(here, two)";

fn causal() -> String {
    format!(
        "{PAST} all = Add(past, new) places = Range(zero, all, one) counted = Range(zero, new, one)
         at = Add(counted, past) rows = Unsqueeze(at, at1) kept = LessOrEqual(places, rows)
         masked = Where(kept, scores, hidden)"
    )
}

fn written(model: &mut Model) -> Result<Written, Stays> {
    write(model, 16, &|_| None, &[])
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes().filter(|(_, n)| n.op().is(op)).count()
}

#[test]
fn positions_are_those_of_each_row() {
    let mut made = model("", &causal());
    let told = written(&mut made).unwrap();
    assert_eq!(
        (told.capacity, told.indices.as_str()),
        (16, "write_indices")
    );
    assert_eq!(told.caches, ["keys", "values"]);
    assert_eq!(
        (count(&made, "TensorScatter"), count(&made, "Concat")),
        (2, 0)
    );
    let found = caches(&made.graph);
    assert!(
        found
            .iter()
            .all(|c| c.update == Update::Written && c.axis == 2)
    );
    assert_eq!(caches::new_tokens(&made.graph).as_deref(), Some("s"));
    // The condition is one of [rows, 1, new, places], and nothing else is hidden.
    let facts = infer::infer(&made.graph);
    let select = made
        .graph
        .nodes()
        .find(|(_, n)| n.op().is("Where"))
        .unwrap()
        .1;
    let kept = facts.dims(select.input(0).unwrap()).unwrap();
    assert_eq!(kept.last().unwrap().as_i64(), Some(16));
    assert_eq!(count(&made, "Where"), 1);
}

#[test]
fn what_was_not_written_is_hidden_where_nothing_else_hides_it() {
    let mut made = model("", "masked = Identity(scores)");
    written(&mut made).unwrap();
    assert_eq!(count(&made, "Where"), 1);
    assert_eq!(count(&made, "Less"), 1);
}

#[test]
fn what_is_not_understood_stays() {
    let cases = [
        // The last tokens of the cache are not the last ones that were written.
        (
            "tail = Slice(scores, last, end, last) masked = Add(scores, tail)",
            "the past",
        ),
        (
            "kept = Sign(keys) sum = ReduceSum(kept) masked = Add(scores, sum)",
            "read by more",
        ),
    ];
    for (more, why) in cases {
        let mut made = model("", more);
        let before = made.graph.node_count();
        let said = written(&mut made).unwrap_err().to_string();
        assert!(said.contains(why), "{more}: {said}");
        assert_eq!(made.graph.node_count(), before);
    }
}

#[test]
fn a_mask_is_as_long_as_the_cache() {
    let same = |name: &str| (name == "m").then(|| Expr::symbol("p").add(&Expr::symbol("s")))?;
    let more = "wide = Cast<to = 9>(mask) row = Unsqueeze(wide, at1) kept = Unsqueeze(row, at1) masked = Where(kept, scores, hidden)";
    let mut made = model(", int64[b, m] mask", more);
    write(&mut made, 16, &same, &[]).unwrap();
    let mask = made
        .graph
        .inputs()
        .iter()
        .find(|v| made.graph.value(**v).name() == "mask");
    let shape = made.graph.value(*mask.unwrap()).ty().shape().unwrap();
    assert_eq!(shape[1], Dim::Known(16));
    // The mask hides what was not written.
    assert_eq!(count(&made, "Where"), 1);
}
