use kiln_graph::onnx;

use super::*;

const K: usize = 32;

fn model(layers: &str, weights: &str) -> Model {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 21]>
         g (float[rows, {K}] x) => (float[rows, 16] a) <{weights}> {{ {layers} }}"
    );
    let mut model = onnx::read_text(&text).unwrap();
    kiln_graph::infer::annotate(&mut model.graph);
    model
}

/// A weight [32, 16] of numbers in -1 to 1 without order.
fn weight(name: &str) -> String {
    let number = |k: usize| format!("{:.3}", ((k * 7919 + 13) % 1009) as f32 / 504.5 - 1.0);
    let numbers: Vec<String> = (0..K * 16).map(number).collect();
    format!("float[{K}, 16] {name} = {{{}}}", numbers.join(", "))
}

fn linear() -> Model {
    model("[first] a = MatMul(x, w)", &weight("w"))
}

/// All channels alike but for a little of their own.
fn alike() -> Gram {
    let mut gram = Gram::new(K);
    gram.add((0..K).map(|i| (0..K).map(move |j| if i == j { 1.1 } else { 1.0 })));
    gram
}

fn planned(model: &Model, gram: &Gram, target: &Target, options: &Options<'_>) -> Option<Plan> {
    let x = model.graph.inputs()[0];
    plan(&model.graph, x, gram, target, options)
}

fn only(plan: Plan) -> Rounded {
    assert_eq!(plan.layers.len(), 1);
    plan.layers.into_values().next().unwrap()
}

#[test]
fn the_rounding_with_the_least_error_is_taken() {
    let target = Target::cpu();
    let together = only(planned(&linear(), &alike(), &target, &Options::default()).unwrap());
    assert_eq!(together.by, Method::Compensated);
    let mut apart = Gram::new(K);
    apart.add((0..K).map(|i| (0..K).map(move |j| f32::from(u8::from(i == j)))));
    let nearest = only(planned(&linear(), &apart, &target, &Options::default()).unwrap());
    assert_eq!(nearest.by, Method::Nearest);
}

#[test]
fn only_targets_with_zero_points_get_them() {
    let with = |target| only(planned(&linear(), &alike(), &target, &Options::default()).unwrap());
    assert!(with(Target::cpu()).numbers.zeros.is_some());
    assert!(with(Target::tensorrt("sm_89")).numbers.zeros.is_none());
}

#[test]
fn nothing_is_planned_where_nothing_was_measured_or_all_is_kept() {
    let (target, none) = (Target::cpu(), Options::default());
    assert!(planned(&linear(), &Gram::new(K), &target, &none).is_none());
    assert!(planned(&linear(), &Gram::new(K + 1), &target, &none).is_none());
    let keep = |name: &str| name == "first";
    let kept = Options {
        keep: &keep,
        ..Options::default()
    };
    assert!(planned(&linear(), &alike(), &target, &kept).is_none());
}

#[test]
fn what_a_search_spares_changes_no_plan() {
    let spared = ["first".to_string()];
    let options = Options {
        spared: &spared,
        ..Options::default()
    };
    let target = Target::cpu();
    let with = only(planned(&linear(), &alike(), &target, &options).unwrap());
    let without = only(planned(&linear(), &alike(), &target, &Options::default()).unwrap());
    assert_eq!(with.numbers.values.bytes(), without.numbers.values.bytes());
}

#[test]
fn numbers_of_four_bits_have_signs() {
    let all: Vec<f32> = (0..16).map(signed).collect();
    let expected: Vec<f32> = (0..8).chain(-8..0).map(|v| v as f32).collect();
    assert_eq!(all, expected);
}
