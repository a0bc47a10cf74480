//! What passes claim about numbers, held against ONNX Runtime.

use crate::common;
use crate::harness;

use std::fs;

use kiln::parity::{self, InputKind, InputSpec, Preset, Tolerance};
use kiln::runtime::{Optimization, Runtime};
use kiln::twin;
use kiln_graph::{Attr, DType, Model, Tensor, onnx};
use kiln_passes::fuse::{
    fuse_gelu::FUSE_GELU, fuse_layer_norm::FUSE_LAYER_NORM, fuse_rms_norm::FUSE_RMS_NORM,
    fuse_swish::FUSE_SWISH,
};
use kiln_passes::fusion::{self, Fusion};
use kiln_passes::{Exactness, Step, Target, registry};

use common::{Named, Ort};

/// Fusions whose bodies say all. What else fuses, its cases prove.
fn calls() -> impl Iterator<Item = &'static Fusion> {
    registry::fusions().filter(|f| f.build.is_none())
}

const SEED: u64 = 11;

fn run(runtime: &'static Runtime, model: &[u8], inputs: &Named) -> Result<Named, String> {
    // The optimizer would fuse the body itself, and hide FP16.
    let session = common::session(runtime, model, Optimization::Disabled);
    let mut session = session.map_err(|e| e.to_string())?;
    session.run(inputs).map_err(|e| e.to_string())
}

/// What is wrong with the candidate; empty if nothing is.
fn differences(inputs: &Named, expected: &Named, found: &Named, preset: Preset) -> String {
    let tolerance = Tolerance::from(preset);
    let case = parity::compare_outputs("seeded", inputs, expected, found, &tolerance);
    let report = parity::Report {
        tolerance,
        cases: vec![case],
    };
    match report.pass() {
        true => String::new(),
        false => parity::failures(&report),
    }
}

/// The tolerance of the least exact pass.
fn preset(passes: &str) -> Preset {
    let steps = registry::select(passes, registry::DEFAULT).unwrap();
    let exactness = steps.iter().filter_map(|s| match s {
        Step::Run(pass) => Some(pass.exactness()),
        Step::Enter(_) => None,
    });
    match exactness.max() {
        Some(Exactness::Lossy) if passes.contains("bf16") => Preset::Bf16,
        Some(Exactness::Lossy) => Preset::Fp16,
        Some(Exactness::Rounding) => Preset::Fp32Rewrite,
        _ => Preset::Fp32Exact,
    }
}

fn to_f32(tensors: &Named) -> Named {
    let convert = |t: &Tensor| match t.dtype() {
        DType::F16 | DType::BF16 => {
            let wide: Vec<f32> = (t.to_f64s().unwrap().iter()).map(|&v| v as f32).collect();
            Tensor::from_values(t.dims(), &wide).unwrap()
        }
        _ => t.clone(),
    };
    (tensors.iter().map(|(n, t)| (n.clone(), convert(t)))).collect()
}

/// Inputs for both models; with `--half-io` the second one takes the same numbers in FP16 or BF16.
fn inputs(case: &harness::Case, before: &Model, lossy: bool) -> (Named, Named) {
    // Small enough that a product with the largest FP16 weight stays finite.
    let specs = common::specs(before, if lossy { 0.25 } else { 1.0 });
    if !case.half_io {
        let made = parity::make(&specs, SEED).unwrap();
        return (made.clone(), made);
    }
    let narrow = |spec: InputSpec| InputSpec {
        dtype: match spec.dtype {
            DType::F32 if case.passes.contains("bf16") => DType::BF16,
            DType::F32 => DType::F16,
            other => other,
        },
        ..spec
    };
    let specs: Vec<_> = specs.into_iter().map(narrow).collect();
    let made = parity::make(&specs, SEED).unwrap();
    (to_f32(&made), made)
}

