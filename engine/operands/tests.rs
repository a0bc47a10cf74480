use kiln_graph::onnx;

use super::*;
use crate::{Operand, Sizes};

const MODEL: &str = r#"<ir_version: 10, opset_import: ["" : 23]>
    g (float16[batch, seq, 64] x, int64[seq, seq] order, bool[batch, 1, seq, seq] padding) => (float16[batch, seq, 64] y, float16[batch, 64] pooled)
    <float16[64, 64] w = {4096}, float16[64] s = {64}, int64[4] heads = {0, 0, 4, 16}, int64[4] two = {0, 0, 2, 16},
     int64 zero = {0}, float16[64, 32] v = {2048}>
    {
        [norm] n = LayerNormalization(x, s)
        [q] q = MatMul(n, w) [rq] q4 = Reshape(q, heads) [tq] qt = Transpose<perm = [0, 2, 1, 3]>(q4)
        [k] k = MatMul(n, v) [rk] k4 = Reshape(k, two) [tk] kt = Transpose<perm = [0, 2, 1, 3]>(k4)
        [att] a = Attention(qt, kt, kt)
        [back] y = Softmax(n)
        [causal] c = Equal(order, order) [both] m = And(c, padding)
        [select] pooled = Gather<axis = 1>(n, zero)
    }"#;

fn model() -> kiln_graph::Model {
    let text = [4096, 2048, 64].iter().fold(MODEL.to_string(), |text, &n| {
        text.replace(
            &format!("{{{n}}}"),
            &format!("{{{}1}}", "1, ".repeat(n - 1)),
        )
    });
    onnx::read_text(&text).unwrap()
}

fn inputs() -> [(String, Vec<usize>); 3] {
    let all: [(&str, &[usize]); 3] = [
        ("x", &[3, 40, 64]),
        ("order", &[40, 40]),
        ("padding", &[3, 1, 40, 40]),
    ];
    all.map(|(name, shape)| (name.to_string(), shape.to_vec()))
}

fn operand(name: &str, shape: &[i64]) -> Operand {
    Operand {
        name: name.into(),
        shape: shape.to_vec(),
        strides: strides(shape),
        dtype: DataType::Float16,
    }
}

fn strides(shape: &[i64]) -> Vec<i64> {
    let below = (0..shape.len()).map(|k| {
        let below = &shape[k + 1..];
        if below.contains(&-1) {
            -1
        } else {
            below.iter().product()
        }
    });
    below.collect()
}

fn owned(operands: &[&Operand]) -> Vec<Operand> {
    operands.iter().map(|&o| o.clone()).collect()
}

fn kernel(kind: &str, nodes: &[&str], inputs: &[&Operand], outputs: &[&Operand]) -> Kernel {
    Kernel {
        name: format!("{kind}_{}", nodes.join("_")),
        kind: kind.into(),
        inputs: owned(inputs),
        constants: Vec::new(),
        outputs: owned(outputs),
        tactic: String::new(),
        nodes: nodes.iter().map(|n| n.to_string()).collect(),
    }
}

/// Elements of an operand of the kernels at 3 samples of length 40.
fn found(kernels: &[&Kernel], wanted: &Operand) -> Option<u64> {
    let model = model();
    let kernels = Kernels(kernels.iter().map(|&k| k.clone()).collect());
    let inputs = inputs();
    Sizes::at(&kernels, &model.graph, &inputs).elements(wanted)
}

const ROWS: u64 = 3 * 40;

#[test]
fn a_rearranged_value_is_known_by_its_constant_dimensions() {
    for shape in [
        &[-1, 64][..],
        &[1, -1, 64],
        &[-1, -1, 64],
        &[64, -1],
        &[-1, -1, 4, 16],
        &[-1, -1, 16],
    ] {
        let x = operand("a", shape);
        let kernel = kernel("kgen", &["rq"], &[&x], &[]);
        assert_eq!(found(&[&kernel], &x), Some(ROWS * 64), "{shape:?}");
    }
    for shape in [&[-1, 63][..], &[-1, 32], &[-1, -1, -1, 16], &[-1, 8]] {
        let x = operand("a", shape);
        let kernel = kernel("kgen", &["rq"], &[&x], &[]);
        assert_eq!(found(&[&kernel], &x), None, "{shape:?}");
    }
}

#[test]
fn the_statistics_of_rows_are_not_the_rows() {
    for shape in [&[-1, -1, 1][..], &[-1, 1]] {
        let mean = operand("mean", shape);
        let writes = kernel("kgen", &["norm"], &[], &[&mean]);
        let reads = kernel("kgen", &["norm", "select"], &[&mean], &[]);
        let known = found(&[&writes, &reads], &mean);
        assert!(known.is_none_or(|n| n == ROWS), "{shape:?} {known:?}");
    }
}

