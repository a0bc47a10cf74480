use std::path::{Path, PathBuf};

use kiln_graph::{DType, Def, Model, Tensor, ValueId, infer, onnx};
use kiln_passes::{Context, Target, registry};
use tempfile::TempDir;

use std::num::NonZeroUsize;

use super::*;
use crate::parity::npz;
use crate::shapes::Shapes;
use kiln_runtime::talk::Silent;
use kiln_runtime::testing::runtime;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .join("fixtures")
        .join(name)
}

fn bert() -> Model {
    let mut model = onnx::read(fixture("models/bert-tiny.ts.eager.opset11.onnx")).unwrap();
    infer::annotate(&mut model.graph);
    model
}

fn text_model(source: &str) -> Model {
    let mut model = onnx::read_text(source).unwrap();
    infer::annotate(&mut model.graph);
    model
}

/// Every FP32 value that a node computes.
fn floats(model: &Model) -> Vec<ValueId> {
    let values = model.graph.values();
    let floats = values
        .filter(|(_, v)| matches!(v.def(), Def::Node(..)) && v.ty().dtype() == Some(DType::F32));
    floats.map(|(id, _)| id).collect()
}

fn ids(rows: usize, length: usize) -> Vec<(&'static str, Tensor)> {
    let n = rows * length;
    let some = |f: &dyn Fn(usize) -> i64| {
        let values: Vec<i64> = (0..n).map(f).collect();
        Tensor::from_values(vec![rows, length], &values).unwrap()
    };
    vec![
        ("input_ids", some(&|i| (i * 7 % 31) as i64)),
        ("attention_mask", some(&|_| 1)),
        ("token_type_ids", some(&|i| (i / 3 % 2) as i64)),
    ]
}

struct Setup {
    folder: TempDir,
    model: Model,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            folder: tempfile::tempdir().unwrap(),
            model: bert(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn npz(&self, name: &str, rows: usize) -> PathBuf {
        npz::write(&self.path(name), &ids(rows, 8)).unwrap();
        self.path(name)
    }

    fn open(&self, path: &Path, options: &SourceOptions) -> Result<Source, DataError> {
        Source::open(&self.model.graph, path, options)
    }
}

fn of_batch(batch: usize) -> SourceOptions {
    SourceOptions {
        batch,
        ..SourceOptions::default()
    }
}

fn with_tokenizer(batch: usize, max_length: usize) -> SourceOptions {
    SourceOptions {
        tokenizer: Some(fixture("tokenizers/words.json")),
        max_length,
        ..of_batch(batch)
    }
}

fn ints(batch: &Batch, k: usize) -> (Vec<usize>, Vec<i64>) {
    let tensor = &batch.inputs[k].1;
    (tensor.dims().to_vec(), tensor.to_i64s().unwrap())
}

#[test]
fn batches_threads_and_groups_change_nothing() {
    if runtime().is_none() {
        return;
    }
    let setup = Setup::new();
    let data = setup.npz("seven.npz", 7);
    let values: Vec<_> = floats(&setup.model).into_iter().step_by(3).collect();
    let run = |batch: usize, memory: usize, threads: usize| {
        let source = setup.open(&data, &of_batch(batch)).unwrap();
        let options = Options {
            memory,
            threads: NonZeroUsize::new(threads),
            ..Options::default()
        };
        calibrate(&setup.model, &values, &source, &options, &Silent).unwrap()
    };
    let whole = run(7, 256 << 20, 1);
    assert_eq!(whole.len(), values.len());
    assert!(
        whole
            .values()
            .any(|s| s.rows == 56 && s.channel_sumsq.len() == 64)
    );
    assert_eq!(whole, run(7, 200_000, 3), "groups and threads");
    for batch in [1, 3] {
        let split = run(batch, 256 << 20, 2);
        for v in &values {
            let (a, b) = (&whole[v], &split[v]);
            let name = setup.model.graph.value(*v).name();
            // What depends on no sample is computed again in every batch.
            if a.count == b.count {
                // ONNX Runtime may add in another order for another batch.
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(1e-3);
                assert!(close(a.absmax.into(), b.absmax.into()), "{name}");
                assert!(close(a.sumsq, b.sumsq), "{name}: {} {}", a.sumsq, b.sumsq);
                assert_eq!((a.nan, a.rows), (b.nan, b.rows), "{name}");
            }
        }
    }
}

#[test]
fn exact_models_give_the_same_bits_in_any_batch() {
    if runtime().is_none() {
        return;
    }
    let model = text_model(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 5] x) => (float[batch, 5] y) { h = Mul(x, x) y = Neg(h) }"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    let x: Vec<f32> = (0..35).map(|i| (i as f32 * 0.7 - 9.0).exp2()).collect();
    npz::write(
        &path,
        &[("x", Tensor::from_values(vec![7, 5], &x).unwrap())],
    )
    .unwrap();
    let values = floats(&model);
    let stats = [1, 3, 7].map(|batch| {
        let source = Source::open(&model.graph, &path, &of_batch(batch)).unwrap();
        calibrate(&model, &values, &source, &Options::default(), &Silent).unwrap()
    });
    assert_eq!(stats[0], stats[1]);
    assert_eq!(stats[0], stats[2]);
    assert_eq!(stats[0][&values[0]].count, 35);
}

