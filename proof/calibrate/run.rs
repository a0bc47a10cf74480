//! Running a model with inner values as outputs.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::thread;

use half::f16;
use kiln_graph::{
    Attrs, DType, Element, Graph, Model, Op, Tensor, Type, ValueId, onnx, onnx::SourceFile,
};
use kiln_passes::precision::Gram;
use kiln_passes::precision::stats::Collector;
use kiln_passes::{Context, Target, registry};

use super::data::{Batch, Source};
use super::{CalibrateError, Options, Stats};
use kiln_runtime::talk::Talk;
use kiln_runtime::{self as runtime, Device, Optimization, Runtime, Session, SessionOptions};

pub(super) struct Runner<'a> {
    pub runtime: &'static Runtime,
    pub device: Device,
    pub model: &'a Model,
    pub source: &'a Source,
    pub options: &'a Options<'a>,
    pub talk: &'a dyn Talk,
}

/// What a twin gives of each wanted value.
#[derive(Clone, Copy, PartialEq)]
enum Give {
    Value,
    Shape,
    /// `XᵀX` of its rows X: [n, K, K] for a value [n, …, K].
    Grams,
    /// The same of all rows: [1, K, K].
    Gram,
}

impl Runner<'_> {
    pub fn all(&self, values: &[ValueId]) -> Result<Stats, CalibrateError> {
        let (largest, batches) = self.largest()?;
        let sizes = self.sizes(values, &largest)?;
        drop(largest);
        let groups = parts(values, &sizes, self.options.memory);
        let mut stats = Stats::default();
        self.talk.stage("calibration: ranges");
        for (turn, group) in groups.iter().enumerate() {
            let collectors = self.group(group, batches, (turn, groups.len()))?;
            let finished = collectors.into_iter().map(Collector::finish);
            stats.extend(group.iter().copied().zip(finished));
        }
        Ok(stats)
    }

    /// Gives the [`Gram`] of each value to `take`, as soon as it is complete. No more of them are there at once than the
    /// memory allows, but one.
    pub fn grams<E: From<CalibrateError>>(
        &self,
        values: &[ValueId],
        take: &mut dyn FnMut(ValueId, Gram) -> Result<(), E>,
    ) -> Result<(), E> {
        let (largest, batches) = self.largest()?;
        self.talk.stage("calibration: sizes");
        let shapes = run(&mut self.session(values, Give::Shape)?, &largest)?;
        let mut apart = Vec::new();
        let mut together = Vec::new();
        for (&v, shape) in values.iter().zip(shapes) {
            let dims = shape.to_i64s().unwrap_or_default();
            let Some(size) = dims.last().and_then(|&k| usize::try_from(k).ok()) else {
                continue;
            };
            // Samples of a batch are multiplied apart and added one by one, so that other batches give the same bits.
            let each =
                dims.len() > 2 && dims.first() == i64::try_from(largest.samples).ok().as_ref();
            let list = if each { &mut apart } else { &mut together };
            list.push((v, size));
        }
        let mut groups = Vec::new();
        for (give, list) in [(Give::Grams, apart), (Give::Gram, together)] {
            let samples = if give == Give::Grams {
                largest.samples
            } else {
                1
            };
            let bytes = |&(_, size): &(ValueId, usize)| {
                let product = size.saturating_mul(size).saturating_mul(4 * samples);
                Gram::bytes(size).saturating_add(product)
            };
            let sizes: Vec<usize> = list.iter().map(bytes).collect();
            let parts = parts(&list, &sizes, self.options.memory);
            groups.extend(parts.into_iter().map(|part| (give, part)));
        }
        self.talk.stage("calibration: products");
        for (turn, (give, group)) in groups.iter().enumerate() {
            let values: Vec<ValueId> = group.iter().map(|(v, _)| *v).collect();
            let mut grams: Vec<Gram> = group.iter().map(|&(_, size)| Gram::new(size)).collect();
            let mut session = self.session(&values, *give)?;
            for (k, batch) in self.source.batches().enumerate() {
                self.talk.done(turn * batches + k, groups.len() * batches);
                let outputs = run(&mut session, &batch.map_err(CalibrateError::from)?)?;
                for (gram, products) in grams.iter_mut().zip(outputs) {
                    let row = 4 * gram.size().max(1);
                    for one in products.bytes().chunks_exact(row * gram.size().max(1)) {
                        let rows = one.chunks_exact(row);
                        gram.add(rows.map(|row| row.chunks_exact(4).map(f32::from_le)));
                    }
                }
            }
            drop(session);
            for (v, gram) in values.into_iter().zip(grams) {
                take(v, gram)?;
            }
        }
        Ok(())
    }

    /// The batch with the most bytes, and the number of all.
    fn largest(&self) -> Result<(Batch, usize), CalibrateError> {
        let mut largest: Option<Batch> = None;
        let mut count = 0;
        for batch in self.source.batches() {
            let batch = batch?;
            count += 1;
            if largest.as_ref().is_none_or(|b| b.bytes() < batch.bytes()) {
                largest = Some(batch);
            }
        }
        let largest = largest.ok_or_else(|| CalibrateError::NoData(self.source.description()));
        Ok((largest?, count))
    }

    /// Bytes of each value on this batch: shapes are symbolic, so the model tells them.
    fn sizes(&self, values: &[ValueId], batch: &Batch) -> Result<Vec<usize>, CalibrateError> {
        self.talk.stage("calibration: sizes");
        let shapes = run(&mut self.session(values, Give::Shape)?, batch)?;
        let sizes = values.iter().zip(shapes).map(|(&v, shape)| {
            let dims = shape.to_i64s().unwrap_or_default();
            let count = dims.iter().try_fold(1usize, |n, &d| {
                n.checked_mul(usize::try_from(d).unwrap_or(usize::MAX))
            });
            let width = match self.model.graph.value(v).ty().dtype() {
                Some(DType::F16) => 2,
                _ => 4,
            };
            count.unwrap_or(usize::MAX).saturating_mul(width)
        });
        Ok(sizes.collect())
    }

    fn group(
        &self,
        values: &[ValueId],
        batches: usize,
        (turn, turns): (usize, usize),
    ) -> Result<Vec<Collector>, CalibrateError> {
        let mut session = self.session(values, Give::Value)?;
        let mut collectors = vec![Collector::new(); values.len()];
        let given = self.options.threads.map(NonZeroUsize::get);
        let threads = given.unwrap_or_else(runtime::threads);
        for (k, batch) in self.source.batches().enumerate() {
            self.talk.done(turn * batches + k, turns * batches);
            let outputs = run(&mut session, &batch?)?;
            fold(&mut collectors, outputs, threads);
        }
        Ok(collectors)
    }

    fn session(&self, values: &[ValueId], give: Give) -> Result<Session, CalibrateError> {
        let twin = twin(self.model, values, give)?;
        let parts = onnx::to_parts(&twin)?;
        drop(twin);
        let path = self.model.path.as_ref();
        let name = path.map_or("the model".to_string(), |p| p.display().to_string());
        let options = SessionOptions {
            optimization: Optimization::Disabled,
            intra_threads: self.options.threads,
            device: self.device,
            ..SessionOptions::default()
        };
        let session = Session::from_parts(self.runtime, name, parts, &options)?;
        // Weights that are not aligned in the file were copied.
        self.model.sources.iter().for_each(SourceFile::release);
        Ok(session)
    }
}