#[test]
fn all_that_use_an_operand_must_agree() {
    let both = operand("p", &[-1, 64]);
    let writes = kernel("kgen", &["norm", "select"], &[], &[&both]);
    assert_eq!(
        found(&[&writes], &both),
        None,
        "rows, or one of each sample"
    );
    // Who reads it knows one of the two.
    let reads = kernel("kgen", &["q"], &[&both], &[]);
    assert_eq!(found(&[&writes, &reads], &both), Some(ROWS * 64));
    let never = [
        kernel("kgen", &["q"], &[&both], &[]),
        kernel("kgen", &["unknown"], &[&both], &[]),
    ];
    assert_eq!(
        found(&[&never[0], &never[1]], &both),
        Some(ROWS * 64),
        "who knows nothing, says nothing"
    );
}

#[test]
fn what_has_a_name_of_the_model_needs_no_node() {
    let pooled = operand("pooled.1_myl0", &[-1, 64]);
    let kernel = kernel("kgen", &[], &[&pooled], &[]);
    assert_eq!(found(&[&kernel], &pooled), Some(3 * 64));
}

#[test]
fn a_product_writes_the_rows_that_it_reads() {
    let (x, y) = (operand("x", &[-1, 64]), operand("packed", &[3, -1, 64]));
    let mut packed = kernel("gemm", &["q"], &[&x], &[&y]);
    packed.constants.push(operand("w", &[3, 64, 64]));
    assert_eq!(found(&[&packed], &y), Some(3 * ROWS * 64));
    let view = operand("packed", &[-1, -1, 4, 16]);
    let reads = kernel("kgen", &["tq"], &[&view], &[]);
    assert_eq!(
        found(&[&packed, &reads], &view),
        Some(ROWS * 64),
        "a part of it"
    );
}

#[test]
fn the_last_operand_of_an_attention_is_what_is_left() {
    let names = ["q", "k", "v"].map(|n| operand(n, &[-1, -1, 16]));
    let [q, k, v] = &names;
    let mut attention = kernel("kgen", &["att"], &[q, k, v], &[]);
    attention.name = "_gemm_mha_v2".into();
    let moves = [("tq", 0), ("tk", 1)].map(|(node, k)| kernel("kgen", &[node], &[], &[&names[k]]));
    assert_eq!(
        found(&[&attention, &moves[0], &moves[1]], v),
        Some(ROWS * 32)
    );
    assert_eq!(found(&[&attention], v), None);
    let model = model();
    let inputs = inputs();
    let kernels = Kernels(vec![attention.clone()]);
    let sizes = Sizes::at(&kernels, &model.graph, &inputs);
    assert_eq!(
        crate::price::operations(&attention, &sizes),
        Some(4 * 3 * 40 * 40 * 64)
    );
}

#[test]
fn whatever_is_listed_is_no_panic() {
    let far = operand("a", &[i64::MAX, -1, i64::MAX]);
    let none = operand("b", &[]);
    let kernel = kernel("gemm", &["q", "norm"], &[&far, &none], &[&far]);
    assert_eq!(found(&[&kernel], &far), None);
    assert_eq!(found(&[&kernel], &none), Some(1));
}

#[test]
fn another_view_of_the_tensor_decides_between_queries_and_keys() {
    // By the attention alone this may be queries or keys.
    let heads = operand("x", &[-1, -1, 16]);
    let reads = kernel("kgen", &["att"], &[&heads], &[]);
    assert_eq!(found(&[&reads], &heads), None);
    let rows = operand("x", &[-1, 32]);
    let writes = kernel("kgen", &["k"], &[], &[&rows]);
    assert_eq!(found(&[&writes, &reads], &heads), Some(ROWS * 32));
    // Nobody says how this view lies in the tensor.
    let part = operand("x", &[-1, -1, 2]);
    let other = kernel("kgen", &["unknown"], &[&part], &[]);
    assert_eq!(found(&[&writes, &other], &part), None);
}

#[test]
fn a_mask_for_all_samples_has_none_of_their_number() {
    let mut mask = operand("m", &[1, 1, -1, -1]);
    mask.dtype = DataType::Bool;
    let writes = kernel("kgen", &["causal"], &[], &[&mask]);
    let reads = kernel("kgen", &["causal", "both"], &[&mask], &[]);
    assert_eq!(found(&[&writes, &reads], &mask), Some(40 * 40));
}
