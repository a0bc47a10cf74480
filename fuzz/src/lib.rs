//! What the fuzzers run: each function takes any bytes, and panics where kiln breaks a promise.
//!
//! `fuzz_targets` hands these functions to libFuzzer, and `tests/all/fuzz.rs` runs them on the corpus and on mutants of it, with
//! the toolchain that kiln itself is built with.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kiln_graph::onnx::{self, proto::ModelProto};
use kiln_graph::verify::{Phase, verify_model};
use kiln_graph::{INTERNAL_DOMAIN, Model, infer, text};
use kiln_passes::{Context, Options, PassError, Step, Target, registry};
use prost::Message;

/// What runs one input.
pub type Run = fn(&[u8]);

/// Every fuzzer by its name.
pub const TARGETS: &[(&str, Run)] = &[
    ("onnx", onnx),
    ("text", text),
    ("external", external),
    ("passes", passes),
    #[cfg(not(feature = "graph-only"))]
    ("recipe", driver::recipe),
    #[cfg(not(feature = "graph-only"))]
    ("npz", driver::npz),
    #[cfg(not(feature = "graph-only"))]
    ("cache", driver::cache),
];

/// Inputs to start from: kiln's fixtures in the form that the target takes, and `fuzz/corpus/TARGET`, which holds what once
/// failed. `root` is kiln's folder.
pub fn seeds(root: &Path, target: &str) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    walk(&root.join("fuzz/corpus").join(target), &mut files);
    let mut seeds: Vec<Vec<u8>> = files.iter().filter_map(|p| fs::read(p).ok()).collect();
    let mut fixtures = Vec::new();
    walk(&root.join("fixtures"), &mut fixtures);
    let texts = || {
        let wanted = |p: &&PathBuf| p.extension().is_some_and(|e| e == "onnxtxt");
        fixtures
            .iter()
            .filter(wanted)
            .filter_map(|p| fs::read_to_string(p).ok())
    };
    match target {
        "text" => seeds.extend(texts().map(String::into_bytes)),
        "onnx" | "passes" => seeds.extend(texts().filter_map(|t| encode(&t))),
        "external" => seeds.extend(EXTERNAL.iter().filter_map(|at| {
            encode(&format!(
                "<ir_version: 10, opset_import: [\"\" : 20]>\n\
                 g (float[16] x) => (float[16] y) <float[16] w = [{at}], float[4] v = [{at}]> {{ y = Add(x, w) }}"
            ))
        })),
        "npz" => {
            let small = |p: &&PathBuf| p.parent().is_some_and(|f| f.ends_with("conformance"));
            let wanted = |p: &&PathBuf| p.extension().is_some_and(|e| e == "npz");
            let files = fixtures.iter().filter(small).filter(wanted);
            seeds.extend(files.filter_map(|p| fs::read(p).ok()));
        }
        #[cfg(not(feature = "graph-only"))]
        "cache" => seeds.extend(driver::cache_seed()),
        _ => {}
    }
    seeds
}

const EXTERNAL: &[&str] = &[
    r#""location": "w""#,
    r#""location": "w", "offset": "0", "length": "64""#,
    r#""location": "sub/w", "offset": "32", "length": "32""#,
    r#""location": "./within", "offset": "48", "length": "16""#,
    r#""location": "../secret", "offset": "0""#,
    r#""location": "link", "offset": "0""#,
    r#""location": "up/secret", "offset": "0""#,
    r#""location": "sub/../../secret", "offset": "18446744073709551615""#,
    r#""location": "/etc/hostname", "length": "18446744073709551615""#,
    r#""location": "loop""#,
    r#""location": "empty""#,
];

fn encode(source: &str) -> Option<Vec<u8>> {
    Some(text::parse_model(source).ok()?.encode_to_vec())
}

/// The files below a folder, in the order of their names.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// What is written is read again. Declared types may change their order once, as they stand by the values' numbers.
fn round_trip(model: &Model) {
    let Ok(mut bytes) = onnx::to_bytes(model) else {
        return;
    };
    let mut again = || {
        let read = onnx::read_bytes(bytes.clone().into(), None);
        let read = read.unwrap_or_else(|e| panic!("what kiln wrote is refused: {e}"));
        bytes = onnx::to_bytes(&read).unwrap_or_else(|e| panic!("{e}"));
        bytes.clone()
    };
    assert!(again() == again(), "a second round trip gives other bytes");
}