/// The model with these values, or their shapes, as its only outputs, in this order, without internal operators.
fn twin(model: &Model, values: &[ValueId], give: Give) -> Result<Model, CalibrateError> {
    let mut twin = model.clone();
    let g = &mut twin.graph;
    g.take_outputs();
    let inputs: Vec<String> = (g.inputs().iter())
        .map(|&v| g.value(v).name().to_string())
        .collect();
    let mut prefix = "calibrated".to_string();
    while inputs.iter().any(|name| name.starts_with(&prefix)) {
        prefix.push('_');
    }
    for (k, &v) in values.iter().enumerate() {
        // An operator of its own, which lowering leaves alone and which keeps the value apart from what reads it.
        let (op, ty) = match give {
            Give::Value => ("Identity", g.value(v).ty().clone()),
            Give::Shape => ("Shape", Type::Unknown),
            Give::Grams | Give::Gram => ("MatMul", Type::Unknown),
        };
        let inputs = match give {
            Give::Value | Give::Shape => vec![Some(v)],
            Give::Grams => transposed(g, v, 0),
            Give::Gram => transposed(g, v, 1),
        };
        let node = g.add_node(Op::onnx(op), "", inputs, 1, Attrs::new());
        if let Some(output) = g.node(node).output(0) {
            g.set_type(output, ty);
            g.add_output(&format!("{prefix}.{k}"), output);
        }
    }
    let target = Target::standard();
    let choices = kiln_passes::Options::default();
    let mut cx = Context::new(&target, &choices);
    kiln_passes::run(&mut twin, registry::LOWER, &mut cx, &mut |_, _| {})?;
    Ok(twin)
}

