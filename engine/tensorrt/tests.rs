//! Builds by the real TensorRT, on models made by hand. Without TensorRT they are skipped, and say so.

mod int4;
mod onnx;

use std::path::Path;
use std::sync::Mutex;

use self::onnx::{
    FLOAT, FLOAT16, Graph, Message, external, initializer, int_attribute, node, value,
};
use super::*;
use crate::*;

const SM: ComputeCapability = ComputeCapability::Sm89;

fn builder() -> Option<RtxBuilder> {
    match locate(None) {
        Ok(libraries) => Some(RtxBuilder::new(&libraries).unwrap()),
        Err(_) => {
            println!("skipped: TensorRT for RTX not found");
            None
        }
    }
}

fn build(request: &BuildRequest<'_>) -> Option<Result<Built, EngineError>> {
    builder().map(|b| b.build(request, &NoProgress))
}

/// `y = x @ w`, x of [batch, 4], w of [4, 3] as given.
fn matmul(weight: Message) -> Vec<u8> {
    Graph {
        nodes: &[node("MatMul", &["x", "w"], &["y"], &[])],
        inputs: &[value("x", FLOAT, &[-1, 4])],
        outputs: &[value("y", FLOAT, &[-1, 3])],
        initializers: &[weight],
    }
    .model(17)
}

fn matmul_inline() -> Vec<u8> {
    matmul(initializer("w", FLOAT, &[4, 3], &[0; 48]))
}

fn attention(attributes: &[Message]) -> Vec<u8> {
    Graph {
        nodes: &[node("Attention", &["q", "k", "v"], &["y"], attributes)],
        inputs: &["q", "k", "v"].map(|name| value(name, FLOAT, &[1, 2, 16, 32])),
        outputs: &[value("y", FLOAT, &[1, 2, 16, 32])],
        initializers: &[],
    }
    .model(23)
}

fn batch(min: i64, opt: i64, max: i64) -> Profile {
    let shape = |batch| vec![batch, 4];
    Profile {
        inputs: vec![ProfileInput {
            name: "x".to_owned(),
            min: shape(min),
            opt: shape(opt),
            max: shape(max),
        }],
    }
}

fn request(onnx: &[u8]) -> BuildRequest<'_> {
    BuildRequest {
        profiles: vec![batch(1, 2, 4)],
        ..BuildRequest::new(onnx, SM)
    }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Progress for Recorder {
    fn phase_start(&self, name: &str, parent: Option<&str>, steps: u32) {
        let line = format!("+{name} in {parent:?} of {steps}");
        self.0.lock().unwrap().push(line);
    }
    fn phase_finish(&self, name: &str) {
        self.0.lock().unwrap().push(format!("-{name}"));
    }
}

#[test]
fn a_model_with_a_profile_becomes_an_engine() {
    let Some(builder) = builder() else { return };
    let onnx = matmul_inline();
    let progress = Recorder::default();
    let built = builder.build(&request(&onnx), &progress).unwrap();

    assert!(built.plan.len() > 1000);
    assert_eq!(built.version, builder.version());
    assert!(built.version >= headers());
    assert_eq!(built.inputs[0].name, "x");
    assert_eq!(built.inputs[0].dtype, DataType::Float32);
    assert_eq!(built.inputs[0].shape, [-1, 4]);
    assert_eq!(built.outputs[0].shape, [-1, 3]);
    assert!(!built.network.is_empty());
    assert_eq!(built.network.layers["matrix_multiply"], 1);
    assert!(built.network.tensors.contains_key(&DataType::Float32));
    assert_eq!(built.warnings, []);
    assert_eq!(built.network.unread, [""; 0]);
    assert!(built.kernels.is_empty(), "nobody asked for them");

    let lines = progress.0.into_inner().unwrap();
    assert_eq!(lines[..2], ["+parse in None of 1", "-parse"]);
    assert_eq!(lines[2], "+build in None of 1");
    assert!(lines[3].contains("in Some(\"build\")"), "{}", lines[3]);
    let count = |sign| lines.iter().filter(|l| l.starts_with(sign)).count();
    assert_eq!(count('+'), count('-'));
}

