//! What can stop a compilation.

use std::path::PathBuf;

use kiln_graph::onnx::{ReadError, WriteError};

use crate::bench::BenchError;
use crate::bundle::BundleError;
use crate::engine::{DataType, EngineError};
use crate::fault::Fault;
use crate::manifest::Manifest;
use crate::parity::{self, ToleranceError};
use crate::pipeline;
use crate::prove;
use crate::setting::{DEVICE, INPUT, KEEP, NO_SEARCH, TOLERANCE};
use crate::shapes::SpecError;

/// A compilation stopped.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Prove(#[from] prove::Error),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
    #[error("{source}{}", hint(.source))]
    Engine { source: EngineError },
    /// TensorRT built no engine of a model whose branches inputs select.
    #[error("{source}. An engine has all branches, and {} among them: {INPUT} {} leaves only those of that value", select(.controls), .controls.join(&format!(" {INPUT} ")))]
    Branches {
        source: Box<CompileError>,
        /// As [`INPUT`] takes them. Never empty.
        controls: Vec<String>,
    },
    #[error("the result is not the same function as {}: {}{}; no bundle was written. {advice}", model.display(), on(.engine), parity::failures(.parity))]
    NotTheSame {
        model: PathBuf,
        /// What ran the engine, if it is the engine that differs.
        engine: Option<String>,
        parity: Box<parity::Report>,
        advice: String,
    },
    #[error("the result does not generate what {} does: {failed}; no bundle was written. {KEEP} names nodes that keep their precision, {TOLERANCE} another tolerance", model.display())]
    Generation { model: PathBuf, failed: String },
    #[error("{}: the search for nodes that must keep their precision stopped; no bundle was written. {NO_SEARCH} leaves it out, {KEEP} names nodes: {source}", model.display())]
    Search {
        model: PathBuf,
        source: Box<CompileError>,
    },
    #[error("{}: {failed}; no bundle was written", model.display())]
    Gates {
        model: PathBuf,
        failed: String,
        /// All that was found out, unless it was clear before that a gate cannot pass.
        manifest: Option<Box<Manifest>>,
    },
    #[error("{}: {why}; no bundle was written. Nodes of other precisions can be kept, or the CPU be taken ({DEVICE} cpu)", model.display())]
    Fallback { model: PathBuf, why: String },
    #[error("TensorRT reads {} without {}, which it was asked to be in; no bundle was written", model.display(), list(.absent))]
    Precision {
        model: PathBuf,
        absent: Vec<DataType>,
    },
    #[error("the manifest cannot be written: {0}")]
    Manifest(serde_json::Error),
}

fn on(engine: &Option<String>) -> String {
    let runner = engine.as_ref();
    runner.map_or(String::new(), |runner| format!("the engine on {runner}: "))
}

fn list(precisions: &[DataType]) -> String {
    let names: Vec<String> = precisions.iter().map(DataType::to_string).collect();
    names.join(", ")
}

fn hint(source: &EngineError) -> String {
    source.hint().map_or(String::new(), |h| format!(" ({h})"))
}

fn select(controls: &[String]) -> String {
    let names = controls.iter().filter_map(|c| c.split('=').next());
    let names: Vec<&str> = names.collect();
    let verb = if names.len() == 1 {
        "selects"
    } else {
        "select"
    };
    format!("{} {verb}", names.join(" and "))
}

impl From<EngineError> for CompileError {
    fn from(source: EngineError) -> CompileError {
        CompileError::Engine { source }
    }
}

impl CompileError {
    /// With what would leave branches out that these inputs select, if it was the engine that could not be built.
    pub(super) fn beside(self, controls: &[String]) -> CompileError {
        let built = matches!(
            &self,
            CompileError::Engine {
                source: EngineError::Build { .. } | EngineError::Parse { .. }
            }
        );
        match built && !controls.is_empty() {
            true => CompileError::Branches {
                source: Box::new(self),
                controls: controls.to_vec(),
            },
            false => self,
        }
    }

    /// What stopped a search. What the search found out, and what has nothing to do with it, stays what it is.
    pub(super) fn in_search(self, options: &crate::options::Options) -> CompileError {
        match self {
            known @ (CompileError::NotTheSame { .. }
            | CompileError::Prove(prove::Error::Refused { .. })
            // No layers that keep FP32 would let it be built.
            | CompileError::Engine { .. }
            | CompileError::Fallback { .. }) => known,
            known if matches!(known.fault(), Fault::Request | Fault::Machine) => known,
            other => CompileError::Search {
                model: options.model.clone(),
                source: Box::new(other),
            },
        }
    }

    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            CompileError::NotTheSame { .. }
            | CompileError::Generation { .. }
            | CompileError::Precision { .. }
            | CompileError::Fallback { .. }
            | CompileError::Gates { .. } => Fault::Result,
            CompileError::Io { .. } => Fault::Request,
            CompileError::Manifest(_) => Fault::Defect,
            CompileError::Search { .. } => Fault::Search,
            CompileError::Branches { source, .. } => source.fault(),
            CompileError::Pipeline(e) => e.fault(),
            CompileError::Prove(e) => e.fault(),
            CompileError::Bundle(e) => e.fault(),
            CompileError::Bench(e) => e.fault(),
            CompileError::Engine { source } => source.fault(),
        }
    }
}

/// Errors of the pipeline that stages of a compilation meet, too.
macro_rules! of_the_pipeline {
    ($($error:ty),*) => {$(
        impl From<$error> for CompileError {
            fn from(e: $error) -> CompileError {
                CompileError::Pipeline(e.into())
            }
        }
    )*};
}

of_the_pipeline!(ReadError, WriteError, SpecError, ToleranceError);
