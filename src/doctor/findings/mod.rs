//! From facts to findings: what is there, what is missing, and what does not fit together.

mod cuda;
mod gpu;
mod kinds;
mod onnx_runtime;
mod tensorrt;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::finding::Finding;

/// Everything that there is to say.
pub(super) fn of(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![
        onnx_runtime::library(facts),
        tensorrt::builder(facts),
        gpu::driver(facts),
    ];
    all.extend(gpu::gpus(facts));
    all.push(onnx_runtime::provider(facts));
    all.push(cuda::runtime(facts));
    all.push(cuda::cudnn(facts));
    all.push(onnx_runtime::plugin(facts));
    all.push(tensorrt::proper(facts));
    all.extend(mismatches(facts));
    all
}

/// Pairs of things that are there and do not fit.
fn mismatches(facts: &Facts) -> Vec<Finding> {
    let rooms = [
        onnx_runtime::mismatches,
        cuda::mismatches,
        gpu::mismatches,
        tensorrt::mismatches,
    ];
    rooms.iter().flat_map(|room| room(facts)).collect()
}
