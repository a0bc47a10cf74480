use super::*;
use crate::onnx::read_text;

fn graph(text: &str) -> Graph {
    read_text(text).unwrap_or_else(|e| panic!("{e}")).graph
}

fn summary(text: &str) -> Vec<(String, Update, Holds, usize, Option<usize>, usize)> {
    let g = graph(text);
    let named = |c: &Cache| g.value(c.input).name().to_string();
    (caches(&g).iter())
        .map(|c| (named(c), c.update, c.holds, c.axis, c.output, c.attention))
        .collect()
}

const GROWING: &str = r#"
<ir_version: 9, opset_import: ["" : 18]>
g (float[b,2,s,4] q, float[b,2,s,4] k, float[b,2,s,4] v, float[b,2,p,4] one, float[b,2,p,4] two)
=> (float[b,2,s,4] y, float[b,2,t,4] first, float[b,2,t,4] second)
{
    first = Concat <axis = -2> (two, k)
    second = Concat <axis = 2> (one, v)
    kt = Transpose <perm = [0, 1, 3, 2]> (first)
    s = MatMul (q, kt)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, second)
}
"#;

#[test]
fn a_cache_is_what_is_joined_and_read_by_an_attention() {
    let found = summary(GROWING);
    assert_eq!(
        found,
        [
            ("one".into(), Update::Grows, Holds::Values, 2, Some(2), 0),
            ("two".into(), Update::Grows, Holds::Keys, 2, Some(1), 0),
        ]
    );
    let g = graph(GROWING);
    let cache = &caches(&g)[0];
    assert_eq!(
        (cache.heads, cache.size, cache.bytes()),
        (Some(2), Some(4), Some(32))
    );
}

#[test]
fn what_is_joined_and_read_by_no_attention_is_no_cache() {
    let text = GROWING.replace("Softmax <axis = -1>", "Relu");
    assert!(summary(&text).is_empty());
}

#[test]
fn a_cache_that_is_joined_with_nothing_first_is_one() {
    let text = GROWING.replace("(two, k)", "(same, k)").replace(
        "    first = ",
        "    same = Concat <axis = -2> (two)\n    first = ",
    );
    assert_eq!(summary(&text), summary(GROWING));
}

#[test]
fn buffers_and_what_is_only_read_are_told_apart() {
    let text = r#"
<ir_version: 10, opset_import: ["" : 24]>
g (float[b,2,s,4] q, float[b,2,s,4] k, int64[b] at, float[b,2,16,4] keys, float[b,2,n,4] values)
=> (float[b,2,s,4] y, float[b,2,16,4] after)
{
    after = TensorScatter <axis = 2> (keys, k, at)
    y = Attention (q, after, values)
}
"#;
    assert_eq!(
        summary(text),
        [
            ("keys".into(), Update::Written, Holds::Keys, 2, Some(1), 0),
            ("values".into(), Update::Kept, Holds::Values, 2, None, 0),
        ]
    );
}

#[test]
fn operators_with_a_cache_of_their_own_are_known() {
    let text = r#"
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[b,s,8] q, float[b,s,4] k, float[b,s,4] v, float[b,1,p,4] pk, float[b,1,p,4] pv, int32[b] last, int32 total)
=> (float[b,s,8] y, float[b,1,t,4] nk, float[b,1,t,4] nv)
{
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (q, k, v, pk, pv, last, total)
}
"#;
    assert_eq!(
        summary(text),
        [
            ("pk".into(), Update::Shared, Holds::Keys, 2, Some(1), 0),
            ("pv".into(), Update::Shared, Holds::Values, 2, Some(2), 0),
        ]
    );
}

#[test]
fn a_cache_within_a_branch_is_found() {
    let text = r#"
<ir_version: 9, opset_import: ["" : 18]>
g (bool more, float[b,2,s,4] q, float[b,2,s,4] k, float[b,2,p,4] past) => (float[b,2,s,4] y, float[b,2,t,4] present)
{
    y, present = If (more) <
        then_branch = cached () => (y1, joined) {
            joined = Concat <axis = 2> (past, k)
            kt = Transpose <perm = [0, 1, 3, 2]> (joined)
            s1 = MatMul (q, kt)
            w1 = Softmax <axis = -1> (s1)
            y1 = MatMul (w1, joined)
        },
        else_branch = plain () => (y2, same) {
            same = Identity (k)
            y2 = Identity (q)
        }
    >
}
"#;
    let found = summary(text);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].0.as_str(), found[0].1, found[0].4),
        ("past", Update::Grows, Some(1))
    );
}

#[test]
fn a_first_step_makes_keys_and_values() {
    let text = r#"
<ir_version: 9, opset_import: ["" : 18]>
g (float[b,2,s,4] q, float[b,2,s,4] x) => (float[b,2,s,4] y, float[b,2,s,4] v, float[b,2,s,4] k)
{
    k = Relu (x)
    v = Neg (x)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul (q, kt)
    w = Softmax <axis = -1> (s)
    y = MatMul (w, v)
}
"#;
    let found: Vec<_> = made(&graph(text))
        .iter()
        .map(|m| (m.holds, m.output))
        .collect();
    assert_eq!(found, [(Holds::Keys, 2), (Holds::Values, 1)]);
}

#[test]
fn keys_leave_beside_an_attention_that_splits_heads_itself() {
    let text = r#"
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[b,s,8] q, float[b,s,8] x) => (float[b,s,8] y, float[b,2,s,4] k, float[b,2,s,4] v)
<float[8] bias = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}, int64[4] heads = {0, 0, 2, 4}>
{
    k0 = Relu (x)
    v0 = Neg (x)
    y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k0, v0)
    k1 = Add (bias, k0)
    k2 = Reshape (k1, heads)
    k = Transpose <perm = [0, 2, 1, 3]> (k2)
    v2 = Reshape (v0, heads)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
}
"#;
    let found: Vec<_> = made(&graph(text))
        .iter()
        .map(|m| (m.holds, m.output))
        .collect();
    assert_eq!(found, [(Holds::Keys, 1), (Holds::Values, 2)]);
}
