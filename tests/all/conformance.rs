//! A sample of ONNX's own test cases; `make conformance` runs all of them. `tools/conformance/sample.py` wrote the files.

use crate::common;

use kiln::bundle;
use kiln::compile::{Options, compile};
use kiln::parity::{self, Npz};
use kiln::runtime::{Optimization, Session, SessionOptions};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::Tensor;

/// What ONNX's own runner compares by.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-7;

fn equal(expected: &Tensor, found: &Tensor) -> bool {
    if expected.dtype() != found.dtype() || expected.dims() != found.dims() {
        return false;
    }
    match (expected.to_f64s(), found.to_f64s()) {
        (Some(a), Some(b)) => (a.iter().zip(&b)).all(|(a, b)| {
            a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= ATOL + RTOL * a.abs()
        }),
        _ => expected.same_bits(found),
    }
}

#[test]
fn a_sample_of_onnx_cases_gives_the_expected_outputs() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let models = common::files("conformance", "onnx");
    assert!(models.len() > 25, "{} models", models.len());
    for model in models {
        let name = model.file_stem().unwrap().to_string_lossy().into_owned();
        for standard in [false, true] {
            let output = folder.path().join("model.kiln");
            let options = Options {
                output: Some(output.clone()),
                targets: Some(Targets::Cpu),
                standard,
                check: false,
                ..Options::new(&model)
            };
            compile(&options, &Silent).unwrap_or_else(|e| panic!("{name}: {e}"));
            let settings = SessionOptions {
                optimization: Optimization::Disabled,
                ..SessionOptions::default()
            };
            let path = output.join(bundle::MODEL);
            let mut session = Session::from_path(runtime, &path, &settings)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut npz = Npz::open(&model.with_extension("npz")).unwrap();
            let inputs = parity::from_npz(&mut npz, session.inputs()).unwrap();
            let outputs = session
                .run(&inputs)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!outputs.is_empty(), "{name}");
            for (output, found) in outputs {
                let expected = npz
                    .read(&format!("out.{output}"), Some(found.dtype()))
                    .unwrap();
                assert!(equal(&expected.unwrap(), &found), "{name}: {output}");
            }
        }
    }
}
