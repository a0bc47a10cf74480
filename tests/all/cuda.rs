//! `--target cuda` on a machine without a GPU: what stands in the file, which kernels it finds, and what is said of the proof.

use kiln::gpu_check;
use kiln::nvidia::driver;
use kiln::runtime::{Session, SessionOptions};
use kiln_graph::{DType, Model, Tensor, infer, onnx};
use kiln_passes::census::census;
use kiln_passes::targets::cuda_forms::{FORMS, Form};
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

/// The CUDA kernel takes x, packed weights, scales and zero points, and ends with an error where there is more.
#[test]
fn int4_is_written_as_the_cuda_kernel_takes_it() {
    let path = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    for (name, floats) in [
        ("fp32", &[][..]),
        ("fp16", registry::FP16),
        ("bf16", registry::BF16),
    ] {
        let mut model = onnx::read(&path).unwrap();
        compiled(&mut model, &[registry::INT4, floats].concat());
        let fallen = cuda_kernels::fallen(&model);
        let data: Vec<_> = fallen.iter().filter(|f| !f.sizes).collect();
        assert!(data.is_empty(), "{name}: {data:?}");
        let g = &model.graph;
        let products = g.nodes().filter(|(_, n)| n.op().name() == "MatMulNBits");
        let mut count = 0;
        for (id, node) in products {
            let attr = |name: &str| node.attrs().int(name).unwrap();
            let block = attr("block_size");
            assert_eq!(attr("bits"), 4);
            assert!(block >= 16 && block.count_ones() == 1, "{block}");
            assert!(node.inputs().len() <= 4, "{}: {name}", g.label(id));
            let packed = g.constant(node.input(1).unwrap()).unwrap();
            let blocks = attr("K").div_euclid(block) + i64::from(attr("K") % block != 0);
            let dims = [attr("N"), blocks, block / 2].map(|n| n as usize);
            assert_eq!(packed.dims(), dims);
            count += 1;
        }
        // Queries, keys and values are one product.
        assert_eq!(count, 9, "{name}");
        let dequantized = g.nodes().any(|(_, n)| n.op().name() == "DequantizeLinear");
        assert!(!dequantized, "{name}");
    }
}

#[test]
fn one_bundle_is_for_an_engine_and_for_the_provider() {
    if common::runtime().is_none() || !common::tensorrt() {
        return;
    }
    let folder = Folder::new();
    let model = common::fixture("models/bert-tiny.ts.eager.opset11.onnx");
    let model = model.to_str().unwrap();
    let bundle = folder.path("b.kiln");
    let targets = ["--target", "sm_89,cuda", "-o", &bundle];
    let args = [
        &["compile", model, "--fp16", "--proof", "quick"],
        &targets[..],
    ]
    .concat();
    let told = kiln(&args).expect(0).out;
    assert!(
        told.contains("cuda     model.cuda.onnx, parity passes"),
        "{told}"
    );
    let names = ["model.onnx", "model.engine", "model.cuda.onnx"];
    for name in names {
        assert!(folder.listing().iter().any(|f| f.ends_with(name)), "{name}");
    }
    let manifest = folder.manifest("b.kiln");
    assert_eq!(manifest["target"], "sm_89");
    assert!(manifest["engine"]["bytes"].as_u64().unwrap() > 0);
    assert_eq!(
        manifest["recipe"]["target"],
        serde_json::json!(["cuda", "sm_89"])
    );
    let also = &manifest["also"][0];
    assert_eq!(also["file"], "model.cuda.onnx");
    let other = &also["manifest"];
    assert_eq!(other["target"], "cuda");
    assert_eq!(other["parity_outcome"], "passes");
    assert!(other["engine"].is_null() && other["also"].is_null());
    assert!(other["ops_after"]["com.microsoft.MultiHeadAttention"].is_number());
    assert!(manifest["ops_after"]["com.microsoft.MultiHeadAttention"].is_null());

    let told = kiln(&["inspect", &bundle]).expect(0).out;
    assert!(
        told.contains("cuda, model.cuda.onnx: passes (fp16)"),
        "{told}"
    );
    let page = std::fs::read_to_string(folder.path("b.kiln/report.md")).unwrap();
    assert!(
        page.contains("## For ONNX Runtime's CUDA provider"),
        "{page}"
    );
    // Each is a model of its own.
    let provider = folder.path("b.kiln/model.cuda.onnx");
    kiln(&["check", &provider, "--reference", model, "--device", "cpu"]).expect(0);
    let again = folder.path("b.kiln/manifest.json");
    let planned = kiln(&["compile", "-c", &again, "--dry-run"]).expect(0);
    assert!(planned.out.contains("cuda"), "{}", planned.out);
}

