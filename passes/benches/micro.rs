//! What the steps of a compilation cost alone: `cargo bench -p kiln-passes --bench micro`.

mod decoder;

use decoder::model;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use kiln_graph::onnx::{self, WriteOptions};
use kiln_graph::{DType, Model, Tensor, infer, verify};
use kiln_passes::{Context, Options, Target, registry};

fn main() {
    divan::main();
}

const NODES: &[usize] = &[1_000, 10_000, 100_000];
/// Elements of a weight.
const WEIGHT: usize = 4 << 20;

fn weight() -> Tensor {
    let numbers: Vec<f32> = (0..WEIGHT).map(|k| (k as f32).sin()).collect();
    Tensor::from_values(&[WEIGHT][..], &numbers).expect("a vector")
}

#[divan::bench(args = NODES)]
fn read(bencher: Bencher<'_, '_>, nodes: usize) {
    let bytes = onnx::to_bytes(&model(nodes)).expect("it encodes");
    let bytes = bytes::Bytes::from(bytes);
    (bencher.counter(ItemsCount::new(nodes)))
        .bench_local(|| onnx::read_bytes(bytes.clone(), None).expect("it decodes"));
}

#[divan::bench(args = NODES)]
fn write(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    (bencher.counter(ItemsCount::new(nodes)))
        .bench_local(|| onnx::to_bytes(&model).expect("it encodes"));
}

#[divan::bench(args = NODES)]
fn infer_types(bencher: Bencher<'_, '_>, nodes: usize) {
    let mut model = model(nodes);
    (bencher.counter(ItemsCount::new(nodes)))
        .bench_local(|| drop(black_box(infer::annotate(&mut model.graph))));
}

#[divan::bench(args = NODES)]
fn verify_graph(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    (bencher.counter(ItemsCount::new(nodes)))
        .bench_local(|| verify::verify_model(&model, verify::Phase::Imported));
}

/// One pass that looks at every node and matches none: what matching costs.
#[divan::bench(args = NODES)]
fn match_nothing(bencher: Bencher<'_, '_>, nodes: usize) {
    let target = Target::standard();
    let options = Options::default();
    let steps = registry::select("fuse-swish", registry::DEFAULT).expect("there is this pass");
    let mut model = model(nodes);
    bencher.counter(ItemsCount::new(nodes)).bench_local(|| {
        let mut cx = Context::new(&target, &options);
        kiln_passes::run(&mut model, &steps, &mut cx, &mut |_, _| {}).expect("it runs")
    });
}

#[divan::bench(args = [DType::F16, DType::BF16])]
fn convert(bencher: Bencher<'_, '_>, to: DType) {
    let narrow = weight().narrowed(to).expect("it narrows");
    (bencher.counter(BytesCount::new(WEIGHT * 4)))
        .bench_local(|| narrow.write_to(&mut std::io::sink()));
}

#[divan::bench(args = [DType::F16, DType::BF16])]
fn conversion_loss(bencher: Bencher<'_, '_>, to: DType) {
    let weight = weight();
    (bencher.counter(BytesCount::new(WEIGHT * 4))).bench_local(|| weight.narrowing_loss(to));
}

/// A file of one large weight, to a disk or its cache.
#[divan::bench]
fn write_file(bencher: Bencher<'_, '_>) {
    let mut graph = Model::new(model(1).graph).graph;
    let value = graph.add_constant("large", weight());
    graph.add_output("large", value);
    let model = Model::new(graph);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    (bencher.counter(BytesCount::new(WEIGHT * 4)))
        .bench_local(|| onnx::write(&model, &path, &WriteOptions::default()).expect("it writes"));
}