fn all_grams(
    model: &Model,
    values: &[ValueId],
    path: &Path,
    batch: usize,
    memory: usize,
) -> Vec<(ValueId, Gram)> {
    let source = Source::open(&model.graph, path, &of_batch(batch)).unwrap();
    let options = Options {
        memory,
        ..Options::default()
    };
    let mut all = Vec::new();
    let mut take = |v, gram| {
        all.push((v, gram));
        Ok::<(), CalibrateError>(())
    };
    grams(model, values, &source, &options, &Silent, &mut take).unwrap();
    all.sort_by_key(|(v, _)| *v);
    all
}

#[test]
fn products_of_channels_are_those_of_all_rows() {
    if runtime().is_none() {
        return;
    }
    for ty in ["float", "float16"] {
        let model = text_model(&format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g ({ty}[batch, 3, 4] x) => ({ty}[batch, 3, 4] y) {{ h = Neg(x) y = Neg(h) }}"#
        ));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        // Quarters, of which sums of products are exact.
        let x: Vec<f32> = (0..60).map(|i| (i * 7 % 23) as f32 / 4.0 - 2.5).collect();
        let tensor = Tensor::from_values(vec![5, 3, 4], &x).unwrap();
        npz::write(&path, &[("x", tensor)]).unwrap();
        let values: Vec<ValueId> = (model.graph.values())
            .filter(|(_, v)| matches!(v.def(), Def::Node(..)))
            .map(|(id, _)| id)
            .collect();
        let found = all_grams(&model, &values, &path, 2, 256 << 20);
        assert_eq!(found.len(), values.len());
        for (_, gram) in found {
            for (i, j) in (0..16).map(|k| (k / 4, k % 4)) {
                let rows = x.chunks(4).map(|row| f64::from(row[i] * row[j]));
                assert_eq!(gram.at(i, j), rows.sum::<f64>(), "{ty}: {i}, {j}");
            }
        }
    }
}

#[test]
fn products_of_channels_are_the_same_in_any_batch_and_any_part() {
    if runtime().is_none() {
        return;
    }
    // The product flattens the batch away, the square does not.
    let model = text_model(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 5, 6] x) => (float[rows, 6] y) <int64[2] flat = {-1, 6}>
        { h = Mul(x, x) r = Reshape(h, flat) y = Neg(r) }"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    let x: Vec<f32> = (0..7 * 30).map(|i| (i as f32 * 0.37).sin()).collect();
    let tensor = Tensor::from_values(vec![7, 5, 6], &x).unwrap();
    npz::write(&path, &[("x", tensor)]).unwrap();
    let values = floats(&model);
    let whole = all_grams(&model, &values, &path, 7, 256 << 20);
    assert_eq!(whole.len(), 3);
    assert_eq!(whole, all_grams(&model, &values, &path, 7, 1), "parts");
    for batch in [1, 3] {
        let split = all_grams(&model, &values, &path, batch, 256 << 20);
        assert_eq!(whole[0], split[0], "samples apart, batches of {batch}");
        for ((_, a), (_, b)) in whole.iter().zip(&split) {
            let most = a.diagonal().into_iter().fold(0.0, f64::max);
            let off = |k: usize| (a.at(k / 6, k % 6) - b.at(k / 6, k % 6)).abs();
            assert!((0..36).all(|k| off(k) <= 1e-5 * most));
        }
    }
}