#[test]
fn two_results_are_refused_where_one_is_meant() {
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    kiln(&["bisect", &model, "--target", "cuda,sm_89"])
        .expect(2)
        .says(&["stands for two results"]);
    kiln(&["compile", &model, "--int8", "--target", "cuda,sm_89"])
        .expect(2)
        .says(&["CUDA provider"]);
    kiln(&["compile", &model, "--target", "cuda,cpu"])
        .expect(2)
        .says(&["cannot be combined"]);
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

#[test]
fn a_replayed_graph_is_reported_as_not_run_without_a_gpu() {
    if common::runtime().is_none() || driver::probe().is_ok() {
        println!("skipped: no ONNX Runtime, or a CUDA device");
        return;
    }
    let folder = Folder::with_model();
    let model = folder.path("model.onnx");
    let asked = ["check", &model, "--reference", &model, "--cuda-graph"];
    let told = kiln(&asked).expect(0).out;
    assert!(
        told.contains("CUDA graph: not run: no CUDA device"),
        "{told}"
    );
    let json = kiln(&[&asked[..], &["--json"]].concat()).expect(0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["cuda_graph"]["status"], "not-run");
    // What has no original to run, or runs in pieces, has no graph.
    for other in [&["--pieces"][..], &["--generate", "4"]] {
        kiln(&[&asked[..], other].concat())
            .expect(2)
            .says(&["--cuda-graph"]);
    }
}

/// A small decoder over prompts and a small encoder, as `kiln gpu-check` makes them.
fn made() -> [(&'static str, Model); 2] {
    let decoder = gpu_check::Shape {
        layers: 2,
        width: 64,
        heads: 4,
        groups: 2,
        inner: 96,
        words: 50,
    };
    let encoder = gpu_check::Sizes {
        layers: 2,
        width: 64,
        heads: 4,
        inner: 96,
        words: 50,
        positions: 32,
    };
    [
        ("decoder", gpu_check::decoder(&decoder).unwrap()),
        ("encoder", gpu_check::encoder(&encoder).unwrap()),
    ]
}

fn outputs(model: &Model) -> Option<Vec<f64>> {
    let runtime = common::runtime()?;
    let bytes = onnx::to_bytes(model).unwrap();
    let options = SessionOptions::default();
    let mut session = Session::from_bytes(runtime, "m", &bytes, &options).unwrap();
    let ids: Vec<i64> = (0..20).map(|n| (n * 7) % 50).collect();
    let ids = Tensor::from_values(vec![2, 10], &ids).unwrap();
    let kept: Vec<i64> = (0..20).map(|n| i64::from(n < 16)).collect();
    let kept = Tensor::from_values(vec![2, 10], &kept).unwrap();
    let mut inputs = vec![("input_ids", ids), ("attention_mask", kept)];
    inputs.truncate(session.inputs().len());
    let outputs = session.run(&inputs).unwrap();
    outputs[0].1.to_f64s()
}

fn written(form: &Form, model: &Model, precision: &[Step]) -> Model {
    let (target, options) = (form.target(), Options::default());
    let mut result = model.clone();
    let mut cx = Context::new(&target, &options);
    let steps = [registry::DEFAULT, precision, registry::LOWER].concat();
    kiln_passes::run(&mut result, &steps, &mut cx, &mut |_, _| {}).unwrap();
    infer::annotate(&mut result.graph);
    result
}

/// Every form that a GPU times computes the original, in FP32 by the CPU's kernels; what these have not is spelled out for them.
#[test]
fn each_form_for_a_gpu_computes_the_original() {
    for (name, model) in made() {
        let Some(expected) = outputs(&model) else {
            return;
        };
        for form in &FORMS {
            let mut result = written(form, &model, &[]);
            let attention = |model: &Model| -> Vec<String> {
                let ops = model.graph.nodes().map(|(_, n)| n.op().to_string());
                ops.filter(|op| op.ends_with("Attention")).collect()
            };
            let grouped = "com.microsoft.GroupQueryAttention";
            let fallen = cuda_kernels::fallen(&result);
            let mut data = fallen.iter().filter(|f| !f.sizes);
            assert!(
                data.all(|f| f.op.to_string() == grouped),
                "{name} {}",
                form.name
            );
            match (name, form.name) {
                ("decoder", "grouped-attention") => assert_eq!(attention(&result), [grouped; 2]),
                // Queries have more heads than keys.
                ("decoder", "packed-heads") => assert_eq!(attention(&result), ["Attention"; 2]),
                ("encoder", "packed-heads" | "grouped-attention") => {
                    let wanted = "com.microsoft.MultiHeadAttention";
                    assert_eq!(attention(&result), [wanted; 2]);
                }
                _ => {}
            }
            if form.name == "packed-heads" {
                // The CPU has no kernel for it.
                let (cpu, options) = (Target::cpu(), Options::default());
                let mut cx = Context::new(&cpu, &options);
                let steps = [registry::ATTENTION, registry::LOWER].concat();
                kiln_passes::run(&mut result, &steps, &mut cx, &mut |_, _| {}).unwrap();
            }
            let found = outputs(&result).unwrap();
            let most = (found.iter().zip(&expected)).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(
                found.len() == expected.len() && most < 1e-5,
                "{name} {}: {most}",
                form.name
            );
        }
    }
}

/// What the CUDA kernels demand of their operands (`group_query_attention_helper.h`, `multihead_attention_helper.h`).
#[test]
fn grouped_and_packed_attention_are_written_as_the_kernels_take_them() {
    let form = |name: &str| FORMS.iter().find(|f| f.name == name).unwrap();
    let [(_, decoder), (_, encoder)] = made();
    let cases = [("grouped-attention", &decoder), ("packed-heads", &encoder)];
    let halves = [registry::FP16, registry::BF16];
    for ((name, model), half) in cases.iter().flat_map(|c| halves.map(|h| (c, h))) {
        let model = written(form(name), model, half);
        let fallen = cuda_kernels::fallen(&model);
        assert!(fallen.iter().all(|f| f.sizes), "{fallen:?}");
        // As it is in a file.
        let bytes = onnx::to_bytes(&model).unwrap();
        let mut model = onnx::read_bytes(bytes.into(), None).unwrap();
        infer::annotate(&mut model.graph);
        let g = &model.graph;
        let dims = |v| g.value(v).ty().shape().unwrap().to_vec();
        let known = |v, axis: usize| dims(v)[axis].known();
        let nodes = g.nodes().map(|(_, n)| n);
        let attentions: Vec<_> = nodes
            .filter(|n| n.op().name().ends_with("Attention"))
            .collect();
        assert_eq!(attentions.len(), 2);
        for node in attentions {
            let attr = |name: &str| node.attrs().int(name).unwrap();
            let input = |k: usize| node.input(k).unwrap();
            assert_eq!(attr("num_heads"), 4);
            if *name == "packed-heads" {
                assert_eq!(
                    [2, 3, 4].map(|axis| known(input(0), axis)),
                    [4, 3, 16].map(Some)
                );
                assert!([1, 2, 3, 4].iter().all(|&k| node.input(k).is_none()));
                assert_eq!(dims(input(5)).len(), 4);
                continue;
            }
            assert_eq!(
                [0, 1, 2].map(|k| known(input(k), 2)),
                [64, 32, 32].map(Some)
            );
            assert!(node.input(3).is_none() && node.input(4).is_none());
            let dtype = |k: usize| g.value(input(k)).ty().dtype();
            assert_eq!([dtype(5), dtype(6)], [Some(DType::I32); 2]);
            assert_eq!(dims(input(5)).len(), 1);
            assert_eq!((dtype(7), dtype(8)), (dtype(0), dtype(0)));
            assert_eq!(known(input(7), 1), Some(8));
            assert_eq!((attr("kv_num_heads"), attr("do_rotary")), (2, 1));
            // The kernel writes them whether or not they are read.
            assert!((0..3).all(|k| node.output(k).is_some()));
        }
    }
}
