//! Models whose engines were not built, or were built after a long search: each becomes an engine and computes the same, or
//! the reason is true and comes before the search.

use crate::common;

use kiln::compile::{CompileError, Options, Outcome};
use kiln::engine::EngineError;
use kiln::precision::{Floats, Linear};
use kiln_graph::onnx;

const ALL: &str = "sm_75,sm_86,sm_89,sm_120";

/// `name = {…}` of so many numbers between -0.5 and 0.5, the same in every run.
fn weight(name: &str, dims: &[usize]) -> String {
    let mut state = 12345u32;
    let number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("{:.4}", f64::from(state >> 8) / f64::from(1 << 24) - 0.5)
    };
    let count = dims.iter().product();
    let numbers: Vec<String> = std::iter::repeat_with(number).take(count).collect();
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!(
        "float[{}] {name} = {{{}}}",
        dims.join(", "),
        numbers.join(", ")
    )
}

fn compiled(
    opset: i64,
    graph: &str,
    more: impl FnOnce(&mut Options),
) -> Result<Outcome, CompileError> {
    let text = format!("<ir_version: 11, opset_import: [\"\" : {opset}]>\n{graph}");
    common::compiled(&text, "sm_89", |o| {
        o.engine = true;
        more(o);
    })
}

type Form = (&'static str, &'static str, fn(&mut Options));

const FORMS: &[Form] = &[
    ("fp32", "sm_89", |_| {}),
    ("fp16", "sm_75,sm_89", |o| o.precision.floats = Floats::Fp16),
];

/// Those of [`FORMS`] for all targets; slower.
const ALL_FORMS: &[Form] = &[
    ("fp32", "sm_86,sm_89,sm_120", |_| {}),
    ("fp16", ALL, |o| o.precision.floats = Floats::Fp16),
    ("bf16", "sm_86,sm_120", |o| {
        o.precision.floats = Floats::Bf16
    }),
];

/// Builds in each form, and each holds its tolerance.
fn builds(name: &str, opset: i64, graph: &str) {
    builds_in(FORMS, name, opset, graph);
}

fn builds_in(forms: &[Form], name: &str, opset: i64, graph: &str) {
    for (form, targets, more) in forms {
        let outcome = compiled(opset, graph, |o| {
            more(o);
            o.targets = Some(targets.parse().unwrap());
        });
        let outcome = outcome.unwrap_or_else(|e| panic!("{name}, {form}: {e}"));
        let manifest = outcome.manifest;
        assert!(manifest.engine.is_some(), "{name}, {form}");
        assert!(manifest.parity.is_some_and(|p| p.pass()), "{name}, {form}");
    }
}

fn ready() -> bool {
    common::runtime().is_some() && common::tensorrt()
}

