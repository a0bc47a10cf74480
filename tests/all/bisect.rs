//! Bisection: the application of a pass that breaks parity is named.

use crate::common;

use std::process::Command;

use kiln::bisect::{Bisection, Culprit, Failure, Finding, Suspects, bisect};
use kiln::check::{self, Against};
use kiln::compile::{Options, compile};
use kiln::parity::{Preset, Tolerance};
use kiln::talk::Silent;
use kiln::targets::Targets;
use kiln_graph::{Attrs, DType, Graph, NodeId, Op, onnx};
use kiln_passes::patch::{Patch, Ref};
use kiln_passes::rule::Rule;
use kiln_passes::{Context, Exactness, Miss, Step, registry};
use serde_json::Value;

const MODEL: &str = "models/bert-tiny.ts.eager.opset11.onnx";

/// Calls the operator `from` by another name: the right one, save at one node.
#[derive(Debug)]
struct Rename {
    name: &'static str,
    from: [&'static str; 1],
    to: Op2,
    /// The node that gets `wrong`, by its name.
    victim: &'static str,
    wrong: Op2,
}

/// Domain and name.
type Op2 = (&'static str, &'static str);

/// The residual of the first of two layers.
const VICTIM: &str = "/m/encoder/layer.0/output/Add";

static RIGHT: Rename = Rename {
    name: "right-sum",
    from: ["Add"],
    to: ("", "Sum"),
    victim: "",
    wrong: ("", ""),
};
static WRONG: Rename = Rename {
    name: "wrong-sum",
    victim: VICTIM,
    wrong: ("", "Sub"),
    ..RIGHT
};
/// Makes operators that no runtime knows.
static INTERNAL: Rename = Rename {
    name: "stage-sum",
    to: ("internal", "Add"),
    wrong: ("internal", "Sub"),
    ..WRONG
};

/// Takes `internal::Add` and `internal::Sub` away again.
#[derive(Debug)]
struct Lower;

fn renamed(g: &Graph, root: NodeId, (domain, name): Op2) -> Result<Patch, Miss> {
    let node = g.node(root);
    let mut patch = Patch::new();
    let inputs = node.inputs().iter().flatten().map(|&v| Ref::Old(v));
    let made = patch.node(Op::new(domain, name), inputs, Attrs::new());
    patch.replace(node.output(0).ok_or_else(Miss::none)?, made);
    Ok(patch)
}

impl Rule for Rename {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        "calls an operator by another name"
    }

    fn details(&self) -> String {
        self.about().into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &self.from
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        // Sum takes floats only.
        let output = g.node(root).output(0).ok_or_else(Miss::none)?;
        if g.value(output).ty().dtype() != Some(DType::F32) {
            return Err(Miss::because("it adds no floats"));
        }
        match g.node(root).name() == self.victim {
            true => renamed(g, root, self.wrong),
            false => renamed(g, root, self.to),
        }
    }
}

impl Rule for Lower {
    fn name(&self) -> &'static str {
        "lower-sum"
    }

    fn about(&self) -> &'static str {
        "gives internal operators their own name"
    }

    fn details(&self) -> String {
        self.about().into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn rewrite(&self, g: &Graph, root: NodeId, _: &Context<'_>) -> Result<Patch, Miss> {
        let op = g.node(root).op();
        match (op.domain(), op.name()) {
            ("internal", "Add") => renamed(g, root, ("", "Sum")),
            ("internal", "Sub") => renamed(g, root, ("", "Sub")),
            _ => Err(Miss::none()),
        }
    }
}

/// Bisects the default passes with a rule behind them.
fn with(rule: &'static Rename, finish: &[Step]) -> Option<Bisection> {
    common::runtime()?;
    let options = Options {
        targets: Some(Targets::Cpu),
        ..Options::new(common::fixture(MODEL))
    };
    let steps = [registry::DEFAULT, &[Step::Run(rule)]].concat();
    // All that lowers, without the claim that nothing internal is left: that is what is tried here.
    let lower = registry::LOWER.iter().filter(|s| matches!(s, Step::Run(_)));
    let finish: Vec<Step> = finish.iter().chain(lower).copied().collect();
    let tolerance = Tolerance::from(Preset::Fp32Rewrite);
    let suspects = Suspects {
        steps: &steps,
        finish: &finish,
    };
    let found = bisect(&options, suspects, &tolerance, &Silent);
    Some(found.unwrap())
}

