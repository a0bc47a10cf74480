//! What an export needs to know of a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_graph::{DType, Dim, Model, ValueId, onnx};
use serde::Deserialize;

use super::ExportError;
use crate::bundle;
use crate::shapes::{self, Range};

/// An input or output of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Port {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

#[derive(Debug)]
pub(super) struct Facts {
    pub bundle: PathBuf,
    pub path: PathBuf,
    pub model: Model,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The dimension that all inputs begin with, if it is one of samples.
    pub batch: Option<String>,
    /// Sizes that were proved and built for.
    pub sizes: BTreeMap<String, Range>,
    pub target: String,
    /// The runtime of the engine, if there is one.
    pub engine: Option<String>,
    /// What the result was held to: `passes (fp16)`.
    pub parity: String,
}

/// The part of a manifest that matters here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Part {
    sizes: BTreeMap<String, Range>,
    target: String,
    engine: Option<Engine>,
    parity_outcome: Option<String>,
}

#[derive(Deserialize)]
struct Engine {
    runtime: String,
}

impl Facts {
    /// Reads a bundle.
    pub(super) fn read(folder: &Path) -> Result<Facts, ExportError> {
        let path = bundle::find_model(folder)?;
        let manifest = folder.join(bundle::MANIFEST);
        let unread = |reason: String| ExportError::Manifest {
            path: manifest.clone(),
            reason,
        };
        let text = fs::read(&manifest).map_err(|e| unread(e.to_string()))?;
        let part: Part = serde_json::from_slice(&text).map_err(|e| unread(e.to_string()))?;
        let model = onnx::read(&path)?;
        let g = &model.graph;
        let optional = |v: &ValueId| g.defaults().iter().any(|(d, _)| d == v);
        let inputs = g.inputs().iter().filter(|v| !optional(v));
        let inputs = inputs.map(|&v| port(&path, &model, v, g.value(v).name()));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let outputs = g.outputs().iter();
        let outputs = outputs.map(|o| port(&path, &model, o.value, &o.name));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        Ok(Facts {
            bundle: folder.to_path_buf(),
            batch: batch(&inputs),
            inputs,
            outputs,
            path,
            model,
            sizes: part.sizes,
            target: part.target,
            engine: part.engine.map(|e| e.runtime),
            parity: part.parity_outcome.unwrap_or("not run".into()),
        })
    }

    /// The model for ONNX Runtime on a GPU: its CUDA provider's where the bundle has one.
    pub(super) fn on_cuda(&self) -> PathBuf {
        let own = self.bundle.join(bundle::CUDA_MODEL);
        match own.is_file() {
            true => own,
            false => self.path.clone(),
        }
    }

    pub(super) fn unfit(&self, why: impl Into<String>) -> ExportError {
        ExportError::Unfit {
            model: self.path.clone(),
            why: why.into(),
        }
    }

    /// The range of a symbolic size; of one that the manifest does not know, nothing.
    pub(super) fn range(&self, dim: &Dim) -> Option<Range> {
        match dim {
            Dim::Known(n) => Some(Range::fixed(*n)),
            Dim::Symbol(name) => self.sizes.get(&name.to_string()).copied(),
            Dim::Unknown => None,
        }
    }

    /// The most samples at once; `None` without a dimension of samples.
    pub(super) fn most(&self) -> Option<usize> {
        let batch = self.batch.as_ref()?;
        Some(self.sizes.get(batch).map_or(1, |r| r.max).max(1))
    }

    /// The length of texts, by the second dimension of the first input.
    pub(super) fn length(&self) -> Option<Range> {
        self.range(self.inputs.first()?.dims.get(1)?)
    }

    /// Whether the first dimension of a port is that of samples.
    pub(super) fn is_batched(&self, port: &Port) -> bool {
        match (&self.batch, port.dims.first()) {
            (Some(batch), Some(Dim::Symbol(s))) => s.to_string() == *batch,
            _ => false,
        }
    }
}

fn port(path: &Path, model: &Model, value: ValueId, name: &str) -> Result<Port, ExportError> {
    let ty = model.graph.value(value).ty();
    let shape = ty.shape().map(<[Dim]>::to_vec);
    match (ty.dtype(), shape) {
        (Some(dtype), Some(dims)) => Ok(Port {
            name: name.to_string(),
            dtype,
            dims,
        }),
        _ => Err(ExportError::Unfit {
            model: path.to_path_buf(),
            why: format!("\"{name}\" is {ty}; a server must know type and rank"),
        }),
    }
}

/// The symbol that all inputs begin with, if it is called as batches are.
fn batch(inputs: &[Port]) -> Option<String> {
    let first = |p: &Port| match p.dims.first() {
        Some(Dim::Symbol(s)) => Some(s.to_string()),
        _ => None,
    };
    let name = first(inputs.first()?)?;
    let all = inputs.iter().all(|p| first(p).as_ref() == Some(&name));
    (all && shapes::is_batch(&name)).then_some(name)
}
