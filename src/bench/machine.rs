//! What the machine can do at most, measured: the roofline (Williams et al., "Roofline: an insightful visual performance
//! model").

use std::time::Instant;

use kiln_graph::graph::Opsets;
use kiln_graph::{Attrs, DType, Dim, Graph, Model, Op, Tensor, Type, onnx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::Work;
use crate::runtime::{self, Runtime, Session, SessionOptions};

/// Peaks that this machine reached, with the threads of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
pub struct Machine {
    /// 10⁹ floating-point operations a second of a large FP32 product in ONNX Runtime.
    pub gflops: f64,
    /// 10⁹ bytes a second of reading memory that no cache holds.
    pub gbytes: f64,
}

/// Rows and columns of the product: 2 GFLOP, and 12 MB that stay in cache in parts.
const SIDE: usize = 1024;

/// The same on a GPU: 137 GFLOP, which fills a large one for some milliseconds.
const GPU_SIDE: usize = 4096;

/// Bytes that are read: beyond the caches of any CPU but the largest.
const MEMORY: usize = 256 << 20;

/// The best of so many tries counts.
const TRIES: usize = 7;

impl Machine {
    /// Takes about a second.
    ///
    /// # Errors
    /// When ONNX Runtime does not run the product.
    pub fn measure(
        runtime: &'static Runtime,
        options: &SessionOptions,
        threads: usize,
    ) -> Result<Machine, runtime::Error> {
        if !options.device.is_cpu() {
            return Machine::measure_gpu(runtime, options);
        }
        let model = product(SIDE);
        let gflops = operations(SIDE) / fastest(runtime, options, &model, &[SIDE, SIDE])? / 1e9;
        // Zeros would be one page of the system's.
        let memory = vec![1u8; MEMORY];
        let mut read = || -> Result<(), runtime::Error> {
            std::hint::black_box(halves_are_equal(&memory, threads));
            Ok(())
        };
        let seconds = self::best(&mut read)?;
        Ok(Machine {
            gflops,
            gbytes: MEMORY as f64 / seconds / 1e9,
        })
    }

    /// As [`Machine::measure`], by larger work that stays on the GPU.
    fn measure_gpu(
        runtime: &'static Runtime,
        options: &SessionOptions,
    ) -> Result<Machine, runtime::Error> {
        let side = GPU_SIDE;
        let product = fastest(runtime, options, &product(side), &[side, side])?;
        let copied = fastest(runtime, options, &negation(), &[MEMORY / 4])?;
        Ok(Machine {
            gflops: operations(side) / product / 1e9,
            // Each element is read and written.
            gbytes: 2.0 * MEMORY as f64 / copied / 1e9,
        })
    }

    /// The higher of both peaks: what else ran while one was measured made it lower.
    pub fn max(self, other: Machine) -> Machine {
        Machine {
            gflops: self.gflops.max(other.gflops),
            gbytes: self.gbytes.max(other.gbytes),
        }
    }

    /// The shortest time in nanoseconds that the work can take here, in FP32.
    pub fn limit(&self, work: &Work) -> f64 {
        let compute = work.flops as f64 / self.gflops;
        let memory = work.bytes() as f64 / self.gbytes;
        compute.max(memory)
    }
}

/// Of a product of square matrices.
fn operations(side: usize) -> f64 {
    2.0 * (side as f64).powi(3)
}

/// Seconds of the fastest run of a model on ones of this shape.
fn fastest(
    runtime: &'static Runtime,
    options: &SessionOptions,
    model: &Model,
    shape: &[usize],
) -> Result<f64, runtime::Error> {
    let bytes = onnx::to_bytes(model).unwrap_or_default();
    let mut session = Session::from_bytes(runtime, "a measure of the machine", &bytes, options)?;
    let ones = vec![1f32; shape.iter().product()];
    let x = Tensor::from_values(shape, &ones).unwrap_or_else(|_| Tensor::vector(&ones));
    let mut bound = match options.device.is_cpu() {
        true => session.bind(&[("x", x)])?,
        false => session.bind_resident(&[("x", x)])?,
    };
    best(&mut || bound.run_discarding())
}

/// Seconds of the fastest try, after one that warms up.
fn best(run: &mut dyn FnMut() -> Result<(), runtime::Error>) -> Result<f64, runtime::Error> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Reads all of it, if they are: the C library compares as fast as memory gives, for a build without optimizations, too.
fn halves_are_equal(memory: &[u8], threads: usize) -> bool {
    let part = memory.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let equal = |part: &[u8]| {
            let (front, back) = part.split_at(part.len() / 2);
            *front == back[..front.len()]
        };
        let work: Vec<_> = memory
            .chunks(part)
            .map(|part| scope.spawn(move || equal(part)))
            .collect();
        work.into_iter().all(|w| w.join().unwrap_or(false))
    })
}

fn product(side: usize) -> Model {
    let ty = || matrix(&[side, side]);
    let mut opsets = Opsets::default();
    opsets.set("", 17);
    let mut g = Graph::new(opsets);
    let x = g.add_input("x", ty());
    let values = vec![0.5f32; side * side];
    let w = Tensor::from_values(&[side, side][..], &values);
    let w = g.add_constant("w", w.unwrap_or_else(|_| Tensor::vector(&values)));
    let id = g.add_node(
        Op::onnx("MatMul"),
        "product",
        [Some(x), Some(w)],
        1,
        Attrs::new(),
    );
    if let Some(y) = g.node(id).output(0) {
        g.set_type(y, ty());
        g.add_output("y", y);
    }
    Model::new(g)
}

/// One operator that does nothing but read and write.
fn negation() -> Model {
    let mut opsets = Opsets::default();
    opsets.set("", 17);
    let mut g = Graph::new(opsets);
    let x = g.add_input("x", matrix(&[MEMORY / 4]));
    let id = g.add_node(Op::onnx("Neg"), "copy", [Some(x)], 1, Attrs::new());
    if let Some(y) = g.node(id).output(0) {
        g.set_type(y, matrix(&[MEMORY / 4]));
        g.add_output("y", y);
    }
    Model::new(g)
}

fn matrix(dims: &[usize]) -> Type {
    let dims = dims.iter().copied().map(Dim::Known);
    Type::tensor(DType::F32, Some(dims.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_to_its_end() {
        for threads in [0, 1, 3] {
            let mut memory = vec![1u8; 1001];
            assert!(halves_are_equal(&memory, threads));
            memory[990] = 2;
            assert!(!halves_are_equal(&memory, threads), "{threads}");
        }
    }

    #[test]
    fn the_slower_of_both_limits_counts() {
        let machine = Machine {
            gflops: 10.0,
            gbytes: 1.0,
        };
        let work = |flops, weight_bytes| Work {
            flops,
            weight_bytes,
            ..Work::default()
        };
        assert_eq!(machine.limit(&work(1_000, 10)), 100.0);
        assert_eq!(machine.limit(&work(1_000, 200)), 200.0);
    }
}