#[test]
fn internal_operators_are_lowered_first() {
    if runtime().is_none() {
        return;
    }
    let setup = Setup::new();
    let mut model = setup.model.clone();
    let (target, choices) = (Target::standard(), kiln_passes::Options::default());
    let mut cx = Context::new(&target, &choices);
    kiln_passes::run(&mut model, registry::DEFAULT, &mut cx, &mut |_, _| {}).unwrap();
    assert!(
        model
            .graph
            .nodes()
            .any(|(_, n)| n.op().domain() == kiln_graph::INTERNAL_DOMAIN)
    );
    let source = setup.open(&setup.npz("two.npz", 2), &of_batch(2)).unwrap();
    let values = floats(&model);
    let stats = calibrate(&model, &values, &source, &Options::default(), &Silent).unwrap();
    assert_eq!(stats.len(), values.len());
    assert!(stats.values().all(|s| s.count > 0));
}

#[test]
fn nan_and_infinity_are_counted_apart() {
    if runtime().is_none() {
        return;
    }
    for ty in ["float", "float16"] {
        let model = text_model(&format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g ({ty}[n] x) => ({ty}[n] y) {{ r = Sqrt(x) y = Div(x, r) }}"#
        ));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy.npz");
        let x = Tensor::vector(&[4f32, -1.0, 0.0, 16.0]);
        npz::write(&path, &[("x", x)]).unwrap();
        let source = Source::open(&model.graph, &path, &of_batch(1)).unwrap();
        let values = floats(&model);
        let halves = model.graph.values().filter(|(_, v)| {
            matches!(v.def(), Def::Node(..)) && v.ty().dtype() == Some(DType::F16)
        });
        let values = match ty {
            "float" => values,
            _ => halves.map(|(id, _)| id).collect(),
        };
        let stats = calibrate(&model, &values, &source, &Options::default(), &Silent).unwrap();
        let root = &stats[&values[0]];
        assert_eq!((root.count, root.nan, root.min, root.max), (4, 1, 0.0, 4.0));
        let quotient = &stats[&values[1]];
        assert_eq!((quotient.nan, quotient.min, quotient.max), (2, 2.0, 4.0));
        assert!(quotient.channel_absmax.is_empty());
    }
}

#[test]
fn the_last_samples_are_kept_for_the_proof() {
    let setup = Setup::new();
    let data = setup.npz("twenty.npz", 20);
    let split = |taken: Option<usize>, most: usize| {
        let options = SourceOptions {
            samples: taken,
            ..of_batch(1)
        };
        let mut source = setup.open(&data, &options).unwrap();
        source.reserve(most).unwrap();
        (source.batches().count(), source.held_out().count())
    };
    assert_eq!(split(None, 8), (18, 2), "an eighth");
    assert_eq!(split(Some(20), 8), (18, 2));
    assert_eq!(split(Some(20), 1), (19, 1));
    assert_eq!(split(Some(19), 8), (18, 2), "one is not enough");
    assert_eq!(split(Some(4), 8), (4, 16), "all behind");
}

#[test]
fn only_floats_have_statistics() {
    let setup = Setup::new();
    let shapes = Shapes::new(&setup.model.graph, &[], &[]).unwrap();
    let source = Source::made(&setup.model.graph, &shapes, &of_batch(1)).unwrap();
    assert!(source.is_made());
    assert_eq!(source.description(), "8 made-up batches, seed 1");
    let input = setup.model.graph.inputs()[0];
    let refused = calibrate(
        &setup.model,
        &[input],
        &source,
        &Options::default(),
        &Silent,
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the value \"input_ids\" cannot be calibrated: it is int64; only float and float16 values have statistics"
    );
}

#[test]
fn data_that_does_not_fit_is_refused_by_name() {
    let setup = Setup::new();
    let refusal = |path: &Path| {
        let refused = setup.open(path, &of_batch(1)).unwrap_err().to_string();
        refused.replace(&format!("{}", setup.folder.path().display()), "")
    };
    let mut arrays = ids(2, 8);
    arrays.pop();
    npz::write(&setup.path("less.npz"), &arrays).unwrap();
    assert_eq!(
        refusal(&setup.path("less.npz")),
        "/less.npz has no array \"token_type_ids\" or \"in.token_type_ids\" for the input of that name; \
         it has: input_ids, attention_mask"
    );
    arrays.push(ids(2, 9).remove(2));
    npz::write(&setup.path("long.npz"), &arrays).unwrap();
    assert_eq!(
        refusal(&setup.path("long.npz")),
        "the array \"token_type_ids\" of /long.npz has the shape [2, 9], but seq is 8 in \"input_ids\""
    );
    let flat: Vec<_> = (ids(1, 8).into_iter())
        .map(|(n, t)| (n, t.reshaped(vec![8]).unwrap()))
        .collect();
    npz::write(&setup.path("flat.npz"), &flat).unwrap();
    assert!(refusal(&setup.path("flat.npz")).contains("the model takes int64[batch,seq]"));
    let npy = setup.write("one.npy", "");
    assert!(refusal(&npy).contains("give an .npz file"));
    std::fs::create_dir(setup.path("empty")).unwrap();
    assert_eq!(
        refusal(&setup.path("empty")),
        "/empty holds no .npz and no .npy file"
    );
    let text = setup.write("lines.txt", "the kiln\n");
    assert!(refusal(&text).contains("a tokenizer is needed"));
}

