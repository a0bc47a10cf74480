use std::num::NonZeroUsize;

use kiln_graph::DType;

use super::super::testing::{matmul_add, model, node, port, runtime};
use super::*;

fn x() -> Tensor {
    Tensor::from_values(vec![2, 2], &[1f32, 0., 0., 1.]).unwrap()
}

#[test]
fn a_model_tells_its_inputs_and_runs() {
    let Some(runtime) = runtime() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matmul.onnx");
    std::fs::write(&path, matmul_add()).unwrap();
    let options = SessionOptions {
        intra_threads: NonZeroUsize::new(1),
        ..SessionOptions::default()
    };
    let mut session = Session::from_path(runtime, &path, &options).unwrap();
    assert_eq!(session.inputs()[0].to_string(), "float[batch,2]");
    assert_eq!(session.outputs()[0].name, "y");
    let outputs = session.run(&[("x", x())]).unwrap();
    drop(session);
    assert_eq!(outputs[0].1.dims(), [2, 2]);
    assert_eq!(outputs[0].1.values::<f32>().unwrap(), [2., 3., 4., 5.]);
}

#[test]
fn wrong_inputs_are_named() {
    let Some(runtime) = runtime() else {
        return;
    };
    let options = SessionOptions::default();
    let mut session = Session::from_bytes(runtime, "m", &matmul_add(), &options).unwrap();
    let mut refusal = |inputs: &[(&str, Tensor)]| session.run(inputs).unwrap_err().to_string();
    assert_eq!(
        refusal(&[]),
        "m needs the input \"x\" (float[batch,2]), which is not given; given: none"
    );
    assert_eq!(
        refusal(&[("x", x()), ("z", x())]),
        "m has no input \"z\"; its inputs: x"
    );
    assert_eq!(
        refusal(&[("x", x()), ("x", x())]),
        "the input \"x\" of m is given twice"
    );
    assert_eq!(
        refusal(&[("x", Tensor::vector(&[1i64]))]),
        "the input \"x\" of m is float, but int64 is given"
    );
    let shape = refusal(&[("x", Tensor::vector(&[1f32]))]);
    assert!(shape.contains("for input: x"), "{shape}");
}

#[test]
fn failures_keep_the_words_of_onnx_runtime() {
    let Some(runtime) = runtime() else {
        return;
    };
    let options = SessionOptions::default();
    let refused = Session::from_bytes(runtime, "m", b"no model", &options).unwrap_err();
    assert!(matches!(refused, Error::Model { .. }), "{refused}");
    let missing = Session::from_path(runtime, Path::new("/no/such.onnx"), &options);
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("/no/such.onnx"), "{missing}");

    let unequal = model(
        &[node("MatMul", &["a", "b"], &["y"], &[])],
        &[],
        &[
            port("a", DType::F32, &["n", "m"]),
            port("b", DType::F32, &["k", "l"]),
        ],
        &[port("y", DType::F32, &["n", "l"])],
    );
    let mut session = Session::from_bytes(runtime, "m", &unequal, &options).unwrap();
    let three = Tensor::from_values(vec![1, 3], &[1f32, 2., 3.]).unwrap();
    let failed = session.run(&[("a", x()), ("b", three)]).unwrap_err();
    assert!(failed.to_string().contains("the_MatMul"), "{failed}");
    let outputs = session.run(&[("a", x()), ("b", x())]).unwrap();
    assert_eq!(outputs[0].1.values::<f32>().unwrap(), [1., 0., 0., 1.]);
}

#[test]
fn resident_inputs_run_as_values_do() {
    let Some(runtime) = runtime() else {
        return;
    };
    let options = SessionOptions::default();
    let mut session = Session::from_bytes(runtime, "m", &matmul_add(), &options).unwrap();
    let mut bound = session.bind_resident(&[("x", x())]).unwrap();
    bound.run_discarding().unwrap();
    let outputs = bound.run().unwrap();
    assert_eq!(outputs[0].1.values::<f32>().unwrap(), [2., 3., 4., 5.]);
    let refused = session.bind_resident(&[("z", x())]).unwrap_err();
    assert!(matches!(refused, Error::UnknownInput { .. }), "{refused}");
}

#[test]
fn bound_inputs_run_again_and_again() {
    let Some(runtime) = runtime() else {
        return;
    };
    let options = SessionOptions::default();
    let mut session = Session::from_bytes(runtime, "m", &matmul_add(), &options).unwrap();
    let mut bound = session.bind(&[("x", x())]).unwrap();
    bound.run_discarding().unwrap();
    let first = bound.run().unwrap();
    let second = bound.run().unwrap();
    assert!(first[0].1.same_bits(&second[0].1));
    assert_eq!(bound.session().model(), "m");
}