/// An encoded model: reading, verifying, inference, writing.
pub fn onnx(data: &[u8]) {
    let Ok(mut model) = onnx::read_bytes(Bytes::copy_from_slice(data), None) else {
        return;
    };
    let sound = verify_model(&model, Phase::Imported).is_empty();
    infer::annotate(&mut model.graph);
    if sound {
        round_trip(&model);
    }
}

/// ONNX text: what parses is printed, and what was printed parses to the same.
pub fn text(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    let print = |m: &ModelProto| text::print_model(m, &text::PrintOptions::default());
    match text::parse_model(source) {
        Err(e) => assert!(!e.render(source).is_empty()),
        Ok(model) => {
            let printed = print(&model);
            let again = text::parse_model(&printed)
                .unwrap_or_else(|e| panic!("what kiln printed is refused: {}", e.render(&printed)));
            assert_eq!(print(&again), printed);
        }
    }
    let _ = text::parse_functions(source);
    let _ = onnx::read_text(source);
}

/// A model in a folder, with files beside it and things outside it that must not be read.
struct Folder {
    _root: tempfile::TempDir,
    model: PathBuf,
}

const SECRET: &[u8] = b"outside the model's folder, outside the model's folder, outside!";
const WEIGHTS: usize = 64;

impl Folder {
    fn new() -> std::io::Result<Folder> {
        let root = tempfile::Builder::new().tempdir_in(scratch())?;
        let inside = root.path().join("model");
        fs::create_dir_all(inside.join("sub"))?;
        fs::write(root.path().join("secret"), SECRET)?;
        fs::write(inside.join("w"), [7; WEIGHTS])?;
        fs::write(inside.join("sub/w"), [7; WEIGHTS])?;
        fs::write(inside.join("empty"), [])?;
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../secret", inside.join("link"))?;
            std::os::unix::fs::symlink("..", inside.join("up"))?;
            std::os::unix::fs::symlink("w", inside.join("within"))?;
            std::os::unix::fs::symlink("loop", inside.join("loop"))?;
        }
        Ok(Folder {
            model: inside.join("model.onnx"),
            _root: root,
        })
    }
}

/// A folder in memory, where there is one.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => memory.to_path_buf(),
        false => std::env::temp_dir(),
    }
}

thread_local! {
    static FOLDER: OnceCell<Folder> = const { OnceCell::new() };
}

/// Writes `data` as a file of this name, and gives its path to `then`.
fn with_file(name: &str, data: &[u8], then: impl FnOnce(&Path)) {
    FOLDER.with(|f| {
        let folder = f.get_or_init(|| Folder::new().expect("a folder for files"));
        let path = folder.model.with_file_name(name);
        fs::write(&path, data).expect("a file in that folder");
        then(&path);
    });
}

/// A model file whose weights are elsewhere: none may come from outside its folder or from beyond a file's end.
pub fn external(data: &[u8]) {
    with_file("model.onnx", data, |path| {
        let Ok(model) = onnx::read(path) else {
            return;
        };
        model.graph.for_each_graph(&mut |g| {
            for (_, value) in g.values() {
                let Some(tensor) = value.constant() else {
                    continue;
                };
                let bytes = tensor.bytes();
                assert!(
                    bytes.len() < 8 || !SECRET.windows(bytes.len()).any(|w| w == bytes),
                    "a weight was read from outside the model's folder"
                );
            }
        });
    });
}

/// All passes, without a runtime, for three targets.
fn rewrite(original: &Model, steps: &[Step], options: &Options<'_>) {
    for target in [Target::cpu(), Target::standard(), Target::tensorrt("sm_89")] {
        let mut model = original.clone();
        let mut cx = Context::new(&target, options);
        match kiln_passes::run(&mut model, steps, &mut cx, &mut |_, _| {}) {
            Ok(_) => round_trip(&model),
            Err(e @ PassError::Broken { .. }) => panic!("{e}"),
            Err(_) => {}
        }
    }
}