#[test]
fn attention_that_tensorrt_does_not_take() {
    if !ready() {
        return;
    }
    let flat = "float[batch, seq, 12] q, float[batch, keys, 6] k, float[batch, keys, 6] v";
    let four = "float[batch, 2, seq, 4] q, float[batch, 2, seq, 4] k, float[batch, 2, seq, 4] v";
    let heads = "q_num_heads = 4, kv_num_heads = 2";
    let cases = [
        (
            "softcap, causal",
            23,
            format!("g ({flat}) => (float[batch, seq, 12] y) {{ y = Attention<is_causal = 1, softcap = 3.0, {heads}>(q, k, v) }}"),
        ),
        (
            "causal with a mask",
            24,
            format!("g ({flat}, float[seq, keys] m) => (float[batch, seq, 12] y) {{ y = Attention<is_causal = 1, {heads}>(q, k, v, m) }}"),
        ),
        (
            "a cap and a mask of each head",
            24,
            format!("g ({four}, bool[batch, 2, seq, seq] m) => (float[batch, 2, seq, 4] y) {{ y = Attention<softcap = 2.0>(q, k, v, m) }}"),
        ),
        (
            "probabilities",
            23,
            format!("g ({four}) => (float[batch, 2, seq, 4] y, float[batch, 2, seq, seq] s) {{ y, , , s = Attention<is_causal = 1, qk_matmul_output_mode = 3>(q, k, v) }}"),
        ),
        (
            "capped scores",
            24,
            format!("g ({four}) => (float[batch, 2, seq, 4] y, float[batch, 2, seq, seq] s) {{ y, , , s = Attention<softcap = 2.0, qk_matmul_output_mode = 1>(q, k, v) }}"),
        ),
        (
            "earlier steps",
            24,
            format!(
                "g ({four}, float[batch, 2, past, 4] pk, float[batch, 2, past, 4] pv) => (float[batch, 2, seq, 4] y, \
                 float[batch, 2, total, 4] nk, float[batch, 2, total, 4] nv) \
                 {{ y, nk, nv = Attention<is_causal = 1>(q, k, v, , pk, pv) }}"
            ),
        ),
        (
            "one tensor as queries, keys and values",
            23,
            "g (float[batch, 2, seq, 4] x) => (float[batch, 2, seq, 4] y) { y = Attention(x, x, x) }".into(),
        ),
    ];
    for (k, (name, opset, graph)) in cases.into_iter().enumerate() {
        builds_in(if k < 2 { ALL_FORMS } else { FORMS }, name, opset, &graph);
    }
}

#[test]
fn lengths_of_sequences() {
    if !ready() {
        return;
    }
    // The lengths are constants: numbers that are made for an input need not be lengths.
    for (causal, y) in [(0, "all"), (1, "causal")] {
        let graph = format!(
            "g (float[2, 2, 4, 4] q, float[2, 2, 6, 4] k, float[2, 2, 6, 4] v) => (float[2, 2, 4, 4] y) \
             <int64[2] n = {{4, 6}}> {{ y = Attention<is_causal = {causal}>(q, k, v, , , , n) }}"
        );
        builds(y, 24, &graph);
    }
}

#[test]
fn attention_in_bodies_and_over_one_tensor() {
    if !ready() {
        return;
    }
    let spelled = |x: &str, y: &str| {
        format!(
            "{y}_t = Transpose<perm = [0, 2, 1]>({x}) {y}_s = MatMul({x}, {y}_t) {y}_p = Softmax<axis = -1>({y}_s) \
             {y} = MatMul({y}_p, {x})"
        )
    };
    builds(
        "one tensor, spelled out",
        17,
        &format!(
            "g (float[batch, seq, 8] x) => (float[batch, seq, 8] y) {{ {} }}",
            spelled("x", "y")
        ),
    );
    builds(
        "spelled out in an If",
        17,
        &format!(
            "g (float[batch, seq, 8] x, bool[1] c) => (float[batch, seq, 8] y) <{}> {{ y = If(c) < \
             then_branch = t () => (t_y) {{ m = MatMul(x, w) {} }}, else_branch = e () => (e_y) {{ n = MatMul(x, w) e_y = Relu(n) }} > }}",
            weight("w", &[8, 8]),
            spelled("m", "t_y")
        ),
    );
    builds(
        "the operator in an If",
        23,
        "g (float[batch, 2, seq, 4] q, float[batch, 2, seq, 4] k, bool c) => (float[batch, 2, seq, 4] y) { y = If(c) < \
         then_branch = t () => (t_y) { t_y = Attention<is_causal = 1>(q, k, k) }, else_branch = e () => (e_y) { e_y = Relu(q) } > }",
    );
}

