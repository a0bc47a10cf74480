//! Random small graphs through the whole pipeline, held against ONNX Runtime on the original.
//!
//! `KILN_DIFFERENTIAL_CASES` says how many (`make differential` takes many), `KILN_DIFFERENTIAL_SEED` where they start. A graph that
//! fails is shrunk and printed as ONNX text: it belongs into `fixtures/differential`, all of which run here too.

use crate::common;
mod compare;
mod graphs;

use std::cell::Cell;

use kiln::runtime::Runtime;
use kiln_graph::{Model, onnx, text};
use kiln_passes::{Context, Options, Target, registry};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use common::Ort;
use compare::Judge;

/// A few seconds.
const CASES: u32 = 64;

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap())
}

fn targets() -> [Target; 3] {
    [Target::cpu(), Target::standard(), Target::tensorrt("sm_89")]
}

/// The default passes and lowering, as `kiln compile` runs them.
fn compiled(runtime: &'static Runtime, model: &Model, target: &Target) -> Result<Model, String> {
    let steps = [registry::DEFAULT, registry::LOWER].concat();
    let (options, evaluator) = (Options::default(), Ort(runtime));
    let mut model = model.clone();
    let mut cx = Context::new(target, &options);
    cx.evaluator = Some(&evaluator);
    kiln_passes::run(&mut model, &steps, &mut cx, &mut |_, _| {}).map_err(|e| e.to_string())?;
    Ok(model)
}

/// What a model says, whatever its values, nodes and tensors are called and in whichever order its nodes stand: each node by its
/// operator, attributes and what made its operands.
fn meaning(model: &Model) -> String {
    let bytes = onnx::to_bytes(model).unwrap();
    compare::meaning(&onnx::read_bytes(bytes.into(), None).unwrap().graph)
}

/// What is wrong with what kiln makes of a model; empty if nothing is.
fn wrong(runtime: &'static Runtime, source: &str) -> Result<String, String> {
    let model = onnx::read_text(source).map_err(|e| format!("the generator is wrong: {e}"))?;
    // What ONNX Runtime does not run is no case.
    let mut judge = match Judge::new(runtime, &model) {
        Ok(judge) => judge,
        Err(_) => return Ok(String::new()),
    };
    for target in targets() {
        let name = &target.name;
        let once = compiled(runtime, &model, &target).map_err(|e| format!("{name}: {e}"))?;
        let differs = judge.differs(&once)?;
        if !differs.is_empty() {
            return Ok(format!("{name}: {differs}"));
        }
        // Types are left out of a second reading, as they are of the first.
        let bytes = onnx::to_bytes(&once).map_err(|e| e.to_string())?;
        let again = onnx::read_bytes(bytes.into(), None).map_err(|e| format!("{name}: {e}"))?;
        let twice =
            compiled(runtime, &again, &target).map_err(|e| format!("{name}, again: {e}"))?;
        let differs = judge.differs(&twice)?;
        if !differs.is_empty() {
            return Ok(format!("{name}, again: {differs}"));
        }
        // What lowering left to be folded may go, and then nothing changes any more.
        let bytes = onnx::to_bytes(&twice).map_err(|e| e.to_string())?;
        let third = onnx::read_bytes(bytes.into(), None).map_err(|e| e.to_string())?;
        let thrice = compiled(runtime, &third, &target)?;
        let (first, second) = (meaning(&twice), meaning(&thrice));
        if first != second || twice.graph.node_count() > once.graph.node_count() {
            return Ok(format!(
                "{name}: compiling the result changes it:\n{}",
                similar::TextDiff::from_lines(&first, &second).unified_diff()
            ));
        }
        let shuffled = onnx::read_text(&graphs::shuffled(source)).map_err(|e| e.to_string())?;
        let other =
            compiled(runtime, &shuffled, &target).map_err(|e| format!("{name}, shuffled: {e}"))?;
        let (first, second) = (meaning(&once), meaning(&other));
        if first != second {
            return Ok(format!(
                "{name}: names or the order of nodes matter:\n{}",
                similar::TextDiff::from_lines(&first, &second).unified_diff()
            ));
        }
    }
    Ok(String::new())
}

#[test]
fn random_graphs_keep_their_function() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let cases = number("KILN_DIFFERENTIAL_CASES", CASES);
    let seed = number("KILN_DIFFERENTIAL_SEED", 1);
    let config = Config {
        cases,
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..Config::default()
    };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(8);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let ran = Cell::new(0);
    let failed = runner.run(&graphs::programs(), |program| {
        let source = graphs::text(&program);
        ran.set(ran.get() + 1);
        match wrong(runtime, &source) {
            Ok(why) if why.is_empty() => Ok(()),
            Ok(why) | Err(why) => Err(TestCaseError::fail(why)),
        }
    });
    match failed {
        Ok(()) => println!("{cases} graphs from seed {seed}"),
        Err(TestError::Fail(why, program)) => {
            let graph = graphs::text(&program);
            panic!(
                "{why}\n{graph}\nafter {} graphs from seed {seed}, shrunk ones included",
                ran.get()
            )
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn graphs_that_once_failed_keep_their_function() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    for path in common::files("differential", "onnxtxt") {
        let source = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            wrong(runtime, &source),
            Ok(String::new()),
            "{}",
            path.display()
        );
    }
}

/// The test would see a wrong pass: what is compared with another graph differs.
#[test]
fn a_wrong_result_is_seen() {
    let Some(runtime) = common::runtime() else {
        return;
    };
    let source = |op| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>\ng (float[2, 3] x) => (float[2, 3] y) {{ a = Tanh(x) y = {op}(a, x) }}"
        )
    };
    let read = |op| onnx::read_text(&source(op)).unwrap();
    let mut judge = Judge::new(runtime, &read("Add")).unwrap();
    assert_eq!(judge.differs(&read("Add")), Ok(String::new()));
    assert_ne!(judge.differs(&read("Sub")), Ok(String::new()));
    assert_ne!(meaning(&read("Add")), meaning(&read("Sub")));
    let shuffled = graphs::shuffled(&source("Sub"));
    assert_ne!(shuffled, source("Sub"));
    let again = onnx::read_text(&shuffled).unwrap();
    assert_eq!(
        meaning(&again),
        meaning(&read("Sub")),
        "{}",
        text::print_graph(
            &onnx::to_proto(&again).unwrap().graph.unwrap(),
            &text::PrintOptions::default()
        )
    );
}
