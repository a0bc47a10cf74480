//! What is known of a result for ONNX Runtime's CUDA provider before it runs there.

use kiln_graph::Model;
use kiln_passes::cuda_kernels::{self, Fallen};

use crate::runtime::Chosen;

/// Nodes that are named in one sentence.
const NAMED: usize = 3;

/// Nodes that fall to the CPU by the provider's table of kernels, and what a proof on the CPU does not say.
pub(super) fn warnings(model: &Model, device: Option<&Chosen>) -> Vec<String> {
    let fallen: Vec<Fallen> = cuda_kernels::fallen(model);
    let mut told: Vec<String> = falls(&fallen).into_iter().collect();
    if device.is_some_and(|d| d.device.is_cpu()) {
        told.push(
            "the result was proved on the CPU, with its operators computed in FP32 and rounded: the CUDA kernels themselves did not run"
                .into(),
        );
    }
    told
}

/// Nodes on data, not on sizes, that have no kernel.
fn falls(fallen: &[Fallen]) -> Option<String> {
    let data: Vec<&Fallen> = fallen.iter().filter(|f| !f.sizes).collect();
    let named: Vec<String> = data.iter().take(NAMED).map(|f| name(f)).collect();
    let more = match data.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    (!data.is_empty()).then(|| {
        format!(
            "ONNX Runtime's CUDA provider ({}) has no kernel for {}{more}: they run on the CPU, and their operands are copied",
            cuda_kernels::release(),
            named.join(", ")
        )
    })
}

fn name(fallen: &Fallen) -> String {
    let types: Vec<&str> = fallen.types.iter().map(|d| d.name()).collect();
    format!("'{}' ({} of {})", fallen.node, fallen.op, types.join(", "))
}