#[test]
fn folders_are_read_in_the_order_of_names() {
    let setup = Setup::new();
    for (name, rows) in [("b.npz", 2), ("a.npz", 3), ("c.npz", 1)] {
        setup.npz(name, rows);
    }
    setup.write("readme.txt", "not data");
    let count = |options: &SourceOptions| {
        let source = setup.open(setup.folder.path(), options).unwrap();
        let batches = source.batches().map(|b| b.unwrap().samples);
        (batches.collect::<Vec<_>>(), source.fingerprint().unwrap())
    };
    let (twos, print) = count(&of_batch(2));
    assert_eq!(twos, [2, 1, 2, 1]);
    assert_eq!(print, count(&of_batch(2)).1);
    let limited = SourceOptions {
        samples: Some(3),
        ..of_batch(2)
    };
    assert_eq!(count(&limited).0, [2, 1]);
    setup.npz("c.npz", 2);
    assert_ne!(print, count(&of_batch(2)).1);
}

#[test]
fn an_array_file_serves_a_model_of_one_input() {
    let model = text_model(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 2] x) => (float[batch, 2] y) { y = Neg(x) }"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    let mut file = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)}";
    file.extend(format!("{header:<69}\n").bytes());
    file.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
    std::fs::write(&path, &file).unwrap();
    let source = Source::open(&model.graph, &path, &of_batch(2)).unwrap();
    let batches: Vec<_> = source.batches().map(Result::unwrap).collect();
    assert_eq!(batches[1].inputs[0].1.values::<f32>().unwrap(), [4., 5.]);
    assert!(batches[1].name.ends_with("x.npy, rows 2 to 2"));
    std::fs::write(&path, &file[..90]).unwrap();
    let cut = Source::open(&model.graph, &path, &of_batch(2)).unwrap_err();
    assert!(cut.to_string().contains("x.npy: the array \"x\""), "{cut}");
}

#[test]
fn text_becomes_tokens() {
    let setup = Setup::new();
    let lines = "The kiln is hot.\r\n\n  \nClay\nthe the the the the the the the\n";
    let text = setup.write("lines.txt", lines);
    let source = setup.open(&text, &with_tokenizer(2, 6)).unwrap();
    let batches: Vec<_> = source.batches().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 2);
    assert!(batches[0].name.ends_with("lines.txt, lines 1 to 4"));
    assert!(batches[1].name.ends_with("lines.txt, line 5"));
    let names: Vec<_> = batches[0].inputs.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["input_ids", "attention_mask", "token_type_ids"]);
    let tokens = vec![2, 4, 5, 6, 7, 3, 2, 8, 3, 0, 0, 0];
    assert_eq!(ints(&batches[0], 0), (vec![2, 6], tokens));
    assert_eq!(ints(&batches[0], 1).1, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]);
    assert_eq!(ints(&batches[0], 2).1, [0; 12]);
    assert_eq!(ints(&batches[1], 0), (vec![1, 6], vec![2, 4, 4, 4, 4, 3]));
    let one = setup.open(&text, &with_tokenizer(1, 6)).unwrap();
    assert_eq!(one.batches().count(), 3);
    assert_ne!(one.fingerprint().unwrap(), source.fingerprint().unwrap());
}

#[test]
fn text_that_does_not_fit_is_refused_by_line() {
    let setup = Setup::new();
    let refusal = |text: &[u8]| {
        let path = setup.path("lines.txt");
        std::fs::write(&path, text).unwrap();
        let source = setup.open(&path, &with_tokenizer(1, 6));
        let batches = source.and_then(|s| s.batches().collect::<Result<Vec<_>, _>>());
        batches.unwrap_err().to_string()
    };
    let beyond = refusal(b"hot\nbeyond");
    assert!(
        beyond.contains("lines.txt, line 2: the tokenizer gives token 1000000"),
        "{beyond}"
    );
    assert!(refusal(b"hot\n\xff").contains("line 2: it is not UTF-8"));
    assert!(refusal(b"\n\n").contains("holds no samples"));
    let path = setup.write("bad.json", "{}");
    let options = SourceOptions {
        tokenizer: Some(path),
        ..of_batch(1)
    };
    let refused = setup.open(&setup.path("lines.txt"), &options).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("bad.json is not a usable tokenizer"),
        "{refused}"
    );
}

