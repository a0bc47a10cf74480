use std::fs;

use super::*;

fn written(name: &str, text: &str) -> (tempfile::TempDir, Result<Recipe, RecipeError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let read = read(&path);
    (folder, read)
}

const WHOLE: &str = "
model: models/bert.onnx
target: [sm_86, sm_89]
precision:
  floats: fp16
  linear: int8
  keep: '^/pooler'
  keep-ops: [Softmax]
calibration: {data: lines.txt, tokenizer: tokenizer.json, samples: 64}
dims: {batch: '1:8:32', seq: 128}
gates:
  parity:
    tolerance: int8
    limits: {logits: {cosine: 0.999, max_abs: 0.5}}
  latency: {max-ratio: 0.9}
  size: {max-ratio: 0.6}
";

#[test]
fn a_recipe_says_everything_that_the_command_line_can() {
    let (folder, recipe) = written("kiln.yaml", WHOLE);
    let options = resolve(&recipe.unwrap()).unwrap();
    assert_eq!(options.model, folder.path().join("models/bert.onnx"));
    assert_eq!(options.precision.to_string(), "int8+fp16");
    assert_eq!(options.precision.linear, Linear::Int8);
    assert_eq!(options.dims.len(), 2);
    assert_eq!(options.dims[0].range.max, 32);
    assert!(options.dims[1].range.is_fixed());
    assert_eq!(
        options.calibration.data,
        Some(folder.path().join("lines.txt"))
    );
    assert_eq!(options.calibration.samples, 64);
    assert!(options.keep.unwrap().is_match("/pooler/MatMul"));
    assert_eq!(options.limits, ["logits:cosine=0.999,max_abs=0.5"]);
    assert_eq!(options.gates.latency_ratio, Some(0.9));
    assert!(options.engine && options.check && options.search);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    let message = |text: &str| written("kiln.yaml", text).1.unwrap_err().to_string();
    let error = message("precison: {floats: fp16}");
    assert!(
        error.contains("'precison' (do you mean 'precision'?)"),
        "{error}"
    );
    let error = message("gates: {parity: {tolerence: fp16}}");
    assert!(
        error.contains("'gates.parity.tolerence' (do you mean 'tolerance'?)"),
        "{error}"
    );
    let error = message("zzzzzzzz: 1");
    assert!(
        error.contains("'zzzzzzzz'; known keys: ") && !error.contains("mean"),
        "{error}"
    );
    assert!(message("precision: {floats: fp61}").contains("fp16"));
    assert!(message("model: [").contains("kiln.yaml"));
    assert!(message("- a\n- b").contains("kiln.yaml"));
}

#[test]
fn values_that_mean_nothing_name_their_key() {
    let message = |text: &str| {
        resolve(&written("kiln.yaml", text).1.unwrap())
            .unwrap_err()
            .to_string()
    };
    assert!(message("seed: 1").contains("no model"));
    assert!(message("{model: m, target: sm_1}").starts_with("target: "));
    assert!(message("{model: m, dims: {batch: x}}").starts_with("dims: "));
    assert!(message("{model: m, precision: {keep: '('}}").starts_with("precision.keep: "));
    assert!(message("{model: m, precision: {half-io: true}}").starts_with("precision.half-io: "));
    assert!(message("{model: m, gates: {parity: {tolerance: fp17}}}").contains("fp17"));
    assert!(message("{model: m, gates: {parity: {limits: {y: {cosin: 1}}}}}").contains("cosin"));
}

#[test]
fn the_command_line_lies_over_the_recipe() {
    let (_folder, base) = written("kiln.yaml", WHOLE);
    let base = base.unwrap();
    let over = Recipe {
        engine: Some(false),
        precision: Precision {
            linear: Some(Linear::Fp8),
            ..Precision::default()
        },
        dims: BTreeMap::from([("seq".into(), Sizes::One(64))]),
        ..Recipe::default()
    };
    let both = over.over(&base).unwrap();
    assert_eq!(both.engine, Some(false));
    assert_eq!(both.precision.linear, Some(Linear::Fp8));
    assert_eq!(both.precision.floats, Some(Floats::Fp16));
    assert_eq!(both.dims["seq"], Sizes::One(64));
    assert_eq!(both.dims.len(), 2);
    assert_eq!(Recipe::default().over(&base).unwrap(), base);
}

#[test]
fn the_schema_knows_every_key() {
    let (_folder, recipe) = written("kiln.yaml", WHOLE);
    let schema = Recipe::schema();
    let properties = schema.as_value()["properties"].as_object().unwrap();
    let value = serde_json::to_value(recipe.unwrap()).unwrap();
    for key in value.as_object().unwrap().keys() {
        assert!(properties.contains_key(key), "{key}");
    }
    assert_eq!(schema.as_value()["additionalProperties"], false);
}

#[test]
fn an_empty_recipe_and_an_old_manifest() {
    assert_eq!(written("kiln.yaml", "").1.unwrap(), Recipe::default());
    let error = written("manifest.json", r#"{"kiln": "0.1.0"}"#)
        .1
        .unwrap_err();
    assert!(error.to_string().contains("no recipe"), "{error}");
    let read = written(
        "manifest.json",
        r#"{"kiln": "0.1.0", "recipe": {"seed": 3, "output": "b"}}"#,
    )
    .1;
    let read = read.unwrap();
    assert_eq!((read.seed, read.output), (Some(3), None));
}