/// FP32 rows [n, rows, K] of a value and their transposes, in the order of a product: n is 1, or with `lead` 0 the value's
/// first dimension.
fn transposed(g: &mut Graph, v: ValueId, lead: i64) -> Vec<Option<ValueId>> {
    let mut x = Some(v);
    if g.value(v).ty().dtype() != Some(DType::F32) {
        let attrs = Attrs::new().with("to", i64::from(DType::F32.to_onnx()));
        let cast = g.add_node(Op::onnx("Cast"), "", [x], 1, attrs);
        x = g.node(cast).output(0);
    }
    let last = g.value(v).ty().shape().and_then(|s| s.last()?.known());
    let last = last.and_then(|k| i64::try_from(k).ok()).unwrap_or(-1);
    let dims = g.add_constant("rows", Tensor::vector(&[lead, -1, last]));
    let rows = g.add_node(Op::onnx("Reshape"), "", [x, Some(dims)], 1, Attrs::new());
    let rows = g.node(rows).output(0);
    let attrs = Attrs::new().with("perm", vec![0i64, 2, 1]);
    let turned = g.add_node(Op::onnx("Transpose"), "", [rows], 1, attrs);
    vec![g.node(turned).output(0), rows]
}

fn run(session: &mut Session, batch: &Batch) -> Result<Vec<Tensor>, CalibrateError> {
    let outputs = session.run(&batch.inputs);
    let outputs = outputs.map_err(|source| CalibrateError::Run {
        batch: batch.name.clone(),
        source,
    })?;
    Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
}

/// Values in their order, as many in a group as the memory allows.
fn parts<T: Clone>(values: &[T], sizes: &[usize], memory: usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut used = 0usize;
    for (value, &size) in values.iter().zip(sizes) {
        match parts.last_mut() {
            Some(part) if used.saturating_add(size) <= memory => {
                part.push(value.clone());
                used += size;
            }
            _ => {
                parts.push(vec![value.clone()]);
                used = size;
            }
        }
    }
    parts
}

/// Adds each output to its collector, and drops it. No two threads share a collector, so their number changes nothing.
fn fold(collectors: &mut [Collector], outputs: Vec<Tensor>, threads: usize) {
    let work: Vec<_> = collectors.iter_mut().zip(outputs).collect();
    let threads = threads.min(work.len());
    let work = Mutex::new(work.into_iter());
    let next = || {
        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
        work.next()
    };
    let each = || {
        while let Some((collector, tensor)) = next() {
            add(collector, &tensor);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(each);
        }
        each();
    });
}

/// Elements that are converted at a time.
const BLOCK: usize = 1 << 14;

fn add(collector: &mut Collector, tensor: &Tensor) {
    let row = tensor.dims().last().copied().filter(|_| tensor.rank() > 1);
    let whole = row.unwrap_or(1).max(1);
    let block = whole * (BLOCK / whole).max(1);
    let bytes = tensor.bytes();
    let mut floats = Vec::with_capacity(block.min(tensor.len()));
    let wide = tensor.dtype() == DType::F32;
    for part in bytes.chunks(block * if wide { 4 } else { 2 }) {
        floats.clear();
        match wide {
            true => floats.extend(part.chunks_exact(4).map(f32::from_le)),
            false => floats.extend(part.chunks_exact(2).map(|h| f16::from_le(h).to_f32())),
        }
        collector.add(row, &floats);
    }
}