#[test]
fn fixed_sizes_are_kept() {
    let model = text_model(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (int64[2, 5] ids, float[2, 5] mask) => (float[2, 5, 1] y)
        <float[20, 1] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
        { y = Gather(table, ids) }"#,
    );
    let setup = Setup::new();
    let text = setup.write("lines.txt", "hot\ncold clay\nkiln\n");
    let source = Source::open(&model.graph, &text, &with_tokenizer(1, 64)).unwrap();
    let batches: Vec<_> = source.batches().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!(
        ints(&batches[0], 0),
        (vec![2, 5], vec![2, 7, 3, 0, 0, 2, 9, 8, 3, 0])
    );
    let mask = batches[0].inputs[1].1.values::<f32>().unwrap();
    assert_eq!(mask, [1., 1., 1., 0., 0., 1., 1., 1., 1., 0.]);
}

#[test]
fn the_cache_serves_the_same_question_only() {
    if runtime().is_none() {
        return;
    }
    let setup = Setup::new();
    let data = setup.npz("two.npz", 2);
    let values = floats(&setup.model);
    let path = setup.path("cache.json");
    let ask = |model: &Model, values: &[ValueId], batch: usize| {
        let source = setup.open(&data, &of_batch(batch)).unwrap();
        calibrate_cached(model, values, &source, &Options::default(), &path, &Silent)
    };
    let (first, hit) = ask(&setup.model, &values, 1).unwrap();
    assert!(!hit);
    let (second, hit) = ask(&setup.model, &values, 1).unwrap();
    assert!(hit);
    assert_eq!(first, second);
    assert!(!ask(&setup.model, &values[1..], 1).unwrap().1);
    assert!(!ask(&setup.model, &values, 1).unwrap().1);
    assert!(!ask(&setup.model, &values, 2).unwrap().1, "other batches");
    let mut other = setup.model.clone();
    let (weight, tensor) = (other.graph.values())
        .find_map(|(id, v)| Some((id, v.constant()?.clone())).filter(|(_, t)| t.byte_len() > 4096))
        .unwrap();
    let zeros = vec![0; tensor.byte_len()].into();
    let zeros = Tensor::from_raw(tensor.dtype(), tensor.dims().to_vec(), zeros).unwrap();
    other.graph.set_constant(weight, zeros);
    assert!(!ask(&other, &values, 2).unwrap().1, "other weights");
    assert!(ask(&other, &values, 2).unwrap().1);
    for foreign in ["no JSON", "{\"format\": \"something\"}"] {
        std::fs::write(&path, foreign).unwrap();
        let refused = ask(&setup.model, &values, 1).unwrap_err().to_string();
        assert!(refused.contains("neither read nor replaced"), "{refused}");
    }
    let left = std::fs::read_dir(setup.folder.path()).unwrap().count();
    assert_eq!(left, 2, "no temporary file stays");

    // What no tensor has is refused, as passes count on it.
    std::fs::remove_file(&path).unwrap();
    ask(&setup.model, &values, 1).unwrap();
    let kept = std::fs::read_to_string(&path).unwrap();
    let spoiled = |key: &str, value: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_str(&kept).unwrap();
        json["values"][0][key] = value;
        std::fs::write(&path, json.to_string()).unwrap();
        ask(&setup.model, &values, 1)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let most = u64::MAX.into();
    for (key, value) in [
        ("zeros", most),
        ("nan", 1.into()),
        ("min", 1e300.into()),
        ("absmax", (-1.0).into()),
        ("sumsq", (-1.0).into()),
        ("range_exponent", i32::MAX.into()),
        ("first_bin", usize::MAX.into()),
        ("channel_sum", vec![1.0].into()),
        ("channel_sumsq", vec![1.0].into()),
        ("channel_min", vec![f32::MAX; 64].into()),
    ] {
        let refused = spoiled(key, value).unwrap_err();
        assert!(refused.contains("are malformed"), "{key}: {refused}");
    }
    let key = Key {
        model: String::new(),
        data: String::new(),
    };
    let endless = cache::read(Path::new("/dev/zero"), &key, &setup.model.graph, &values);
    assert!(endless.unwrap_err().to_string().contains("too large"));
}