#[test]
fn attention_beside_recurrences() {
    if !ready() {
        return;
    }
    let attention = "q = MatMul(x, w) k = MatMul(x, u) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t) \
         p = Softmax<axis = -1>(s) y = MatMul(p, x) steps = Transpose<perm = [1, 0, 2]>(x)";
    let recurrences = [
        (
            "Scan",
            "z, all = Scan<num_scan_inputs = 1, body = b (float[batch, 8] s, float[batch, 8] e) => (float[batch, 8] so, \
                  float[batch, 8] eo) { so = Add(s, e) eo = Identity(so) }>(first, steps)",
        ),
        ("GRU", "z = GRU<hidden_size = 8>(steps, g3, g3)"),
        ("LSTM", "z = LSTM<hidden_size = 8>(steps, g4, g4)"),
        ("RNN", "z = RNN<hidden_size = 8>(steps, g1, g1)"),
    ];
    let weights = [
        weight("w", &[8, 8]),
        weight("u", &[8, 8]),
        weight("g1", &[1, 8, 8]),
        weight("g3", &[1, 24, 8]),
        weight("g4", &[1, 32, 8]),
    ];
    for (name, recurrence) in recurrences {
        let rank = if name == "Scan" {
            "batch, 8"
        } else {
            "seq, 1, batch, 8"
        };
        let first = if name == "Scan" {
            ", float[batch, 8] first"
        } else {
            ""
        };
        builds(
            name,
            18,
            &format!(
                "g (float[batch, seq, 8] x{first}) => (float[batch, seq, 8] y, float[{rank}] z) <{}> {{ {attention} {recurrence} }}",
                weights.join(", ")
            ),
        );
    }
}

/// TensorRT's process ended over products beside each other that read one INT4 weight.
#[test]
fn one_weight_in_four_bits_for_several_products() {
    if !ready() {
        return;
    }
    let forms: &[Form] = &[
        ("int4", "sm_89", |o| o.precision.linear = Linear::Int4),
        ("int4 and fp16", "sm_89", |o| {
            (o.precision.floats, o.precision.linear) = (Floats::Fp16, Linear::Int4)
        }),
    ];
    let graph = format!(
        "g (float[batch, 64] x) => (float[batch, 64] a, float[batch, 64] b, float[batch, 64] c, float[batch, 64] d) <{}> \
         {{ a = MatMul(x, w) r = Relu(x) b = MatMul(r, w) n = Sigmoid(x) c = MatMul(n, w) m = Tanh(a) d = MatMul(m, w) }}",
        weight("w", &[64, 64])
    );
    builds_in(forms, "one weight", 18, &graph);
}

/// The decoder that runs with a cache and without one as branches.
#[test]
fn branches_that_differ_in_a_size() {
    if !ready() {
        return;
    }
    let graph = "g (float[batch, 2, seq, 4] x, float[batch, 2, past, 4] p, bool c) => (float[batch, 2, total, 4] k, float[batch, 2, seq, 4] y) \
         { k, y = If(c) < then_branch = t () => (t_k, t_y) { t_k = Concat<axis = 2>(p, x) t_r = Transpose<perm = [0, 1, 3, 2]>(t_k) \
         t_s = MatMul(x, t_r) t_p = Softmax(t_s) t_y = MatMul(t_p, t_k) }, \
         else_branch = e () => (e_k, e_y) { e_k = Identity(x) e_y = Relu(x) } > }";
    builds("Concat or not", 17, graph);
}

#[test]
fn numbers_behind_convolutions_along_one_axis() {
    if !ready() {
        return;
    }
    let conv = "a = Conv<pads = [1, 1]>(x, w)";
    for (name, nodes) in [
        ("Add", format!("{conv} y = Add(a, o)")),
        ("Add, the number first", format!("{conv} y = Add(p, a)")),
        ("Sub", format!("{conv} y = Sub(a, q)")),
        ("Add and Mul", format!("{conv} b = Add(a, o) y = Mul(b, p)")),
        (
            "Mul and Add",
            format!("{conv} b = Mul(a, o) d = Add(b, p) y = Relu(d)"),
        ),
        (
            "two in a row",
            format!("{conv} b = Sub(a, o) y = Add(b, p)"),
        ),
        ("Mean", format!("{conv} y = Mean(a, o)")),
        ("Sum", format!("{conv} y = Sum(o, a, p)")),
        ("transposed", "a = ConvTranspose(x, v) y = Add(a, o)".into()),
        ("Div", format!("{conv} y = Div(a, o)")),
    ] {
        let graph = format!(
            "g (float[batch, 4, t] x) => (float[] y) <{}, {}, float o = {{0.7}}, float[1] p = {{-0.25}}, \
             float[1, 1, 1] q = {{0.5}}> {{ {nodes} }}",
            weight("w", &[6, 4, 3]),
            weight("v", &[4, 6, 3])
        );
        builds(name, 20, &graph);
    }
    builds(
        "captured by an If",
        20,
        &format!(
            "g (float[batch, 4, t] x, bool c) => (float[] y) <{}, float o = {{0.7}}> {{ y = If(c) < \
             then_branch = t () => (t_y) {{ {conv} t_y = Add(a, o) }}, \
             else_branch = e () => (e_y) {{ b = Conv<pads = [1, 1]>(x, w) e_y = Sub(b, o) }} > }}",
            weight("w", &[6, 4, 3])
        ),
    );
}

