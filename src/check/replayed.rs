//! A result as it serves on a GPU: all of ONNX Runtime's optimizations, operands in the GPU's memory, kernels replayed as a CUDA graph.

use std::path::Path;

use kiln_graph::{DType, Model, Tensor, infer};
use kiln_passes::cuda_kernels;

use super::Options;
use crate::engine_parity::{NotRun, Runner, RunnerError};
use crate::runtime::{Chosen, Device, GpuOptions, Runtime, Session, SessionOptions};

/// Opens a model in its file and in memory.
///
/// # Errors
/// Why nothing is replayed: there is no CUDA device, or ONNX Runtime records no graph of this model.
pub(super) fn open(
    options: &Options,
    path: &Path,
    model: &Model,
    device: &Chosen,
) -> Result<Box<dyn Runner>, NotRun> {
    let mut typed = model.clone();
    infer::annotate(&mut typed.graph);
    if let Some(why) = obstacle(&typed) {
        return Err(NotRun(why));
    }
    drop(typed);
    if !matches!(device.device, Device::Cuda(_)) {
        return Err(NotRun(format!("no CUDA device: models run on {device}")));
    }
    let runtime = Runtime::load(options.ort_lib.as_deref());
    let opened =
        runtime.and_then(|runtime| Session::from_path(runtime, path, &served(device.device)));
    match opened {
        Ok(session) => Ok(Box::new(Replayed {
            session,
            device: device.clone(),
        })),
        // It is wrong, not left out: the table of kernels says that it runs.
        Err(error) => Ok(Box::new(Refused(error.to_string()))),
    }
}

/// How the session is made.
fn served(device: Device) -> SessionOptions {
    SessionOptions {
        device,
        gpu: GpuOptions {
            graph: true,
            ..GpuOptions::default()
        },
        ..SessionOptions::default()
    }
}

/// Why ONNX Runtime records no CUDA graph of a model, if it does not (`inference_session.cc`): it takes no control flow, and no copies
/// between the GPU and the CPU. The model's types must be inferred.
fn obstacle(model: &Model) -> Option<String> {
    let g = &model.graph;
    let flow = g
        .nodes()
        .find(|(_, n)| n.op().is_any(&["If", "Loop", "Scan"]));
    if let Some((id, _)) = flow {
        let node = g.label(id);
        return Some(format!(
            "a CUDA graph holds no control flow, which {node} is"
        ));
    }
    let fallen = cuda_kernels::fallen(model);
    if let Some(first) = fallen.iter().find(|f| !f.sizes) {
        return Some(format!(
            "a CUDA graph holds no copies to the CPU, where {} runs",
            first.node
        ));
    }
    let brain = g
        .outputs()
        .iter()
        .find(|o| g.value(o.value).ty().dtype() == Some(DType::BF16));
    brain.map(|o| {
        format!(
            "the output '{}' is of BF16, which is not copied back",
            o.name
        )
    })
}

struct Replayed {
    session: Session,
    device: Chosen,
}

impl Runner for Replayed {
    fn describe(&self) -> String {
        format!("a CUDA graph on {}", self.device)
    }

    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        let known = |name: &str| self.session.inputs().iter().any(|i| i.name == name);
        let inputs: Vec<_> = inputs.iter().filter(|(n, _)| known(n)).cloned().collect();
        let mut replay = || {
            let mut bound = self.session.bind_resident(&inputs)?;
            // The first run is recorded; the second is the recording.
            bound.run_discarding()?;
            bound.run()
        };
        replay().map_err(|e: crate::runtime::Error| RunnerError(e.to_string()))
    }
}

/// A session that ONNX Runtime refuses.
struct Refused(String);

impl Runner for Refused {
    fn describe(&self) -> String {
        "a CUDA graph that is not recorded".into()
    }

    fn run(&mut self, _: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RunnerError> {
        Err(RunnerError(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Gpu;
    use kiln_graph::onnx;

    fn why(text: &str) -> Option<String> {
        let mut model = onnx::read_text(text).unwrap();
        infer::annotate(&mut model.graph);
        obstacle(&model)
    }

    #[test]
    fn what_no_graph_holds_is_named() {
        let flow = r#"<ir_version: 10, opset_import: ["" : 20]> g (bool c, float[n] x) => (float[n] y)
            { [branch] y = If(c) <
                then_branch = t () => (float[n] a) { a = Neg(x) },
                else_branch = e () => (float[n] b) { b = Abs(x) }
              > }"#;
        assert_eq!(
            why(flow).unwrap(),
            "a CUDA graph holds no control flow, which branch (If) is"
        );
        let fallen = r#"<ir_version: 10, opset_import: ["" : 23]> g (bfloat16[n] x) => (float[n] z)
            { [small] y = Less(x, x)
              z = Cast<to = 1>(y) }"#;
        let told = why(fallen).unwrap();
        assert!(told.contains("small (Less) runs"), "{told}");
        let brain = r#"<ir_version: 10, opset_import: ["" : 20]> g (bfloat16[n] x) => (bfloat16[n] y) { y = Mul(x, x) }"#;
        let told = why(brain).unwrap();
        assert!(told.contains("'y' is of BF16"), "{told}");
        let sizes = r#"<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[m] y)
            { n = Size(x)
              m = BitShift <direction = "LEFT"> (n, n)
              y = Expand(x, m) }"#;
        assert_eq!(why(sizes), None);
    }

    #[test]
    fn a_session_that_serves_records_a_graph_and_is_optimized() {
        let gpu = Gpu {
            id: 1,
            memory_limit: None,
        };
        let options = served(Device::Cuda(gpu));
        assert!(options.gpu.graph && !options.gpu.tf32 && !options.watched);
        assert_eq!(options.optimization, crate::runtime::Optimization::All);
    }
}
