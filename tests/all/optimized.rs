//! Models that ONNX Runtime's optimizers wrote, for targets without its operators.

use crate::common;

use kiln::bundle;
use kiln::compile::{Options, compile};
use kiln::engine;
use kiln::talk::Silent;
use kiln_graph::onnx;

/// What is in the result, after a proof.
fn operators(target: &str, standard: bool) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let text = common::case("optimized_encoder");
    let options = Options {
        standard,
        engine: engine::locate(None).is_ok(),
        ..common::options(folder.path(), &text, target)
    };
    let outcome = compile(&options, &Silent).unwrap();
    let made = onnx::read(outcome.bundle.join(bundle::MODEL)).unwrap();
    let nodes = made.graph.nodes();
    nodes.map(|(_, n)| n.op().to_string()).collect()
}

#[test]
fn tensorrt_and_plain_onnx_get_no_operator_of_onnx_runtime() {
    if common::runtime().is_none() {
        return;
    }
    for (target, standard) in [("sm_89", false), ("cpu", true)] {
        let made = operators(target, standard);
        let foreign = made.iter().find(|op| op.contains("com.microsoft"));
        assert_eq!(foreign, None, "{target}");
        let count = |name: &str| made.iter().filter(|op| *op == name).count();
        assert_eq!(
            (count("Softmax"), count("LayerNormalization")),
            (1, 3),
            "{target}"
        );
    }
}

#[test]
fn onnx_runtime_keeps_its_own_operators() {
    if common::runtime().is_none() {
        return;
    }
    let made = operators("cpu", false);
    for name in ["EmbedLayerNormalization", "Attention", "BiasGelu"] {
        let name = format!("com.microsoft.{name}");
        assert!(made.contains(&name), "{name} is not in {made:?}");
    }
}
