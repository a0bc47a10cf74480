//! What a quick proof finds, and how often models run for it.

use std::path::{Path, PathBuf};

use kiln_graph::Model;
use kiln_graph::onnx::{self, WriteOptions};

use super::*;
use crate::parity::{Preset, Report, Tolerance};
use crate::shapes::Parts;
use kiln_runtime::talk::Silent;
use kiln_runtime::{DeviceRequest, testing};

/// Causal attention over itself, whose first and last lines a defect takes the place of.
fn model(mask: &str, result: &str, weight: f32) -> Model {
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 4] x) => (float[batch, seq, 2] y)
        <float[4, 2] w = {{{weight}, -0.5, 0.25, 1.5, -1, 0.75, 0.5, -0.25}}, int64[1] one = {{1}}, int64[1] most = {{512}},
         float[1] low = {{-10000}}, float[1] unit = {{1}}, float[1] none = {{0}}, float[1] tenth = {{0.1}}>
        {{
            s = Shape(x)
            n = Gather <axis = 0> (s, one)
            square = Concat <axis = 0> (n, n)
            ones = ConstantOfShape <value: tensor = float[1] {{1}}> (square)
            kept = Trilu <upper = 0> (ones)
            hidden = Sub(unit, kept)
            causal = Mul(hidden, low)
            {mask}
            keys = Transpose <perm = [0, 2, 1]> (x)
            scores = MatMul(x, keys)
            masked = Add(scores, mask)
            weights = Softmax <axis = -1> (masked)
            seen = MatMul(weights, x)
            rows = MatMul(seen, w)
            {result}
        }}"#
    );
    onnx::read_text(&text).unwrap()
}