#[test]
fn a_plan_is_written_while_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = matmul_inline();
    let into = |path| BuildRequest {
        plan: Some(path),
        ..request(&onnx)
    };
    let path = folder.path().join("engine.part");
    let Some(built) = build(&into(&path)) else {
        return;
    };
    let plan = built.unwrap().plan;
    let whole = build(&request(&onnx)).unwrap().unwrap().plan;
    assert_eq!(plan.len(), whole.len());
    assert!(std::fs::read(&path).unwrap() == *plan);
    let moved = folder.path().join("model.engine");
    plan.save(&moved).unwrap();
    assert!(moved.exists() && !path.exists());
    // Neither a place that is not there nor a full disk is TensorRT's fault.
    let nowhere = folder.path().join("nowhere/engine.part");
    for path in [nowhere.as_path(), Path::new("/dev/full")] {
        let error = build(&into(path)).unwrap().unwrap_err();
        assert!(
            matches!(&error, EngineError::Write { path: p, .. } if p == path),
            "{error}"
        );
    }
}

#[test]
fn several_capabilities_and_profiles_go_into_one_engine() {
    let onnx = matmul_inline();
    let request = BuildRequest {
        capabilities: vec![ComputeCapability::Sm86, SM, ComputeCapability::Sm120],
        profiles: vec![batch(1, 1, 1), batch(2, 4, 8)],
        workspace: Some(1 << 28),
        optimization_level: Some(2),
        detailed: true,
        ..BuildRequest::new(&onnx, SM)
    };
    let Some(built) = build(&request) else { return };
    let built = built.unwrap();
    assert!(built.plan.len() > 1000);
    // One list for all capabilities, with a kernel for each profile. So small a product is a generated one.
    let kernels: Vec<_> = built.kernels.launched().collect();
    assert_eq!(kernels.len(), 2, "{:?}", built.kernels);
    assert!(
        kernels
            .iter()
            .all(|k| k.nodes.len() == 1 && k.kind == "kgen")
    );
    let sizes = Sizes::default();
    assert_eq!(sizes.bytes(&kernels[0].inputs[0]), Some(16));
    assert_eq!(
        sizes.bytes(&kernels[1].inputs[0]),
        None,
        "its batch is dynamic"
    );
    let model = kiln_graph::onnx::read_bytes(onnx.clone().into(), None).unwrap();
    let sizes = Sizes::at(&built.kernels, &model.graph, &[("x".into(), vec![4, 4])]);
    assert_eq!(sizes.bytes(&kernels[1].inputs[0]), Some(64));
    assert_eq!(sizes.moved(kernels[1]), Some(64 + 48));
}

#[test]
fn builds_for_different_gpus_do_not_disturb_each_other() {
    let Some(builder) = builder() else { return };
    let onnx = matmul_inline();
    let requests =
        [ComputeCapability::Sm86, SM, ComputeCapability::Sm120].map(|capability| BuildRequest {
            capabilities: vec![capability],
            ..request(&onnx)
        });
    std::thread::scope(|scope| {
        let builds = requests
            .each_ref()
            .map(|r| scope.spawn(|| builder.build(r, &NoProgress)));
        for build in builds {
            assert!(build.join().unwrap().is_ok());
        }
    });
}

#[test]
fn bytes_that_are_no_model_are_refused() {
    let model = matmul_inline();
    let garbage: Vec<u8> = (0..4096_u32).map(|i| ((i * i * 31) >> 3) as u8).collect();
    for bytes in [&[][..], b"version https://git-lfs", &garbage, &model[..40]] {
        let Some(result) = build(&request(bytes)) else {
            return;
        };
        let error = result.unwrap_err();
        assert!(
            matches!(&error, EngineError::Parse { failures, .. } if failures[0].node.is_none()),
            "{error}"
        );
        assert!(error.to_string().contains("ONNX model"), "{error}");
    }
}