#[test]
fn every_case_computes_the_same_before_and_after() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let mut wrong = Vec::new();
    for case in harness::cases() {
        let applied = harness::apply(&case, Some(&Ort(runtime)));
        let preset = preset(&case.passes);
        let lossy = matches!(preset, Preset::Fp16 | Preset::Bf16);
        // Rounding differently is more where numbers are shorter.
        let preset = match preset {
            Preset::Fp32Rewrite if case.source.contains("float16") => Preset::Fp16,
            preset => preset,
        };
        let preset = match case.tolerance.as_deref() {
            None => preset,
            Some("int8") => Preset::Int8,
            Some("fp8") => Preset::Fp8,
            Some("int4") => Preset::Int4,
            Some(other) => panic!("{}: unknown tolerance {other}", case.path.display()),
        };
        let (given, taken) = inputs(&case, &applied.before, lossy);
        // What internal operators mean is spelled out before, and taken by the target's own operators after.
        let before = harness::lowered(&applied.before, &Target::standard());
        let after = harness::lowered(&applied.after, &case.target);
        let rounding = |m: Model| onnx::to_bytes(&twin::rounding(&m).unwrap_or(m)).unwrap();
        let (before, after) = (rounding(before), rounding(after));
        let outcome = run(runtime, &before, &given)
            .map_err(|e| format!("before: {e}"))
            .and_then(|expected| {
                let found = run(runtime, &after, &taken).map_err(|e| format!("after: {e}"))?;
                let found = if case.half_io { to_f32(&found) } else { found };
                match differences(&given, &expected, &found, preset) {
                    nothing if nothing.is_empty() => Ok(()),
                    differences => Err(differences),
                }
            });
        if let Err(why) = outcome {
            // What must stay may be a model that ONNX Runtime refuses.
            if !(case.must_stay() && why.starts_with("before: ")) {
                wrong.push(format!("{}: {why}", case.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn folding_gives_its_blessed_diffs() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let mut wrong = Vec::new();
    let folding = |case: &harness::Case| {
        ["fold-constants", "fold-positions"]
            .iter()
            .any(|pass| case.passes.contains(pass))
    };
    for case in harness::cases().into_iter().filter(folding) {
        let name = case.path.display();
        let applied = harness::apply(&case, Some(&Ort(runtime)));
        let diff = harness::diff(&applied);
        if let Some(miss) = &case.miss {
            if !diff.is_empty() || !applied.misses.iter().any(|m| m.contains(miss.as_str())) {
                wrong.push(format!(
                    "{name}: no miss says '{miss}', but: {:?}\n{diff}",
                    applied.misses
                ));
            }
            continue;
        }
        let blessed = case.path.with_extension("diff");
        if bless {
            fs::write(&blessed, &diff).unwrap();
        }
        if diff.is_empty() || fs::read_to_string(&blessed).unwrap_or_default() != diff {
            wrong.push(format!(
                "{name}: the diff differs; KILN_BLESS=1 writes it again:\n{diff}"
            ));
        }

        let beyond = harness::beyond_limits(&case, Some(&Ort(runtime)));
        assert_eq!(beyond, "", "{name}");

        let again = harness::Case {
            source: harness::print(&applied.after),
            ..case.clone()
        };
        let twice = harness::apply(&again, Some(&Ort(runtime)));
        assert_eq!(twice.applications, 0, "{}", again.path.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

const EPSILON: f32 = 1e-5;
const ALPHA: f32 = 1.702;

/// The type of a function's input, by its name; half precision for bodies that widen x.
fn input_type(name: &str, half: bool) -> String {
    let dtype = if half { "float16" } else { "float" };
    match name {
        "x" => format!("{dtype}[2, 3, 8]"),
        "scale" | "bias" => format!("{dtype}[8]"),
        _ => panic!("this test has no type for an input named '{name}'"),
    }
}

/// Whether a body is of 16-bit values. ONNX Runtime has too few kernels of bfloat16: they run as float16.
fn is_half(source: &str) -> bool {
    source.contains("Cast")
}

fn model_text(inputs: &[String], half: bool, nodes: &str) -> String {
    let typed: Vec<String> = (inputs.iter())
        .map(|name| format!("{} {name}", input_type(name, half)))
        .collect();
    let inputs = typed.join(", ");
    format!(
        "<ir_version: 8, opset_import: [\"\" : 20]>\ng ({inputs}) => ({} y) {{\n{nodes}\n}}",
        input_type("x", half)
    )
}

fn input_names(body: &fusion::Parsed) -> Vec<String> {
    let graph = &body.function.body;
    let inputs = graph.inputs().iter();
    inputs.map(|&v| graph.value(v).name().to_string()).collect()
}

/// The value of a function's attribute that its signature leaves open.
fn value(attribute: &str) -> f32 {
    match attribute {
        "epsilon" => EPSILON,
        "alpha" => ALPHA,
        _ => panic!("this test has no value for an attribute named '{attribute}'"),
    }
}

/// One node that calls the function.
fn call_text(body: &fusion::Parsed, half: bool) -> String {
    let mut attrs: Vec<String> = (body.fixed.iter())
        .map(|(name, value)| match value {
            Attr::Int(v) => format!("{name} = {v}"),
            Attr::Float(v) => format!("{name} = {v:?}"),
            Attr::Str(v) => format!("{name} = \"{}\"", String::from_utf8_lossy(v)),
            other => panic!("{name}: {other:?}"),
        })
        .collect();
    for name in &body.function.attributes {
        if !body.fixed.iter().any(|(fixed, _)| fixed == name) {
            attrs.push(format!("{name} = {:?}", value(name)));
        }
    }
    let attrs = match attrs.is_empty() {
        true => String::new(),
        false => format!("<{}>", attrs.join(", ")),
    };
    let inputs = input_names(body).join(", ");
    let domain = match body.function.domain.as_str() {
        "" => String::new(),
        domain => format!("{domain}."),
    };
    let call = format!("y = {domain}{}{attrs}({inputs})", body.function.name);
    model_text(&input_names(body), half, &call)
}

/// The nodes between the body's braces. ONNX Runtime wants axes as vectors.
fn inlined_text(body: &fusion::Parsed, source: &str, half: bool) -> String {
    let start = source.find(") {").expect("a body in braces") + ") {".len();
    let end = source.rfind('}').expect("a body in braces");
    let mut nodes = source[start..end]
        .replace("to: int = @T", "to = 10")
        .replace("{-1}", "int64[1] {-1}");
    for name in &body.function.attributes {
        if !body.fixed.iter().any(|(fixed, _)| fixed == name) {
            let number = format!("{:?}", value(name));
            nodes = nodes
                .replace(&format!("{{@{name}}}"), &format!("{{{number}}}"))
                .replace(&format!(": float = @{name}"), &format!(" = {number}"));
        }
    }
    model_text(&input_names(body), half, &nodes)
}

/// How call and body differ; empty if they do not. Both are lowered, so that an internal operator runs as what ONNX
/// Runtime has for it.
fn call_against_body(runtime: &'static Runtime, source: &str, seed: u64) -> String {
    let body = fusion::parse(source).unwrap();
    let half = is_half(source);
    let [call, inlined] = [call_text(&body, half), inlined_text(&body, source, half)];
    let specs: Vec<InputSpec> = (input_names(&body).into_iter())
        .map(|name| InputSpec {
            shape: match input_type(&name, half).contains("[8]") {
                true => vec![8],
                false => vec![2, 3, 8],
            },
            name,
            dtype: if half { DType::F16 } else { DType::F32 },
            kind: InputKind::Normal { std: 2.0 },
        })
        .collect();
    let inputs = parity::make(&specs, seed).unwrap();
    let run = |text: &str| {
        let model = onnx::read_text(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let model = harness::lowered(&model, &Target::cpu());
        let outputs = run(runtime, &onnx::to_bytes(&model).unwrap(), &inputs);
        outputs.unwrap_or_else(|e| panic!("{e}\n{text}"))
    };
    let preset = match half {
        true => Preset::Fp16,
        false => Preset::Fp32Rewrite,
    };
    differences(&inputs, &run(&call), &run(&inlined), preset)
}

#[test]
fn every_fusion_equals_its_bodies() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let mut wrong = Vec::new();
    for fusion in calls() {
        for body in fusion.bodies {
            for seed in 1..=3 {
                let differences = call_against_body(runtime, body, seed);
                if !differences.is_empty() {
                    wrong.push(format!("{}: {differences}\n{body}", fusion.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_wrong_body_is_found() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    for body in FUSE_GELU.bodies {
        let wrong = body.replace("{0.5}", "{0.4}");
        assert_ne!(&wrong, body);
        let differences = call_against_body(runtime, &wrong, 1);
        assert!(
            differences.contains("relative_l2"),
            "{differences}\n{wrong}"
        );
    }
    let wrongs = [
        (&FUSE_LAYER_NORM, "Mul(d, d)", "Mul(d, m)"),
        (&FUSE_LAYER_NORM, "Add(n, bias)", "Mul(n, bias)"),
        (&FUSE_RMS_NORM, "Mul(x, x)", "Abs(x)"),
        (
            &FUSE_RMS_NORM,
            "internal.RMSNormalization <axis = -1, epsilon: float = @epsilon> (c)",
            "Tanh(c)",
        ),
        (&FUSE_RMS_NORM, "Mul(n, scale)", "Add(n, scale)"),
        (&FUSE_SWISH, "Sigmoid", "Tanh"),
        (&FUSE_SWISH, "Add(e, {1.0})", "Add(e, {1.1})"),
    ];
    for (fusion, from, to) in wrongs {
        let mut bodies = fusion.bodies.iter().filter(|b| b.contains(from)).peekable();
        assert!(bodies.peek().is_some(), "{from}");
        for wrong in bodies.map(|b| b.replace(from, to)) {
            assert!(!call_against_body(runtime, &wrong, 1).is_empty(), "{wrong}");
        }
    }
}
