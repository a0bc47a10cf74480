use super::*;
use crate::precision::{Floats, Linear};

fn plan(text: &str) -> Result<Plan, MatrixError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.yaml");
    fs::write(&path, text).unwrap();
    Plan::read(&path)
}

const PLAN: &str = "
models:
  a: a.onnx
  b: {model: b.onnx, seed: 3, gates: {size: {max-ratio: 0.6}}}
targets: [cpu, sm_89, 'sm_86,sm_120']
precisions: [fp16, int8+fp16]
base: {latency: false, seed: 2}
exclude: [{target: cpu, precision: fp16}, {model: b, target: sm_89}]
";

#[test]
fn models_targets_and_precisions_are_crossed() {
    let plan = plan(PLAN).unwrap();
    let ids: Vec<&str> = plan.cells.iter().map(|c| c.id.as_str()).collect();
    let expected = [
        "a-cpu-int8+fp16",
        "a-sm_89-fp16",
        "a-sm_89-int8+fp16",
        "a-sm_86_sm_120-fp16",
        "a-sm_86_sm_120-int8+fp16",
        "b-cpu-int8+fp16",
        "b-sm_86_sm_120-fp16",
        "b-sm_86_sm_120-int8+fp16",
    ];
    assert_eq!(ids, expected);
    let last = plan.find("7").unwrap();
    assert_eq!(plan.find("b-sm_86_sm_120-int8+fp16").unwrap().index, 7);
    assert_eq!(last.recipe.precision.linear, Some(Linear::Int8));
    assert_eq!(last.recipe.precision.floats, Some(Floats::Fp16));
    // The model's own recipe lies over the base.
    assert_eq!(
        (last.recipe.seed, last.recipe.latency),
        (Some(3), Some(false))
    );
    assert_eq!(plan.cells[0].recipe.seed, Some(2));
    assert!(last.recipe.model.as_ref().unwrap().is_absolute());
    assert!(last.needs.tensorrt && last.needs.gpus.is_empty());
    assert!(!plan.cells[0].needs.tensorrt);
    assert!(
        plan.find("nosuch")
            .unwrap_err()
            .to_string()
            .contains("there are 8")
    );
    assert!(plan.find("8").is_err());
}

#[test]
fn what_a_plan_cannot_mean_is_refused() {
    for (change, said) in [
        (("targets: [cpu,", "target: [cpu,"), "target"),
        (("int8+fp16", "int9"), "no precision int9"),
        (("a: a.onnx", "a/b: a.onnx"), "names of files"),
        (("a: a.onnx", "a: {seed: 1}"), "models.a has no `model`"),
        (("model: b, target", "model: c, target"), "there is no c"),
        (("seed: 3", "sead: 3"), "models"),
    ] {
        let error = plan(&PLAN.replace(change.0, change.1)).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn templates_have_every_cell() {
    let plan = plan(PLAN).unwrap();
    let slurm = plan.template(Engine::Slurm);
    assert!(slurm.contains("--array=0-7\n"), "{slurm}");
    assert!(!slurm.contains("gres"), "no cell takes a GPU: {slurm}");
    let kubernetes = plan.template(Engine::Kubernetes);
    assert!(kubernetes.contains("completions: 8\n"), "{kubernetes}");
    let all = [Engine::Slurm, Engine::Kubernetes, Engine::Github];
    for text in all.map(|e| plan.template(e)) {
        assert!(!text.contains('@') || !text.contains("@PLAN@"), "{text}");
        assert!(text.contains("plan.yaml"), "{text}");
    }
    // In the claim, and below the folder in which the template was printed.
    assert!(
        kubernetes.contains("matrix run '/fleet/plan.yaml' $JOB"),
        "{kubernetes}"
    );
    let here = std::env::current_dir().unwrap();
    let inside = Plan {
        path: here.join("ci/plan.yaml"),
        output: here.join("ci/fleet"),
        ..plan
    };
    let github = inside.template(Engine::Github);
    assert!(
        github.contains("matrix run 'ci/plan.yaml' '") && github.contains("path: 'ci/fleet'"),
        "{github}"
    );
}
