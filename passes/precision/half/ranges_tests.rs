use kiln_graph::onnx;

use super::*;
use crate::precision::calibrated::stats::TensorStats;
use HalfFormat::{Bf16, Fp16};

/// The largest FP16, after which FP32 numbers are clamped.
const FP16_END: f32 = 65504.0;
/// What FP16 may reach on calibration data: the margin keeps it at half its range.
const FP16_SEEN: f32 = (65504.0 / MARGIN) as f32;
/// The smallest normal FP16.
const FP16_NORMAL: f32 = 6.103_515_6e-5;
/// Scores from which FP16 rounds a softmax's operands by more than [`SOFTMAX_ERROR`]: 0.125 · 2^11.
const FP16_SCORES: f32 = 256.0;
/// The same for BF16: 0.125 · 2^8.
const BF16_SCORES: f32 = 32.0;

/// A graph over `x [2, 4]` and the constants given; all values are FP32 unless they say otherwise.
fn graph(constants: &str, body: &str) -> Graph {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 21]>
         g (float[2, 4] x) => (y) <{constants}> {{ {body} }}"
    );
    let mut model = onnx::read_text(&text).unwrap();
    kiln_graph::infer::annotate(&mut model.graph);
    model.graph
}

fn value(g: &Graph, name: &str) -> ValueId {
    let named = |&v: &ValueId| g.value(v).name() == name;
    let inputs = g.inputs().iter().copied();
    let results = g
        .nodes()
        .flat_map(|(_, n)| n.outputs().iter().flatten().copied());
    let operands = g
        .nodes()
        .flat_map(|(_, n)| n.inputs().iter().flatten().copied());
    inputs.chain(results).chain(operands).find(named).unwrap()
}

fn seen(g: &Graph, ranges: &[(&str, f32, f32)]) -> Stats {
    let stats = ranges.iter().map(|&(name, min, max)| {
        let stats = TensorStats {
            min,
            max,
            absmax: max.max(-min),
            ..TensorStats::default()
        };
        (value(g, name), stats)
    });
    stats.collect()
}

/// Why each node keeps FP32 by its numbers, in order.
fn kept(g: &Graph, format: HalfFormat, seen: &Stats) -> Vec<Option<String>> {
    let order = g.topo_order().unwrap();
    let mut why = vec![None; g.node_bound()];
    let mut ranges = Ranges::new(format, seen);
    ranges.masked(g, &order);
    ranges.keep(g, &order, &|_| false, &mut why);
    order.iter().map(|id| why[id.index()].clone()).collect()
}

fn kept_names(g: &Graph, format: HalfFormat, seen: &Stats) -> Vec<bool> {
    kept(g, format, seen).iter().map(Option::is_some).collect()
}

fn unmeasured(g: &Graph, format: HalfFormat) -> Vec<bool> {
    kept_names(g, format, &Stats::default())
}

#[test]
fn results_beyond_the_range_keep_fp32() {
    let g = graph("", "y = Exp(x)");
    let reach = |max| kept(&g, Fp16, &seen(&g, &[("y", 0.0, max)]))[0].clone();
    assert_eq!(reach(FP16_SEEN), None);
    assert_eq!(
        reach(FP16_SEEN * 2.0).as_deref(),
        Some("its result reaches 6.6e4, and FP16 ends at 65504")
    );
    assert!(!kept_names(&g, Bf16, &seen(&g, &[("y", 0.0, 1e30)]))[0]);
    assert!(kept_names(&g, Bf16, &seen(&g, &[("y", 0.0, f32::MAX)]))[0]);
}

#[test]
fn operands_count_too_and_are_named() {
    let g = graph("", "y = Tanh(x)");
    let why = kept(&g, Fp16, &seen(&g, &[("x", -1e5, 1.0), ("y", -1.0, 1.0)]));
    assert_eq!(
        why[0].as_deref(),
        Some("its operand \"x\" reaches 1.0e5, and FP16 ends at 65504")
    );
}

#[test]
fn numbers_below_the_normal_ones_keep_fp32() {
    let g = graph("", "y = Exp(x)");
    let reach = |max| kept_names(&g, Fp16, &seen(&g, &[("y", 0.0, max)]))[0];
    assert!(reach(FP16_NORMAL * 0.5) && !reach(FP16_NORMAL * 2.0));
    // Nothing but zeros is no small number.
    assert!(!reach(0.0));
}

#[test]
fn what_is_measured_counts_behind_rearrangements() {
    let g = graph("", "m = Transpose(x) y = Sqrt(m)");
    assert_eq!(
        kept_names(&g, Fp16, &seen(&g, &[("x", 0.0, 1e6)])),
        [true, true]
    );
}

