//! Constants of passes, computed by ONNX Runtime.

use std::cell::OnceCell;
use std::path::Path;

use kiln_graph::{Model, Tensor, onnx};
use kiln_passes::{Evaluator, EvaluatorError};

use super::{Runtime, run_model_bytes};

/// Computes constants with ONNX Runtime, which is loaded when the first is wanted.
#[derive(Debug)]
pub struct OrtEvaluator<'a> {
    library: Option<&'a Path>,
    runtime: OnceCell<&'static Runtime>,
}

impl OrtEvaluator<'_> {
    /// With this library, or the one that is found.
    pub fn new(library: Option<&Path>) -> OrtEvaluator<'_> {
        OrtEvaluator {
            library,
            runtime: OnceCell::new(),
        }
    }
}

impl Evaluator for OrtEvaluator<'_> {
    fn evaluate(&self, model: &Model) -> Result<Vec<Tensor>, EvaluatorError> {
        let failed = |e: &dyn std::fmt::Display| EvaluatorError(e.to_string());
        let runtime = match self.runtime.get() {
            Some(runtime) => *runtime,
            None => {
                let loaded = Runtime::load(self.library).map_err(|e| failed(&e))?;
                self.runtime.get_or_init(|| loaded)
            }
        };
        let bytes = onnx::to_bytes(model).map_err(|e| failed(&e))?;
        let none: [(&str, Tensor); 0] = [];
        let outputs = run_model_bytes(runtime, &bytes, &none).map_err(|e| failed(&e))?;
        Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
    }
}
