//! `--target cuda` on a machine without a GPU: what stands in the file, which kernels it finds, and what is said of the proof.

use kiln_graph::{Model, infer, onnx};
use kiln_passes::census::census;
use kiln_passes::{Context, Options, Step, Target, cuda_kernels, registry};

use crate::common;
use crate::common::command::{Folder, kiln};

fn compiled(model: &mut Model, precision: &[Step]) {
    let (target, options) = (Target::cuda(), Options::default());
    let mut cx = Context::new(&target, &options);
    let steps = [registry::DEFAULT, precision, registry::LOWER].concat();
    kiln_passes::run(model, &steps, &mut cx, &mut |_, _| {}).unwrap();
    infer::annotate(&mut model.graph);
}

#[test]
fn no_node_on_data_falls_to_the_cpu_and_every_attention_is_an_operator() {
    for path in common::files("models", "onnx") {
        for (name, precision) in [("fp16", registry::FP16), ("bf16", registry::BF16)] {
            let mut model = onnx::read(&path).unwrap();
            compiled(&mut model, precision);
            let fallen = cuda_kernels::fallen(&model);
            let data: Vec<_> = fallen.iter().filter(|f| !f.sizes).collect();
            assert!(data.is_empty(), "{} in {name}: {data:?}", path.display());
            let attention = census(&model).attention;
            assert!(attention.fused > 0, "{}", path.display());
            assert_eq!(attention.left, 0, "{} in {name}", path.display());
        }
    }
}

#[test]
fn a_result_is_proved_here_and_says_that_its_kernels_did_not_run() {
    if common::runtime().is_none() {
        return;
    }
    let folder = Folder::new();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let model = model.to_str().unwrap();
    let bundle = folder.path("b.kiln");
    let args = [
        "compile", model, "--fp16", "--target", "cuda", "-o", &bundle,
    ];
    kiln(&args)
        .expect(0)
        .says(&["the CUDA kernels themselves did not run", "not run"]);
    let manifest = folder.manifest("b.kiln");
    assert_eq!(manifest["target"], "cuda");
    assert!(!manifest["parity"]["failed"].as_bool().unwrap_or(false));
    let told = manifest["latency_not_run"].as_str().unwrap();
    assert!(told.contains("CUDA provider"), "{told}");
    let blocks = manifest["blocks"].as_array().unwrap();
    let attention = blocks.iter().find(|b| b["kind"] == "attention").unwrap();
    assert_eq!(attention["written"]["com.microsoft.MultiHeadAttention"], 2);
}

#[test]
fn formats_that_the_provider_widens_are_refused() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    for option in ["--int8", "--fp8"] {
        kiln(&["compile", &model, option, "--target", "cuda"])
            .expect(2)
            .says(&["CUDA provider", "--int4"]);
    }
}