#[test]
fn constants_beyond_the_range_keep_fp32() {
    let with = |number: &str| {
        let c = format!("float[4] c = {{1, {number}, 2, 3}}");
        unmeasured(&graph(&c, "y = Mul(x, c)"), Fp16)[0]
    };
    assert!(with("65600") && with("-1e6") && !with("65504"));
    let g = graph("float[4] c = {1, 1e6, 2, 3}", "y = Mul(x, c)");
    assert_eq!(
        kept(&g, Fp16, &Stats::default())[0].as_deref(),
        Some("its constant \"c\" reaches 1.0e6, and FP16 ends at 65504")
    );
    assert!(!unmeasured(&g, Bf16)[0]);
}

#[test]
fn what_stands_for_infinity_is_filled() {
    for c in ["float[4] c = {0, -1e9, 0, -1e30}", "float c = {-70000}"] {
        assert!(!unmeasured(&graph(c, "y = Add(x, c)"), Fp16)[0], "{c}");
    }
    // One outlier, a positive scalar, and numbers of which some are no infinity.
    for c in [
        "float[4] c = {0, -1e5, 0, -1e30}",
        "float c = {70000}",
        "float[4] c = {0, -1e5, 0, 0}",
    ] {
        assert!(unmeasured(&graph(c, "y = Add(x, c)"), Fp16)[0], "{c}");
    }
    // A product does not mask.
    let g = graph(
        "float[4, 4] c = {0,0,0,0, 0,0,0,0, 0,0,0,0, 0,0,0,1e30}",
        "y = MatMul(x, c)",
    );
    assert!(unmeasured(&g, Fp16)[0]);
}

#[test]
fn bounds_may_be_anywhere() {
    for body in [
        "y = Max(x, c)",
        "b = Less(x, c) y = Cast<to = 1>(b)",
        "y = Clip(x, c)",
    ] {
        assert!(
            !unmeasured(&graph("float c = {1e6}", body), Fp16)[0],
            "{body}"
        );
    }
    assert!(unmeasured(&graph("float c = {1e6}", "y = Clip(c, x)"), Fp16)[0]);
}

#[test]
fn weights_that_vanish_keep_fp32_in_products_only() {
    let tiny = "float[4] c = {1e-8, 2e-8, 1e-8, 3e-8}";
    let g = graph(tiny, "y = Mul(x, c)");
    let why = kept(&g, Fp16, &Stats::default())[0].clone().unwrap();
    assert!(why.starts_with("its constant \"c\" is too small for FP16, which would move it by"));
    assert!(!unmeasured(&g, Bf16)[0]);
    assert!(!unmeasured(&graph(tiny, "y = Add(x, c)"), Fp16)[0]);
    assert!(
        !unmeasured(
            &graph("float[4] c = {1e-8, 1, 1, 1}", "y = Mul(x, c)"),
            Fp16
        )[0]
    );
}

#[test]
fn softmaxes_of_large_scores_keep_fp32_with_what_computes_them() {
    let body = "n = Neg(x) s = Mul(n, x) y = Softmax(s)";
    let g = graph("", body);
    let kept = |format, scores: f32| {
        let seen = seen(
            &g,
            &[
                ("x", -16.0, 16.0),
                ("n", -16.0, 16.0),
                ("s", -scores, scores),
            ],
        );
        kept_names(&g, format, &seen)
    };
    assert_eq!(kept(Fp16, FP16_SCORES), [false, false, false]);
    assert_eq!(kept(Fp16, FP16_SCORES * 1.01), [false, true, true]);
    assert_eq!(kept(Bf16, BF16_SCORES), [false, false, false]);
    assert_eq!(kept(Bf16, BF16_SCORES * 1.01), [false, true, true]);
}

#[test]
fn masked_scores_count_by_their_other_side() {
    let g = graph(
        "float[4] mask = {0, -1e9, 0, -1e9}",
        "s = Add(x, mask) y = Softmax(s)",
    );
    let masked = seen(&g, &[("x", -8.0, 8.0), ("s", -1e9, 8.0)]);
    assert_eq!(kept_names(&g, Fp16, &masked), [false, false]);
    let open = graph(
        "float[4] bias = {0, 1, 0, 1}",
        "s = Add(x, bias) y = Softmax(s)",
    );
    let unmasked = seen(&open, &[("x", -8.0, 8.0), ("s", -1e9, 8.0)]);
    assert_eq!(kept_names(&open, Fp16, &unmasked), [true, true]);
}

#[test]
fn values_around_a_body_decide_for_what_captures_them() {
    let g = graph("", "y = Relu(x)");
    let order = g.topo_order().unwrap();
    let (mut why, stats, x) = (vec![None; g.node_bound()], Stats::default(), value(&g, "x"));
    let mut ranges = Ranges::new(Fp16, &stats);
    ranges.masked(&g, &order);
    ranges.keep(&g, &order, &|v| v == x, &mut why);
    assert_eq!(
        why[order[0].index()].as_deref(),
        Some("FP16 cannot hold a value of the graph around it")
    );
}