#[test]
fn all_unknown_ops_are_named_at_once() {
    let onnx = Graph {
        nodes: &[
            node("Foo", &["x"], &["a"], &[]),
            node("Relu", &["a"], &["b"], &[]),
            node("BiasGelu", &["b", "b"], &["c"], &[]),
            node("MatMulInteger", &["c", "c"], &["y"], &[]),
        ],
        inputs: &[value("x", FLOAT, &[2])],
        outputs: &[value("y", FLOAT, &[2])],
        initializers: &[],
    }
    .model(17);
    let Some(result) = build(&BuildRequest::new(&onnx, SM)) else {
        return;
    };
    let error = result.unwrap_err();
    let EngineError::Parse { failures, log } = &error else {
        panic!("{error}")
    };
    let named: Vec<_> = failures
        .iter()
        .map(|f| {
            (
                f.index.unwrap(),
                f.node.as_deref().unwrap(),
                f.op.as_deref().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        named,
        [
            (0, "Foo_a", "Foo"),
            (2, "BiasGelu_c", "BiasGelu"),
            (3, "MatMulInteger_y", "MatMulInteger")
        ]
    );
    assert!(failures.iter().all(|f| f.unknown_op));
    assert!(error.to_string().contains("and 2 more"), "{error}");
    assert!(error.hint().unwrap().contains("no `Foo`"));
    assert!(!log.is_empty());
}

#[test]
fn mixed_float_types_are_explained() {
    let onnx = matmul(initializer("w", FLOAT16, &[4, 3], &[0; 24]));
    let Some(result) = build(&request(&onnx)) else {
        return;
    };
    let error = result.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("TensorRT cannot read the model: node `MatMul_y` (MatMul): ")
    );
    assert!(!error.to_string().contains("_src"), "{error}");
    assert!(error.hint().unwrap().contains("Cast"), "{error}");
}

#[test]
fn turing_takes_no_fp32_products() {
    let onnx = matmul_inline();
    let request = BuildRequest {
        capabilities: vec![ComputeCapability::Sm75],
        ..request(&onnx)
    };
    let Some(result) = build(&request) else {
        return;
    };
    let error = result.unwrap_err();
    let EngineError::Build { failures, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(failures[0].node.as_deref(), Some("MatMul_y"));
    assert!(error.hint().unwrap().contains("`fp16`"), "{error}");
}

#[test]
fn fp32_attention_must_be_decomposable() {
    let Some(builder) = builder() else { return };
    let whole = attention(&[]);
    let error = builder
        .build(&BuildRequest::new(&whole, SM), &NoProgress)
        .unwrap_err();
    assert!(matches!(error, EngineError::Build { .. }));
    assert!(
        error.hint().unwrap().contains("TRT_decomposable"),
        "{error}"
    );

    let decomposable = attention(&[int_attribute("TRT_decomposable", 1)]);
    let built = builder.build(&BuildRequest::new(&decomposable, SM), &NoProgress);
    assert!(built.is_ok(), "{built:?}");
}

#[test]
fn dynamic_inputs_need_a_profile() {
    let onnx = matmul_inline();
    let Some(result) = build(&BuildRequest::new(&onnx, SM)) else {
        return;
    };
    let error = result.unwrap_err();
    assert!(
        matches!(&error, EngineError::Profile(ProfileError::Missing { inputs }) if inputs == &["x"])
    );
    assert!(error.hint().unwrap().contains("`dim`"));
}

#[test]
fn a_size_fixed_in_the_graph_is_explained() {
    // The export froze a batch of 2, which the profile varies.
    let shape: Vec<u8> = [2_i64, 4].iter().flat_map(|d| d.to_le_bytes()).collect();
    let onnx = Graph {
        nodes: &[node("Reshape", &["x", "s"], &["y"], &[])],
        inputs: &[value("x", FLOAT, &[-1, 4])],
        outputs: &[value("y", FLOAT, &[2, 4])],
        initializers: &[initializer("s", 7, &[2], &shape)],
    }
    .model(17);
    let Some(builder) = builder() else { return };
    // With an opt of 2 TensorRT builds, and warns that min and max fail.
    for opt in [2, 3] {
        let request = BuildRequest {
            profiles: vec![batch(1, opt, 4)],
            ..request(&onnx)
        };
        let error = builder.build(&request, &NoProgress).unwrap_err();
        let EngineError::Build { failures, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(failures[0].node.as_deref(), Some("Reshape_y"));
        assert!(
            error.hint().unwrap().contains("exported with fixed sizes"),
            "{error}"
        );
    }
}

#[test]
fn requests_that_contradict_themselves_are_refused() {
    let Some(builder) = builder() else { return };
    let onnx = matmul_inline();
    let good = request(&onnx);
    let bad = [
        BuildRequest {
            capabilities: vec![],
            ..good.clone()
        },
        BuildRequest {
            capabilities: vec![SM, ComputeCapability::Current],
            ..good.clone()
        },
        BuildRequest {
            optimization_level: Some(6),
            ..good
        },
    ];
    for request in bad {
        let error = builder.build(&request, &NoProgress).unwrap_err();
        assert!(matches!(error, EngineError::Request(_)), "{error}");
    }
}

struct StopAt(&'static str, Mutex<bool>);

impl Progress for StopAt {
    fn phase_start(&self, name: &str, _: Option<&str>, _: u32) {
        *self.1.lock().unwrap() |= name == self.0;
    }
    fn cancelled(&self) -> bool {
        *self.1.lock().unwrap()
    }
}

struct PanicAt(&'static str);

impl Progress for PanicAt {
    fn phase_start(&self, name: &str, _: Option<&str>, _: u32) {
        assert!(name != self.0, "a panic on purpose");
    }
}

#[test]
fn a_build_can_be_stopped_in_each_phase() {
    let Some(builder) = builder() else { return };
    let onnx = matmul_inline();
    for phase in [PHASE_PARSE, PHASE_BUILD, "Optimizing graph"] {
        let stop = StopAt(phase, Mutex::new(false));
        for progress in [&stop as &dyn Progress, &PanicAt(phase)] {
            let error = builder.build(&request(&onnx), progress).unwrap_err();
            assert!(matches!(error, EngineError::Cancelled), "{phase}: {error}");
        }
    }
}

#[test]
fn external_weights_come_from_files_or_from_memory() {
    let Some(builder) = builder() else { return };
    let onnx = matmul(external("w", FLOAT, &[4, 3], "w.bin"));
    let bare = matmul(initializer("w", FLOAT, &[4, 3], &[]));
    let weight: Vec<u8> = (0..12_u8)
        .flat_map(|i| f32::from(i).to_le_bytes())
        .collect();
    let folder = std::env::temp_dir().join(format!("kiln-engine-weights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("w.bin"), &weight).unwrap();

    let from_file = BuildRequest {
        data_dir: Some(&folder),
        ..request(&onnx)
    };
    let from_memory = BuildRequest {
        weights: vec![("w", &weight)],
        ..request(&onnx)
    };
    let from_memory_only = BuildRequest {
        weights: vec![("w", &weight)],
        ..request(&bare)
    };
    let by_file = builder.build(&from_file, &NoProgress).unwrap();
    let by_memory = builder.build(&from_memory, &NoProgress).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(*by_file.plan, *by_memory.plan);
    let by_memory_only = builder.build(&from_memory_only, &NoProgress).unwrap();
    assert_eq!(*by_file.plan, *by_memory_only.plan);

    let error = builder.build(&request(&onnx), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("Failed to open file"), "{error}");
    assert!(error.hint().unwrap().contains("external data"), "{error}");

    for weights in [vec![("w", &weight[..8])], vec![("v", &weight[..])]] {
        let request = BuildRequest {
            weights,
            ..request(&onnx)
        };
        let error = builder.build(&request, &NoProgress).unwrap_err();
        assert!(error.to_string().contains("has no initializer"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_library_is_refused() {
    let file = std::env::temp_dir().join(format!("kiln-engine-notalib-{}", std::process::id()));
    std::fs::write(&file, "text").unwrap();
    let libraries = Libraries {
        core: file.clone(),
        parser: file.clone(),
    };
    let error = RtxBuilder::new(&libraries).err().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(&error, EngineError::Load { path, .. } if *path == file));
    assert!(error.hint().is_some());
}

#[test]
fn builders_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<RtxBuilder>();
    shared::<Built>();
    shared::<EngineError>();
}

/// A plan of `y = x @ w` with a large weight.
fn large(form: Form) -> Option<Result<Built, EngineError>> {
    let weight = initializer("w", FLOAT16, &[256, 512], &[0x3c; 256 * 512 * 2]);
    let onnx = Graph {
        nodes: &[node("MatMul", &["x", "w"], &["y"], &[])],
        inputs: &[value("x", FLOAT16, &[2, 256])],
        outputs: &[value("y", FLOAT16, &[2, 512])],
        initializers: &[weight],
    }
    .model(17);
    build(&BuildRequest {
        form,
        ..BuildRequest::new(&onnx, SM)
    })
}

#[test]
fn engines_that_take_other_weights_are_built_on_a_gpu() {
    let stripped = large(Form {
        weight_stripped: true,
        ..Form::default()
    });
    let (Some(whole), Some(stripped)) = (large(Form::default()), stripped) else {
        return;
    };
    let whole = whole.unwrap().plan.len();
    match device_count() {
        Ok(_) => assert!(stripped.unwrap().plan.len() + 200_000 < whole),
        Err(why) => {
            let text = stripped.unwrap_err().to_string();
            assert!(text.contains("machine with a GPU"), "{why}: {text}");
        }
    }
}

#[cfg(not(feature = "tensorrt-enterprise"))]
#[test]
fn options_of_tensorrt_proper_are_refused() {
    let forms = [
        Form {
            version_compatible: true,
            ..Form::default()
        },
        Form {
            hardware: Some(Hardware::AmperePlus),
            ..Form::default()
        },
        Form {
            timing_cache: Some("timings".into()),
            ..Form::default()
        },
    ];
    for form in forms {
        let Some(refused) = large(form) else { return };
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("options of TensorRT proper"), "{text}");
    }
}

/// TensorRT for RTX has timing caches as well, and nothing in them: enough to see that their tables are read rightly.
#[test]
fn a_timing_cache_gives_its_bytes() {
    let Ok(libraries) = locate(None) else {
        println!("skipped: TensorRT not found");
        return;
    };
    let _alone = builder::no_builds();
    let api = api::Api::load(&libraries).unwrap();
    let monitor = monitor::Monitor::new(&NoProgress).unwrap();
    let mut session =
        super::network::Session::new(&api, logger::Log::get().unwrap(), &monitor).unwrap();
    assert!(session.timing_cache().is_none());
    assert!(!session.set_timing_cache(&[]).unwrap());
    let kept = session.timing_cache().unwrap();
    assert!(!kept.as_ref().is_empty());
    assert!(session.set_timing_cache(kept.as_ref()).unwrap());
    // One of another version is replaced by an empty one.
    assert!(session.set_timing_cache(b"of another version").is_ok());
}

#[test]
fn an_engine_is_opened_on_a_gpu_only() {
    let Some(built) = build(&request(&matmul_inline())) else {
        return;
    };
    let opened = crate::run::Session::open(
        &built.unwrap().plan,
        None,
        &crate::run::RunOptions::default(),
    );
    match (crate::run::unavailable(), opened) {
        (Some(why), Err(error)) => {
            assert!(error.is_without_device() == matches!(why, CudaError::NoDevice(_)));
            assert!(error.hint().is_some(), "{error}");
        }
        (Some(why), Ok(_)) => panic!("an engine was opened, but {why}"),
        // Built for sm_89: another GPU says so.
        (None, Ok(session)) => println!("opened: {:?}", session.facts()),
        (None, Err(error)) => assert!(
            matches!(error, crate::run::EngineRunError::Invalid { .. }),
            "{error}"
        ),
    }
}

#[test]
fn an_input_that_the_parser_drops_is_told() {
    let text = r#"<ir_version: 10, opset_import: ["" : 24]>
        g (float16[2, 4, 32, 64] q, float16[2, 4, 32, 64] k, float16[2, 4, 32, 64] v, int64[2] lengths)
        => (float16[2, 4, 32, 64] y) { y = Attention(q, k, v, , , , lengths) }"#;
    let onnx = kiln_graph::onnx::to_bytes(&kiln_graph::onnx::read_text(text).unwrap()).unwrap();
    let Some(built) = build(&BuildRequest::new(&onnx, SM)) else {
        return;
    };
    match built {
        Ok(built) => assert_eq!(built.network.unread, ["lengths"]),
        Err(error) => panic!("this TensorRT no longer drops it: {error}"),
    }
}