#[test]
fn a_zero_point_behind_a_convolution_along_one_axis() {
    if !ready() {
        return;
    }
    let graph = format!(
        "g (float[batch, 4, t] x) => (float[batch, 6, t] y) <{}, float s = {{0.02}}, uint8 low = {{0}}, uint8 off = {{120}}> \
         {{ a = QuantizeLinear(x, s, low) b = DequantizeLinear(a, s, low) c = Conv(b, w) q = QuantizeLinear(c, s, off) \
         y = DequantizeLinear(q, s, off) }}",
        weight("w", &[6, 4, 1])
    );
    for fp16 in [false, true] {
        let outcome = compiled(17, &graph, |o| {
            if fp16 {
                o.precision.floats = Floats::Fp16
            }
        })
        .unwrap_or_else(|e| panic!("{e}"));
        assert!(outcome.manifest.engine.is_some());
    }
}

/// An encoder's attention, whose queries, keys and values are parts of one product.
fn packed(parts: &str) -> String {
    format!(
        "g (float[batch, seq, 64] x) => (float[batch, seq, 64] y) <{}, {}, {}, int64[5] five = {{0, 0, 3, 2, 32}}, \
         int64[3] flat = {{0, 0, 64}}, float scale = {{0.1767767}}, int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}}, \
         int64[1] n0 = {{0}}, int64[1] n1 = {{1}}, int64[1] n2 = {{2}}, int64[1] n3 = {{3}}, int64[3] ones = {{1, 1, 1}}> \
         {{ m = MatMul(x, w) p = Add(m, b) r = Reshape(p, five) {parts} kt = Transpose<perm = [0, 1, 3, 2]>(k) \
         s0 = MatMul(q, kt) s = Mul(s0, scale) a = Softmax<axis = -1>(s) o = MatMul(a, v) \
         t = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(t, flat) y = MatMul(f, u) }}",
        weight("w", &[64, 192]),
        weight("b", &[192]),
        weight("u", &[64, 64])
    )
}

/// TensorRT's builder stops where one of the three is split off before it is moved, and the others behind.
#[test]
fn parts_of_one_product_are_one_kernel_whatever_their_spelling() {
    if !ready() {
        return;
    }
    let leading = "l = Transpose<perm = [2, 0, 3, 1, 4]>(r)";
    let picked = format!("{leading} q = Gather(l, i0) k = Gather(l, i1) v = Gather(l, i2)");
    let split = format!(
        "{leading} q1, k1, v1 = Split<axis = 0>(l, ones) q = Squeeze(q1, n0) k = Squeeze(k1, n0) v = Squeeze(v1, n0)"
    );
    let sliced = (["q", "k", "v"].iter().enumerate())
        .map(|(k, v)| {
            format!(
                "{v}2 = Slice(r, n{k}, n{}, n2) {v}1 = Squeeze({v}2, n2) {v} = Transpose<perm = [0, 2, 1, 3]>({v}1) ",
                k + 1
            )
        })
        .collect::<String>();
    for parts in [picked, split, sliced] {
        let graph = packed(&parts);
        let outcome = compiled(17, &graph, |o| o.precision.floats = Floats::Fp16)
            .unwrap_or_else(|e| panic!("{e}"));
        let manifest = outcome.manifest;
        assert!(manifest.parity.is_some_and(|p| p.pass()), "{parts}");
        let kernels = manifest.engine.unwrap().listed.kernels;
        // Casts of input and output, the product, one that moves all three, attention, the product behind it.
        assert_eq!(kernels.launched().count(), 6, "{parts}");
        let eight = compiled(17, &graph, |o| {
            (o.precision.linear, o.check) = (Linear::Int8, false);
        });
        let engine = eight.unwrap_or_else(|e| panic!("{e}")).manifest.engine;
        assert!(engine.unwrap().listed.otherwise.is_empty(), "{parts}");
    }
}