#[track_caller]
fn culprit(bisection: &Bisection) -> &Culprit {
    match &bisection.finding {
        Finding::Found(culprit) => culprit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_rule_is_named() {
    let Some(bisection) = with(&WRONG, &[]) else {
        return;
    };
    let culprit = culprit(&bisection);
    assert_eq!(culprit.pass, "wrong-sum");
    assert_eq!(culprit.node, format!("{VICTIM} (Add)"));
    let Failure::Differs { parity } = &culprit.failure else {
        panic!("{:?}", culprit.failure);
    };
    assert_eq!(
        parity.worst().unwrap().output.name,
        "last_hidden_state",
        "{}",
        culprit.failure
    );

    let line = |sign: char, op: &str| {
        let mut lines = culprit.diff.lines();
        let start = format!("{sign}  [\"{VICTIM}\"]");
        lines.any(|l| l.starts_with(&start) && l.contains(&format!(" = {op}(")))
    };
    assert!(line('-', "Add") && line('+', "Sub"), "{}", culprit.diff);
    let changed = culprit.diff.lines().filter(|l| l.starts_with(['-', '+']));
    assert!(changed.count() <= 4, "{}", culprit.diff);

    // Applications are many, and what stands before the culprit passes.
    let (all, n) = (bisection.applications, culprit.number);
    assert!(1 < n && n < all && all > 80, "{n} of {all}");
    let at = |n| bisection.runs.iter().find(|r| r.applications == n);
    assert!(at(n - 1).unwrap().pass && !at(n).unwrap().pass);
    let most = 2 + all.next_power_of_two().ilog2() as usize;
    assert!(bisection.runs.len() <= most, "{:?}", bisection.runs);
}

#[test]
fn a_right_rule_passes() {
    let Some(bisection) = with(&RIGHT, &[]) else {
        return;
    };
    let Finding::Passes { parity } = &bisection.finding else {
        panic!("{:?}", bisection.finding);
    };
    assert!(parity.pass() && bisection.runs.len() == 1);
}

#[test]
fn internal_operators_are_lowered_after_every_cut() {
    let Some(bisection) = with(&INTERNAL, &[Step::Run(&Lower)]) else {
        return;
    };
    let found = culprit(&bisection);
    assert_eq!(found.node, format!("{VICTIM} (Add)"));
    assert!(found.diff.contains("= internal.Sub("), "{}", found.diff);
    assert!(matches!(found.failure, Failure::Differs { .. }));

    // Nothing runs without.
    let bisection = with(&INTERNAL, &[]).unwrap();
    let found = culprit(&bisection);
    assert_eq!(found.pass, "stage-sum");
    assert_ne!(found.node, format!("{VICTIM} (Add)"));
    assert!(matches!(found.failure, Failure::Refused { .. }));
}

/// Exit code, stdout and stderr of `kiln bisect`.
fn kiln(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let done = command.args(["bisect", "--target", "cpu"]).args(args);
    let done = done.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn the_command_says_what_it_found() {
    if common::runtime().is_none() {
        return;
    }
    let model = common::fixture(MODEL);
    let model = model.to_str().unwrap();
    let (code, out, err) = kiln(&[model]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("applications keep parity"), "{out}");

    // Gelu rounds differently from what it replaces.
    let exactly = [model, "--tolerance", "fp32-exact"];
    let (code, out, err) = kiln(&exactly);
    assert_eq!(code, Some(1), "{out}{err}");
    let parts = [
        "parity breaks at application",
        "pass     fuse-gelu",
        "node     /m/encoder/layer.0/intermediate/intermediate_act_fn/Mul_1 (Mul)",
        "its bits differ",
        " = Gelu(",
    ];
    for part in parts {
        assert!(out.contains(part), "no '{part}' in:\n{out}");
    }
    let (code, out, err) = kiln(&[&exactly[..], &["--json"]].concat());
    assert_eq!(code, Some(1), "{out}{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["finding"], "found");
    assert_eq!(json["pass"], "fuse-gelu");
    assert_eq!(json["failure"]["kind"], "differs");
    assert!(json["diff"].as_str().unwrap().contains(" = Gelu("));

    let without = [
        &exactly[..],
        &[
            "--passes",
            "default,-fuse-gelu,-fuse-layer-norm,-fuse-rms-norm,-fuse-attention",
        ],
    ]
    .concat();
    let (code, out, err) = kiln(&without);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn what_fails_for_another_reason_is_told_apart() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bisected = |body: &str, args: &[&str]| {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>\n\
             g (float[batch, 2] x) => (float[batch, 2] y) <float[2, 2] w = {{300.0, 200.0, -300.0, 250.0}}> {{ {body} }}"
        );
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, common::encode(&text)).unwrap();
        kiln(&[&[path.to_str().unwrap()], args].concat())
    };
    // Random numbers.
    let (code, out, err) = bisected("r = RandomNormalLike(x) y = Add(x, r)", &[]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("differs from itself"), "{out}");

    // An overflow in FP16: the search names the node whose result it is.
    let overflow = "[first] a = MatMul(x, w) [second] b = MatMul(a, w) [third] c = MatMul(b, w) d = Identity(c) y = Neg(d)";
    let (code, out, err) = bisected(overflow, &["--fp16"]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("application 3 of 5"), "{out}");
    assert!(out.contains("pass     convert-fp16"), "{out}");
    assert!(out.contains("node     second"), "{out}");

    // Nothing is run for a wrong command line.
    for (args, part) in [
        (["--passes", "fuse-gelo"], "fuse-gelu"),
        (["--tolerance", "close"], "fp16"),
        (["--dim", "length=4"], "batch"),
    ] {
        let (code, _, err) = bisected("y = Neg(x)", &args);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(part), "{err}");
    }
}

/// A bundle of the fixture whose model is that of another function: the victim subtracts.
fn broken_bundle(folder: &std::path::Path) -> std::path::PathBuf {
    let compiled = |model: std::path::PathBuf, name: &str| {
        let options = Options {
            targets: Some(Targets::Cpu),
            output: Some(folder.join(name)),
            latency: Some(false),
            ..Options::new(model.clone())
        };
        let options = Options {
            recipe: kiln::recipe::Recipe {
                model: Some(model),
                target: Some(kiln::recipe::Targets::One("cpu".into())),
                ..Default::default()
            },
            ..options
        };
        compile(&options, &Silent).unwrap().bundle
    };
    let mut wrong = onnx::read(common::fixture(MODEL)).unwrap();
    let nodes: Vec<NodeId> = wrong.graph.nodes().map(|(id, _)| id).collect();
    let victim = nodes
        .into_iter()
        .find(|&id| wrong.graph.node(id).name() == VICTIM);
    wrong.graph.set_op(victim.unwrap(), Op::onnx("Sub"));
    let path = folder.join("wrong.onnx");
    std::fs::write(&path, onnx::to_bytes(&wrong).unwrap()).unwrap();
    let wrong = compiled(path, "wrong.kiln");
    let bundle = compiled(common::fixture(MODEL), "bundle.kiln");
    std::fs::copy(wrong.join("model.onnx"), bundle.join("model.onnx")).unwrap();
    bundle
}

#[test]
fn check_names_the_pass_that_broke_a_bundle() {
    if common::runtime().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = broken_bundle(folder.path());
    let steps = [registry::DEFAULT, &[Step::Run(&WRONG)]].concat();
    let options = check::Options {
        candidate: bundle.clone(),
        against: Against::Reference(common::fixture(MODEL)),
        record: None,
        inputs: None,
        fixed: Vec::new(),
        tolerance: None,
        limits: Vec::new(),
        require: None,
        layers: false,
        pieces: false,
        bisect: Some(check::Suspects::Steps(steps)),
        dims: Vec::new(),
        judge: None,
        seed: 1,
        device: kiln::runtime::DeviceRequest::default(),
        ort_lib: None,
        require_engine_parity: false,
        cuda_graph: false,
        trt_lib: None,
    };
    let checked = check::check(&options, &Silent).unwrap();
    assert!(!checked.pass());
    let found = culprit(checked.bisection.as_ref().unwrap());
    assert_eq!(found.pass, "wrong-sum");
    assert_eq!(found.node, format!("{VICTIM} (Add)"));

    // Kiln's own passes did not do it.
    let reference = common::fixture(MODEL);
    let page = folder.path().join("check.html");
    let run = |candidate: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.arg("check").arg(candidate).arg("--bisect");
        command.arg("--reference").arg(&reference);
        command.arg("--report").arg(&page);
        let done = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let (code, out, err) = run(&bundle);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("passes are not to blame"), "{out}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("passes are not to blame"));

    // What is no bundle has no passes.
    let (code, _, err) = run(&bundle.join("model.onnx"));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("is not a bundle"), "{err}");
}

#[test]
fn quantization_is_searched_with_its_calibration() {
    if common::runtime().is_none() {
        return;
    }
    let model = common::fixture(MODEL);
    let (code, out, err) = kiln(&[
        model.to_str().unwrap(),
        "--int8",
        "--tolerance",
        "fp32-rewrite",
    ]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("pass     quantize"), "{out}");
}
