use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::recipe::{self, Recipe};
use crate::talk::Silent;

const MODEL: &str = "<ir_version: 8, opset_import: [\"\" : 20]> g (float[batch, 4] x) => (float[batch, 4] y) { [first] y = Relu(x) }";

fn around() -> Surroundings {
    Surroundings {
        kiln: "1.0".into(),
        libraries: BTreeMap::from([("onnxruntime".to_string(), "aa".to_string())]),
        machine: "a processor".into(),
    }
}

struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup { folder };
        setup.write("m.onnxtxt", MODEL);
        for name in ["a.npz", "b.npz", "t.json", "u.json"] {
            setup.write(name, name);
        }
        setup
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn base(&self) -> Value {
        json!({
            "model": self.folder.path().join("m.onnxtxt"),
            "target": "cpu",
            "precision": {"floats": "fp16", "linear": "int8"},
            "calibration": {"data": self.folder.path().join("a.npz"), "tokenizer": self.folder.path().join("t.json")},
        })
    }

    fn key(&self, recipe: &Value) -> String {
        let recipe: Recipe = serde_json::from_value(recipe.clone()).unwrap();
        let options = recipe::resolve(&recipe).unwrap();
        key(&options, &around(), &Silent).unwrap().sha256
    }
}

/// Each key of a recipe with a value other than that of the base, and whether it changes the result.
fn changes(setup: &Setup) -> Vec<(&'static str, Value, bool)> {
    let path = |name: &str| json!(setup.folder.path().join(name));
    vec![
        ("/output", json!("elsewhere.kiln"), false),
        ("/sha256", json!("00"), true),
        ("/blake3", json!("00"), true),
        ("/target", json!("sm_89"), true),
        ("/dialect", json!("standard"), true),
        ("/precision/floats", json!("bf16"), true),
        ("/precision/linear", json!("int8-dynamic"), true),
        ("/precision/int4-block", json!(64), true),
        ("/precision/half-io", json!(true), true),
        ("/precision/keep", json!("first"), true),
        ("/precision/keep-ops", json!(["Relu"]), true),
        ("/precision/keep-nodes", json!(["first"]), true),
        ("/precision/search", json!(false), true),
        ("/calibration/data", path("b.npz"), true),
        ("/calibration/tokenizer", path("u.json"), true),
        ("/calibration/cache", path("cache"), false),
        ("/calibration/samples", json!(7), true),
        ("/dims", json!({"batch": 3}), true),
        ("/shapes", json!({"x": "3x4"}), true),
        ("/inputs", path("a.npz"), true),
        ("/input-values", json!({"x": 1}), true),
        ("/drop-inputs", json!(true), true),
        ("/max-length", json!(64), true),
        ("/growing-caches", json!(true), true),
        ("/seed", json!(2), true),
        ("/passes", json!("default,-fuse-gelu"), true),
        ("/engine", json!(false), true),
        ("/check", json!(false), true),
        ("/proof", json!("full"), true),
        ("/latency", json!(false), true),
        ("/build/refittable", json!(true), true),
        ("/build/weight-stripped", json!(true), true),
        ("/build/version-compatible", json!(true), true),
        ("/build/hardware-compatible", json!("ampere-plus"), true),
        ("/build/timing-cache", path("timing"), true),
        ("/build/tf32", json!(true), true),
        ("/gates/parity/tolerance", json!("fp32-exact"), true),
        ("/gates/parity/limits", json!({"y": {"cosine": 0.5}}), true),
        ("/gates/latency/max-ratio", json!(0.5), true),
        ("/gates/size/max-bytes", json!(5), true),
        ("/gates/size/max-ratio", json!(0.5), true),
        ("/gates/engine-parity", json!(true), true),
        ("/gates/cache-in-place", json!(true), true),
        ("/gates/precision", json!("int8"), true),
    ]
}

fn set(recipe: &mut Value, place: &str, value: Value) {
    let mut at = recipe;
    for part in place.split('/').skip(1) {
        at = at.as_object_mut().unwrap().entry(part).or_insert(json!({}));
    }
    *at = value;
}