/// GlobalLpPool and random numbers have no kernels of operator set 22 in ONNX Runtime. RoiAlign is none of TensorRT's, so
/// its model alone is proved.
#[test]
fn operator_sets_beyond_the_runtime() {
    if !ready() {
        return;
    }
    let random = "g (float[batch, 4, 8] x) => (float[batch, 4, 8] y) <float half = {0.5}> \
         { r = RandomUniformLike<low = 1.0, high = 1.000001>(x) a = Mul(x, r) y = Add(a, half) }";
    builds("RandomUniformLike", 17, random);
    let pooled = "g (float[batch, 4, 8, 8] x) => (float[batch, 4, 1, 1] y) { y = GlobalLpPool(x) }";
    let outcome = compiled(17, pooled, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.manifest.parity.is_some_and(|p| p.pass()));
    let aligned = compiled(17, ALIGNED, |o| o.engine = false).unwrap_or_else(|e| panic!("{e}"));
    assert!(aligned.manifest.parity.is_some_and(|p| p.pass()));
}

const ALIGNED: &str = "g (float[1, 1, 8, 8] x) => (float[2, 1, 4, 4] y) \
     <float[2, 4] rois = {0.0, 0.0, 4.0, 4.0, 1.0, 1.0, 6.0, 6.0}, int64[2] which = {0, 0}> \
     { y = RoiAlign<output_height = 4, output_width = 4>(x, rois, which) }";

/// The versions without kernels are those that ONNX Runtime refuses.
#[test]
fn the_table_of_kernels_is_true() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let random = "g () => (float[2] y) { y = RandomUniform<shape = [2]>() }";
    let like = "g (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }";
    let pooled = "g (float[1, 1, 4, 4] x) => (float[1, 1, 1, 1] y) { y = GlobalLpPool(x) }";
    for graph in [random, like, pooled, ALIGNED] {
        for (opset, loads) in [(21, true), (22, false)] {
            let text = format!("<ir_version: 10, opset_import: [\"\" : {opset}]>\n{graph}");
            let model = onnx::to_bytes(&onnx::read_text(&text).unwrap()).unwrap();
            let session = common::session(runtime, &model, kiln::runtime::Optimization::Disabled);
            assert_eq!(session.is_ok(), loads, "{opset}: {graph}");
        }
    }
}