/// An encoded model through all passes.
pub fn passes(data: &[u8]) {
    let Ok(original) = onnx::read_bytes(Bytes::copy_from_slice(data), None) else {
        return;
    };
    // Cases of lowerings have operators that no file may have.
    let mut internal = false;
    original.graph.for_each_graph(&mut |g| {
        internal |= g.nodes().any(|(_, n)| n.op().domain() == INTERNAL_DOMAIN);
    });
    if internal {
        return;
    }
    let steps = [registry::DEFAULT, registry::FP16, registry::LOWER].concat();
    rewrite(&original, &steps, &Options::default());
}

#[cfg(not(feature = "graph-only"))]
pub mod driver {
    use std::fs;

    use kiln::calibrate::{Key, cache};
    use kiln::parity::{self, Npz};
    use kiln::runtime::{Dim, TensorInfo};
    use kiln_graph::{DType, Model, ValueId, infer, onnx};
    use kiln_passes::precision::stats::Collector;
    use kiln_passes::{Options, precision, registry};

    /// A recipe, as YAML or as JSON.
    pub fn recipe(data: &[u8]) {
        super::with_file("kiln.yaml", data, |path| drop(kiln::recipe::read(path)));
        super::with_file("kiln.json", data, |path| drop(kiln::recipe::read(path)));
    }

    /// Arrays of NumPy: an archive, and one alone.
    pub fn npz(data: &[u8]) {
        super::with_file("data.npz", data, |path| {
            let Ok(mut npz) = Npz::open(path) else {
                return;
            };
            let names: Vec<String> = npz.names().map(str::to_owned).collect();
            for name in names {
                let _ = npz.read(&name, None);
                let _ = npz.read(&name, Some(DType::F4E2M1));
            }
        });
        super::with_file("data.npy", data, |path| {
            for dtype in [DType::F32, DType::F8E4M3FN, DType::I4] {
                let info = TensorInfo {
                    name: "data".into(),
                    dtype,
                    shape: vec![Dim::Unknown],
                };
                let _ = parity::from_npy(path, &info);
            }
        });
    }

    /// Two linear layers, a norm before the first, and the values that a calibration is asked for.
    fn layers() -> (Model, Vec<ValueId>) {
        let numbers = |n: usize| (0..n).map(|k| format!("{}.5", k % 7)).collect::<Vec<_>>();
        let text = format!(
            "<ir_version: 10, opset_import: [\"\" : 20]>
             g (float[n, 16] x) => (float[n, 16] y) <float[16] s = {{{s}}}, float[16, 16] a = {{{w}}}, float[16, 16] b = {{{w}}}> {{
               norm = LayerNormalization<axis = -1>(x, s)
               h = MatMul(norm, a)
               r = Relu(h)
               y = MatMul(r, b)
             }}",
            s = numbers(16).join(","),
            w = numbers(256).join(","),
        );
        let mut model = onnx::read_text(&text).expect("a model");
        infer::annotate(&mut model.graph);
        let values = precision::wanted(&model);
        (model, values)
    }

    fn key() -> Key {
        Key {
            model: "model".into(),
            data: "data".into(),
        }
    }

    /// A calibration cache as kiln writes it.
    pub fn cache_seed() -> Option<Vec<u8>> {
        let (model, values) = layers();
        let measured = values.into_iter().map(|v| {
            let mut collector = Collector::new();
            let row = |k: u16| f32::from(k % 23) - 11.0;
            collector.add(Some(16), &(0..64).map(row).collect::<Vec<_>>());
            (v, collector.finish())
        });
        let stats = measured.collect();
        let mut bytes = None;
        super::with_file("cache.json", &[], |path| {
            cache::write(path, &key(), &model.graph, &stats).expect("a file in that folder");
            bytes = fs::read(path).ok();
        });
        bytes
    }

    /// A calibration cache: what is read of it is good for INT8.
    pub fn cache(data: &[u8]) {
        super::with_file("cache.json", data, |path| {
            let (model, values) = layers();
            let Ok(Some(stats)) = cache::read(path, &key(), &model.graph, &values) else {
                return;
            };
            let steps = [registry::INT8, registry::FP16, registry::LOWER].concat();
            let options = Options {
                stats: &stats,
                ..Options::default()
            };
            super::rewrite(&model, &steps, &options);
        });
    }
}