#[test]
fn reasons_that_nodes_have_are_left_alone() {
    let g = graph("float[4] c = {1, 1e6, 2, 3}", "y = Mul(x, c)");
    let order = g.topo_order().unwrap();
    let mut why = vec![Some("asked for".to_string()); g.node_bound()];
    let stats = Stats::default();
    Ranges::new(Fp16, &stats).keep(&g, &order, &|_| false, &mut why);
    assert_eq!(why[order[0].index()].as_deref(), Some("asked for"));
}

#[test]
fn constants_are_filled_where_they_mask_and_clamped_where_they_bound() {
    let narrow = |body: &str| -> Vec<f64> {
        let g = graph("float[4] c = {1, -1e30, 2, 3}", body);
        let stats = Stats::default();
        let (narrow, loss) = Ranges::new(Fp16, &stats)
            .narrow(&g, value(&g, "c"))
            .unwrap();
        assert_eq!(loss.unwrap().clamped, 1);
        narrow.to_f64s().unwrap()
    };
    assert_eq!(narrow("y = Add(x, c)"), [1.0, -Fp16.fill(), 2.0, 3.0]);
    assert_eq!(
        narrow("y = Max(x, c)"),
        [1.0, -f64::from(FP16_END), 2.0, 3.0]
    );
    let g = graph("float[4] c = {1, 0.5, 2, 3}", "y = Add(x, c)");
    let stats = Stats::default();
    let (_, loss) = Ranges::new(Fp16, &stats)
        .narrow(&g, value(&g, "c"))
        .unwrap();
    assert!(loss.is_none());
}

#[test]
fn infinities_stay_what_they_are() {
    let t = Tensor::vector(&[f32::NEG_INFINITY, f32::NAN, 1e38, -1e38, 1.0]);
    let filled = fill(&t, Fp16).unwrap().values::<f32>().unwrap();
    let end = Fp16.fill() as f32;
    assert_eq!(filled[0], f32::NEG_INFINITY);
    assert!(filled[1].is_nan());
    assert_eq!(filled[2..], [end, -end, 1.0]);
    assert!(fill(&Tensor::vector(&[1i64]), Fp16).is_none());
}

#[test]
fn what_suits_products_fits_and_does_not_vanish() {
    let of = |numbers: &str| {
        let g = graph(&format!("float[4] c = {{{numbers}}}"), "y = Mul(x, c)");
        let (stats, c) = (Stats::default(), value(&g, "c"));
        let mut ranges = Ranges::new(Fp16, &stats);
        (ranges.fits(&g, c), ranges.suits(&g, c))
    };
    assert_eq!(of("1, 2, 3, 4"), (true, true));
    assert_eq!(of("1e-8, 1e-8, 1e-8, 1e-8"), (true, false));
    assert_eq!(of("1, 2, 3, 1e6"), (false, false));
    // A mask that is filled is no weight.
    assert_eq!(of("0, 0, 0, -1e9"), (true, false));
}

#[test]
fn measurements_decide_whether_values_fit() {
    let g = graph("", "y = Exp(x)");
    let fits = |max| {
        let stats = seen(&g, &[("y", 0.0, max)]);
        Ranges::new(Fp16, &stats).fits(&g, value(&g, "y"))
    };
    assert!(fits(FP16_SEEN) && !fits(FP16_SEEN * 1.01));
    let stats = Stats::default();
    assert!(Ranges::new(Fp16, &stats).fits(&g, value(&g, "y")));
}

#[test]
fn calibration_measures_what_conversion_asks_for() {
    let model = |body: &str| {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 21]>
             g (float[2, 4] x) => (y) <float[4] c = {{1, 2, 3, 4}}> {{ {body} }}"
        );
        let mut model = onnx::read_text(&text).unwrap();
        kiln_graph::infer::annotate(&mut model.graph);
        model
    };
    let names = |m: &Model, format| -> Vec<String> {
        let all = wanted(m, format).into_iter();
        all.map(|v| m.graph.value(v).name().to_string()).collect()
    };
    let m = model(
        "e = Exp(x) t = Transpose<perm = [1, 0]>(e) s = Transpose<perm = [1, 0]>(t) y = Softmax(s)",
    );
    // Rearranged values are measured once, constants never; BF16 has FP32's range and asks for scores alone.
    assert_eq!(names(&m, Fp16), ["x", "e", "y"]);
    assert_eq!(names(&m, Bf16), ["e", "y"]);
    let m = model("y = Add(x, c)");
    assert_eq!(names(&m, Fp16), ["x", "y"]);
}