fn engine_error(outcome: Result<Outcome, CompileError>) -> EngineError {
    match outcome {
        Err(CompileError::Engine { source }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was compiled"),
    }
}

#[test]
fn obstacles_are_named_before_anything_is_searched() {
    if !ready() {
        return;
    }
    let error = engine_error(compiled(17, ALIGNED, |o| o.precision.floats = Floats::Fp16));
    let text = format!("{error} ({})", error.hint().unwrap());
    assert!(
        text.contains("RoiAlign") && text.contains("`target` cpu"),
        "{text}"
    );
    let product = format!(
        "g (float[batch, 8] x) => (float[batch, 8] y) <{}> {{ y = MatMul(x, w) }}",
        weight("w", &[8, 8])
    );
    let turing = |o: &mut Options| o.targets = Some("sm_75".parse().unwrap());
    let error = engine_error(compiled(17, &product, turing));
    assert_eq!(error.hint().as_deref(), Some("give `fp16`"), "{error}");
    let two = format!(
        "g (float[batch, 8] x) => (float[batch, 8] y) <{}> {{ [wide] a = MatMul(x, w) [other] y = MatMul(a, w) }}",
        weight("w", &[8, 8])
    );
    let error = engine_error(compiled(17, &two, |o| {
        turing(o);
        o.precision.floats = Floats::Fp16;
        o.keep = Some(regex::Regex::new("wide").unwrap());
    }));
    let text = format!("{error} ({})", error.hint().unwrap());
    assert!(
        text.contains("keeps it") && !text.contains("`fp16`"),
        "{text}"
    );
}

/// The sum of the products' results goes beyond FP16: on Turing a search may spare all but the products.
#[test]
fn a_search_spares_no_product_that_the_target_cannot_run() {
    if !ready() {
        return;
    }
    let graph = format!(
        "g (float[batch, 8] x) => (float[batch, 8] y) <{}, float up = {{30000.0}}, float down = {{0.0003}}> \
         {{ a = MatMul(x, w) b = Mul(a, up) c = Mul(b, b) d = Sqrt(c) e = Mul(d, down) y = MatMul(e, w) }}",
        weight("w", &[8, 8])
    );
    let outcome = compiled(17, &graph, |o| {
        o.precision.floats = Floats::Fp16;
        o.targets = Some(ALL.parse().unwrap());
    });
    let manifest = outcome.unwrap_or_else(|e| panic!("{e}")).manifest;
    let search = manifest.search.unwrap();
    assert!(!search.kept.is_empty());
    let products = search.groups.iter().flat_map(|g| &g.layers);
    assert!(
        products.clone().all(|l| !l.contains("MatMul")),
        "{:?}",
        search.groups
    );
}

#[test]
fn a_search_goes_into_bodies_and_counts_decisions() {
    if !ready() {
        return;
    }
    let branch = |name: &str, down: &str| {
        format!("{{ {name}a = Mul(m, up) {name}b = Mul({name}a, {down}) {name} = Relu({name}b) }}")
    };
    let bodies = format!(
        "g (float[batch, 8] x, bool c) => (float[batch, 8] y) <{}, float up = {{60000.0}}, float d1 = {{0.0001}}, \
         float d2 = {{0.0003}}> {{ m = MatMul(x, w) z = If(c) < then_branch = t () => (t_y) {}, \
         else_branch = e () => (e_y) {} > y = MatMul(z, w) }}",
        weight("w", &[8, 8]),
        branch("t_y", "d1"),
        branch("e_y", "d2")
    );
    let outcome = compiled(17, &bodies, |o| o.precision.floats = Floats::Fp16)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.manifest.parity.is_some_and(|p| p.pass()));
    let decided = format!(
        "g (float[batch, 8] x) => (float[batch, 8] y, bool[batch, 8] z) <{}, float at = {{1000.25}}, float to = {{1000.0}}> \
         {{ y = MatMul(x, w) a = Add(y, at) z = Greater(a, to) }}",
        weight("w", &[8, 8])
    );
    let outcome = compiled(17, &decided, |o| o.precision.floats = Floats::Fp16)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(outcome.manifest.parity.is_some_and(|p| p.pass()));
}

#[test]
fn inputs_with_a_value_are_said_to_be_gone_from_the_engine() {
    if !ready() {
        return;
    }
    let graph = format!(
        "g (float[batch, 8] x, float[8, 8] w, float temp) => (float[batch, 8] y) <{}, float temp = {{0.5}}> \
         {{ a = MatMul(x, w) y = Mul(a, temp) }}",
        weight("w", &[8, 8])
    );
    let outcome = compiled(17, &graph, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    let warnings = outcome.manifest.warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("engine takes no w, temp")),
        "{warnings:?}"
    );
}