#[test]
fn each_option_changes_the_key_where_it_changes_the_result() {
    let setup = Setup::new();
    let base = setup.base();
    let before = setup.key(&base);
    assert_eq!(setup.key(&base), before);
    let mut seen = BTreeSet::from([before.clone()]);
    for (place, value, matters) in changes(&setup) {
        let mut other = base.clone();
        // INT4's block counts with INT4 alone.
        if place == "/precision/int4-block" {
            set(&mut other, "/precision/linear", json!("int4"));
            seen.insert(setup.key(&other));
        }
        set(&mut other, place, value);
        let key = setup.key(&other);
        match matters {
            true => assert!(seen.insert(key), "{place} has the key of another recipe"),
            false => assert_eq!(key, before, "{place}"),
        }
    }
}

/// Whoever adds a key to recipes adds it here.
#[test]
fn no_key_of_recipes_is_forgotten() {
    let schema = serde_json::to_value(Recipe::schema()).unwrap();
    let mut all = BTreeSet::new();
    leaves(&schema, &schema, "", &mut all);
    let setup = Setup::new();
    let mut known: BTreeSet<String> = changes(&setup)
        .iter()
        .map(|(p, ..)| p.to_string())
        .collect();
    known.insert("/model".into());
    // With a judge, the cache is not asked.
    all.retain(|place| !place.starts_with("/gates/judge"));
    let forgotten: Vec<_> = all.difference(&known).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
    assert!(all.len() > 30, "{all:?}");
}

/// The places of all properties that are no objects with properties of their own.
fn leaves(root: &Value, schema: &Value, place: &str, all: &mut BTreeSet<String>) {
    let named = schema["$ref"].as_str().map(|r| r.trim_start_matches('#'));
    let mut schema = named.and_then(|r| root.pointer(r)).unwrap_or(schema);
    if let Some(first) = schema["anyOf"].as_array().or(schema["allOf"].as_array()) {
        let inner = first.iter().filter_map(|s| s["$ref"].as_str());
        let mut inner = inner.filter_map(|r| root.pointer(r.trim_start_matches('#')));
        schema = inner.next().unwrap_or(schema);
    }
    match schema["properties"].as_object() {
        Some(properties) => {
            for (name, inner) in properties {
                leaves(root, inner, &format!("{place}/{name}"), all);
            }
        }
        None => {
            all.insert(place.to_string());
        }
    }
}

#[test]
fn contents_count_and_names_do_not() {
    let setup = Setup::new();
    let base = setup.base();
    let before = setup.key(&base);
    setup.write("n.onnxtxt", MODEL);
    let mut other = base.clone();
    other["model"] = json!(setup.folder.path().join("n.onnxtxt"));
    assert_eq!(setup.key(&other), before);
    setup.write("a.npz", "other data");
    assert_ne!(setup.key(&base), before);
    setup.write("a.npz", "a.npz");
    assert_eq!(setup.key(&base), before);
    setup.write("m.onnxtxt", &MODEL.replace("Relu", "Neg"));
    assert_ne!(setup.key(&base), before);
}

#[test]
fn surroundings_change_the_key() {
    let setup = Setup::new();
    let recipe: Recipe = serde_json::from_value(setup.base()).unwrap();
    let options = recipe::resolve(&recipe).unwrap();
    let of = |around: &Surroundings| key(&options, around, &Silent).unwrap().sha256;
    let mut seen = BTreeSet::from([of(&around())]);
    let mut other = around();
    other.kiln = "1.1".into();
    assert!(seen.insert(of(&other)));
    let mut other = around();
    other.machine = "another".into();
    assert!(seen.insert(of(&other)));
    let mut other = around();
    other.libraries.insert("onnxruntime".into(), "bb".into());
    assert!(seen.insert(of(&other)));
    other.libraries.insert("tensorrt".into(), "cc".into());
    assert!(seen.insert(of(&other)));
}
