//! Raises the model's operator set to the target's, where it is older.

use kiln_graph::{Model, opset};

use crate::core::kernels;
use crate::core::pass::{Context, Exactness, Pass, PassFailure};

#[derive(Debug)]
pub struct RaiseOpset;

impl Pass for RaiseOpset {
    fn name(&self) -> &'static str {
        "raise-opset"
    }

    fn about(&self) -> &'static str {
        "raise the ONNX operator set to the one the target wants"
    }

    fn details(&self) -> String {
        "Operators change their signatures between versions: Softmax flattened before 13, Squeeze and ReduceSum took \
         axes as an attribute before 13, ReduceMean before 18; LayerNormalization exists from 17, Gelu from 20. Raising \
         the version first lets every later pass know one form of each. A model that is newer is left as it is. One \
         that has an operator which ONNX Runtime does not run in a newer version (random numbers, RoiAlign, \
         GlobalLpPool: all of 22) is raised to the version before: whatever the target is, the result is proved in ONNX \
         Runtime."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<usize, PassFailure> {
        let from = model.graph.opset();
        let to = kernels::newest_run(model, from, cx.target.facts.opset);
        if from >= to || !cx.admit(self.name(), || format!("operator set {from} to {to}")) {
            return Ok(0);
        }
        Ok(opset::convert(model, to)?.nodes)
    }
}
