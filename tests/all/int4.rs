//! INT4 weights in ONNX Runtime: what the passes write against what it computes.

use crate::common;

use kiln::parity::{self, InputKind, InputSpec};
use kiln::runtime::{Optimization, Runtime};
use kiln_graph::graph::Opsets;
use kiln_graph::{Attrs, DType, Dim, Graph, Model, Op, Tensor, Type, onnx};
use kiln_passes::{Context, Options, Step, Target, registry};

use common::Named;

/// Sizes of the feed-forward layer of MiniLM; the second has a short last block of 128.
const LAYERS: [(usize, usize); 2] = [(384, 1536), (448, 40)];

fn values(dims: &[usize], std: f32, seed: u64) -> Tensor {
    let spec = InputSpec {
        name: "v".into(),
        dtype: DType::F32,
        shape: dims.to_vec(),
        kind: InputKind::Normal { std },
    };
    parity::make(&[spec], seed).unwrap().remove(0).1
}

/// `y = x · w + b` for x [2, 7, k].
fn linear(k: usize, n: usize) -> Model {
    let dims =
        |d: &[usize]| Type::tensor(DType::F32, Some(d.iter().map(|&d| Dim::Known(d)).collect()));
    let mut opsets = Opsets::default();
    opsets.set("", 20);
    let mut g = Graph::new(opsets);
    let x = g.add_input("x", dims(&[2, 7, k]));
    let w = g.add_constant("w", values(&[k, n], 0.05, 1));
    let b = g.add_constant("b", values(&[n], 0.1, 2));
    let product = g.add_node(
        Op::onnx("MatMul"),
        "product",
        [Some(x), Some(w)],
        1,
        Attrs::new(),
    );
    let m = g.node(product).output(0);
    let add = g.add_node(Op::onnx("Add"), "bias", [m, Some(b)], 1, Attrs::new());
    let y = g.node(add).output(0).unwrap();
    g.set_type(y, dims(&[2, 7, n]));
    g.add_output("y", y);
    Model::new(g)
}

fn passed(model: &Model, steps: &[Step], target: &Target, block: usize) -> Model {
    let options = Options {
        int4_block: block,
        ..Options::default()
    };
    let mut model = model.clone();
    let mut cx = Context::new(target, &options);
    kiln_passes::run(&mut model, steps, &mut cx, &mut |_, _| {}).unwrap();
    model
}

fn outputs(runtime: &'static Runtime, model: &Model, x: &Named) -> Tensor {
    let bytes = onnx::to_bytes(model).unwrap();
    let mut session = common::session(runtime, &bytes, Optimization::Disabled).unwrap();
    session.run(x).unwrap().remove(0).1
}

/// The relative error in L2.
fn error(reference: &Tensor, found: &Tensor) -> f64 {
    let metrics = parity::metrics(reference, found).unwrap();
    metrics.float.unwrap().relative_l2
}

fn with_level(model: &Model, level: i64) -> Model {
    let mut model = model.clone();
    let found = model.graph.nodes();
    let all: Vec<_> = (found.filter(|(_, n)| n.op().name() == "MatMulNBits"))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(all.len(), 1);
    for id in all {
        model.graph.attrs_mut(id).set("accuracy_level", level);
    }
    model
}

#[test]
fn lowered_products_compute_what_dequantized_weights_give() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    for (k, n) in LAYERS {
        let model = linear(k, n);
        let x = vec![("x".to_string(), values(&[2, 7, k], 1.0, 3))];
        let exact = outputs(runtime, &model, &x);
        for block in [16, 32, 128] {
            let target = Target::cpu();
            let spelled = passed(&model, registry::INT4, &target, block);
            let lowered = passed(&spelled, registry::LOWER, &target, block);
            let spelled = outputs(runtime, &spelled, &x);
            let floats = outputs(runtime, &with_level(&lowered, 0), &x);
            let integers = outputs(runtime, &lowered, &x);
            let what = format!("[{k}, {n}] by {block}");
            assert!(error(&spelled, &floats) < 5e-6, "{what}");
            // Activations in INT8 add little to what INT4 costs.
            let (int8, int4) = (error(&floats, &integers), error(&exact, &spelled));
            assert!(int8 < 0.015, "{what}: {int8}");
            assert!(int4 > 0.05 && int4 < 0.12, "{what}: {int4}");
            println!("{what}: INT4 {int4:.4}, INT8 activations {int8:.4}");
        }
    }
}

#[test]
fn half_precision_scales_change_little() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let (k, n) = LAYERS[0];
    let x = vec![("x".to_string(), values(&[2, 7, k], 1.0, 3))];
    let target = Target::standard();
    let wide = passed(&linear(k, n), registry::INT4, &target, 32);
    let half = passed(&wide, registry::FP16, &target, 32);
    let (wide, half) = (outputs(runtime, &wide, &x), outputs(runtime, &half, &x));
    assert!(error(&wide, &half) < 2e-3, "{}", error(&wide, &half));
}