const MASK: &str = "mask = Identity(causal)";
const RESULT: &str = "y = Identity(rows)";
/// Nothing is hidden at the largest length.
const WRONG_WHERE_LONG: &str = "long = GreaterOrEqual(n, most)\n mask = Where(long, none, causal)";
/// Each row gets a tenth of the mean of all; one row alone is its own mean.
const MIXED: &str = "mean = ReduceMean <axes = [0], keepdims = 1> (rows)\n d = Sub(mean, rows)\n m = Mul(d, tenth)\n y = Add(rows, m)";

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// `None` without ONNX Runtime.
    fn new() -> Option<Bench> {
        testing::runtime()?;
        Some(Bench {
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn write(&self, name: &str, model: &Model) -> PathBuf {
        let path = self.folder.path().join(name);
        onnx::write(model, &path, &WriteOptions::default()).unwrap();
        path
    }

    fn open(&self, original: &Model, enough: Option<u64>) -> Reference {
        let path = self.write("original.onnx", original);
        let original = onnx::read(&path).unwrap();
        let mut shapes = Shapes::new(&original.graph, &[], &[]).unwrap();
        let request = Request {
            reference: &path,
            original: &original,
            folded: &original.graph,
            inputs: None,
            fixed: &Fixed::default(),
            seed: 1,
            optimized: false,
            thorough: false,
            enough,
            half_io: false,
            one_profile: false,
            result: None,
            device: DeviceRequest::default(),
            ort_lib: None,
        };
        open(&request, &mut shapes, &Silent).unwrap()
    }

    fn compare(&self, reference: &mut Reference, result: &Model) -> Report {
        let path = self.write("result.onnx", result);
        reference.compare(&path, &tolerance(), &Silent).unwrap()
    }

    /// The cases of a quick proof at which a result is out of tolerance.
    fn failed(&self, result: &Model) -> Vec<String> {
        let mut reference = self.open(&model(MASK, RESULT, 1.0), Some(0));
        assert!(reference.parted.is_some());
        let report = self.compare(&mut reference, result);
        let failed = report.cases.iter().filter(|c| c.failed());
        failed.map(|c| c.name.clone()).collect()
    }
}

fn tolerance() -> Tolerance {
    Tolerance::from(Preset::Fp32Rewrite)
}

#[test]
fn a_quick_proof_finds_a_perturbed_weight() {
    let Some(bench) = Bench::new() else { return };
    assert!(bench.failed(&model(MASK, RESULT, 1.0)).is_empty());
    let failed = bench.failed(&model(MASK, RESULT, 1.001));
    assert_eq!(failed, ["smallest", "typical", Parts::LONG, Parts::WIDE]);
}

#[test]
fn a_quick_proof_finds_a_mask_that_is_wrong_at_the_largest_size_only() {
    let Some(bench) = Bench::new() else { return };
    // The typical length is 128, the largest 512.
    let failed = bench.failed(&model(WRONG_WHERE_LONG, RESULT, 1.0));
    assert_eq!(failed, [Parts::LONG]);
}

#[test]
fn a_quick_proof_finds_a_row_that_sees_another() {
    let Some(bench) = Bench::new() else { return };
    let failed = bench.failed(&model(MASK, MIXED, 1.0));
    assert_eq!(failed, [Parts::LONG, Parts::WIDE]);
}

#[test]
fn an_original_whose_rows_see_each_other_is_proved_whole() {
    let Some(bench) = Bench::new() else { return };
    let mixed = model(MASK, MIXED, 1.0);
    let mut reference = bench.open(&mixed, Some(0));
    assert_eq!(reference.parted, None);
    let said = &reference.warnings[0];
    assert!(said.contains("rows of batch see each other"), "{said}");
    let report = bench.compare(&mut reference, &mixed);
    let names: Vec<&str> = report.cases.iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["smallest", "typical", "largest"]);
    assert!(!report.failed());
}

#[test]
fn each_model_runs_once_at_each_case() {
    let Some(bench) = Bench::new() else { return };
    let right = model(MASK, RESULT, 1.0);
    let mut reference = bench.open(&right, None);
    reference.begin("search");
    let first = bench.compare(&mut reference, &right);
    reference.begin("parity");
    let again = bench.compare(&mut reference, &right);
    assert_eq!(first.cases.len(), again.cases.len());
    reference
        .save(&bench.folder.path().join("parity.npz"))
        .unwrap();
    let ran = |stage: &str, original, result| Ran {
        stage: stage.into(),
        original,
        result,
    };
    // The fourth run of the original shows that its output depends on its input. The proof is what the search saw.
    assert_eq!(reference.ran(), [ran("sizes", 4, 0), ran("search", 0, 3)]);
    // Other bytes are another model.
    let wrong = bench.compare(&mut reference, &model(MASK, RESULT, 1.001));
    assert!(wrong.failed());
    assert_eq!(reference.ran()[2].result, 3);
}

#[test]
fn a_file_is_known_by_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |path: &Path| sessions::hash(path, &onnx::read(path).unwrap()).unwrap();
    let write = |name: &str, weight, inline_limit| {
        let path = folder.path().join(name);
        let options = WriteOptions { inline_limit };
        onnx::write(&model(MASK, RESULT, weight), &path, &options).unwrap();
        path
    };
    let a = write("a.onnx", 1.0, u64::MAX);
    assert_eq!(hash(&a), hash(&write("b.onnx", 1.0, u64::MAX)));
    assert_ne!(hash(&a), hash(&write("c.onnx", 1.001, u64::MAX)));
    // With external data, what is beside the file counts.
    let apart = write("d.onnx", 1.0, 0);
    let before = hash(&apart);
    assert_ne!(before, hash(&write("d.onnx", 1.001, 0)));
}

/// The file itself runs where the CUDA provider has all its kernels, else what stands for it.
#[test]
fn a_twin_stands_in_where_kernels_are_missing() {
    let gpu = kiln_runtime::Gpu {
        id: 0,
        memory_limit: None,
    };
    let cuda = kiln_runtime::Device::Cuda(gpu);
    let model = |body: &str| {
        let text = format!(
            r#"<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[n] y)
            {{ h = Cast<to = 16>(x)
               {body}
               y = Cast<to = 1>(r) }}"#
        );
        let mut model = onnx::read_text(&text).unwrap();
        kiln_graph::infer::annotate(&mut model.graph);
        model
    };
    let whole = model("r = Mul(h, h)");
    assert!(sessions::stand_in(&whole, cuda).is_none());
    assert!(sessions::stand_in(&whole, kiln_runtime::Device::Cpu).is_some());
    assert!(sessions::stand_in(&whole, kiln_runtime::Device::Rtx(gpu)).is_some());
    let falls = model("small = Less(h, h) r = Cast<to = 16>(small)");
    assert!(sessions::stand_in(&falls, cuda).is_some());
}
